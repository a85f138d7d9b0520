"""Do all connections of a fleet reconnect at the same moment?

You may have read that with pool_recycle=3600 all connections are closed and opened again every hour
(0.31). A pool replaces each connection by itself, at a checkout. But the connections of a fleet that
was deployed at once have the same age, so what counts is at which age each is replaced.

An hour takes `hour_s` seconds here. Each process of the fleet is a thread with an engine of its own,
and queries all the time. One fleet has SQLAlchemy's pool_recycle, the other one the preset web of
poolkit: each connection expires at a random age. That is up to 25 % earlier here, because an hour of
some seconds is too short for the preset's own 5 %. One more connection stays idle.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from sqlalchemy import Engine, create_engine, event, text

from poolkit.config.presets import preset
from poolkit.experiment import Lab, experiment


def note_age(engine: Engine, ages: list[float], born: float) -> None:
    """Note the age of each connection that the engine closes, in seconds."""
    event.listen(engine, "close", lambda *_: ages.append(time.monotonic() - born))


def most_within(window: float, ages: list[float]) -> int:
    """Return the most of these ages that lie within a window."""
    return max((sum(begin <= age < begin + window for age in ages) for begin in ages), default=0)


@experiment(
    question="Do all connections of a fleet reconnect at the same moment?",
    rows=("0.31",),
    seconds=10,
)
def run(lab: Lab, *, processes: int = 12, hour_s: float = 7.0, jitter: float = 0.25) -> None:
    settings = preset("web", "prod").replace(pool_recycle=hour_s, pool_recycle_jitter=jitter)
    plain, jittered = "pool_recycle", f"with {jitter:.0%} jitter"
    fleet = [(plain, create_engine(lab.url(), pool_recycle=hour_s)) for _ in range(processes)]
    fleet += [(jittered, settings.create_engine(lab.url())) for _ in range(processes)]
    ages: dict[str, list[float]] = {plain: [], jittered: []}
    for name, engine in fleet:
        lab.at_end(engine.dispose)
        note_age(engine, ages[name], born=time.monotonic())
        with engine.connect():
            pass
    idle = create_engine(lab.url(), pool_recycle=hour_s)
    lab.at_end(idle.dispose)
    with idle.connect() as connection:
        idle_pid = connection.scalar(text("SELECT pg_backend_pid()"))
    stop = Event()

    def work(engine: Engine) -> None:
        while not stop.wait(0.1):
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))

    lab.say(f"two fleets of {processes} processes work for an hour, in {hour_s:g} s")
    threads = ThreadPoolExecutor(len(fleet))
    lab.at_end(threads.shutdown)
    lab.at_end(stop.set)
    working = [threads.submit(work, engine) for _, engine in fleet]
    time.sleep(1.15 * hour_s)
    idle_still_open = idle_pid in {backend.pid for backend in lab.backends()}
    stop.set()
    for each in working:
        each.result()

    minutes = {name: [age * 60 / hour_s for age in sorted(found)] for name, found in ages.items()}
    most = {name: most_within(3, found) for name, found in minutes.items()}
    lab.table(
        f"Age at which {processes} processes replaced their connection, in minutes",
        ("", "replaced", "youngest", "oldest", "most within 3 minutes"),
        [(name, len(found), found[0], found[-1], most[name]) for name, found in minutes.items()],
    )
    lab.lines(
        "Processes that have reconnected, by the age of their connection",
        {name: [(age, n) for n, age in enumerate(found, 1)] for name, found in minutes.items()},
        unit="processes",
        x_title="age of the connection in minutes",
    )
    lab.judge(
        "0.31",
        "with pool_recycle=3600 all connections are closed and opened again every hour",
        holds={
            "busy connections of the same age": most[plain] > 0.7 * processes,
            f"busy ones {jittered}": most[jittered] > 0.7 * processes,
            "idle ones": not idle_still_open,
        },
        measured=f"most reconnects of {processes} within 3 minutes: {most[plain]}, and "
        f"{most[jittered]} {jittered}; an idle connection of 69 minutes is "
        f"{'still open' if idle_still_open else 'closed'}",
        why="No timer runs. A checkout replaces its connection if that is too old, so an idle one has "
        "no limit on its age. After a deployment all connections have one age: the busy ones are "
        "replaced together, and the server starts a process for each at the same moment. A random "
        "part of the age spreads that. poolkit's presets and psycopg_pool take up to 5 % off.",
    )
