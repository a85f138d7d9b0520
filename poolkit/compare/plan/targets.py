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
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from poolkit import placeholders
from poolkit.config.presets import TARGETS
from poolkit.errors import ConfigurationError
from poolkit.project import is_command, is_env
from poolkit.shim.records import NOW

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.compare.plan.option_types import OwnerMark, PoolSize, TargetUrl
    from poolkit.project import Project

Kind: TypeAlias = Literal["lambda", "web", "worker"]
KINDS: tuple[Kind, ...] = ("lambda", "web", "worker")
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
        for key in (
            *("kind", "preset", "locustfile", "handler", "app", "ready", "metrics", "through"),
            *("python", "directory"),
        )
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
    _choice("event", ("http", "rest", "alb")),
    ("memory", lambda value: type(value) is int and 128 <= value <= 10_240, "from 128 to 10240 MB"),
    (
        "timeout",
        lambda value: type(value) in (int, float) and 1 <= value <= 900,
        "from 1 to 900 seconds",
    ),
    ("database", lambda value: type(value) is bool, "true or false"),
    ("command", is_command, "a list of strings"),
    ("env", is_env, "a table of strings"),
)
_ONE_OF = {"lambda": ("handler",), "web": ("app", "command"), "worker": ("command",)}
"""The keys of which a target of each kind needs one, if the run starts it."""
_ONLY_LAMBDA = {"event", "memory", "timeout", "reserved_concurrency"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The table of one deployable: how it starts, and how it is loaded.

    Strings in `command` and `env` may have placeholders (poolkit/placeholders.py); `{broker_url}`
    starts the broker.
    """

    name: str
    kind: Kind
    preset: str | None
    """The preset that it is told to use; None for an application without one."""
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
    event: Literal["http", "rest", "alb"] = "http"
    """lambda: the events are those of an HTTP API, a REST API or a load balancer."""
    memory: int = 512
    """lambda: the memory in MB that the function is told; nothing enforces it."""
    timeout: float = 30.0
    """lambda: seconds of one invoke."""
    through: Literal["postgresql", "pgbouncer"] = "postgresql"
    env: Mapping[str, str] = field(default_factory=dict)
    """The project's variables and its own."""
    python: Path = Path(sys.executable)
    """The interpreter that runs it, and `{python}`."""
    directory: Path | None = None
    """Its working directory, and the root of its imports; the project's folder if None."""
    pool: str = ""
    """No key of the table: `now` if its engines are read while it runs, the name of a preset if they
    get that one's pool (`--pool`)."""
    pool_size: PoolSize | None = None
    """No key of the table either: the size that the engines of its processes get (`--pool-sizes`)."""
    swept_from: str = ""
    """The target whose pool sizes are compared, for one of `--pool-sizes`; no key of the table."""
    database: bool = True
    """False for a target that may do without the database: it is not refused when it opens no
    connection."""

    @property
    def lacks(self) -> str:
        """The keys without which it cannot be started, but deployed only; empty if it has one."""
        keys = _ONE_OF[self.kind]
        return "" if any(getattr(self, key) for key in keys) else " or ".join(keys)

    @property
    def needs_broker(self) -> bool:
        """True if its variables name the broker."""
        return any(placeholders.uses(text, placeholders.BROKER) for text in self.env.values())


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
    marks: tuple[OwnerMark, ...] = ()
    """What its connections are known by; without any it is the name of its preset."""


def targets_of(project: Project, locustfile: Path | None = None) -> dict[str, Target]:
    """Return the project's targets by name, in the order of its pyproject.toml.

    Args:
        project: the project.
        locustfile: in place of those in the tables, which then need none.

    Raises:
        ConfigurationError: there are none, or a table is wrong; the message names the key.
    """
    tables = project.table.get("targets")
    if not tables and project.file is None and not (project.root / "pyproject.toml").is_file():
        raise ConfigurationError(
            f"there is no pyproject.toml and no poolkit.toml in {project.root} or above it; go to "
            "the project whose [tool.poolkit.targets.NAME] tables say what to compare"
        )
    if not isinstance(tables, dict) or not tables:
        raise ConfigurationError(
            f"{project.section('targets.NAME')} is missing, so there is nothing to compare"
        )
    return {name: _target(project, name, table, locustfile) for name, table in tables.items()}


def with_pools(targets: Iterable[Target], pools: Sequence[str]) -> list[Target]:
    """Return each target once with each pool of `--pool`, named `TARGET@POOL`.

    Args:
        targets: those that the run starts.
        pools: `now` for the application's own engine, or names of presets.

    Raises:
        ConfigurationError: a pool is unknown or named twice.
    """
    for pool in pools:
        if pool not in (NOW, *TARGETS):
            close = difflib.get_close_matches(pool, (NOW, *TARGETS), n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise ConfigurationError(
                f"--pool {pool} is unknown{hint}; there are: {', '.join((NOW, *TARGETS))}"
            )
        if list(pools).count(pool) > 1:
            raise ConfigurationError(f"--pool has {pool} twice; name each once")
    found = []
    for target in targets:
        # These would change the preset that its own engine is made of, which is not used.
        env = {name: text for name, text in target.env.items() if not name.startswith("POOLKIT_")}
        for pool in pools:
            named = replace(target, name=f"{target.name}@{pool}", pool=pool)
            found.append(named if pool == NOW else replace(named, preset=pool, env=env))
    return found


def with_pool_sizes(targets: Iterable[Target], sizes: Sequence[PoolSize]) -> list[Target]:
    """Return each target once with each size of `--pool-sizes`, named `TARGET@SIZE`.

    The engines of its processes get the size. So do the variables of a preset, which the kit's own
    web services read for the number of requests that they admit.

    Args:
        targets: those that the run starts.
        sizes: of the pool in each process.

    Raises:
        ConfigurationError: a target has no pool whose size could matter.
    """
    found = []
    for target in targets:
        where = f"--pool-sizes: target {target.name}"
        if target.kind == "worker":
            raise ConfigurationError(
                f"{where} is a worker, whose children run one task at a time and use one connection "
                "each; compare its key processes instead"
            )
        if target.kind == "lambda":
            raise ConfigurationError(
                f"{where} is a function, whose execution environments run one request at a time and "
                "use one connection each; compare its key reserved_concurrency instead"
            )
        for size in sizes:
            env = dict(target.env)
            if target.preset is not None:
                env |= {
                    "POOLKIT_POOL_SIZE": str(size.pool_size),
                    "POOLKIT_MAX_OVERFLOW": str(size.max_overflow),
                }
            named = f"{target.name}@{size.label}"
            found.append(
                replace(target, name=named, pool_size=size, swept_from=target.name, env=env)
            )
    return found


def check_pool_sizes(targets: Iterable[Target], usable_connections: int) -> None:
    """Check that each size of `--pool-sizes` fits the server, before anything starts.

    Args:
        targets: those with a size.
        usable_connections: the connections that the server leaves to one of them.

    Raises:
        ConfigurationError: one does not fit; the message has the largest size that does.
    """
    for target in targets:
        size, processes = target.pool_size, target.processes
        # Behind PgBouncer the server sees the connections of the pooler.
        if size is None or target.through == "pgbouncer":
            continue
        if (needed := processes * size.most) > usable_connections:
            of = f"{processes} processes x " if processes > 1 else ""
            raise ConfigurationError(
                f"--pool-sizes: {of}{size} of {target.swept_from} can open {needed:,} connections, but "
                f"the server has {usable_connections:,} for them; the largest size that fits is "
                f"{usable_connections // processes:,}"
            )


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


def deployed_of(
    urls: Iterable[TargetUrl], tables: Mapping[str, Target], marks: Sequence[OwnerMark] = ()
) -> tuple[Deployed, ...]:
    """Return the targets of `--target`.

    Args:
        urls: the name, label and URL of each.
        tables: the targets of pyproject.toml.
        marks: what their connections are known by (`--connections`).

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
        found[name] = Deployed(
            target=replace(target, name=name),
            url=url,
            marks=tuple(mark for mark in marks if mark.target == name),
        )
    for mark in marks:
        if mark.target not in found:
            raise ConfigurationError(
                f"--connections names {mark.target}, which is no deployed target of this run; "
                f"there are: {', '.join(found) or 'none, add --target'}"
            )
        same = {other.target for other in marks if other[1:] == mark[1:]} - {mark.target}
        if same:
            raise ConfigurationError(
                f"--connections: {mark.target} and {', '.join(same)} have the same {mark.kind} "
                f"{mark.value}, so their connections cannot be distinguished"
            )
    return tuple(found.values())


def _target(project: Project, name: str, table: Any, locustfile: Path | None) -> Target:
    """Return the target of one table, or refuse it with the file, the table and the key."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{project.section('targets')} {name!r} cannot name a target; "
            "use letters, digits and . _ -"
        )
    where = project.section(f"targets.{name}")
    if not isinstance(table, dict):
        raise ConfigurationError(f"{where} must be a table, not {table!r}")
    # A target of a preset's name uses that preset.
    values = {**({"preset": name} if name in TARGETS else {}), **table}
    if locustfile is not None:
        values["locustfile"] = str(locustfile.resolve())
    own = ("name", "pool", "pool_size", "swept_from")
    known = [f.name for f in dataclasses.fields(Target) if f.name not in own]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
            raise ConfigurationError(f"{where} has an unknown key {key}{hint}")
    for key, is_valid, wanted in _RULES:
        if key in values and not is_valid(values[key]):
            raise ConfigurationError(f"{where} {key} must be {wanted}, not {values[key]!r}")
    _check_together(where, values)
    placeholders.check_command(f"{where} command", values.get("command", ()))
    placeholders.check_env(f"{where} env", values.get("env", {}))
    if not (project.root / values["locustfile"]).is_file():
        raise ConfigurationError(f"{where} locustfile: there is no file {values['locustfile']}")
    values |= {
        "command": tuple(values.get("command", ())),
        "env": {**project.env, **values.get("env", {})},
        "python": project.interpreter(values.get("python", project.table.get("python"))),
        "directory": project.root / values.get("directory", project.directory),
    }
    return Target(name=name, preset=values.pop("preset", None), **values)


def _check_together(where: str, values: Mapping[str, Any]) -> None:
    """Refuse a table that lacks a key, or whose `ready` or `metrics` does not suit its kind."""
    for key in ("kind", "locustfile"):
        if key not in values:
            raise ConfigurationError(f"{where} needs {key}")
    for key in sorted(_ONLY_LAMBDA & values.keys()) if values["kind"] != "lambda" else ():
        raise ConfigurationError(f"{where} {key} is for targets of the kind lambda only")
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
