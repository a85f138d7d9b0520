"""The schedule and the rows that the kit adds to Locust."""

import contextlib
import csv
import os
import re
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import psycopg2
import pytest
from gevent.monkey import is_module_patched

from poolkit.compare.plan.checks import check_locustfiles
from poolkit.compare.results.run_folder import Level, TargetFolder
from poolkit.compare.run.load import Load
from poolkit.errors import ConfigurationError
from poolkit.local.readiness import end_of

pytestmark = pytest.mark.process

LOCUSTFILE = """
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get("/", name=f"user {id(self)}")
"""
# Only what hangs takes so long.
PATIENCE_S = 90.0
OF_THE_END = ("unsent", "unanswered")
"""What Locust's end did to a task; on a busy machine there may be many."""


class Server(ThreadingHTTPServer):
    """Answers at once, but for a time in which it does not answer at all."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.opened = threading.Event()
        self.opened.set()
        self.status = 200
        self.asked = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.opened.wait(PATIENCE_S)
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """Serve on a free port."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.opened.set()
        server.shutdown()
        thread.join()


def load_on(server, folder, **values):
    locustfile = folder / "visitors.py"
    locustfile.write_text(LOCUSTFILE)
    host = values.pop("host", f"http://127.0.0.1:{server.server_port}")
    rate_per_user = values.pop("rate_per_user", 10.0)
    level = Level(users=values.pop("users", 4), rate_per_user=rate_per_user)
    load = Load(
        **{
            "locustfile": locustfile,
            "level": level,
            # A bound: whoever has seen enough ends it.
            "warm_up_s": 1.0,
            "duration_s": 59.0,
            "requests": folder / "requests.csv",
        }
        | values
    )
    load.begin(host)
    return load


def start(load, **options):
    """Run Locust for so long as the load says; a run's own bound is for others to undercut."""
    options = {"run_time": load.warm_up_s + load.duration_s, **options}
    command = list(load.command)
    for name, value in options.items():
        command[command.index(f"--{name.replace('_', '-')}") + 1] = f"{value:g}"
    return subprocess.Popen(
        command,
        env={**os.environ, **load.environ},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(process, condition):
    """Ask again and again until it holds; Locust has to run for so long."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process):
    """Wait for Locust's end, and return what it said."""
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    return said


def run_until(load, enough):
    """Run Locust until its rows are enough, and return the last ones."""
    process = start(load)
    wait_until(process, lambda: enough(rows_of(load)))
    process.terminate()
    end(process)
    return rows_of(load)


def rows_of(load):
    """Return the rows so far; the last line may not be whole yet."""
    if not Path(load.requests).exists():
        return []
    text = Path(load.requests).read_text()
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def begun(rows):
    """Leave out what was not sent, or was cut off, when Locust was ended."""
    return [row for row in rows if row["error"] not in OF_THE_END]


def more_than(number):
    return lambda rows: len(begun(rows)) > number


def by_user(rows):
    found = {}
    for row in begun(rows):
        found.setdefault(row["name"], []).append(float(row["due"]))
    return found


def report_of(load):
    return TargetFolder(load.requests.parent).load_report()


def test_every_user_follows_its_schedule(server, tmp_path):
    """Requests are due at one steady rate, and their latency counts from then."""
    load = load_on(server, tmp_path)

    def all_sent(rows):
        return len(by_user(rows)) == 4 and all(len(dues) > 10 for dues in by_user(rows).values())

    rows = run_until(load, all_sent)
    assert {row["error"] for row in begun(rows)} == {""}
    for dues in by_user(rows).values():
        # The first is sent when the user has come, whatever its schedule is.
        gaps = [b - a for a, b in pairwise(dues[1:])]
        assert gaps == pytest.approx([0.1] * len(gaps), abs=1e-4), "ten a second from each"
    for row in begun(rows):
        late = float(row["started"]) - float(row["due"])
        assert late >= 0
        expected = late * 1000 + float(row["service_ms"])
        assert float(row["latency_ms"]) == pytest.approx(expected, abs=0.1)
    report = report_of(load)
    assert (report.loop, report.users_max) == ("closed", 4)
    assert report.dropped == sum(row["error"] == "unsent" for row in rows)
    assert report.arrivals == pytest.approx(len(rows), abs=4), "the last may have been cut off"


def test_in_an_open_loop_tasks_are_due_at_one_rate_of_all(server, tmp_path):
    """One every 20 ms, by whichever user is free; all are rows, and load.json counts them."""
    level = Level(users=2, arrival_rate=50.0, max_users=20)
    load = load_on(server, tmp_path, level=level)
    dues = sorted(float(row["due"]) for row in run_until(load, more_than(50)))
    gaps = {round((b - a) * 1000) for a, b in pairwise(dues)}
    assert gaps == {20}
    report = report_of(load)
    assert (report.loop, report.arrivals, report.timed_out) == ("open", len(dues), 0)


@pytest.fixture
def untrusted(server, tmp_path):
    """Have the server speak TLS with a certificate that nobody vouches for."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subject = "-subj /CN=localhost -keyout key.pem -out cert.pem"
    words = f"{command} {subject}".split()
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    return f"https://127.0.0.1:{server.server_port}"


def test_certificates_are_verified_under_load_too(untrusted, server, tmp_path):
    """Locust's own default takes any; a failure is a row like any other."""
    server.handle_error = lambda *_: None
    load = load_on(server, tmp_path, host=untrusted, users=1)
    rows = begun(run_until(load, more_than(5)))
    assert {(row["status"], row["error"]) for row in rows} == {("0", "SSLCertVerificationError")}


def test_a_stall_does_not_hide_the_requests_behind_it(server, tmp_path):
    """What waited behind a stall is sent afterwards, late, and counted from when it was due."""
    load = load_on(server, tmp_path, users=1)
    process = start(load)
    wait_until(process, lambda: len(rows_of(load)) > 5)
    server.opened.clear()
    stalled_from = time.time()
    time.sleep(1.0)
    stalled_to = time.time()
    server.opened.set()
    wait_until(process, lambda: float(rows_of(load)[-1]["due"]) > stalled_to)
    process.terminate()
    end(process)
    due_in_stall = [
        row for row in rows_of(load) if stalled_from + 0.15 < float(row["due"]) < stalled_to - 0.05
    ]
    assert len(due_in_stall) >= 7, "sent, though late"
    for row in due_in_stall:
        assert float(row["latency_ms"]) >= (stalled_to - float(row["due"])) * 1000
    hung = [row for row in due_in_stall if float(row["started"]) < stalled_to]
    assert len(hung) <= 1, "one request hung, the others waited behind it"


def test_what_is_in_flight_at_the_end_is_waited_for(server, tmp_path):
    """SIGTERM ends the sending, not the answers: a slow request is a slow row, not a lost one."""
    load = load_on(server, tmp_path, users=2)
    server.opened.clear()
    process = start(load)
    wait_until(process, lambda: len(server.asked) == 2)
    process.terminate()
    said = [process.stderr.readline()]
    while "SIGTERM" not in said[-1]:
        assert said[-1], said
        said.append(process.stderr.readline())
    time.sleep(1.0)
    assert process.poll() is None
    server.opened.set()
    end(process)
    slow = [row for row in rows_of(load) if float(row["service_ms"]) > 1000]
    assert [row["error"] for row in slow] == ["", ""]


def test_locust_waits_until_it_is_told_to_begin(server, tmp_path):
    """It starts beside the target, and sends nothing before it has a host."""
    load = load_on(server, tmp_path, users=1)
    host_file = tmp_path / "requests.host"
    host = host_file.read_text()
    host_file.unlink()
    process = start(load)
    wait_until(process, Path(load.requests).exists)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    assert rows_of(load) == []
    load.begin(host)
    wait_until(process, lambda: rows_of(load))
    process.terminate()
    end(process)
    assert {row["error"] for row in begun(rows_of(load))} == {""}
    assert not host_file.exists(), "the run folder keeps what docs/results.md describes"


def test_rows_that_cannot_be_written_end_locust(server, tmp_path):
    """A full disk is an exit status and one line, not a run with fewer requests."""
    load = load_on(server, tmp_path)
    (tmp_path / "requests.csv").symlink_to("/dev/full")
    process = start(load)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == os.EX_IOERR
    assert "requests.csv cannot be written: No space left on device" in said


def test_failures_are_rows_with_their_status(server, tmp_path):
    """A 503 is a row with its status and error, and no failure of the load generator."""
    server.status = 503
    load = load_on(server, tmp_path, users=1)
    rows = begun(run_until(load, more_than(5)))
    assert {(row["status"], row["error"]) for row in rows} == {("503", "503")}


def test_what_the_end_cuts_off_counts_as_failed(server, tmp_path):
    """A request without an answer, and those that were never sent, are in the rows."""
    load = load_on(server, tmp_path, users=1, rate_per_user=20.0)
    server.opened.clear()
    process = start(load, stop_timeout=1)
    wait_until(process, lambda: len(server.asked) == 1)
    # More are due meanwhile.
    time.sleep(1.5)
    process.terminate()
    end(process)
    errors = [row["error"] for row in rows_of(load)]
    assert "" not in errors
    assert errors.count("unsent") > 20
    assert len(errors) - errors.count("unsent") == 1, "the one that was sent"
    report = report_of(load)
    assert (report.arrivals, report.timed_out) == (len(errors), 1)
    assert report.dropped == errors.count("unsent")


def test_a_refused_connection_is_a_row_without_status(tmp_path, server):
    """Nobody listens: status 0, and the kind of error."""
    load = load_on(server, tmp_path, host="http://127.0.0.1:1", users=1)
    rows = begun(run_until(load, more_than(5)))
    assert {(row["status"], row["error"]) for row in rows} == {("0", "ConnectionRefusedError")}


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


def test_the_kit_s_own_locustfiles_can_be_used():
    """Both import, and have users."""
    root = Path(__file__).parents[2]
    check_locustfiles([root / "loadtests/articles.py", root / "loadtests/ingest.py"], root)
    assert not is_module_patched("socket"), "Locust's monkey-patching stays in its process"


TASKS = """
import os
import psycopg2
from locust import task
from poolkit.loadtest.task_user import TaskUser

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


def test_a_database_that_restarts_fails_the_tasks_of_that_moment_alone(
    server, tmp_path, database, monkeypatch
):
    """Whoever asks for results goes on asking: those of later tasks are found again."""
    monkeypatch.setenv("DATABASE_URL", database.url(""))
    monkeypatch.setenv("ADMIN_URL", database.admin_url(""))
    (tmp_path / "tasks.py").write_text(TASKS)
    load = load_on(server, tmp_path, locustfile=tmp_path / "tasks.py")
    rows = begun(run_until(load, more_than(60)))
    errors = [row["error"] for row in rows if row["error"]]
    assert set(errors) == {"OperationalError"}
    assert len(errors) <= 4, "no more than there are users"
    assert rows[-1]["error"] == ""


def test_results_that_may_not_be_read_fail_the_tasks_with_the_reason(
    server, tmp_path, database, monkeypatch
):
    """At once, and not each after the patience for results that nobody looks for."""
    monkeypatch.setenv("DATABASE_URL", database.url(""))
    query = '"SELECT rolname AS key FROM pg_authid WHERE rolname = ANY(:keys)"'
    text = re.sub("committed = .*", f"committed = {query}", TASKS).replace("== 10", "< 0")
    (tmp_path / "tasks.py").write_text(text)
    load = load_on(server, tmp_path, locustfile=tmp_path / "tasks.py")
    rows = begun(run_until(load, more_than(60)))
    assert {row["error"] for row in rows} == {"ProgrammingError"}


def test_a_server_without_room_for_the_question_ends_locust_with_its_reason(
    server, tmp_path, new_postgres, monkeypatch
):
    """At once: nobody would see the tasks done, and that is not the target's doing."""
    with new_postgres(max_connections=5) as full, contextlib.ExitStack() as held:
        url = full.url(driver="")
        for _ in range(2):
            held.callback(psycopg2.connect(url, connect_timeout=60).close)
        monkeypatch.setenv("DATABASE_URL", url)
        (tmp_path / "tasks.py").write_text(TASKS)
        process = start(load_on(server, tmp_path, locustfile=tmp_path / "tasks.py"))
        errors = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 1
    (tmp_path / "locust.log").write_text(errors)
    # What `poolkit compare` quotes.
    said = end_of(tmp_path / "locust.log")
    assert "cannot look for the results of tasks: connection to server" in said
    assert "remaining connection slots are reserved" in said
    assert said.endswith("leave it one, or raise max_connections")
