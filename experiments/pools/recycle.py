"""What do pool_recycle=900, 1800 and 3600 change?

You may have read that pool_recycle=3600 is a key setting, because it prevents stale connections (1.55);
that a web application is reliable with 3600 and pool_pre_ping (1.30); and that a background worker
should recycle more frequently, with 1800 (1.32).

An hour takes `hour_s` seconds here. Connections with each setting rest for 10, 40 and 100 minutes,
then each serves a request. Meanwhile those that are idle for too long are closed: after 350 s (the
limit of a NAT gateway of AWS), after 35 minutes, or after 90. It is the server that closes them here
(`idle_session_timeout`). Other engines work all the time, and their reconnects are counted.
"""

import time
from itertools import product
from typing import NamedTuple

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from poolkit.experiment import Lab, experiment

AGES = {"900": 900, "1800": 1800, "3600": 3600, "never": -1}
LIMITS = {"350 s": 350, "35 min": 2100, "90 min": 5400}
PAUSES = (600, 2400, 6000)


class Rest(NamedTuple):
    """A connection that rests, in an engine of its own, and the time of its next request."""

    setting: str
    limit: str
    engine: Engine
    until: float


def fails(engine: Engine, statement: str) -> bool:
    try:
        with engine.begin() as connection:
            connection.execute(text(statement))
    except DBAPIError:
        return True
    return False


@experiment(
    question="What do pool_recycle=900, 1800 and 3600 change?",
    rows=("1.30", "1.32", "1.55"),
    seconds=13,
)
def run(lab: Lab, *, hour_s: float = 6.0, pre_ping: int = 1) -> None:
    def new_engine(age: str, *, ping: bool) -> Engine:
        recycle = AGES[age] * hour_s / 3600 if AGES[age] > 0 else -1
        engine = create_engine(lab.url(), pool_recycle=recycle, pool_pre_ping=ping)
        lab.at_end(engine.dispose)
        return engine

    checked = f"with pool_pre_ping={bool(pre_ping)}"
    settings = {age: (age, False) for age in AGES}
    settings |= {f"{age} {checked}": (age, bool(pre_ping)) for age in ("1800", "3600")}
    failed = {setting: dict.fromkeys(LIMITS, 0) for setting in settings}
    busy = {age: new_engine(age, ping=False) for age in AGES}
    connects: dict[str, list[int]] = {age: [] for age in AGES}
    for age, engine in busy.items():
        event.listen(engine, "connect", lambda *_, found=connects[age]: found.append(1))
        fails(engine, "SELECT 1")

    def begin(pause: float) -> list[Rest]:
        lab.say(f"a pause of {pause / 60:.0f} minutes, in {pause * hour_s / 3600:.1f} s")
        rests = []
        for (setting, (age, ping)), limit in product(settings.items(), LIMITS):
            engine = new_engine(age, ping=ping)
            fails(engine, f"SET idle_session_timeout = {LIMITS[limit] * hour_s / 3.6:.0f}")
            rests.append(Rest(setting, limit, engine, time.monotonic() + pause * hour_s / 3600))
        return rests

    def end(rests: list[Rest]) -> None:
        for rest in rests:
            while time.monotonic() < rest.until:
                for engine in busy.values():
                    fails(engine, "SELECT 1")
                time.sleep(0.02)
            failed[rest.setting][rest.limit] += fails(rest.engine, "SELECT 1")
            rest.engine.dispose()

    # The longest pause begins first, and the others fall into it.
    *short_pauses, longest = PAUSES
    long_rest = begin(longest)
    for pause in short_pauses:
        end(begin(pause))
    end(long_rest)

    reconnects = {age: len(found) - 1 for age, found in connects.items()}
    total = {setting: sum(found.values()) for setting, found in failed.items()}
    lab.table(
        f"Failed requests, of {len(PAUSES)} after different pauses; reconnects of a busy engine",
        ("pool_recycle", *(f"closed after {limit}" for limit in LIMITS), "reconnects"),
        [(name, *failed[name].values(), reconnects[age]) for name, (age, _) in settings.items()],
    )
    of = len(PAUSES) * len(LIMITS)
    lab.bars(f"Failed requests, of {of}", total, unit="requests")
    lab.judge(
        "1.55",
        "pool_recycle=3600 prevents stale connections",
        holds={f"an idle limit of {limit}": failed["3600"][limit] == 0 for limit in LIMITS},
        measured="; ".join(
            f"closed after {limit}: {failed['3600'][limit]} of {len(PAUSES)} requests failed, "
            f"{failed['never'][limit]} without pool_recycle"
            for limit in LIMITS
        ),
        why="A checkout replaces a connection that is older than pool_recycle, and trusts a younger "
        "one. So the setting helps if it is shorter than the limit that closes idle connections. "
        "Databases often have hours as their limit, networks minutes.",
    )
    hour, hour_checked = total["3600"], total[f"3600 {checked}"]
    half, half_checked = total["1800"], total[f"1800 {checked}"]
    lab.judge(
        "1.30",
        "with pool_recycle=3600 and pool_pre_ping a web application meets no closed connection",
        holds=hour_checked == 0,
        measured=f"{hour_checked} of {of} requests failed {checked}, {hour} with pool_recycle=3600 "
        "alone",
        why="The ping finds every connection that the other side has closed, whatever its age. "
        "Recycling adds a limit on the age, no more. Where a firewall drops a connection silently, "
        "the ping waits for an answer until TCP gives up.",
    )
    lab.judge(
        "1.32",
        "a worker should recycle after 1800 s rather than 3600, to meet fewer closed connections",
        holds={
            "engines without pool_pre_ping": half < hour,
            f"engines {checked}": half_checked < hour_checked,
        },
        measured=f"failed with 1800 and 3600: {half} and {hour} without pool_pre_ping, "
        f"{half_checked} and {hour_checked} {checked}; reconnects of a busy engine: "
        f"{reconnects['1800']} and {reconnects['3600']}",
        why="A worker may rest for long, so more of its connections are closed. Half the age saves "
        "the requests after a pause between 30 minutes and an hour. With a ping nothing is left "
        "to save, and a shorter age only costs more reconnects.",
    )
