"""A load test whose machine goes away: Locust in its folder, and what it leaves in S3."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import boto3
import pytest

from poolkit.loadtest import keep
from poolkit.loadtest.keep import database_environ, read_options
from poolkit.loadtest.results_bucket import ResultsBucket

VISITORS = """
from pathlib import Path

import gevent
from locust import FastHttpUser, constant, events, task
from locust.runners import MasterRunner

from poolkit import loadtest

loadtest.register()

@events.init.add_listener
def end_it_when_told(environment, **_):
    def wait():
        while not Path(__file__).with_name("enough").exists():
            gevent.sleep(0.05)
        environment.runner.quit()

    if isinstance(environment.runner, MasterRunner):
        gevent.spawn(wait)

class Visitor(FastHttpUser):
    wait_time = constant(0.05)

    @task
    def visit(self):
        self.client.get("/")
"""
URL = "s3://results/run-1"
PATIENCE_S = 100
"""For what takes a moment: a busy machine may need half a minute for it."""


@pytest.fixture
def s3(served_aws):
    """Give S3 with the bucket."""
    s3 = boto3.client("s3")
    where = {"LocationConstraint": served_aws["AWS_REGION"]}
    s3.create_bucket(Bucket="results", CreateBucketConfiguration=where)
    return s3


def content(s3, name):
    return s3.get_object(Bucket="results", Key=f"run-1/{name}")["Body"].read().decode()


def names(s3):
    listed = s3.list_objects_v2(Bucket="results").get("Contents", [])
    return {each["Key"].removeprefix("run-1/") for each in listed}


@pytest.fixture
def start(tmp_path):
    """Give a function that starts a Python program with its output in a file; ends them all."""
    runs = []

    def start_python(*words, **variables):
        log = tmp_path / f"{len(runs)}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [sys.executable, *map(str, words)],
                env={k: v for k, v in os.environ.items() if not k.startswith("DATABASE_")}
                | variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        process.log = log
        runs.append(process)
        return process

    yield start_python
    for process in reversed(runs):
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def keeping(*command, options=()):
    return ["-m", "poolkit.loadtest.keep", URL, *options, "--", sys.executable, *command]


def wait_until(condition, process):
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, process.log.read_text()
        time.sleep(0.05)
    return found


class Fleet:
    """A kept master and two workers on the loopback address."""

    def __init__(self, start, folder, server, port):
        file = folder / "visitors.py"
        file.write_text(VISITORS)
        locust = ["-m", "locust", "-f", file]
        master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        master += ["--headless", "--expect-workers", 2, "--host", server.url]
        master += ["--users", 4, "--spawn-rate", 4, "--run-time", "10m"]
        master += ["--csv", "run", "--html", "run.html", "--json-file", "run"]
        joining = ["--worker", "--master-host", "127.0.0.1", "--master-port", port]
        self.server, self._enough = server, folder / "enough"
        self.master = start(*map(str, keeping(*locust, *master)))
        self.workers = [start(*locust, *joining) for _ in range(2)]

    def wait_for_requests(self, count):
        wanted = len(self.server.moments) + count
        wait_until(lambda: len(self.server.moments) >= wanted, self.master)

    def end(self):
        """Have the run come to its end by itself."""
        self._enough.touch()


@pytest.fixture
def fleet(start, tmp_path, server, free_port, s3):
    """Start it."""
    return Fleet(start, tmp_path, server, free_port())


def aggregated(s3):
    rows = csv.DictReader(content(s3, "run_stats.csv").splitlines())
    return next(row for row in rows if row["Name"] == "Aggregated")


@pytest.mark.slow
def test_a_worker_that_dies_in_the_middle(fleet, s3):
    """The other one goes on, the run comes to its end, and every file of it is kept."""
    fleet.wait_for_requests(20)
    fleet.workers[0].send_signal(signal.SIGKILL)
    fleet.wait_for_requests(40)
    fleet.end()
    assert fleet.master.wait(PATIENCE_S) == 0, fleet.master.log.read_text()
    marker = json.loads(content(s3, "finished.json"))
    assert (marker["status"], marker["stopped"], marker["attempt"]) == (0, False, 1)
    assert {"run.html", "run.json", "run_stats.csv", "run_failures.csv"} <= set(marker["files"])
    assert names(s3) == {*marker["files"], "started.json", "finished.json"}
    assert int(aggregated(s3)["Request Count"]) >= 20
    assert fleet.workers[1].wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_a_master_that_is_stopped_in_the_middle(fleet, s3):
    """What was measured until then is kept, the HTML report included, and marked as stopped."""
    fleet.wait_for_requests(40)
    fleet.master.terminate()
    assert fleet.master.wait(PATIENCE_S) == 0, fleet.master.log.read_text()
    marker = json.loads(content(s3, "finished.json"))
    assert marker["stopped"] is True
    assert "ended with status 0, stopped early" in fleet.master.log.read_text()
    assert "<html" in content(s3, "run.html")
    assert int(aggregated(s3)["Request Count"]) > 0
    assert [worker.wait(PATIENCE_S) for worker in fleet.workers] == [0, 0]


def test_a_service_waits_when_its_load_has_ended(start, s3):
    """Whoever would be started again stays until it is stopped, and says so."""
    kept = start(*keeping("-c", "open('a', 'w').write('b')", options=["--wait"]))
    wait_until(lambda: "waiting to be stopped" in kept.log.read_text(), kept)
    assert content(s3, "a") == "b"
    kept.terminate()
    assert kept.wait(PATIENCE_S) == 0


def test_a_finished_run_is_not_run_again(start, s3, tmp_path):
    """Started again, a service waits at once; a person is told in one line."""
    s3.put_object(Bucket="results", Key="run-1/finished.json", Body=b"{}")
    loading = ["-c", f"open({str(tmp_path / 'loaded')!r}, 'w')"]
    told = start(*keeping(*loading))
    assert told.wait(PATIENCE_S) == 2
    assert told.log.read_text().count("\n") == 1
    assert "s3://results/run-1 has a finished run" in told.log.read_text()
    waiting = start(*keeping(*loading, options=["--wait"]))
    wait_until(lambda: "waiting to be stopped" in waiting.log.read_text(), waiting)
    waiting.terminate()
    assert waiting.wait(PATIENCE_S) == 2
    assert not (tmp_path / "loaded").exists()


def test_a_failed_load_is_kept_too(start, s3):
    """Its status is the command's, and the files it left are there."""
    kept = start(*keeping("-c", "open('a', 'w').write('b'); raise SystemExit(3)"))
    assert kept.wait(PATIENCE_S) == 3, kept.log.read_text()
    assert json.loads(content(s3, "finished.json"))["status"] == 3
    assert "a" in names(s3)


def test_a_command_that_loads_nothing_is_no_run(start, s3, tmp_path):
    """A mistake in the options ends the task, which stops a deployment, and uses up no name."""
    file = tmp_path / "visitors.py"
    file.write_text(VISITORS)
    locust = ["-m", "locust", "-f", str(file), "--csv", "run", "--no-such-option"]
    kept = start(*keeping(*locust, options=["--wait"]))
    assert kept.wait(PATIENCE_S) == 2
    assert "ended with status 2 and left nothing, so nothing was loaded" in kept.log.read_text()
    assert names(s3) == {"started.json"}


def test_a_master_that_was_lost_is_counted(start, s3):
    """A second attempt says that it is one: the first never came to its end."""
    s3.put_object(Bucket="results", Key="run-1/started.json", Body=b'{"attempt": 1}')
    assert start(*keeping("-c", "")).wait(PATIENCE_S) == 0
    assert json.loads(content(s3, "finished.json"))["attempt"] == 2


def test_a_missing_bucket_is_one_line_before_the_load(start, served_aws, tmp_path):
    """Nothing is loaded whose results would be lost; a service is not kept alive by it."""
    words = keeping("-c", f"open({str(tmp_path / 'loaded')!r}, 'w')", options=["--wait"])
    kept = start(*words)
    assert kept.wait(PATIENCE_S) == 2
    assert kept.log.read_text() == (
        "poolkit.loadtest.keep: s3://results/run-1: there is no such bucket\n"
    )
    assert not (tmp_path / "loaded").exists()


def test_what_does_not_end_is_killed_and_kept(start, s3, tmp_path):
    """After the grace period the load's processes are killed, and their files uploaded."""
    stubborn = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "open('a', 'w').close(); time.sleep(60)"
    )
    # As main(), with less patience than a test has.
    program = (
        "import sys; from poolkit.loadtest import keep; keep.GRACE_S = 0.5; "
        "keep.UPLOAD_EVERY_S = 0.1; sys.exit(keep.main(sys.argv[1:]))"
    )
    kept = start("-c", program, *keeping("-c", stubborn)[2:])
    wait_until(lambda: "a" in names(s3), kept)  # uploaded while it runs
    kept.terminate()
    assert kept.wait(PATIENCE_S) == 128 + signal.SIGKILL, kept.log.read_text()
    assert "is killed" in kept.log.read_text()
    assert json.loads(content(s3, "finished.json"))["stopped"] is True


def test_only_what_changed_is_uploaded_again(s3, tmp_path):
    """A file that stays as it is travels once."""
    results = ResultsBucket(URL)
    (tmp_path / "still").write_text("1")
    (tmp_path / "growing").write_text("1")
    results.upload(tmp_path)
    s3.delete_object(Bucket="results", Key="run-1/still")
    (tmp_path / "growing").write_text("12")
    assert results.upload(tmp_path) == {"growing": 2, "still": 1}
    assert names(s3) == {"growing"}


def test_the_password_comes_from_the_secret(served_aws):
    """Locust gets a URL; the task definition has the secret's name alone."""
    secret = {"username": "watcher", "password": "p@ss/word"}
    made = boto3.client("secretsmanager").create_secret(Name="s", SecretString=json.dumps(secret))
    environ = {
        "POOLKIT_TARGET": "script",
        "POOLKIT_ENVIRONMENT": "prod",
        "DATABASE_SECRET_ARN": made["ARN"],
        "DATABASE_HOST": "db.example",
        "DATABASE_NAME": "articles",
        "DATABASE_SSLMODE": "require",
    }
    url = database_environ(environ)["DATABASE_URL"]
    assert url == ("postgresql://watcher:p%40ss%2Fword@db.example:5432/articles?sslmode=require")
    assert database_environ({"PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([URL], "wanted the command to run behind --"),
        ([URL, "--"], "wanted the command to run behind --"),
        ([URL, "--options", "'", "--", "locust"], '--options "\'": No closing quotation'),
        ([URL, "--", "locust", "--database-url=postgresql://u:p@h/d"], "has a password"),
        (["results/run", "--", "locust"], "wanted s3://BUCKET/RUN, found 'results/run'"),
        (["s3://results", "--", "locust"], "wanted s3://BUCKET/RUN, found 's3://results'"),
        ([URL, "--", "no-such-program"], "no-such-program: [Errno 2]"),
    ],
)
def test_a_mistake_is_one_line(words, message, s3, capfd, monkeypatch):
    """Status 2, and what was wanted."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own stay
    assert keep.main(words) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_more_words_for_the_command():
    """What a template's parameter says is split as a shell would."""
    words = [URL, "--wait", "--options", "--threshold 'http.p95 < 200'", "--", "locust", "--master"]
    assert read_options(words).command == ("locust", "--master", "--threshold", "http.p95 < 200")
