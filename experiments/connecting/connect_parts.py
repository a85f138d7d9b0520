"""What is a connect made of?

You may have read that TCP takes 50 to 100 ms of a connect (0.10) and the login 10 to 20 ms (0.11),
and that the overhead is made of TCP, TLS, the login and session setup (4.1).

psycopg2 connects through a proxy that records when each message passes: on the loopback address,
with TLS, and with TLS over two distances. Each time it logs in with SCRAM, with a password in clear
text, and without any (trust). The difference to trust is the login.
"""

from dataclasses import replace

import psycopg2

from poolkit.experiment import Lab, experiment
from poolkit.experiment.ground import Place


@experiment(
    question="What is a connect made of?",
    rows=("0.10", "0.11", "4.1"),
    seconds=9,
    needs=("own server",),
)
def run(lab: Lab, *, rtt_ms: float = 1.5, farther_ms: float = 20.0, times: int = 21) -> None:
    here, tls = "loopback", "TLS"
    far, farther = (f"TLS + {rtt:g} ms" for rtt in (rtt_ms, farther_ms))
    with (
        lab.new_server() as server,
        lab.network(server, traces=True) as near_line,
        lab.network(server, tls=True, traces=True) as tls_line,
        lab.network(server, tls=True, traces=True, rtt_s=rtt_ms / 1e3) as far_line,
        lab.network(server, tls=True, traces=True, rtt_s=farther_ms / 1e3) as farther_line,
    ):
        users = make_logins(lab, server)
        lines = {here: near_line, tls: tls_line, far: far_line, farther: farther_line}
        took: dict[tuple[str, str], list[float]] = {}
        lab.say(f"{times} connects with each login: {here}, {tls}, {far}, {farther}")
        for number in range(times):
            for where, line in lines.items():
                # The network decides about the longest distance, so half of them will do.
                if where == farther and number % 2:
                    continue
                for login, user in users.items():
                    dsn = replace(line.address, user=user).dsn()
                    took.setdefault((login, where), []).extend(
                        lab.time(lambda dsn=dsn: psycopg2.connect(dsn).close())
                    )
        traces = {where: line.network.traces() for where, line in lines.items()}

    def ms(login: str, where: str) -> float:
        # The fastest, not the median: what else the machine does lengthens the others.
        return min(took[login, where]) * 1e3

    # The traces are in the order of the connects. The proxy sees nothing of TCP's handshake.
    trips = {
        (login, where): traces[where][number].first("ready").flights + 1
        for where in (here, tls)
        for number, login in enumerate(users)
    }
    rows = [
        (login, trips[login, here], trips[login, tls], *(ms(login, where) for where in lines))
        for login in users
    ]
    columns = ("login", "trips", "with TLS", *(f"{where}, ms" for where in lines))
    lab.table("A connect of psycopg2 by its login, and its round trips", columns, rows)

    parts: dict[str, dict[str, float]] = {}
    for where in (here, far, farther):
        with_scram = traces[where][:: len(users)]
        startup, request = (
            min(trace.first(message).at_s for trace in with_scram) * 1e3
            for message in ("startup", "SASL request")
        )
        login = ms("SCRAM", where) - ms("trust", where)
        parts[where] = {
            "TCP, TLS": startup,
            "process": request - startup,
            "login": login,
            "session": ms("SCRAM", where) - request - login,
        }
    lab.bars("A connect of psycopg2 with SCRAM by its parts", parts, unit="ms")

    why = (
        "TCP takes a round trip, and so do the question for TLS and its handshake. Then the server "
        "starts a process. SCRAM takes two round trips, and its client 4,096 rounds of SHA-256, which "
        "the server did once when the password was set. With a password in clear text the server does "
        "them at each login. At last the session loads what it needs of the catalogue."
    )
    for row, part, low, high in (("0.10", "TCP, TLS", 50, 100), ("0.11", "login", 10, 20)):
        lab.judge(
            row,
            f"{low} to {high} ms of a connect are for: {part}",
            holds={where: low <= parts[where][part] <= high for where in parts},
            measured=", ".join(f"{parts[where][part]:.1f} ms {where}" for where in parts),
            why=why,
        )
    added = {**parts[far], "TLS alone": ms("SCRAM", tls) - ms("SCRAM", here)}
    lab.judge(
        "4.1",
        "the overhead of a connect is made of TCP, TLS, the login and session setup",
        holds={part: share > ms("SCRAM", far) / 100 for part, share in added.items()},
        measured=f"{far}: " + ", ".join(f"{part} {share:.1f} ms" for part, share in added.items()),
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
