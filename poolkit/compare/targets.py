"""The targets of a project: its `[tool.poolkit.targets.*]` tables, checked.

    [tool.poolkit.targets.web]
    kind = "web"                          # lambda | web | worker
    app = "webapp.app:app"                # web: an ASGI application
    locustfile = "loadtests/articles.py"
    preset = "web"

docs/configuration.md lists every key.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from poolkit.config.presets import TARGETS
from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from poolkit.project import Project

Kind: TypeAlias = Literal["lambda", "web", "worker"]
KINDS: tuple[Kind, ...] = ("lambda", "web", "worker")
PLACEHOLDERS = ("python", "port", "processes", "broker_url")


@dataclass(frozen=True, kw_only=True)
class Target:
    """How one deployable is started and loaded.

    Strings in `command` and `env` may use `{python}`, `{port}`, `{processes}` and
    `{broker_url}`; using the last one is what starts the broker.
    """

    name: str
    kind: Kind
    preset: str
    locustfile: str
    handler: str | None = None
    """lambda: `module.function`."""
    app: str | None = None
    """web: `module:application`."""
    command: tuple[str, ...] = ()
    """worker, and web instead of `app`: the program and its arguments."""
    ready: str | None = None
    """web: a path that answers 200; worker: a regular expression for a line of its log."""
    metrics: str | None = None
    """A path with Prometheus metrics, where pool events are read as a second witness."""
    processes: int = 1
    """web: processes behind the port; worker: children that run tasks."""
    reserved_concurrency: int | Literal["fit"] | None = None
    """lambda: the most execution environments; "fit": as many as the database has room for;
    none: one for every user."""
    through: Literal["postgresql", "pgbouncer"] = "postgresql"
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def needs_broker(self) -> bool:
        """True if its command or its variables name the broker."""
        return any("{broker_url}" in text for text in (*self.command, *self.env.values()))


def targets_of(project: Project) -> dict[str, Target]:
    """Return the project's targets by name, in the order of its pyproject.toml.

    Raises:
        ConfigurationError: there are none, or a table is wrong; the message names the key.
    """
    tables = project.table.get("targets")
    file = project.root / "pyproject.toml"
    if not tables and not file.is_file():
        raise ConfigurationError(
            f"there is no pyproject.toml in {project.root} or above it; go to the project whose "
            "[tool.poolkit.targets.NAME] tables say what to compare"
        )
    if not isinstance(tables, dict) or not tables:
        raise ConfigurationError(
            f"{file} has no [tool.poolkit.targets.NAME] table, so there is nothing to compare"
        )
    return {name: _target(file, project.root, name, table) for name, table in tables.items()}


def choose(targets: Mapping[str, Target], names: Sequence[str]) -> list[Target]:
    """Return the named targets, or all if none is named.

    Raises:
        ConfigurationError: there is no target of that name, or one is named twice.
    """
    for name in names:
        if list(names).count(name) > 1:
            raise ConfigurationError(f"target {name!r} is named twice; name each once")
        if name not in targets:
            close = difflib.get_close_matches(name, targets, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigurationError(
                f"target {name!r} is not in pyproject.toml{hint}; there are: {', '.join(targets)}"
            )
    return [targets[name] for name in names or targets]


def _target(file: Path, root: Path, name: str, table: Any) -> Target:
    where = f"{file}: [tool.poolkit.targets.{name}]"
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where} must be a table, not {table!r}")
    values = {"preset": name, **table}
    _check_keys(where, values)
    _check_types(where, values)
    _check_choices(where, values)
    if not (root / values["locustfile"]).is_file():
        raise ConfigurationError(f"{where} locustfile: there is no file {values['locustfile']}")
    return Target(name=name, **{**values, "command": tuple(values.get("command", ()))})


def _check_keys(where: str, values: Mapping[str, Any]) -> None:
    known = [f.name for f in dataclasses.fields(Target) if f.name != "name"]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
            raise ConfigurationError(f"{where} has an unknown key {key}{hint}")
    needed = {"lambda": ("handler",), "web": ("app", "command"), "worker": ("command",)}
    for key in ("kind", "locustfile"):
        if key not in values:
            raise ConfigurationError(f"{where} needs {key}")
    one_of = needed.get(values["kind"], ())
    if one_of and not any(values.get(key) for key in one_of):
        raise ConfigurationError(f"{where} needs {' or '.join(one_of)}")


_STRINGS = ("kind", "preset", "locustfile", "handler", "app", "ready", "metrics", "through")


def _check_types(where: str, values: Mapping[str, Any]) -> None:
    for key in _STRINGS:
        if key in values and not isinstance(values[key], str):
            raise ConfigurationError(f"{where} {key} must be a string, not {values[key]!r}")
    processes = values.get("processes", 1)
    if type(processes) is not int or not 1 <= processes <= 64:
        raise ConfigurationError(f"{where} processes must be from 1 to 64, not {processes!r}")
    command = values.get("command", [])
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise ConfigurationError(f"{where} command must be a list of strings, not {command!r}")
    env = values.get("env", {})
    if not isinstance(env, dict) or not all(isinstance(text, str) for text in env.values()):
        raise ConfigurationError(f"{where} env must be a table of strings, not {env!r}")
    for text in (*command, *env.values()):
        _check_placeholders(where, text)


def _check_placeholders(where: str, text: str) -> None:
    try:
        text.format(**dict.fromkeys(PLACEHOLDERS, ""))
    except (KeyError, IndexError, ValueError):
        names = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise ConfigurationError(
            f"{where}: {text!r} has an unknown placeholder; there are {names}"
        ) from None


def _check_choices(where: str, values: Mapping[str, Any]) -> None:
    choices = {"kind": KINDS, "preset": TARGETS, "through": ("postgresql", "pgbouncer")}
    for key, allowed in choices.items():
        value = values.get(key, allowed[0])
        if value not in allowed:
            raise ConfigurationError(
                f"{where} {key} must be one of {', '.join(allowed)}, not {value!r}"
            )
    reserved = values.get("reserved_concurrency", 1)
    if reserved != "fit" and (type(reserved) is not int or reserved < 1):
        raise ConfigurationError(
            f'{where} reserved_concurrency must be "fit" or a whole number from 1, not {reserved!r}'
        )
