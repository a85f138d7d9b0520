"""Run experiments, one after the other, on one server."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from poolkit.errors import PoolkitError, how_to_install
from poolkit.experiment.ground import ForeignGround, Ground, PrivateGround, in_one_line
from poolkit.experiment.lab import Lab
from poolkit.experiment.outcome import Outcome, Report, Status
from poolkit.local.distance import Distance
from poolkit.local.mariadb import find_mariadb
from poolkit.local.mongodb import find_mongodb
from poolkit.local.pgbouncer import find_pgbouncer
from poolkit.local.postgres import EmbeddedPostgres
from poolkit.local.processes import owned_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from poolkit.experiment.experiment import Experiment, Need

_VERSIONS = (
    *("sqlalchemy", "psycopg2-binary", "psycopg", "psycopg-pool", "asyncpg"),
    *("fastapi", "pymysql", "pymongo"),
)
_MODULES = ("asyncpg", "psycopg", "psycopg_pool", "pymysql", "pymongo", "fastapi")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How experiments are run."""

    command: str
    distance: Distance = field(default_factory=Distance)
    database_url: str | None = None
    """A PostgreSQL in place of a private one."""
    mongodb_url: str = ""
    changes: Mapping[str, str] = field(default_factory=dict)
    """Conditions of the experiment, changed from outside."""
    programs: Path | None = None
    """The folder of another PostgreSQL than the wheel's."""


def run_experiments(
    chosen: Sequence[Experiment],
    options: Options,
    *,
    say: Callable[[str], None],
    done: Callable[[Outcome], None],
) -> Report:
    """Run experiments one after the other, and return what they found.

    Args:
        chosen: in the order in which they run.
        options: how they run.
        say: shows progress.
        done: receives each outcome at once.

    Raises:
        PoolkitError: the server did not start, or cannot be used.
    """
    outcomes = []
    versions = dict(_versions(_VERSIONS))
    reasons = [missing(experiment, options) for experiment in chosen]
    foreign: Ground | None = None
    if options.database_url is not None:
        foreign = ForeignGround(options.database_url, options.distance, say)
    with ExitStack() as stack:
        if not all(reasons):
            folder = stack.enter_context(owned_folder())
            ground = foreign or _private_ground(stack, folder, options, say)
            with ground.place("version") as place:
                ((version,),) = place.ask("SHOW server_version")
            versions = {"PostgreSQL": str(version), **versions}
        for experiment, reason in zip(chosen, reasons, strict=True):
            if reason:
                outcome = _outcome(experiment, Status.NOT_RUN, reason=reason)
            else:
                outcome = run_one(experiment, ground, folder, options, say=say)
            outcomes.append(outcome)
            done(outcome)
    return Report(
        command=options.command,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        machine=_machine(),
        versions=versions,
        distance=str(options.distance),
        outcomes=tuple(outcomes),
    )


def run_one(
    experiment: Experiment,
    ground: Ground,
    folder: Path,
    options: Options,
    *,
    say: Callable[[str], None],
) -> Outcome:
    """Run one experiment, and return what it found; its own errors are an outcome too."""
    conditions = experiment.conditions_with(options.changes)
    began = time.monotonic()
    status, reason = Status.DONE, ""
    lab: Lab | None = None
    try:
        with ground.place(experiment.name) as place:
            lab = Lab(
                place,
                folder=folder,
                distance=options.distance,
                say=lambda text: say(f"{experiment.name}: {text}"),
                programs=options.programs,
                mongodb_url=options.mongodb_url,
            )
            with lab:
                experiment.function(lab, **conditions)
    except Exception as error:  # noqa: BLE001  (an experiment's own; the others go on)
        if interruption := _interruption_before(error):
            # But what could not be taken back has to be told.
            raise error if isinstance(error, PoolkitError) else interruption from None
        status, reason = Status.FAILED, _reason(error, experiment.path)
    return _outcome(
        experiment,
        status,
        reason=reason,
        took_s=time.monotonic() - began,
        conditions=conditions,
        judgements=tuple(lab.judgements) if lab else (),
        tables=tuple(lab.tables) if lab else (),
        charts=tuple(lab.charts) if lab else (),
        notes=tuple(lab.notes) if lab else (),
    )


def missing(experiment: Experiment, options: Options) -> str:
    """Return what an experiment needs and what is not here, and how to get it; empty for nothing."""
    for module in _MODULES:
        if importlib.util.find_spec(module) is None:
            return f"needs {module} ({how_to_install('experiments')})"
    needs = experiment.needs
    if options.database_url is not None and {"own server", "pgbouncer"} & {*needs}:
        return "needs a server of its own, so it does not run with --database-url"
    others: dict[Need, tuple[str, Callable[[], bool]]] = {
        "linux": ("Linux (it reads /proc)", lambda: sys.platform == "linux"),
        "pgbouncer": (
            "PgBouncer (apt-get install pgbouncer)",
            lambda: find_pgbouncer() is not None,
        ),
        "mariadb": (
            "MariaDB (apt-get install mariadb-server)",
            lambda: find_mariadb() is not None,
        ),
        "mongodb": (
            "MongoDB (mongod on PATH, or --mongodb-url)",
            lambda: bool(options.mongodb_url) or find_mongodb() is not None,
        ),
    }
    for need, (what, is_here) in others.items():
        if need in needs and not is_here():
            return f"needs {what}"
    return ""


def _private_ground(
    stack: ExitStack, folder: Path, options: Options, say: Callable[[str], None]
) -> Ground:
    say("starting PostgreSQL")
    postgres = EmbeddedPostgres(folder, programs=options.programs)
    return PrivateGround(stack.enter_context(postgres), options.distance)


def _outcome(experiment: Experiment, status: Status, **found: object) -> Outcome:
    return Outcome(
        name=experiment.name,
        chapter=experiment.chapter,
        question=experiment.question,
        status=status,
        **found,  # type: ignore[arg-type]
    )


def _interruption_before(error: BaseException) -> BaseException | None:
    """Return the Ctrl-C or SIGTERM that an error came after, when all was being ended."""
    context = error.__context__
    while context is not None and not isinstance(context, KeyboardInterrupt | SystemExit):
        context = context.__context__
    return context


def _reason(error: Exception, path: Path) -> str:
    """Return an error with the experiment's line in one line."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename) == path
    ]
    place = f" ({path.name}:{lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {in_one_line(error)}{place}"


def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.machine()}, {cores} cores, {platform.system()} {platform.release()}, "
        f"Python {sys.version.split()[0]}"
    )


def _versions(packages: Iterable[str]) -> Iterable[tuple[str, str]]:
    for package in packages:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
