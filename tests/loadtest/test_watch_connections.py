"""Locust with the plugin, as a person starts it: what it says and what it leaves."""

import contextlib
import functools
import json
import re
import socket
import threading

import psutil
import pytest
from processes import stopped

from poolkit.activity.server import APPLICATION_NAME

HEADLESS = ("--headless", "--users", "2", "--spawn-rate", "10")
FILES = ("--csv", "out/run", "--html", "out/report.html", "--json-file", "out/result")


ROWS = "out/run_connections.csv"


def test_a_run_leaves_its_connections_beside_every_file_of_locust(locust, database, held):
    """CSV, JSON and HTML have the targets, and the console a line and a table."""
    held("web:host-1", 2)
    held("web:host-2")
    held("lambda:ee-1")
    # Without --run-time, Ctrl-C is its end.
    run = locust(*HEADLESS, *FILES, url=database.monitor_url(""))
    run.wait_for("(lambda 1: 1 idle; web 3: 3 idle; other databases ")
    (total, other), *_ = re.findall(
        r"Connections: (\d+) of 97 \(lambda 1: .*; other databases (\d+)\), 0 opened/s", run.text
    )
    assert int(total) == 4 + int(other)
    run.wait_until(lambda: max(requests_per_s(run), default=0) > 1)
    assert run.stop() == 0, run.text
    rows = run.rows_of("web", ROWS)
    assert {(row["Connections"], row["Instances"], row["Idle"]) for row in rows} == {
        ("3", "2", "3")
    }
    together = run.rows_of("Aggregated", ROWS)
    assert {row["Connections"] for row in together} == {"4"}
    assert max(float(row["95%"] or 0) for row in together) > 0
    found = json.loads((run.folder / "out/result_connections.json").read_text())
    assert (found["schema"], found["partial"]) == (1, False)
    assert found["note"] in (None, "the database does not answer"), "which may be in any second"
    assert found["run"]["targets"]["web"] == {"peak": 3, "mean": 3.0}
    assert found["server"]["usable"] == 97
    others = [one for one in found["series"]["other_databases"] if one is not None]
    assert found["run"]["server_peak"] >= 4 + max(others) >= 5, (
        "the tests' own has another database"
    )
    report = (run.folder / "out/report.html").read_text()
    assert report.count('<poolkit-connections theme="page"><script type="application/json">{') == 1
    assert run.text.count("usable (max_connections less reserve)") == 1


OPENS_AT_ONCE = """
import os
import psycopg2
from locust import User, constant, task
from poolkit import loadtest

loadtest.register()

class Greedy(User):
    wait_time = constant(1)

    def on_start(self):
        self.connection = psycopg2.connect(os.environ["OPEN_URL"])

    @task
    def rest(self):
        pass
"""


@pytest.mark.slow
def test_connections_opened_by_the_first_users_of_a_run_count(locust, database, tmp_path):
    """Users come before the run's first sample of the database."""
    file = tmp_path / "greedy.py"
    file.write_text(OPENS_AT_ONCE)
    run = locust(
        *("-f", str(file), "--headless", "--users", "3", "--spawn-rate", "3"),
        *("--run-time", "10m", "--json-file", "out/result", "--csv", "out/run"),
        url=database.monitor_url(""),
        OPEN_URL=database.url(""),
    )
    run.wait_until(lambda: sum(int(row["Opened"]) for row in run.rows_of("Aggregated", ROWS)) >= 3)
    assert run.stop() == 0, run.text
    found = json.loads((run.folder / "out/result_connections.json").read_text())
    assert found["run"]["opened"] == 3


def requests_per_s(run):
    return [float(row["Requests/s"]) for row in run.rows(ROWS) if row["Requests/s"]]


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        slow(
            "mysql://me:secret@127.0.0.1/x", "on PostgreSQL only, not on mysql; this run measures"
        ),
        slow("me:secret", "not a database URL; wanted postgresql://"),
        slow("postgresql://me:secret@no-such-host.invalid/x", "could not translate host name"),
        slow("postgresql://me:secret@127.0.0.1:1/x", "cannot watch the database"),
        ("without pg_monitor", "GRANT pg_monitor TO"),
    ],
)
def test_what_cannot_be_watched_is_one_line_and_the_run_goes_on(
    locust, server, database, url, said
):
    """HTTP is measured as ever, and nothing repeats the password."""
    if url == "without pg_monitor":
        url = database.url("")
    run = locust(*HEADLESS, *FILES, "--run-time", "10m", url=url)
    run.wait_until(lambda: len(server.moments) > 5 and run.rows(ROWS))
    assert run.stop() == 0, run.text
    lines = [line for line in run.text.splitlines() if "connections are not measured" in line]
    assert len(lines) == 1, run.text
    assert said in lines[0]
    assert "secret" not in run.text
    assert "Traceback" not in run.text
    assert {row["Connections"] for row in run.rows(ROWS)} == {""}
    assert "Connections: not measured" in run.text


@pytest.mark.slow
def test_processes_are_watched_once(locust, server, database, held, master_port):
    """With --processes only the master asks the server, also when a worker dies in the middle."""
    held("web:1")
    run = locust(
        *(*HEADLESS, "--processes", "2", "--run-time", "10m", "--csv", "out/run", *master_port),
        url=database.monitor_url(""),
    )
    run.wait_until(lambda: len(server.moments) > 20)
    database.wait_for_backends(1, APPLICATION_NAME)
    run.wait_until(lambda: max(requests_per_s(run), default=0) > 0)
    # A worker that dies takes nothing with it but its users.
    psutil.Process(run.process.pid).children()[0].kill()
    seen = len(run.rows_of("Aggregated", ROWS))
    run.wait_until(lambda: len(run.rows_of("Aggregated", ROWS)) >= seen + 2)
    # Not afterwards: waiting for its workers, Locust may write to a CSV file that it has closed.
    assert "Traceback" not in run.text
    run.stop()
    assert {row["Connections"] for row in run.rows_of("web", ROWS)} == {"1"}


WORKER_LISTENS = """
from locust import events

@events.test_start.add_listener
def tell(environment, **_):
    print("options:", sorted(vars(environment.parsed_options).items(), key=str), flush=True)
"""


@pytest.mark.slow
def test_a_master_watches_for_its_workers_and_keeps_the_password(
    locust, server, database, held, free_port
):
    """Workers have no connection to the server, and are not sent its URL."""
    held("web:1")
    port = str(free_port())
    run = locust(
        *(*HEADLESS, "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port),
        *("--expect-workers", "1", "--run-time", "10m", "--csv", "out/run"),
        url=database.monitor_url(""),
    )
    listening = run.folder / "listening.py"
    listening.write_text((run.folder / "visitors.py").read_text() + WORKER_LISTENS)
    worker = locust(
        *("-f", str(listening), "--worker", "--master-host", "127.0.0.1", "--master-port", port),
        url=database.monitor_url(""),
    )
    run.wait_until(lambda: len(server.moments) > 5 and run.rows_of("Aggregated", ROWS))
    database.wait_for_backends(1, APPLICATION_NAME)
    assert run.stop() == 0, run.text
    worker.wait()
    assert {row["Connections"] for row in run.rows_of("web", ROWS)} == {"1"}
    assert "options: [" in worker.text
    assert "database_url" not in worker.text
    assert "postgresql://" not in worker.text


def test_ctrl_c_leaves_what_was_measured_and_says_partial(locust, database, held):
    """All files are complete, and each is marked as partial; --database-url precedes the variable."""
    held("web:1")
    run = locust(
        *(*HEADLESS, *FILES, "--run-time", "10m", "--database-url", database.monitor_url("")),
        url="postgresql://me@127.0.0.1:1/nothing",
    )
    run.wait_until(lambda: run.rows_of("web", ROWS))
    run.stop()
    assert {row["Connections"] for row in run.rows_of("Aggregated", ROWS)} == {"1"}
    found = json.loads((run.folder / "out/result_connections.json").read_text())
    assert found["partial"] is True
    assert found["run"]["peak"] == 1
    assert '"partial": true' in (run.folder / "out/report.html").read_text()
    assert len(database.wait_for_backends(0, APPLICATION_NAME)) == 0


@pytest.mark.slow
def test_a_server_that_does_not_answer_stops_no_user(locust, server, database):
    """The wait is in a thread of its own: requests go on, and the gap is said and shown."""
    run = locust(
        *(*HEADLESS, "--run-time", "10m", "--csv", "out/run"), url=database.monitor_url("")
    )
    run.wait_until(lambda: len(server.moments) > 20)
    (watching,) = database.wait_for_backends(1, APPLICATION_NAME)
    with stopped(watching["pid"]):
        run.wait_for("the database does not answer; its connections are not measured meanwhile")
        # It stays silent until then: users who wait for it would never come to so many.
        silent = len(server.moments)
        run.wait_until(lambda: len(server.moments) >= silent + 40)
        run.wait_until(lambda: run.rows(ROWS)[-1]["Connections"] == "")
    run.wait_for("the database answers again")
    run.wait_until(lambda: run.rows(ROWS)[-1]["Connections"] == "0")
    run.stop()


@pytest.mark.slow
def test_a_database_that_comes_later_is_watched_then(locust, database, free_port, held):
    """It is tried again, without a line each time."""
    held("web:1")
    port = free_port()
    url = database.monitor_url("")
    head, _, rest = url.rpartition(":")
    _, _, name = rest.partition("/")
    run = locust(*(*HEADLESS, "--run-time", "10m", "--csv", "out/run"), url=f"{head}:{port}/{name}")
    run.wait_for("connections are not measured yet")
    with forwarded(port, int(rest.partition("/")[0])):
        run.wait_for("connections are measured from now on")
        run.wait_until(lambda: "1" in {row["Connections"] for row in run.rows(ROWS)})
        run.stop()
    assert run.text.count("connections are not measured yet") == 1


def forwarded(port, to):
    """Listen on one port and pass everything on to another."""

    def copy(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    @contextlib.contextmanager
    def forward():
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", port)))

            def accept():
                with contextlib.suppress(OSError):
                    while True:
                        near, _ = listener.accept()
                        far = socket.create_connection(("127.0.0.1", to))
                        stack.callback(near.close)
                        stack.callback(far.close)
                        for pair in ((near, far), (far, near)):
                            threading.Thread(target=copy, args=pair, daemon=True).start()

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            yield
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(60)

    return forward()
