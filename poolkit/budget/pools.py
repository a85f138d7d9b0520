"""The connections of a workload's process: by its preset, or by --service."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolkit.budget.limits import setting
from poolkit.budget.model import Quantity, known, total, unknown
from poolkit.budget.processes import option, processes, started
from poolkit.budget.signs import is_about_database, uses_database
from poolkit.budget.software import software_of
from poolkit.budget.tables import table
from poolkit.config.settings import preset_from_environ
from poolkit.errors import BudgetError, ConfigurationError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from poolkit.budget.model import Workload
    from poolkit.budget.software import Software
    from poolkit.config.presets import EnginePreset

_ASSIGNMENT = re.compile(
    r"(?P<pool_size>\d+)\+(?P<max_overflow>\d+)(?:x(?P<processes>\d+))?(?:@(?P<instances>\d+))?"
)
_AT_ONCE = re.compile(r"(?<![&>])&(?![&>])|\bxargs\b|\bparallel\b")
_SETTINGS_FILE = re.compile(r"\.(conf|ini|properties)$")
_URL_NAME = re.compile(r"(url|uri|dsn)$", re.IGNORECASE)
_FIELDS = ("TARGET", "ENVIRONMENT", "POOL", "POOL_SIZE", "MAX_OVERFLOW")
_DECISIVE = tuple(f"POOLKIT_{field}" for field in _FIELDS)


@dataclass(frozen=True)
class Assignment:
    """The numbers of `--service NAME=POOL+OVERFLOW[xPROCESSES][@INSTANCES]`."""

    text: str
    pool_size: int
    max_overflow: int
    processes: int | None = None
    instances: int | None = None


@dataclass(frozen=True)
class Pool:
    """The numbers of one workload's processes, and the target of its preset."""

    processes: Quantity
    pool_size: Quantity
    max_overflow: Quantity
    target: str = ""
    keeps_connections: bool = True
    """False if a connection ends with the unit of work (NullPool)."""


def read_assignments(arguments: Iterable[str]) -> dict[str, Assignment]:
    """Read arguments such as `web=5+10x4@20`.

    Raises:
        BudgetError: an argument has another form, or an impossible number.
    """
    found: dict[str, Assignment] = {}
    for argument in arguments:
        name, _, numbers = argument.partition("=")
        match = _ASSIGNMENT.fullmatch(numbers.strip())
        if not name.strip() or match is None:
            raise BudgetError(
                f"--service {argument}: must be NAME=POOL+OVERFLOW, optionally with xPROCESSES and "
                "@INSTANCES, such as web=5+10x4@20; numbers are not negative"
            )
        parts = {key: int(text) for key, text in match.groupdict().items() if text is not None}
        if parts["pool_size"] + parts["max_overflow"] < 1 or parts.get("processes") == 0:
            raise BudgetError(f"--service {argument}: needs at least 1 connection and 1 process")
        found[name.strip()] = Assignment(text=f"--service {argument}", **parts)
    return found


def is_migration(workload: Workload) -> bool:
    """Return whether a workload runs `poolkit db upgrade` once, with one connection."""
    words = " ".join(workload.command or ()).split()
    upgrades = any(words[n : n + 3] == ["poolkit", "db", "upgrade"] for n in range(len(words)))
    once = (workload.instances.value, processes(workload).number.value) == (1, 1)
    return upgrades and once and workload.text("POOLKIT_TARGET") == "script"


def pool(
    workload: Workload, assignment: Assignment | None, softwares: Collection[Software] = ()
) -> Pool:
    """Return the pool of a workload's processes.

    Raises:
        TemplateError: no deployable would start with a POOLKIT_* variable.
    """
    count = workload.processes or processes(workload).number
    own = _of_software(workload, softwares, count)
    count = own.processes if own else count
    if assignment is not None:
        by_hand, given = assignment.text, assignment.processes
        size, overflow = (
            known(assignment.pool_size, by_hand),
            known(assignment.max_overflow, by_hand),
        )
        count = count if given is None else known(given, by_hand)
        return Pool(processes=count, pool_size=size, max_overflow=overflow)
    if own is not None and not set(_DECISIVE) & set(workload.variables):
        return own
    if reason := _why_no_preset(workload):
        nothing = unknown(reason, workload.where)
        return Pool(processes=count, pool_size=nothing, max_overflow=nothing)
    return _of_preset(workload, count)


def _of_preset(workload: Workload, count: Quantity) -> Pool:
    environ = {
        name: found.text
        for name, found in workload.variables.items()
        if name.startswith("POOLKIT_") and found.text is not None
    }
    try:
        # The settings' own reading, so that the budget and the deployable cannot disagree.
        preset = preset_from_environ(environ)
    except ConfigurationError as error:
        raise TemplateError(f"{workload.name}: {error}", workload.where) from None
    if preset.target == "worker":
        return _worker_pool(workload)
    if not count.is_known and workload.command is None and workload.processes is None:
        count = known(1, "one process, the default of poolkit's images", workload.where)
    keeps_connections = preset.pool != "null"
    if keeps_connections:
        size = known(preset.pool_size, _origin(workload, preset, "POOLKIT_POOL_SIZE"))
        overflow = known(preset.max_overflow, _origin(workload, preset, "POOLKIT_MAX_OVERFLOW"))
    else:
        origin = _origin(workload, preset, "POOLKIT_POOL")
        one = known(1, f"{origin}: NullPool, one unit of work at a time")
        size, overflow = workload.requests or one, known(0, origin)
    return Pool(count, size, overflow, preset.target, keeps_connections)


def _of_software(
    workload: Workload, softwares: Collection[Software], count: Quantity
) -> Pool | None:
    """Return the pool of known software or of a framework's settings; None if there is none."""
    software, program = software_of(workload, softwares), started(workload)
    role = software.role if software else ""
    is_one, overflow, size = True, 0, None
    line = " ".join((program[0], *program[1]))
    if role == "server" or re.match(table("programs")["one_connection"], line):
        name, size = "a single client", _of_single_client(workload)
    elif software is not None and role == "client":
        if software.embedded and not uses_database(workload):
            return None
        name, size = software.name, _of_client(workload, software)
        further = workload.text(software.further)
        overflow = int(further) if further.isdecimal() else software.overflow
        overflow = 0 if further == "false" else overflow
        # The command line of a program of the project may start several.
        is_one = not count.is_known
    else:
        for each in table("software")["frameworks"]:
            if size is None:
                name, is_one = each["name"], "processes" in each
                size = _of_framework(workload, each)
    if size is None:
        return None
    if size.value == 0:
        size = unknown(f"{size.origin} is 0, which is no limit", workload.where)
    one = known(1, f"{name} is one process") if is_one else count
    return Pool(workload.processes or one, size, known(overflow, name))


def _of_client(workload: Workload, software: Software) -> Quantity | None:
    """Return the pool of known software: by its option, its variable or its default."""
    words = workload.command or ()
    if (given := option(words, software.options)) is not None:
        name, origin = software.options[0], workload.command_origin
        return setting(given, name, f"{origin} ({name})", workload.where)
    if (found := workload.number(*software.pool)) is not None or software.default is None:
        return found
    if any(map(_SETTINGS_FILE.search, (*words, *workload.mounted))):
        return unknown(f"a file may set the pool of {software.name}", workload.where)
    # A secret with unknown names may set the variable.
    if workload.hidden_variables:
        return None
    return known(software.default, f"the default of {software.name}", workload.where)


def _of_single_client(workload: Workload) -> Quantity:
    """Return the connections of psql, pg_dump, a script of them, or a migration; -j starts more."""
    command = " ".join(workload.command or ())
    if _AT_ONCE.search(command):
        return unknown("its command starts clients in the background", workload.where)
    options = ("-j", "--jobs", "--client", *(["-c"] if "pgbench" in command else []))
    jobs = option(command.split(), options) or ""
    origin = f"{workload.command_origin or workload.where}: a single client"
    return known(1 + (int(jobs) if jobs.isdecimal() else 0), origin)


def _of_framework(workload: Workload, framework: Mapping[str, Any]) -> Quantity | None:
    """Return the pool that a variable sets, or the parameters of all database URLs together."""
    plain = {re.sub(r"[._-]", "", name).upper(): name for name in workload.variables}
    names = [plain[name] for name in framework.get("variables", ()) if name in plain]
    # An option of the JVM or of the program comes before the variable.
    texts = [each.text or each.partly for each in workload.variables.values()]
    written = re.compile(framework.get("setting", "$."), re.IGNORECASE)
    if names and written.search("\n".join([*(workload.command or ()), *texts])):
        return unknown(f"an option may set the pool of {framework['name']} too", workload.where)
    parameter = re.compile(rf"{framework.get('parameter', '$.')}\s*=\s*(\d+)", re.IGNORECASE)
    form = re.compile(framework.get("form", "$."), re.IGNORECASE)
    sizes: dict[str, int | None] = {}
    for name, variable in workload.variables.items():
        text = variable.partly if variable.text is None else variable.text
        match = parameter.search(text)
        is_url = "://" in text or (variable.text is None and _URL_NAME.search(name))
        if match or form.search(text) or (is_url and is_about_database(name, variable)):
            sizes[name] = int(match[1]) if match else form.search(text) and framework["default"]
    if not any(sizes.values()):
        found = workload.number(*names)
        if found is None or len(sizes) < 2:
            return found
        # The variable is about one of them.
    size, origin = total(*sizes.values()), f"{', '.join(sizes)} ({framework['name']})"
    if size is None:
        return unknown(f"not each of {origin} sets the pool", workload.where)
    return known(size, origin, workload.where)


def _why_no_preset(workload: Workload) -> str:
    """Return why the workload's variables do not name a preset; empty if they do."""
    if not any(name in workload.variables for name in _DECISIVE):
        reason = "without POOLKIT_TARGET its pool is unknown (SQLAlchemy's default is 5+10)"
        if workload.requests and workload.requests.is_known:
            reason += f"; with one for each request, at most {workload.requests}"
        if workload.hidden_variables and not uses_database(workload):
            secret = workload.hidden_variables
            reason += f"; if {secret} is not about a database, give --ignore {workload.name}"
        return reason
    for name in _DECISIVE:
        found = workload.variables.get(name)
        if found is not None and found.text is None:
            return f"{name}: {found.reason}"
    if "POOLKIT_TARGET" not in workload.variables:
        return "POOLKIT_TARGET is not set, and the deployable has its own default"
    return ""


def _origin(workload: Workload, preset: EnginePreset, variable: str) -> str:
    """Return the source of a preset's field: its own variable, or the target."""
    if workload.text(variable):
        return f"{workload.variables[variable].origin} ({variable})"
    target = workload.variables["POOLKIT_TARGET"].origin
    return f"{target} (preset {preset.target} in {preset.environment})"


def _worker_pool(workload: Workload) -> Pool:
    """Return the pool of a worker: a task holds one connection, so the concurrency is the limit."""
    tasks, is_single = processes(workload)
    # A program of one process may still run many tasks in threads.
    if workload.command is None or not tasks.is_known or is_single:
        reason = "WORKER_CONCURRENCY is not set, and the worker has its own default"
        tasks = unknown(reason, workload.where)
    tasks = workload.number("WORKER_CONCURRENCY") or tasks
    origin = f"{workload.variables['POOLKIT_TARGET'].origin} (preset worker: a task holds one)"
    one, kind = known(1, origin), workload.text("WORKER_POOL") or "prefork"
    count = tasks if kind == "prefork" else one
    return Pool(count, one if kind in ("prefork", "solo") else tasks, known(0, origin), "worker")
