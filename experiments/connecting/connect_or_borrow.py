"""How much faster is a request that borrows its connection?

You may have read that it is very slow to open a connection for each session (0.7): 75 to 130 ms for a
request with a query of 5 ms, against 7 ms with a pool, so 10 times as long (0.13); or 3 to 4 times as
long (1.54). That 100 queries spend 5 to 20 s on connects (3.3), and that ten connections cost 500 to
1000 ms at the start (0.14).

Sessions run a query without a pool and with one, in turn, at four distances: on the loopback address,
and with TLS in the same availability zone (0.5 ms), in another zone (1.5 ms) and in another region
(62 ms).
"""

from functools import partial

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from poolkit.experiment import Lab, experiment
from poolkit.experiment.lab import milliseconds
from poolkit.local.distance import NAMED_DISTANCES


def request(engine: Engine, query: str) -> None:
    with Session(engine) as session:
        session.execute(text(query))


@experiment(
    question="How much faster is a request that borrows its connection?",
    rows=("0.7", "0.13", "1.54", "3.3", "0.14"),
    seconds=16,
)
def run(
    lab: Lab,
    *,
    query_ms: float = 5.0,
    claimed_ratio: float = 10.0,
    connections: int = 10,
    times: int = 10,
) -> None:
    query, long_query = (f"SELECT pg_sleep({ms / 1e3})" for ms in (query_ms, 10 * query_ms))
    found: dict[str, dict[str, float]] = {}
    for place, (rtt_s, meaning, _) in NAMED_DISTANCES.items():
        lab.say(f"{place}: {meaning}")
        # The network decides about the longest distance, so two rounds will do.
        rounds = times if rtt_s < 0.01 else 2
        with lab.network(rtt_s=rtt_s, tls=rtt_s > 0) as line:
            url = line.address.url()
            pooled, unpooled = create_engine(url), create_engine(url, poolclass=NullPool)
            lab.at_end(pooled.dispose)
            # The first connect of an engine also asks the server some questions.
            request(unpooled, query)
            request(pooled, query)
            took = lab.time_in_turn(
                {
                    "SELECT 1, no pool": partial(request, unpooled, "SELECT 1"),
                    "SELECT 1, pool": partial(request, pooled, "SELECT 1"),
                    "request, no pool": partial(request, unpooled, query),
                    "request, pool": partial(request, pooled, query),
                    "long request, no pool": partial(request, unpooled, long_query),
                    "long request, pool": partial(request, pooled, long_query),
                },
                rounds,
            )
        # The fastest, not the median: what else the machine does lengthens the others.
        found[place] = {step: min(each) for step, each in took.items()}

    lab.table(
        f"Milliseconds; a request is a query of {query_ms:g} ms, a long one of {10 * query_ms:g} ms",
        ("what", *found),
        [(step, *(at[step] * 1e3 for at in found.values())) for step in found["loopback"]],
    )
    bars = {
        f"{place}, {way}": at[f"request, {way}"] * 1e3
        for place, at in found.items()
        for way in ("no pool", "pool")
    }
    lab.bars(f"A session with a query of {query_ms:g} ms", bars, unit="ms", is_log=True)

    def ratio_of(work: str) -> dict[str, float]:
        """Return how many times as long a session takes without a pool, at each distance."""
        return {at: took[f"{work}, no pool"] / took[f"{work}, pool"] for at, took in found.items()}

    longer, shortest, longest = map(ratio_of, ("request", "SELECT 1", "long request"))
    if not lab.distance.is_none:
        lab.note(f"The distance of this run ({lab.distance}) is added to each of those named here.")
    why = (
        "Without a pool a session pays for a connect and for its work, with a pool for its work. The "
        "ratio of the two is large for a short query near the server. Far away it nears the ratio of "
        "the round trips: 6 for the connect, and 3 for BEGIN, the query and ROLLBACK, so 9 to 3."
    )
    lab.judge(
        "0.7",
        f"with a query of {query_ms:g} ms, a session with its own connect takes 1.5 times as long or more",
        holds={place: ratio >= 1.5 for place, ratio in longer.items()},
        measured=", ".join(f"{ratio:.1f} times {place}" for place, ratio in longer.items()),
        why=why,
    )
    lab.judge(
        "0.13",
        f"with a query of {query_ms:g} ms a pool is {claimed_ratio:g} times as fast, within a factor of two",
        holds={
            place: claimed_ratio / 2 <= ratio <= claimed_ratio * 2
            for place, ratio in longer.items()
        },
        measured=", ".join(f"{ratio:.1f} times {place}" for place, ratio in longer.items()),
        why=why,
    )
    # Nearer than another zone the ratio for SELECT 1 is 4 to 16: the client's own work decides it.
    ratios = {
        "SELECT 1 across zones": shortest["cross-az"],
        "SELECT 1 across regions": shortest["cross-region"],
        f"a query of {10 * query_ms:g} ms on loopback": longest["loopback"],
    }
    lab.judge(
        "1.54",
        "a pool is 3 to 4 times as fast, within a factor of 1.5",
        holds={name: 3 / 1.5 <= ratio <= 4 * 1.5 for name, ratio in ratios.items()},
        measured=", ".join(f"{ratio:.1f} times for {name}" for name, ratio in ratios.items()),
        why=why,
    )
    connect_s = {
        place: at["SELECT 1, no pool"] - at["SELECT 1, pool"] for place, at in found.items()
    }
    why = (
        "Near the server a connect takes some ms of work; far from it, six round trips. With a pool all "
        "queries share one. A pool that is filled at the start opens its connections one after the "
        "other, so the numbers are as many times what one connect takes."
    )
    lab.judge(
        "3.3",
        "100 queries spend 5 s or more on connects",
        holds={place: 100 * took >= 5 for place, took in connect_s.items()},
        measured=", ".join(f"{milliseconds(100 * s)} {place}" for place, s in connect_s.items()),
        why=why,
    )
    opening = {place: connections * took for place, took in connect_s.items()}
    lab.judge(
        "0.14",
        f"to open {connections} connections at the start takes 500 to 1000 ms",
        holds={place: 0.5 <= took <= 1 for place, took in opening.items()},
        measured=", ".join(f"{milliseconds(took)} {place}" for place, took in opening.items()),
        why=why,
    )
