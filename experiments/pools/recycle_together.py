"""Do all connections of a fleet reconnect at the same moment?

You may have read that with pool_recycle=3600 all connections are closed and opened again every hour
(0.31). One pool closes each connection for itself, at a checkout. But a fleet that was deployed at
once has connections of the same age.

An hour takes `hour_s` seconds here. Each process of the fleet is a thread with an engine of its own,
which queries all the time. All start together: a fleet with SQLAlchemy's pool_recycle, and one with
the preset web of poolkit, whose connections expire up to 5 % earlier, each at its own random age.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Barrier, Event

from sqlalchemy import Engine, create_engine, event, text

from poolkit.config.presets import preset
from poolkit.experiment import Lab, experiment

def most_within(window: float, ages: list[float]) -> int:
    """Return the most of these ages that lie within a window."""
    return max((sum(begin <= age < begin + window for age in ages) for begin in ages), default=0)


@experiment(
    question="Do all connections of a fleet reconnect at the same moment?",
    rows=("0.31",),
    seconds=15,
)
def run(lab: Lab, *, processes: int = 16, hour_s: float = 12.0, jitter: float = 0.05) -> None:
    settings = preset("web", "prod").replace(pool_recycle=hour_s, pool_recycle_jitter=jitter)
    plain, jittered = "pool_recycle", f"with {jitter:.0%} jitter"
    fleet = [(plain, create_engine(lab.url(), pool_recycle=hour_s)) for _ in range(processes)]
    fleet += [(jittered, settings.create_engine(lab.url())) for _ in range(processes)]
    idle = create_engine(lab.url(), pool_recycle=hour_s)
    opened: dict[str, list[float]] = {plain: [], jittered: []}
    together, stop = Barrier(len(fleet)), Event()

    def work(name: str, engine: Engine) -> None:
        event.listen(engine, "connect", lambda *_: opened[name].append(time.monotonic() - began))
        together.wait()
        while not stop.wait(0.06):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))

    lab.say(f"two fleets of {processes} processes work for an hour, in {hour_s:g} s")
    with ExitStack() as at_end:
        for engine in (idle, *(engine for _, engine in fleet)):
            at_end.callback(engine.dispose)
        with idle.connect() as connection:
            idle_pid = connection.scalar(text("SELECT pg_backend_pid()"))
        threads = at_end.enter_context(ThreadPoolExecutor(len(fleet)))
        at_end.callback(stop.set)
        began = time.monotonic()
        working = [threads.submit(work, *each) for each in fleet]
        time.sleep(1.15 * hour_s)
        idle_still_open = idle_pid in {backend.pid for backend in lab.backends()}
        stop.set()
        for each in working:
            each.result()

    again = {name: [at for at in times if at > hour_s / 2] for name, times in opened.items()}
    most = {name: most_within(times, WINDOW * hour_s) for name, times in again.items()}
    lab.table(
        f"Reconnects of {processes} processes after an hour",
        ("", "in all", "first, min", "last, min", "most within 36 s"),
        [
            (name, len(times), min(times) * 60 / hour_s, max(times) * 60 / hour_s, most[name])
            for name, times in again.items()
        ],
    )
    lab.lines(
        "Processes that have reconnected",
        {
            name: [(at * 60 / hour_s, number) for number, at in enumerate(sorted(times), 1)]
            for name, times in again.items()
        },
        unit="processes",
        x_title="minutes after the start",
    )
    lab.judge(
        "0.31",
        "with pool_recycle=3600 all connections are closed and opened again every hour",
        holds={
            "connections in use that were opened together": most[plain] > 0.7 * processes,
            jittered: most[jittered] > 0.7 * processes,
            "idle connections": not idle_still_open,
        },
        measured=f"most reconnects of {processes} within 36 s of an hour: {most[plain]}, and "
        f"{most[jittered]} {jittered}; an idle connection of 69 minutes is "
        f"{'still open' if idle_still_open else 'closed'}",
        why="No timer runs: a checkout replaces its connection if it is too old, and an idle one may "
        "become as old as it likes. But after a deployment all connections have one age, so those "
        "in use are replaced together, and the server has to start a process for each. A random part "
        "of the age spreads that: poolkit's presets and psycopg_pool take up to 5 % off.",
    )
