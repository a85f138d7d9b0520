"""What do pool_recycle=900, 1800 and 3600 change?

You may have read that pool_recycle=3600 is a key setting, because it prevents stale connections (1.55);
that a web application is reliable with 3600 and pool_pre_ping (1.30); and that a background worker
should recycle more frequently, with 1800 (1.32).

An hour takes `hour_s` seconds here. Connections of engines with each setting rest for 10, 45 and 100
minutes, then they are used. Meanwhile those that are idle for too long are closed: after 350 s (the
limit of a NAT gateway of AWS), after 35 minutes, or after 90. It is the server that closes them here
(`idle_session_timeout`). Other engines work all the time, and their reconnects are counted.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from poolkit.experiment import Lab, experiment

RECYCLES = {"900": 900, "1800": 1800, "3600": 3600, "never": -1}
LIMITS = {"350 s": 350, "35 min": 2100, "90 min": 5400}
PAUSES = (600, 2700, 6000)


def query(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


def fails_after(pause_s: float, limit_s: float, engine: Engine, stop: Event) -> bool:
    """Open a connection and leave it idle; return whether the next query fails."""
    query(engine, f"SET idle_session_timeout = {limit_s * 1000:.0f}")
    stop.wait(pause_s)
    try:
        query(engine, "SELECT 1")
    except DBAPIError:
        return True
    finally:
        engine.dispose()
    return False


@experiment(
    question="What do pool_recycle=900, 1800 and 3600 change?",
    rows=("1.30", "1.32", "1.55"),
    seconds=18,
)
def run(lab: Lab, *, hour_s: float = 6.0, pre_ping: int = 1) -> None:
    def scaled(seconds: float) -> float:
        return seconds * hour_s / 3600

    def new_engine(recycle: str, *, ping: bool = False) -> Engine:
        age = scaled(RECYCLES[recycle]) if RECYCLES[recycle] > 0 else -1
        engine = create_engine(lab.url(), pool_recycle=age, pool_pre_ping=ping)
        lab.at_end(engine.dispose)
        return engine

    busy = {recycle: new_engine(recycle) for recycle in RECYCLES}
    born: dict[str, list[float]] = {recycle: [] for recycle in RECYCLES}
    for recycle, engine in busy.items():
        event.listen(engine, "connect", lambda *_, at=born[recycle]: at.append(time.monotonic()))
    oldest = dict.fromkeys(RECYCLES, 0.0)

    unchecked, checked = "", f"with pool_pre_ping={bool(pre_ping)}"
    settings = [(recycle, unchecked) for recycle in RECYCLES]
    settings += [("1800", checked), ("3600", checked)]
    failed = {(setting, limit): 0 for setting in settings for limit in LIMITS}
    stop = Event()
    threads = ThreadPoolExecutor(len(failed))
    lab.at_end(threads.shutdown)
    lab.at_end(stop.set)
    for pause in PAUSES:
        lab.say(f"a pause of {pause / 60:.0f} minutes, in {scaled(pause):.1f} s")
        resting = {}
        for (recycle, check), limit in failed:
            engine = new_engine(recycle, ping=bool(check and pre_ping))
            limit_s = scaled(LIMITS[limit])
            resting[(recycle, check), limit] = threads.submit(
                fails_after, scaled(pause), limit_s, engine, stop
            )
        while not all(done.done() for done in resting.values()):
            for recycle, engine in busy.items():
                query(engine, "SELECT 1")
                oldest[recycle] = max(oldest[recycle], time.monotonic() - born[recycle][-1])
            time.sleep(0.02)
        for key, done in resting.items():
            failed[key] += done.result()

    of = len(PAUSES)
    lab.table(
        f"Requests that failed after pauses of 10, 45 and 100 minutes, of {of}",
        ("pool_recycle", *(f"closed after {limit}" for limit in LIMITS)),
        [(" ".join(each).strip(), *(failed[each, limit] for limit in LIMITS)) for each in settings],
    )
    reconnects = {recycle: len(times) - 1 for recycle, times in born.items()}
    lab.table(
        f"Engines that work all the time, for {sum(PAUSES) / 60:.0f} minutes",
        ("pool_recycle", "reconnects", "oldest connection in minutes"),
        [(r, reconnects[r], f"{oldest[r] * 60 / hour_s:.0f}") for r in RECYCLES],
    )
    total = {each: sum(failed[each, limit] for limit in LIMITS) for each in settings}
    lab.bars(
        f"Failed requests of {of * len(LIMITS)}, without a check at checkout",
        {recycle: total[recycle, unchecked] for recycle in RECYCLES},
        unit="requests",
    )
    never = ("never", unchecked)
    hourly, hourly_checked = ("3600", unchecked), ("3600", checked)
    half, half_checked = ("1800", unchecked), ("1800", checked)
    lab.judge(
        "1.55",
        "pool_recycle=3600 prevents stale connections",
        holds={f"an idle limit of {limit}": failed[hourly, limit] == 0 for limit in LIMITS},
        measured="; ".join(
            f"closed after {limit}: {failed[hourly, limit]} of {of} requests failed, "
            f"{failed[never, limit]} without pool_recycle"
            for limit in LIMITS
        ),
        why="A checkout replaces a connection that is older than pool_recycle, and trusts a younger "
        "one. So the setting helps if it is shorter than the limit that closes idle connections. "
        "Databases often have hours as their limit, networks minutes.",
    )
    lab.judge(
        "1.30",
        "with pool_recycle=3600 and pool_pre_ping a web application meets no closed connection",
        holds=total[hourly_checked] == 0,
        measured=f"{total[hourly_checked]} of {of * len(LIMITS)} requests failed {checked}, "
        f"{total[hourly]} with pool_recycle=3600 alone",
        why="The ping at checkout finds every connection that the other side has closed, whatever its "
        "age. Recycling adds a limit on the age, no more. Where a firewall drops a connection "
        "without a word, the ping waits for an answer until TCP gives up.",
    )
    lab.judge(
        "1.32",
        "a worker should recycle after 1800 s rather than 3600, to meet fewer closed connections",
        holds={
            "engines without pool_pre_ping": total[half] < total[hourly],
            f"engines {checked}": total[half_checked] < total[hourly_checked],
        },
        measured=f"failed with 1800 and 3600: {total[half]} and {total[hourly]} without "
        f"pool_pre_ping, {total[half_checked]} and {total[hourly_checked]} {checked}; reconnects of a "
        f"busy engine: {reconnects['1800']} and {reconnects['3600']}",
        why="A worker may rest for long, so more of its connections are closed. Half the age saves "
        "the requests after a pause between 30 minutes and an hour. With a ping nothing is left "
        "to save, and a shorter age only costs more reconnects.",
    )
