"""How many connections a workload's process holds: its preset, or what it was said to hold."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poolkit.budget.processes.command_lines import processes
from poolkit.budget.quantity import Quantity, known, unknown
from poolkit.config.settings import preset_from_environ
from poolkit.errors import BudgetError, ConfigurationError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.budget.model import Variable, Workload
    from poolkit.config.presets import EnginePreset

_ASSIGNMENT = re.compile(
    r"(?P<pool>\d+)\+(?P<overflow>\d+)(?:x(?P<processes>\d+))?(?:@(?P<instances>\d+))?"
)
_DECISIVE = (
    "POOLKIT_TARGET",
    "POOLKIT_ENVIRONMENT",
    "POOLKIT_POOL",
    "POOLKIT_POOL_SIZE",
    "POOLKIT_MAX_OVERFLOW",
)
_SPEAKS_OF_DATABASE = re.compile(
    r"(^|_)(DATABASE|DB|PG|POSTGRES|POSTGRESQL|RDS|SQLALCHEMY|MYSQL|MARIADB)(_|$)"
    r"|^PG(HOST|HOSTADDR|PORT|USER|DATABASE|PASSWORD|SERVICE)$|^DATABASES?$|_DSN$|^POOLKIT_TARGET$"
)
# An URL with any driver, JDBC's too; libpq's and .NET's own forms.
_IS_DATABASE = re.compile(
    r"\b(postgres|postgresql|postgis|mysql|mariadb|mssql|oracle|cockroachdb|psql)(\+\w+)?://"
    r"|\b(host|server|data source)\s*=[^;]+.*\b(dbname|database|initial catalog)\s*=",
    re.IGNORECASE,
)
_SPEAKS_OF_ANOTHER = re.compile(r"REDIS|VALKEY|MONGO|DYNAMO|INFLUX|ELASTIC|CHROMA|SENTRY")


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What `--service NAME=POOL+OVERFLOW[xPROCESSES][@INSTANCES]` says."""

    text: str
    pool_size: int
    max_overflow: int
    processes: int | None = None
    instances: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The numbers of one workload's processes, and the target that its preset is of."""

    processes: Quantity
    pool_size: Quantity
    max_overflow: Quantity
    target: str = ""
    keeps_connections: bool = True
    """False where a connection ends with the unit of work (NullPool)."""


def read_assignments(words: Iterable[str]) -> dict[str, Assignment]:
    """Read `name=5+10x4@20` words.

    Raises:
        BudgetError: a word is not of this form, or has a number that cannot be.
    """
    found: dict[str, Assignment] = {}
    for word in words:
        name, _, numbers = word.partition("=")
        match = _ASSIGNMENT.fullmatch(numbers.strip())
        if not name.strip() or match is None:
            raise BudgetError(
                f"--service {word}: wanted NAME=POOL+OVERFLOW, xPROCESSES and @INSTANCES after it "
                "if need be, such as web=5+10x4@20; numbers are not negative"
            )
        parts = {key: int(text) for key, text in match.groupdict().items() if text is not None}
        if parts["pool"] + parts["overflow"] < 1 or parts.get("processes") == 0:
            raise BudgetError(f"--service {word}: a process has 1 connection at least")
        found[name.strip()] = Assignment(
            text=f"--service {word}",
            pool_size=parts["pool"],
            max_overflow=parts["overflow"],
            processes=parts.get("processes"),
            instances=parts.get("instances"),
        )
    return found


def uses_database(workload: Workload) -> bool:
    """Tell whether any variable of a workload speaks of a relational database."""
    return any(is_about_database(name, found) for name, found in workload.variables.items())


def is_about_database(name: str, variable: Variable) -> bool:
    """Tell whether a variable speaks of a relational database: by its value, or by its name."""
    text = variable.partly if variable.text is None else variable.text
    if _IS_DATABASE.search(text):
        return True
    upper = name.upper()
    return bool(_SPEAKS_OF_DATABASE.search(upper)) and not _SPEAKS_OF_ANOTHER.search(upper)


def is_migration(workload: Workload) -> bool:
    """Tell whether a workload runs `poolkit db upgrade` once, with one connection."""
    words = " ".join(workload.command or ()).split()
    runs_it = any(words[n : n + 3] == ["poolkit", "db", "upgrade"] for n in range(len(words)))
    once = (workload.instances.value, processes(workload).value) == (1, 1)
    return runs_it and once and workload.text("POOLKIT_TARGET") == "script"


def pool(workload: Workload, assignment: Assignment | None) -> Pool:
    """Return the pool of a workload's processes.

    Raises:
        TemplateError: a POOLKIT_* variable has a value that no deployable would start with.
    """
    if assignment is not None:
        return _assigned(workload, assignment)
    if not any(name in workload.variables for name in _DECISIVE):
        return _undeclared(workload)
    return _preset_pool(workload)


def _assigned(workload: Workload, assignment: Assignment) -> Pool:
    counted = processes_of(workload)
    if assignment.processes is not None:
        counted = known(assignment.processes, assignment.text)
    return Pool(
        processes=counted,
        pool_size=known(assignment.pool_size, assignment.text),
        max_overflow=known(assignment.max_overflow, assignment.text),
    )


def processes_of(workload: Workload) -> Quantity:
    """Return the processes of one instance; one in a Lambda execution environment."""
    if workload.platform != "Lambda function":
        return processes(workload)
    return known(1, "one process in an execution environment")


def _undeclared(workload: Workload) -> Pool:
    hint = ""
    if workload.hidden_variables and not uses_database(workload):
        hint = f"; if {workload.hidden_variables} leads to no database, --ignore {workload.name}"
    reason = (
        "no POOLKIT_TARGET names its preset; say what a process holds with "
        f"--service {workload.name}=POOL+OVERFLOW (SQLAlchemy's own default is 5+10){hint}"
    )
    nothing = unknown(reason, workload.where)
    return Pool(processes=processes_of(workload), pool_size=nothing, max_overflow=nothing)


def _preset_pool(workload: Workload) -> Pool:
    for name in _DECISIVE:
        found = workload.variables.get(name)
        if found is not None and found.text is None:
            nothing = unknown(f"{name}: {found.reason}", workload.where)
            return Pool(processes=processes_of(workload), pool_size=nothing, max_overflow=nothing)
    if "POOLKIT_TARGET" not in workload.variables:
        nothing = unknown(
            "POOLKIT_TARGET is not set; the deployable has a default of its own", workload.where
        )
        return Pool(processes=processes_of(workload), pool_size=nothing, max_overflow=nothing)
    return _of_preset(workload, _preset(workload))


def _preset(workload: Workload) -> EnginePreset:
    environ = {
        name: found.text
        for name, found in workload.variables.items()
        if name.startswith("POOLKIT_") and found.text is not None
    }
    try:
        # The settings' own reading, so that the budget and the deployable cannot disagree.
        return preset_from_environ(environ)
    except ConfigurationError as error:
        raise TemplateError(f"{workload.where}: {workload.name}: {error}") from None


def _of_preset(workload: Workload, preset: EnginePreset) -> Pool:
    if preset.target == "worker":
        return _worker(workload)
    if preset.pool == "null":
        return _null_pool(workload, preset)
    return Pool(
        processes=_kit_processes(workload),
        pool_size=known(preset.pool_size, _field_origin(workload, preset, "POOLKIT_POOL_SIZE")),
        max_overflow=known(
            preset.max_overflow, _field_origin(workload, preset, "POOLKIT_MAX_OVERFLOW")
        ),
        target=preset.target,
    )


def _kit_processes(workload: Workload) -> Quantity:
    """As `processes`, but the kit's own images start one process if nothing else is said."""
    found = processes_of(workload)
    if found.value is None and workload.command is None:
        return known(1, "one process, the default of the kit's images", workload.where)
    return found


def _field_origin(workload: Workload, preset: EnginePreset, variable: str) -> str:
    found = workload.variables.get(variable)
    if found is not None and (found.text or "").strip():
        return f"{found.origin} ({variable})"
    target = workload.variables["POOLKIT_TARGET"].origin
    return f"{target} (preset {preset.target} in {preset.environment})"


def _null_pool(workload: Workload, preset: EnginePreset) -> Pool:
    origin = _field_origin(workload, preset, "POOLKIT_POOL")
    return Pool(
        processes=_kit_processes(workload),
        pool_size=known(1, f"{origin}: NullPool, one unit of work at a time"),
        max_overflow=known(0, origin),
        target=preset.target,
        keeps_connections=False,
    )


def _worker(workload: Workload) -> Pool:
    """A task holds one connection at most, so the tasks at the same time are the bound."""
    tasks = _concurrency(workload)
    target = f"{workload.variables['POOLKIT_TARGET'].origin} (preset worker: a task holds one)"
    one = known(1, target)
    kind = workload.text("WORKER_POOL") or "prefork"
    by_task = kind != "prefork"
    return Pool(
        processes=one if by_task else tasks,
        pool_size=(one if kind == "solo" else tasks) if by_task else one,
        max_overflow=known(0, target),
        target="worker",
    )


def _concurrency(workload: Workload) -> Quantity:
    found = workload.variables.get("WORKER_CONCURRENCY")
    if found is None:
        counted = processes(workload)
        if (
            workload.command is not None
            and counted.is_known
            and "one process" not in counted.origin
        ):
            return counted
        return unknown(
            "WORKER_CONCURRENCY is not set, so the worker's own default holds", workload.where
        )
    text = (found.text or "").strip()
    if found.text is None or not text.isdecimal():
        return unknown(
            f"WORKER_CONCURRENCY: {found.reason or f'{text!r} is no number'}", workload.where
        )
    return known(int(text), f"{found.origin} (WORKER_CONCURRENCY)", workload.where)
