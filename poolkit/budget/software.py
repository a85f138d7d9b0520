"""What a container's image and command say: a database server, a pooler, a client, or no client.

The images stand in tables/software.toml; `[tool.poolkit.budget.software]` adds others.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from poolkit.budget.processes import PROGRAMS, names_program, started
from poolkit.budget.signs import SERVERS, engines_besides
from poolkit.budget.tables import table
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from poolkit.budget.model import Workload

_TAG = re.compile(r"@.*|:[^/]*$")
# A script in the image of a server that is not the server: it prepares, copies or waits.
_SCRIPT = re.compile(r"migrat|backup|dump|restore|seed|cron|wait|setup|\.(py|sql)\b")


@dataclass(frozen=True, kw_only=True)
class Software:
    """A piece of software that is known by its image."""

    name: str
    images: tuple[str, ...]
    role: Literal["server", "pooler", "client", "none"]
    engine: str = "postgres"
    """The engine, if it is a server."""
    pool: tuple[str, ...] = ()
    """The variables that set the most connections of one process, or a server's max_connections."""
    default: int | None = None
    """The connections without these variables; None: unknown."""
    overflow: int = 0
    """Further connections of one process."""
    embedded: bool = False
    """True if it stores its data in a file without a database among its variables."""
    further: str = ""
    """The variable that sets their number instead, or turns them off with `false`."""
    programs: tuple[str, ...] = ()
    """The programs by which a server or pooler is started."""
    limit: str = ""
    """Why a server's max_connections is unknown without the variables; empty: the default."""
    settings: str = ""
    """The settings that a server's image writes into its configuration file."""
    needs: tuple[str, ...] = ()
    """Variables of which one must be set, and no host, for the image to count."""

    def is_image(self, repository: str, variables: Collection[str]) -> bool:
        """Return whether a repository has one of the images."""
        if self.needs and (
            not set(self.needs) & set(variables) or any(each.endswith("HOST") for each in variables)
        ):
            return False
        return _is_one_of(repository, self.images)


@functools.cache
def _is_one_of(repository: str, images: tuple[str, ...]) -> bool:
    """Return whether a repository has one of the images; many workloads share their image."""
    last = repository.rpartition("/")[2]
    return any(
        fnmatchcase(f"/{repository}", f"*/{each}") if "/" in each else fnmatchcase(last, each)
        for each in images
    )


def software_table(
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[Software, ...]:
    """Return the known software: that of a user, by image, and then that of the table.

    Example: `{"example/api": {"role": "client", "pool": "API_POOL", "default": 5}}`.

    Raises:
        BudgetError: an entry has another form.
    """
    found = [{"name": image, "images": image, **each} for image, each in (extra or {}).items()]
    try:
        own = tuple(_software(each) for each in found)
    except (TypeError, ValueError) as error:
        raise BudgetError(f"[tool.poolkit.budget.software]: {error}") from None
    return (*own, *_built_in())


@functools.cache
def _built_in() -> tuple[Software, ...]:
    return tuple(_software(each) for each in table("software")["software"])


def _software(entry: Mapping[str, Any]) -> Software:
    lists = ("images", "pool", "programs", "needs")
    if isinstance(entry.get("pool"), int):
        entry = {**entry, "pool": (), "default": entry["pool"]}
    values: dict[str, Any] = {
        key: tuple([value] if isinstance(value, str) else value) if key in lists else value
        for key, value in entry.items()
    }
    if values.get("role") not in ("server", "pooler", "client", "none"):
        raise ValueError(f"{entry['name']}: role must be server, pooler, client or none")
    return Software(**values)


def software_of(workload: Workload, known: Collection[Software] = ()) -> Software | None:
    """Return the software of a workload's image, or of the image that it is built from."""
    for image in (workload.image, workload.base_image):
        repository = _TAG.sub("", image.strip()).lower()
        for each in (known or _built_in()) if repository else ():
            if each.is_image(repository, workload.variables):
                return each
    return None


def is_server(workload: Workload, known: Collection[Software] = ()) -> bool:
    """Return whether a container is a database server, and not a client with the same image."""
    found = software_of(workload, known)
    return found is not None and found.role == "server" and _runs(workload, found)


def is_pooler(workload: Workload, known: Collection[Software] = ()) -> bool:
    """Return whether a container is a pooler, by its image or its command."""
    found = software_of(workload, known)
    if found is not None and found.role == "pooler":
        return _runs(workload, found)
    return workload.unit != "init container" and names_program(workload, {"pgbouncer"})


def is_no_client(
    workload: Workload,
    engines: Collection[str] = ("postgres", "mysql"),
    known: Collection[Software] = (),
) -> str:
    """Return why a workload opens no connection to a database server; empty if it may.

    Args:
        workload: the workload.
        engines: the engines of the servers of the deployment; empty: only the software counts,
            since a setting names one of the servers.
        known: the known software.

    """
    found = software_of(workload, known)
    if found is not None and found.role == "none":
        # An image that is built on it may start another program.
        program, words = started(workload)[0], " ".join(workload.command or ())
        is_same = any(each.rpartition("/")[2] in words for each in found.images)
        if workload.image or is_same or program[:1] in ("", "-"):
            return f"{found.name} ({workload.image or workload.base_image}) connects to no database"
    return engines_besides(workload, set(engines) & SERVERS) if engines else ""


def _runs(workload: Workload, software: Software) -> bool:
    """Return whether a container runs the server or pooler of its image."""
    if workload.unit == "init container":
        return False
    program, text = started(workload)[0], " ".join(workload.command or ())
    if program in PROGRAMS["clients"]:
        return False
    if not program or program.startswith("-") or names_program(workload, set(software.programs)):
        return True
    return program not in {"python"} | PROGRAMS["shells"] and _SCRIPT.search(text) is None
