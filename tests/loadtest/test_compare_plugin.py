"""The schedule and the rows that `poolkit compare` adds to Locust."""

import contextlib
import csv
import json
import os
import re
import ssl
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import psycopg2
import pytest
from gevent.monkey import is_module_patched
from processes import ROOT, RunningProcess
from web_server import self_signed, serving

from poolkit.activity.server import APPLICATION_NAME
from poolkit.compare.plan.checks import check_locustfiles
from poolkit.compare.results.run_folder import Level
from poolkit.compare.run.load import Load
from poolkit.errors import ConfigurationError
from poolkit.local.readiness import end_of

pytestmark = pytest.mark.process

# Besides, a listener writes the context of each request as JSON, and one task has keys of its own in it.
LOCUSTFILE = """
import json, os
from locust import FastHttpUser, events, task
from poolkit import loadtest

loadtest.register()

@events.request.add_listener
def write(context, **_):
    json.dumps(context)

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get("/", name=f"user {id(self)}", context={"turn": 3, "task": "a"})
"""
FAILING = """
import os
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def fail(self):
        self.client.get("/")
        self.client.get("http://127.0.0.1:1/", name="refused", context={"due": "2026-01-01"})
        self.client.get(os.environ["UNTRUSTED"], name="untrusted")
"""
OF_THE_END = ("unsent", "unanswered")
"""The errors of tasks that Locust's end cut off; on a busy machine there may be many."""


@pytest.fixture
def server():
    """A server on a free port."""
    with serving() as server:
        yield server


class ComparedRun:
    """Locust as `poolkit compare` starts it; `Load` has its command line."""

    def __init__(self, folder, server, *, locustfile=LOCUSTFILE, begin=True, **values):
        file = folder / "visitors.py"
        file.write_text(locustfile)
        users, rate = values.pop("users", 4), values.pop("rate_per_user", 10.0)
        self.stop_timeout = values.pop("stop_timeout", None)
        self.host = server.url
        self.load = Load(
            **{
                "locustfile": file,
                "level": Level(users=users, rate_per_user=rate),
                # A bound: each run is ended when there are enough rows.
                "warm_up_s": 1.0,
                "duration_s": 590.0,
                "requests": folder / "requests.csv",
            }
            | values
        )
        if begin:
            self.load.begin(self.host)

    @contextlib.contextmanager
    def started(self, **environ):
        command = list(self.load.command)
        if self.stop_timeout is not None:
            command[command.index("--stop-timeout") + 1] = f"{self.stop_timeout:g}"
        self.process = RunningProcess(*command, environ=dict(self.load.environ) | environ)
        try:
            yield self.process
        finally:
            self.process.kill()

    def run_until(self, enough, **environ):
        """Run Locust until its rows are enough, and return the last ones."""
        with self.started(**environ) as process:
            process.wait_until(lambda: enough(self.rows))
            assert process.terminate() == 0, process.text
        return self.rows

    @property
    def rows(self):
        """The rows so far, without an incomplete last line."""
        file = Path(self.load.requests)
        text = file.read_text() if file.exists() else ""
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))

    @property
    def report(self):
        return json.loads(Path(self.load.requests).with_name("load.json").read_text())


def begun(rows):
    """Leave out what was not sent, or was cut off, when Locust was ended."""
    return [row for row in rows if row["error"] not in OF_THE_END]


def more_than(number):
    return lambda rows: len(begun(rows)) > number


def by_name(rows):
    found = {}
    for row in begun(rows):
        found.setdefault(row["name"], []).append(row)
    return found


def test_every_user_follows_its_schedule(server, tmp_path, database):
    """It begins when there is a host; requests are due at one rate, and their latency counts from then.

    poolkit compare watches the database itself: two samplers would count each other's connections.
    """
    run = ComparedRun(tmp_path, server, begin=False)

    def all_sent(rows):
        return len(by_name(rows)) == 4 and all(len(one) > 10 for one in by_name(rows).values())

    with run.started(DATABASE_URL=database.monitor_url("")) as process:
        process.wait_until(lambda: Path(run.load.requests).exists())
        with pytest.raises(subprocess.TimeoutExpired):
            process.process.wait(1.0)
        assert run.rows == []
        run.load.begin(run.host)
        process.wait_until(lambda: all_sent(run.rows))
        assert database.backends(APPLICATION_NAME) == []
        assert process.terminate() == 0, process.text
    assert not (tmp_path / "requests.host").exists(), "the run folder has documented files only"
    assert "onnections" not in process.text
    assert "Traceback" not in process.text
    rows = run.rows
    assert {row["error"] for row in begun(rows)} == {""}
    for of_user in by_name(rows).values():
        # The first is sent when the user has started, whatever its schedule is.
        gaps = [float(b["due"]) - float(a["due"]) for a, b in pairwise(of_user[1:])]
        assert gaps == pytest.approx([0.1] * len(gaps), abs=1e-4), "ten a second from each"
    for row in begun(rows):
        late = float(row["started"]) - float(row["due"])
        assert late >= 0
        expected = late * 1000 + float(row["service_ms"])
        assert float(row["latency_ms"]) == pytest.approx(expected, abs=0.1)
    assert (run.report["loop"], run.report["users_max"]) == ("closed", 4)
    assert run.report["unsent"] == sum(row["error"] == "unsent" for row in rows)
    assert run.report["arrivals"] == pytest.approx(len(rows), abs=4), "the last may be cut off"


def test_in_an_open_loop_tasks_are_due_at_one_rate_of_all(server, tmp_path):
    """One every 20 ms, by any idle user; all are rows, and load.json counts them."""
    run = ComparedRun(tmp_path, server, level=Level(users=2, arrival_rate=50.0, max_users=20))
    dues = sorted(float(row["due"]) for row in run.run_until(more_than(50)))
    assert {round((b - a) * 1000) for a, b in pairwise(dues)} == {20}
    report = run.report
    assert (report["loop"], report["arrivals"], report["unanswered"]) == ("open", len(dues), 0)


def test_a_stall_does_not_hide_the_requests_behind_it(server, tmp_path):
    """They are sent afterwards, late, and counted from when they were due.

    SIGTERM ends the sending, not the answers: a slow request is a slow row, not a lost one.
    """
    run = ComparedRun(tmp_path, server, users=1)
    with run.started() as process:
        process.wait_until(lambda: len(run.rows) > 5)
        server.opened.clear()
        stalled_from = time.time()
        time.sleep(1.0)
        stalled_to = time.time()
        server.opened.set()
        process.wait_until(lambda: float(run.rows[-1]["due"]) > stalled_to)
        held = len(server.held)
        server.opened.clear()
        process.wait_until(lambda: len(server.held) > held)
        process.process.terminate()
        process.wait_for("SIGTERM")
        time.sleep(1.0)
        assert process.process.poll() is None
        server.opened.set()
        assert process.wait() == 0, process.text
    due_in_stall = [
        row for row in run.rows if stalled_from + 0.15 < float(row["due"]) < stalled_to - 0.05
    ]
    assert len(due_in_stall) >= 7, "sent, though late"
    for row in due_in_stall:
        assert float(row["latency_ms"]) >= (stalled_to - float(row["due"])) * 1000
    hung = [row for row in due_in_stall if float(row["started"]) < stalled_to]
    assert len(hung) <= 1, "one request hung, the others waited behind it"
    *_, last = begun(run.rows)
    assert float(last["service_ms"]) > 1000
    assert last["error"] == ""


@pytest.mark.slow
def test_rows_that_cannot_be_written_end_locust(server, tmp_path):
    """A full disk is an exit status and one line, not a run with fewer requests."""
    run = ComparedRun(tmp_path, server)
    (tmp_path / "requests.csv").symlink_to("/dev/full")
    with run.started() as process:
        assert process.wait() == os.EX_IOERR
    assert "requests.csv cannot be written: No space left on device" in process.text


@pytest.fixture
def untrusted(tmp_path):
    """The URL of a server with a certificate of no known authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*self_signed(tmp_path))
    with serving(tls=context) as server:
        yield f"https://127.0.0.1:{server.server_port}"


def test_failures_are_rows_with_their_status_and_error(server, untrusted, tmp_path):
    """Not failures of the load generator: a 503, a refused connection, a certificate.

    Locust's own default accepts any certificate.
    """
    server.status = 503
    run = ComparedRun(tmp_path, server, locustfile=FAILING, users=1)
    rows = run.run_until(more_than(15), UNTRUSTED=untrusted)
    found = {
        name: {(row["status"], row["error"]) for row in of_name}
        for name, of_name in by_name(rows).items()
    }
    assert found == {
        "/": {("503", "503")},
        "refused": {("0", "ConnectionRefusedError")},
        "untrusted": {("0", "SSLCertVerificationError")},
    }


def test_what_the_end_cuts_off_counts_as_failed(server, tmp_path):
    """A request without an answer, and those that were never sent, are in the rows."""
    run = ComparedRun(tmp_path, server, users=1, rate_per_user=20.0, stop_timeout=1)
    server.opened.clear()
    with run.started() as process:
        process.wait_until(lambda: len(server.asked) == 1)
        # More are due meanwhile.
        time.sleep(1.5)
        assert process.terminate() == 0, process.text
    errors = [row["error"] for row in run.rows]
    assert "" not in errors
    assert errors.count("unsent") > 20
    assert len(errors) - errors.count("unsent") == 1, "the one that was sent"
    report = run.report
    assert (report["arrivals"], report["unanswered"]) == (len(errors), 1)
    assert report["unsent"] == errors.count("unsent")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_module_at_all\n", "No module named 'no_such_module_at_all'"),
        ("def broken(:\n", "SyntaxError"),
        ("x = 1\n", "no user class in it"),
    ],
)
def test_a_locustfile_that_cannot_be_used_is_found_before_the_run(tmp_path, content, message):
    """The message names the file and quotes the last line that Python said."""
    file = tmp_path / "load.py"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=message) as caught:
        check_locustfiles([file], tmp_path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.sample
def test_the_kit_s_own_locustfiles_can_be_used():
    """Both import, and have users."""
    check_locustfiles([ROOT / "loadtests/articles.py", ROOT / "loadtests/ingest.py"], ROOT)
    assert not is_module_patched("socket"), "Locust's monkey-patching stays in its process"


TASKS = """
import os
import psycopg2
from locust import task
from poolkit.loadtest import TaskUser

class Sender(TaskUser):
    committed = "SELECT key FROM unnest(CAST(:keys AS text[])) AS key"
    sent = 0

    @task
    def send(self):
        self.submit("task", key=os.urandom(4).hex(), send=self.now_and_then_end_all_backends)

    def now_and_then_end_all_backends(self):
        Sender.sent += 1
        if Sender.sent == 10:
            with psycopg2.connect(os.environ["ADMIN_URL"]) as connection:
                connection.cursor().execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
"""


def test_a_database_that_restarts_fails_the_tasks_of_that_moment_alone(server, tmp_path, database):
    """The results of later tasks are found again."""
    run = ComparedRun(tmp_path, server, locustfile=TASKS)
    urls = {"DATABASE_URL": database.url(""), "ADMIN_URL": database.admin_url("")}
    rows = begun(run.run_until(more_than(60), **urls))
    errors = [row["error"] for row in rows if row["error"]]
    assert set(errors) == {"OperationalError"}
    assert len(errors) <= 4, "no more than there are users"
    assert rows[-1]["error"] == ""


@pytest.mark.slow
def test_results_that_may_not_be_read_fail_the_tasks_with_the_reason(server, tmp_path, database):
    """At once, and not each after its timeout."""
    query = '"SELECT rolname AS key FROM pg_authid WHERE rolname = ANY(:keys)"'
    tasks = re.sub("committed = .*", f"committed = {query}", TASKS).replace("== 10", "< 0")
    run = ComparedRun(tmp_path, server, locustfile=tasks)
    rows = begun(run.run_until(more_than(60), DATABASE_URL=database.url("")))
    assert {row["error"] for row in rows} == {"ProgrammingError"}


@pytest.mark.slow
def test_a_server_without_room_for_the_query_ends_locust_with_its_reason(
    server, tmp_path, new_postgres
):
    """At once: the tasks could not be seen to finish, and the target is not to blame."""
    with new_postgres(max_connections=5) as full, contextlib.ExitStack() as held:
        url = full.url(driver="")
        for _ in range(2):
            held.callback(psycopg2.connect(url, connect_timeout=60).close)
        run = ComparedRun(tmp_path, server, locustfile=TASKS)
        with run.started(DATABASE_URL=url) as process:
            assert process.wait() == 1
    (tmp_path / "locust.log").write_text(process.stderr)
    # The line that `poolkit compare` quotes.
    line = end_of(tmp_path / "locust.log")
    assert "cannot look for the results of tasks: connection to server" in line
    assert "remaining connection slots are reserved" in line
    assert line.endswith("leave it one, or raise max_connections")
