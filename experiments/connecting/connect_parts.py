"""What is a connect made of?

You may have read that TCP takes 50 to 100 ms of a connect (0.10) and the login 10 to 20 ms (0.11),
and that the overhead is made of TCP, TLS, the login and session setup (4.1).

Three drivers connect through a proxy that records when each message passes: on the loopback address,
with TLS, and with TLS over two distances. They log in with SCRAM; psycopg2 also with a password in
clear text, and without any (trust).
"""

import asyncio
from dataclasses import replace

import asyncpg
import psycopg
import psycopg2

from poolkit.experiment import Lab, experiment
from poolkit.experiment.ground import Place


async def use_asyncpg(dsn: str) -> None:
    await (await asyncpg.connect(dsn)).close()


DRIVERS = {
    "psycopg2": lambda dsn: psycopg2.connect(dsn).close(),
    "psycopg": lambda dsn: psycopg.connect(dsn).close(),
    "asyncpg": lambda dsn: asyncio.run(use_asyncpg(dsn)),
}
# The parts of a connect, and the message that passes at the end of each.
PARTS = {"TCP, TLS": "startup", "process": "SASL request", "login": "authentication ok"}


@experiment(
    question="What is a connect made of?",
    rows=("0.10", "0.11", "4.1"),
    seconds=9,
    needs=("own server",),
)
def run(lab: Lab, *, rtt_ms: float = 1.5, farther_ms: float = 20.0, times: int = 15) -> None:
    here, tls = "loopback", "TLS"
    far, farther = (f"TLS + {rtt:g} ms" for rtt in (rtt_ms, farther_ms))
    took: dict[tuple[str, str, str], list[float]] = {}
    with (
        lab.new_server() as server,
        lab.network(server, traces=True) as near_line,
        lab.network(server, tls=True, traces=True) as tls_line,
        lab.network(server, tls=True, traces=True, rtt_s=rtt_ms / 1e3) as far_line,
        lab.network(server, tls=True, traces=True, rtt_s=farther_ms / 1e3) as farther_line,
    ):
        users = make_logins(lab, server)
        ways = [("psycopg2", login) for login in users]
        ways += [("psycopg", "SCRAM"), ("asyncpg", "SCRAM")]
        lines = {here: near_line, tls: tls_line, far: far_line, farther: farther_line}
        lab.say(f"{times} connects in {len(ways)} ways: {here}, {tls}, {far}, {farther}")
        for number in range(times):
            for where, line in lines.items():
                # The network decides about the longest distance, so half of them will do.
                if where == farther and number % 2:
                    continue
                for driver, login in ways:
                    dsn = replace(line.address, user=users[login]).dsn(driver)
                    times_of_way = took.setdefault((driver, login, where), [])
                    times_of_way += lab.time(lambda dsn=dsn, use=DRIVERS[driver]: use(dsn))
        traces = {where: line.network.traces() for where, line in lines.items()}

    # The fastest, not the median: what else the machine does lengthens the others.
    ms = {key: min(each) * 1e3 for key, each in took.items()}
    rows = []
    for number, (driver, login) in enumerate(ways):
        # The traces are in the order of the connects. The proxy sees nothing of TCP's handshake.
        trips = [traces[where][number].first("ready").flights + 1 for where in (here, tls)]
        rows.append((driver, login, *trips, *(ms[driver, login, where] for where in lines)))
    columns = ("driver", "login", "trips", "with TLS", *(f"{where}, ms" for where in lines))
    lab.table("A connect and its round trips", columns, rows)

    parts: dict[tuple[str, str], dict[str, float]] = {}
    for driver in DRIVERS:
        for where in lines:
            moments = [
                (0.0, *(trace.first(message).at_s for message in PARTS.values()), total)
                for trace, total in zip(
                    traces[where][ways.index((driver, "SCRAM")) :: len(ways)],
                    took[driver, "SCRAM", where],
                    strict=True,
                )
            ]
            parts[driver, where] = {
                part: min(each[number + 1] - each[number] for each in moments) * 1e3
                for number, part in enumerate((*PARTS, "session"))
            }
    bars = {f"{driver}, {where}": each for (driver, where), each in parts.items()}
    lab.bars("A connect with SCRAM by its parts", bars, unit="ms")

    if not lab.distance.is_none:
        lab.note(f"The distance of this run ({lab.distance}) is added to each of those named here.")
    why = (
        "TCP takes a round trip, and so do the question for TLS and its handshake. Then the server "
        "starts a process. SCRAM takes two round trips, and its client 4,096 rounds of SHA-256, which "
        "the server did once when the password was set. With a password in clear text the server does "
        "them at each login. At last the session loads what it needs of the catalogue."
    )
    of_psycopg2 = {where: each for (driver, where), each in parts.items() if driver == "psycopg2"}
    # Over the shorter distance the login takes nearly 10 ms, too near the limit for a verdict.
    for row, part, low, high in (("0.10", "TCP, TLS", 50, 100), ("0.11", "login", 10, 20)):
        lab.judge(
            row,
            f"{low} to {high} ms of a connect are for: {part}",
            holds={where: low <= of_psycopg2[where][part] <= high for where in (here, farther)},
            measured=", ".join(f"{each[part]:.1f} ms {at}" for at, each in of_psycopg2.items()),
            why=why,
        )
    shares = of_psycopg2[far]
    is_part = {part: share > sum(shares.values()) / 100 for part, share in shares.items()}
    _, _, near_trips, tls_trips, *_ = rows[0]
    lab.judge(
        "4.1",
        "the overhead of a connect is made of TCP, TLS, the login and session setup",
        holds={**is_part, "TLS alone": tls_trips > near_trips},
        measured=f"{far}: "
        + ", ".join(f"{part} {share:.1f} ms" for part, share in shares.items())
        + f"; TLS alone adds {tls_trips - near_trips} round trip(s)",
        why=why,
    )


def make_logins(lab: Lab, server: Place) -> dict[str, str]:
    """Make a role for each login, and return their names."""
    users = {"SCRAM": server.address.user, "clear text": "by_password", "trust": "by_trust"}
    server.ask("CREATE ROLE by_password LOGIN PASSWORD %s", server.address.password)
    server.ask("CREATE ROLE by_trust LOGIN")
    ((path,),) = server.ask("SHOW hba_file")
    lines = ["by_password 127.0.0.1/32 password", "by_trust 127.0.0.1/32 trust"]
    lines = [f"host all {line}" for line in (*lines, "all 127.0.0.1/32 scram-sha-256")]
    server.ask("COPY (SELECT unnest(%s)) TO %s", lines, path)
    server.ask("SELECT pg_reload_conf()")

    def is_loaded() -> bool:
        try:
            psycopg2.connect(replace(server.address, user="by_trust", password="").dsn()).close()
        except psycopg2.OperationalError:
            return False
        return True

    lab.wait_until("the server has read pg_hba.conf again", is_loaded)
    return users
