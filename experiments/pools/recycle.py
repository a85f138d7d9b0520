"""What do pool_recycle=900, 1800 and 3600 change?

You may have read that pool_recycle=3600 is a key setting, because it prevents stale connections (1.55);
that a web application is reliable with 3600 and pool_pre_ping (1.30); and that a background worker
should recycle more frequently, with 1800 (1.32).

An hour takes `hour_s` seconds here. Engines with each setting rest for 10 minutes, for 50 minutes and
for 100 minutes. Connections that are idle for too long are closed meanwhile: after 350 s (the limit of a
NAT gateway of AWS), after 40 minutes, or after 90. The server does it here (`idle_session_timeout`).
Further engines work all the time, and their reconnects are counted.
"""

import time

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from poolkit.experiment import Lab, experiment

RECYCLES = {"900": 900, "1800": 1800, "3600": 3600, "never": -1}
LIMITS = {"350 s": 350, "40 min": 2400, "90 min": 5400}
PAUSES = (600, 3000, 6000)


def fails(engine: Engine, statement: str = "SELECT 1") -> bool:
    try:
        with engine.begin() as connection:
            connection.execute(text(statement))
    except DBAPIError:
        return True
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

    checked = "with pool_pre_ping" if pre_ping else "without it again"
    resting = {
        (recycle, check, limit): new_engine(recycle, ping=bool(check and pre_ping))
        for recycle in RECYCLES
        for check in ("", checked)
        for limit in LIMITS
    }
    busy = {recycle: new_engine(recycle) for recycle in RECYCLES}
    born: dict[str, list[float]] = {recycle: [] for recycle in RECYCLES}
    for recycle, engine in busy.items():
        event.listen(engine, "connect", lambda *_, at=born[recycle]: at.append(time.monotonic()))
    oldest = dict.fromkeys(RECYCLES, 0.0)
    failed = dict.fromkeys(resting, 0)
    for pause in PAUSES:
        lab.say(f"a pause of {pause / 60:.0f} minutes in {scaled(pause):.1f} s")
        due = {}
        for (recycle, check, limit), engine in resting.items():
            engine.dispose()
            fails(engine, f"SET idle_session_timeout = {scaled(LIMITS[limit]) * 1000:.0f}")
            due[recycle, check, limit] = time.monotonic() + scaled(pause)
        while time.monotonic() < min(due.values()):
            for recycle, engine in busy.items():
                fails(engine)
                oldest[recycle] = max(oldest[recycle], time.monotonic() - born[recycle][-1])
            time.sleep(0.02)
        for key, engine in resting.items():
            time.sleep(max(0.0, due[key] - time.monotonic()))
            failed[key] += fails(engine)

    lab.table(
        f"Requests that failed after pauses of 10, 50 and 100 minutes, of {len(PAUSES)}",
        ("pool_recycle", *(f"closed after {limit}" for limit in LIMITS)),
        [
            (f"{recycle} {check}", *(failed[recycle, check, limit] for limit in LIMITS))
            for recycle in RECYCLES
            for check in ("", checked)
        ],
    )
    reconnects = {recycle: len(times) - 1 for recycle, times in born.items()}
    lab.table(
        f"Engines that work all the time, for {sum(PAUSES) / 60:.0f} minutes",
        ("pool_recycle", "reconnects", "oldest connection in minutes"),
        [(r, reconnects[r], f"{oldest[r] * 60 / hour_s:.0f}") for r in RECYCLES],
    )
    total = {
        (recycle, check): sum(failed[recycle, check, limit] for limit in LIMITS)
        for recycle in RECYCLES
        for check in ("", checked)
    }
    lab.bars(
        f"Failed requests of {len(PAUSES) * len(LIMITS)}, without a check at checkout",
        {recycle: total[recycle, ""] for recycle in RECYCLES},
        unit="requests",
    )
    lab.judge(
        "1.55",
        "pool_recycle=3600 prevents stale connections",
        holds={f"closed after {limit}": failed["3600", "", limit] == 0 for limit in LIMITS},
        measured=", ".join(
            f"{failed['3600', '', limit]} of {len(PAUSES)} requests failed where idle connections are "
            f"closed after {limit}"
            for limit in LIMITS
        ),
        why="pool_recycle replaces a connection at its next checkout, if it is older than that. So it "
        "helps if it is shorter than the limit that closes idle connections: a younger connection "
        "can have been closed already. Networks close after minutes.",
    )
    lab.judge(
        "1.30",
        "with pool_recycle=3600 and pool_pre_ping a web application meets no closed connection",
        holds=total["3600", checked] == 0,
        measured=f"{total['3600', checked]} of {len(PAUSES) * len(LIMITS)} requests failed with both, "
        f"{total['3600', '']} with pool_recycle=3600 alone",
        why="The ping at checkout finds every connection that was closed, whatever its age; recycling "
        "adds only a limit on the age. What a ping does not find is a connection that breaks "
        "between the checkout and the query.",
    )
    lab.judge(
        "1.32",
        "a worker should recycle after 1800 s rather than 3600, to meet fewer closed connections",
        holds={
            "without a check at checkout": total["1800", ""] < total["3600", ""],
            checked: total["1800", checked] < total["3600", checked],
        },
        measured=f"failed with 1800 and 3600: {total['1800', '']} and {total['3600', '']} without a "
        f"check, {total['1800', checked]} and {total['3600', checked]} {checked}; reconnects of a "
        f"busy engine: {reconnects['1800']} and {reconnects['3600']}",
        why="A worker may rest for long, so its connections are closed more often. Half the age saves "
        "the requests after pauses between 30 minutes and an hour. With a ping there is nothing left "
        "to save, and a shorter age only costs more reconnects.",
    )
