"""The targets of a run: `[tool.poolkit.targets.*]` tables, and `--target` for deployed ones.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from poolkit.config.presets import TARGETS
from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from poolkit.compare.plan.option_types import TargetUrl
    from poolkit.project import Project

Kind: TypeAlias = Literal["lambda", "web", "worker"]
KINDS: tuple[Kind, ...] = ("lambda", "web", "worker")
PLACEHOLDERS = ("python", "port", "processes")
BROKER = "broker_url"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
"""It names processes, logs and folders; after @ comes a label."""
_PATH = re.compile(r"/[!-~]*")

Rule: TypeAlias = tuple[str, Callable[[Any], bool], str]
"""A key, the check of its value, and the end of "KEY must be ..."."""


def _choice(key: str, allowed: Sequence[str]) -> Rule:
    return key, lambda value: value in allowed, f"one of {', '.join(allowed)}"


_RULES: Sequence[Rule] = (
    *(
        (key, lambda value: isinstance(value, str), "a string")
        for key in ("kind", "preset", "locustfile", "handler", "app", "ready", "metrics", "through")
    ),
    _choice("kind", KINDS),
    _choice("preset", TARGETS),
    _choice("through", ("postgresql", "pgbouncer")),
    ("processes", lambda value: type(value) is int and 1 <= value <= 64, "from 1 to 64"),
    (
        "reserved_concurrency",
        lambda value: value == "fit" or (type(value) is int and value >= 1),
        '"fit" or a whole number from 1',
    ),
    (
        "command",
        lambda value: isinstance(value, list) and all(isinstance(word, str) for word in value),
        "a list of strings",
    ),
    (
        "env",
        lambda value: (
            isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        ),
        "a table of strings",
    ),
)
_ONE_OF = {"lambda": ("handler",), "web": ("app", "command"), "worker": ("command",)}
"""The keys of which a target of each kind needs one."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The table of one deployable: how it starts, and how it is loaded.

    Strings in `command` and `env` may use `{python}`, `{port}` and `{processes}`, those in `env`
    also `{broker_url}`, which starts the broker.
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
    """A path with Prometheus metrics: the source of pool events, a second count of connections."""
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


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """A deployed target: its URL, and the number of connections that its database accepts.

    It is loaded where it is, and never started or stopped. Its database is only sampled.
    """

    target: Target
    """As in pyproject.toml, with its name in this run."""
    url: str
    """web, lambda: the prefix of its paths. worker: its broker."""
    max_connections: int = 0
    usable_connections: int = 0
    """The same less the server's reserve."""


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
        ConfigurationError: a name is unknown or named twice.
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


def deployed_of(urls: Iterable[TargetUrl], tables: Mapping[str, Target]) -> tuple[Deployed, ...]:
    """Return the targets of `--target`.

    Args:
        urls: the name, label and URL of each.
        tables: the targets of pyproject.toml.

    Raises:
        ConfigurationError: a name is not in `tables`, or two have the same name and label.
    """
    found: dict[str, Deployed] = {}
    for table, name, url in urls:
        (target,) = choose(tables, [table])
        if name in found:
            raise ConfigurationError(
                f"--target has {name} twice; give each a label: --target {name}@LABEL=URL"
            )
        found[name] = Deployed(target=replace(target, name=name), url=url)
    return tuple(found.values())


def _target(file: Path, root: Path, name: str, table: Any) -> Target:
    """Return the target of one table, or refuse it with the file, the table and the key."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{file}: [tool.poolkit.targets] {name!r} cannot name a target; "
            "use letters, digits and . _ -"
        )
    where = f"{file}: [tool.poolkit.targets.{name}]"
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where} must be a table, not {table!r}")
    values = {"preset": name, **table}
    known = [f.name for f in dataclasses.fields(Target) if f.name != "name"]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
            raise ConfigurationError(f"{where} has an unknown key {key}{hint}")
    for key, is_valid, wanted in _RULES:
        if key in values and not is_valid(values[key]):
            raise ConfigurationError(f"{where} {key} must be {wanted}, not {values[key]!r}")
    _check_together(where, values)
    _check_placeholders(where, values)
    if not (root / values["locustfile"]).is_file():
        raise ConfigurationError(f"{where} locustfile: there is no file {values['locustfile']}")
    return Target(name=name, **{**values, "command": tuple(values.get("command", ()))})


def _check_together(where: str, values: Mapping[str, Any]) -> None:
    """Refuse a table that lacks a key, or whose `ready` or `metrics` does not suit its kind."""
    for key in ("kind", "locustfile"):
        if key not in values:
            raise ConfigurationError(f"{where} needs {key}")
    one_of = _ONE_OF[values["kind"]]
    if not any(values.get(key) for key in one_of):
        raise ConfigurationError(f"{where} needs {' or '.join(one_of)}")
    paths = ["metrics", "ready"]
    if values["kind"] == "worker" and "ready" in values:
        paths.remove("ready")
        try:
            re.compile(values["ready"])
        except re.error as error:
            raise ConfigurationError(
                f"{where} ready: {values['ready']!r} is not a regular expression: {error}"
            ) from None
    for key in paths:
        if key in values and not _PATH.fullmatch(values[key]):
            raise ConfigurationError(
                f"{where} {key} must be a path that begins with /, not {values[key]!r}"
            )


def _check_placeholders(where: str, values: Mapping[str, Any]) -> None:
    """Refuse unknown placeholders, a name that no variable can have, and a public password."""
    command, env = values.get("command", []), values.get("env", {})
    if any(f"{{{BROKER}}}" in word for word in command):
        # Every user can list the arguments of processes, and the URL has a password.
        raise ConfigurationError(
            f"{where} command cannot have {{{BROKER}}}, because every user can read a process's "
            f'arguments; use env, as in env = {{ BROKER_URL = "{{{BROKER}}}" }}'
        )
    for name in env:
        if not name or set(name) & set("=\0"):
            raise ConfigurationError(f"{where} env: {name!r} cannot name a variable")
    texts: list[tuple[str, str, tuple[str, ...]]] = [
        ("command", word, PLACEHOLDERS) for word in command
    ]
    texts += [("env", text, (*PLACEHOLDERS, BROKER)) for text in env.values()]
    for key, text, allowed in texts:
        try:
            unknown = [name for name in _fields(text) if name not in allowed]
        except ValueError:
            unknown = [text]
        if unknown:
            names = ", ".join(f"{{{name}}}" for name in allowed)
            raise ConfigurationError(
                f"{where} {key}: {text!r} has an unknown placeholder; there are {names} "
                "(and {{ for a brace itself)"
            )


def _fields(text: str) -> list[str]:
    """Return the texts in braces, such as `port`, or `port.x` and `port!r`, which are unknown.

    Raises:
        ValueError: a brace is not closed.
    """
    parts = string.Formatter().parse(text)
    return [
        f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
        for _, name, form, conversion in parts
        if name is not None
    ]
