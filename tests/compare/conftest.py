"""A run folder made up from a few numbers, for tests of its readers. No measurement."""

import random
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from poolkit.compare.report.findings import with_findings
from poolkit.compare.report.write import write_report
from poolkit.compare.results.results import Results, compute
from poolkit.compare.results.run_folder import (
    Absent,
    ConnectionRow,
    HoldRow,
    InvokeRow,
    Level,
    Machine,
    Plan,
    PlannedTarget,
    PoolRow,
    ProcessRow,
    Request,
    RunFolder,
    SampleRow,
    Step,
    TargetFolder,
    Window,
)
from poolkit.config.presets import preset

STARTED = 1_800_000_000.0
WARM_UP_S, MEASURED_S, INTERVAL_S = 4.0, 10.0, 0.1
FROM = STARTED + WARM_UP_S
TO = FROM + MEASURED_S


@dataclass(kw_only=True)
class MadeUp:
    """The properties of a made-up target; latencies in ms around `p50`, with a tail."""

    preset: str
    kind: str
    p50: float = 5.0
    tail: float = 1.5
    kept: int = 0
    """Connections open all the time."""
    per_request: float = 0.0
    """Connections opened and closed for each request."""
    busy: int = 0
    """The number of kept connections that are in a transaction."""
    ceiling: int | None = 20
    errors: dict[str, int] = field(default_factory=dict)
    cold: int = 0
    cold_inside: int = 0
    cpu: dict[str, float] = field(
        default_factory=lambda: {"load": 0.2, "target": 0.4, "database": 0.2}
    )
    pool_opened: int | None = None
    left_over: int = 0
    late_ms: float = 0.0
    partial: bool = False
    aborted_by: str = ""
    url: str | None = None
    max_connections: int | None = None
    capacity: float = 1e9
    """Tasks per second: near and beyond it, a queue adds to the latencies."""
    warnings: tuple[str, ...] = ()
    holds: tuple[HoldRow, ...] | None = None
    pools: tuple[PoolRow, ...] = ()
    swept_from: str = ""
    pool_size: int | None = None


EVERY_TARGET = {
    "lambda": MadeUp(preset="lambda", kind="lambda", p50=24, tail=2, per_request=1, cold=18),
    "lambda_warm": MadeUp(
        preset="lambda_warm", kind="lambda", p50=4.6, kept=18, cold=18, cold_inside=3
    ),
    "web": MadeUp(preset="web", kind="web", p50=4, kept=9, busy=2, ceiling=30, pool_opened=0),
    "web_async": MadeUp(preset="web_async", kind="web", p50=4.1, kept=12, ceiling=60),
    "worker": MadeUp(preset="worker", kind="worker", p50=17, tail=2.5, kept=4, ceiling=4),
    "lambda_proxy": MadeUp(preset="lambda_proxy", kind="lambda", p50=9, kept=5, cold=17),
}


Change = Callable[[Step, MadeUp], MadeUp | None]


def make_run(
    path: Path, targets: dict[str, MadeUp], *, change: Change | None = None, **plan: object
) -> RunFolder:
    """Write a run folder of such targets; `change` returns another target for a step, or None."""
    run = RunFolder(path)
    written = _plan(targets, **plan)
    run.write_plan(written)
    versions = {"postgresql": "18.6", "sqlalchemy": "2.1.9", "poolkit": "0.1.0"}
    here = {"cores": 2, "memory_gib": 8.0, "os": "Linux", "python": "3.11.7", "versions": versions}
    run.write_machine(Machine(cpu="Made-up CPU", **here))
    for step in written.steps:
        target = targets[step.target]
        target = change(step, target) if change else target
        if target is None:
            continue
        seed = step.target
        if len(written.levels) > 1 or written.repeat > 1:
            seed = f"{step.target} {step.level.name} {step.repeat}"
            target = _under_load(target, step.level, random.Random(seed))
        _write_target(run.step(written, step), target, seed, step.level.offered_per_s)
    return run


def _under_load(target: MadeUp, level: Level, chance: random.Random) -> MadeUp:
    """Return the target as slow as a queue makes it, and different in each repeat."""
    left = max(0.1, 1 - level.offered_per_s / target.capacity)
    kept = min(target.kept, 1 + round(target.kept * level.offered_per_s / 100))
    p50 = target.p50 / left * chance.lognormvariate(0, 0.06)
    return replace(target, p50=p50, kept=kept)


def _plan(targets: dict[str, MadeUp], **changes: object) -> Plan:
    values = {
        "created": "2027-01-15T08:00:00Z",
        "command": "poolkit compare",
        "environment": "prod",
        "levels": (Level(users=20, rate_per_user=2.0),),
        "duration_s": MEASURED_S,
        "warm_up_s": WARM_UP_S,
        "max_connections": 100,
        "usable_connections": 97,
        "interval_s": INTERVAL_S,
        "targets": tuple(
            PlannedTarget(
                name=name,
                kind=target.kind,
                preset=target.preset,
                locustfile="loadtests/articles.py",
                preset_fields=asdict(preset(target.preset, "prod")),
                ceiling=target.ceiling,
                ceiling_reason="made up",
                instances_max=20 if target.kind == "lambda" else 1,
                url=target.url,
                max_connections=target.max_connections,
                swept_from=target.swept_from,
                pool_size=target.pool_size,
                max_overflow=0 if target.swept_from else None,
            )
            for name, target in targets.items()
        ),
        "absent": (Absent(name="lambda_pgbouncer", reason="pgbouncer is not on PATH"),),
    }
    return Plan(**{**values, **changes})


def _write_target(folder: TargetFolder, target: MadeUp, seed: str, rate: float) -> None:
    chance = random.Random(seed)
    requests = _requests(target, chance, rate)
    with folder.writer(Request) as write:
        for request in requests:
            write(request)
    _write_samples(folder, target, chance, requests)
    with folder.writer(ProcessRow) as write:
        for second in range(int(WARM_UP_S + MEASURED_S) + 1):
            for role, share in target.cpu.items():
                figures = {"cpu_s": 5 + share * second, "rss_mb": 200.0 + second}
                write(ProcessRow(time=STARTED + second, role=role, processes=3, **figures))
    if target.holds is not None:
        with folder.writer(HoldRow) as write:
            for row in target.holds:
                write(row)
    if target.pools:
        with folder.writer(PoolRow) as write:
            for row in target.pools:
                write(row)
    if target.cold:
        _write_invokes(folder, target, chance, [r for r in requests if r.service_ms > 700])
    inside = sum(FROM <= r.started + r.service_ms / 1000 < TO for r in requests)
    opened = round(inside * target.per_request)
    folder.write_window(
        Window(
            started=STARTED,
            warm_from=STARTED,
            from_=FROM,
            to=TO,
            stopped=TO + 1,
            partial=target.partial,
            left_over=target.left_over,
            cold_starts=target.cold if target.kind == "lambda" else None,
            execution_environments=18 if target.kind == "lambda" else None,
            throttled=0 if target.kind == "lambda" else None,
            instances=20 if target.kind == "lambda" else 1,
            sessions_before=100,
            sessions_from=100 + target.kept,
            sessions_to=100 + target.kept + opened,
            sessions_after=100 + target.kept + opened,
            pool_opened=target.pool_opened,
            warnings=target.warnings,
            aborted_by=target.aborted_by,
        )
    )


def _requests(target: MadeUp, chance: random.Random, rate: float) -> list[Request]:
    made = []
    failures = [kind for kind, number in target.errors.items() for _ in range(number)]
    total = int((WARM_UP_S + MEASURED_S) * rate)
    for number in range(total):
        due = STARTED + number / rate + chance.random() * 0.001
        error = failures.pop() if failures and due > FROM and number % 3 == 0 else ""
        service = target.p50 * (0.8 + 0.4 * chance.random()) * target.tail ** chance.expovariate(2)
        if target.cold_inside and due > FROM and number % (total // target.cold_inside) == 50:
            service += 800
        # A request beyond the capacity waits for all that came before it.
        service += (due - STARTED) * 1000 * max(0.0, rate / target.capacity - 1)
        started = due + target.late_ms / 1000
        made.append(
            Request(
                due=due,
                started=started,
                latency_ms=(started - due) * 1000 + service,
                service_ms=service,
                method="GET",
                name="/articles",
                status=int(error) if error.isdigit() else 0 if error else 200,
                error=error,
            )
        )
    return made


def _write_samples(
    folder: TargetFolder, target: MadeUp, chance: random.Random, requests: list[Request]
) -> None:
    ticks = int((WARM_UP_S + MEASURED_S + 1) / INTERVAL_S)
    ended = [end for r in requests if (end := r.started + r.service_ms / 1000) < TO]
    with folder.writer(ConnectionRow) as connections, folder.writer(SampleRow) as samples:
        for tick in range(ticks):
            time = STARTED + tick * INTERVAL_S
            kept = min(target.kept, tick // 2) if time < TO + 0.5 else 0
            short = chance.choice([0, 0, 1, 1, 2, 3, 5]) if target.per_request and time < TO else 0
            for number in range(kept + short):
                state = "idle in transaction" if number < target.busy else "idle"
                connections(
                    ConnectionRow(
                        time=time,
                        target=target.preset,
                        instance=f"host-{number}",
                        pid=1000 + number,
                        state="active" if number >= kept else state,
                        age_s=1.0,
                        state_age_s=0.5,
                        wait_event="ClientRead",
                    )
                )
            opened = round(sum(FROM <= end <= time for end in ended) * target.per_request)
            sessions = 100 + target.kept + opened
            samples(SampleRow(time=time, backends=kept + short, sessions=sessions, xacts=tick))


def _write_invokes(
    folder: TargetFolder, target: MadeUp, chance: random.Random, slow: list[Request]
) -> None:
    moments = [STARTED + chance.random() for _ in range(target.cold)]
    moments += [r.started for r in slow[: target.cold_inside]]
    with folder.writer(InvokeRow) as write:
        for number, moment in enumerate(moments):
            ids = {"request_id": str(number), "execution_environment": f"ee-{number}"}
            ms = {"init_ms": 600 + 150 * chance.random(), "queue_ms": 1.0, "duration_ms": 5.0}
            write(InvokeRow(**ids, **ms, arrived=moment, cold=True, status="ok", error_type=""))


def hold(where: str, **changes: object) -> HoldRow:
    """Return 100 holds of 4 ms by one line, all of it SQL."""
    values = {"unit": "GET /x", "count": 100, "held_s": 0.4, "busy_s": 0.4, "unseen_s": 0.0}
    values |= {"longest_s": 0.004, "nested": 0, "after_response": 0, "leaked": 0, "out_s": 0.0}
    # The bucket that has 4 ms, and below the one that has 300 ms.
    return HoldRow(where=where, **{**values, "spread": "-56:100", **changes})


LONG = {"held_s": 30.0, "busy_s": 0.6, "longest_s": 0.31, "spread": "-7:100"}
"""100 holds of 0.3 s, with 2 % of SQL."""


def request(due: float, latency_ms: float = 10.0, error: str = "") -> Request:
    values = {"latency_ms": latency_ms, "service_ms": latency_ms, "error": error}
    return Request(due=due, started=due, method="GET", name="/", status=200, **values)


def identifiers_are_unique(page: str) -> bool:
    """Return whether every picture of a page counts its own identifiers."""
    found = re.findall(r'\bid="([^"]*)"', page)
    return 0 < len(found) == len(set(found))


@pytest.fixture(scope="session")
def six(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of all six targets, made once: tests read it, and change copies."""
    return make_run(tmp_path_factory.mktemp("six") / "run", EVERY_TARGET)


@pytest.fixture(scope="session")
def results_of_six(six: RunFolder) -> Results:
    """The figures and findings of that run."""
    return with_findings(compute(six))


@pytest.fixture(scope="session")
def reported(six: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of all six targets with its report, made once: drawing takes seconds."""
    run = RunFolder(shutil.copytree(six.path, tmp_path_factory.mktemp("reported") / "run"))
    write_report(run.path)
    return run


@pytest.fixture
def made_up_run(tmp_path: Path, six: RunFolder) -> Callable[..., RunFolder]:
    """A function that makes up a run of some targets; of all six by default."""

    def make(name: str = "run", targets: dict[str, MadeUp] | None = None, **plan: object):
        if targets is None and not plan:
            return RunFolder(shutil.copytree(six.path, tmp_path / name))
        return make_run(tmp_path / name, EVERY_TARGET if targets is None else targets, **plan)

    return make


@pytest.fixture
def made_up() -> Callable[..., MadeUp]:
    def make(name: str, **changes: object) -> MadeUp:
        kind = "lambda" if name.startswith("lambda") else "worker" if name == "worker" else "web"
        return MadeUp(**{"preset": name, "kind": kind, **changes})

    return make
