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
import re
import string
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
PLACEHOLDERS = ("python", "port", "processes")
BROKER = "broker_url"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
"""It names processes, logs and folders; after @ comes a label."""
_PATH = re.compile(r"/[!-~]*")


@dataclass(frozen=True, kw_only=True)
class Target:
    """How one deployable is started and loaded.

    Strings in `command` and `env` may use `{python}`, `{port}` and `{processes}`, those in
    `env` also `{broker_url}`, which is what starts the broker.
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
        """True if its variables name the broker."""
        return any(BROKER in _fields(text) for text in self.env.values())


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
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{file}: [tool.poolkit.targets] {name!r} cannot name a target; "
            "use letters, digits and . _ -"
        )
    where = f"{file}: [tool.poolkit.targets.{name}]"
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where} must be a table, not {table!r}")
    values = {"preset": name, **table}
    _check_keys(where, values)
    _check_types(where, values)
    _check_choices(where, values)
    _check_needed(where, values)
    _check_readiness(where, values)
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


def _check_needed(where: str, values: Mapping[str, Any]) -> None:
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
    _check_command(where, command)
    _check_env(where, env)


def _check_command(where: str, command: Sequence[str]) -> None:
    for word in command:
        if f"{{{BROKER}}}" in word:
            # Who may list processes sees their arguments, and the URL has a password.
            raise ConfigurationError(
                f"{where} command cannot have {{{BROKER}}}, for everybody can read a process's "
                f'arguments; hand it over in env, as in env = {{ BROKER_URL = "{{{BROKER}}}" }}'
            )
        _check_placeholders(f"{where} command", word, PLACEHOLDERS)


def _check_env(where: str, env: Mapping[str, str]) -> None:
    for name, text in env.items():
        if not name or set(name) & set("=\0"):
            raise ConfigurationError(f"{where} env: {name!r} cannot name a variable")
        _check_placeholders(f"{where} env", text, (*PLACEHOLDERS, BROKER))


def _check_placeholders(where: str, text: str, allowed: Sequence[str]) -> None:
    try:
        unknown = [name for name in _fields(text) if name not in allowed]
    except ValueError:
        unknown = [text]
    if unknown:
        names = ", ".join(f"{{{name}}}" for name in allowed)
        raise ConfigurationError(
            f"{where}: {text!r} has an unknown placeholder; there are {names} "
            "(and {{ for a brace itself)"
        )


def _fields(text: str) -> list[str]:
    """Return what stands in braces, such as `port`, or `port.x` and `port!r`, which are none.

    Raises:
        ValueError: a brace is not closed.
    """
    parts = string.Formatter().parse(text)
    return [
        f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
        for _, name, form, conversion in parts
        if name is not None
    ]


def _check_readiness(where: str, values: Mapping[str, Any]) -> None:
    paths = ["metrics", "ready"]
    if values["kind"] == "worker" and "ready" in values:
        paths.remove("ready")
        try:
            re.compile(values["ready"])
        except re.error as error:
            raise ConfigurationError(
                f"{where} ready: {values['ready']!r} is no regular expression: {error}"
            ) from None
    for key in paths:
        if key in values and not _PATH.fullmatch(values[key]):
            raise ConfigurationError(
                f"{where} {key} must be a path that begins with /, not {values[key]!r}"
            )


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
