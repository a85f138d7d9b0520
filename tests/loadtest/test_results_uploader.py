"""A load test whose machine goes away: Locust in its folder, and its files in S3."""

import csv
import json
import signal
import sys

import boto3
import pytest
from loadtest.conftest import PATIENT
from processes import RunningProcess

from poolkit.loadtest import results_uploader
from poolkit.loadtest.results_uploader import ResultsBucket, database_environ, read_options

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


@pytest.fixture
def s3(served_aws):
    """A client of S3, which has the bucket."""
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
def start(served_aws):
    """A function that starts this Python with arguments; what still runs is ended with the test."""
    runs = []

    def start_python(*arguments):
        runs.append(RunningProcess(sys.executable, *arguments, environ=served_aws))
        return runs[-1]

    yield start_python
    for process in reversed(runs):
        if process.process.poll() is None:
            process.terminate()


def uploading(*command, options=()):
    program = ("-m", "poolkit.loadtest.results_uploader")
    return [*program, URL, *options, "--", sys.executable, *command]


class Distributed:
    """A master under the uploader, and two workers on the loopback address."""

    def __init__(self, start, folder, server, port):
        file = folder / "visitors.py"
        file.write_text(VISITORS + PATIENT)
        locust = ["-m", "locust", "-f", file]
        master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        master += ["--headless", "--expect-workers", 2, "--host", server.url]
        master += ["--users", 4, "--spawn-rate", 4, "--run-time", "10m"]
        master += ["--csv", "run", "--html", "run.html", "--json-file", "run"]
        joining = ["--worker", "--master-host", "127.0.0.1", "--master-port", port]
        self.server, self._enough = server, folder / "enough"
        self.master = start(*uploading(*locust, *master))
        self.workers = [start(*locust, *joining) for _ in range(2)]

    def wait_for_requests(self, count):
        wanted = len(self.server.moments) + count
        self.master.wait_until(lambda: len(self.server.moments) >= wanted, f"{wanted} requests")

    def end(self):
        """Let the run come to its own end."""
        self._enough.touch()


@pytest.fixture
def distributed(start, tmp_path, server, free_port, s3):
    """A run with two workers."""
    return Distributed(start, tmp_path, server, free_port())


def aggregated(s3):
    rows = csv.DictReader(content(s3, "run_stats.csv").splitlines())
    return next(row for row in rows if row["Name"] == "Aggregated")


@pytest.mark.slow
def test_a_worker_that_dies_in_the_middle(distributed, s3):
    """The other one goes on, the run comes to its end, and all its files are uploaded."""
    distributed.wait_for_requests(20)
    distributed.workers[0].kill()
    distributed.wait_for_requests(40)
    distributed.end()
    assert distributed.master.wait() == 0, distributed.master.text
    marker = json.loads(content(s3, "finished.json"))
    assert (marker["status"], marker["stopped"], marker["attempt"]) == (0, False, 1)
    assert {"run.html", "run.json", "run_stats.csv", "run_failures.csv"} <= set(marker["files"])
    assert names(s3) == {*marker["files"], "started.json", "finished.json"}
    assert int(aggregated(s3)["Request Count"]) >= 20
    assert distributed.workers[1].wait() == 0


@pytest.mark.slow
def test_a_master_that_is_stopped_in_the_middle(distributed, s3):
    """The results until then are uploaded, the HTML report included, and marked as stopped."""
    distributed.wait_for_requests(40)
    assert distributed.master.terminate() == 0, distributed.master.text
    marker = json.loads(content(s3, "finished.json"))
    assert marker["stopped"] is True
    assert "ended with status 0, stopped early" in distributed.master.text
    assert "<html" in content(s3, "run.html")
    assert int(aggregated(s3)["Request Count"]) > 0
    assert [worker.wait() for worker in distributed.workers] == [0, 0]


def test_a_service_waits_when_its_load_has_ended(start, s3):
    """With --wait it stays until it is stopped: a service that ends is started again."""
    run = start(*uploading("-c", "open('a', 'w').write('b')", options=["--wait"]))
    run.wait_for("waiting to be stopped")
    assert content(s3, "a") == "b"
    assert run.terminate() == 0


def test_a_finished_run_is_not_run_again(start, s3, tmp_path):
    """Started again, a service waits at once; a person reads one line."""
    s3.put_object(Bucket="results", Key="run-1/finished.json", Body=b"{}")
    loading = ["-c", f"open({str(tmp_path / 'loaded')!r}, 'w')"]
    refused = start(*uploading(*loading))
    assert refused.wait() == 2
    assert refused.text.count("\n") == 1
    assert "s3://results/run-1 has a finished run" in refused.text
    waiting = start(*uploading(*loading, options=["--wait"]))
    waiting.wait_for("waiting to be stopped")
    assert waiting.terminate() == 2
    assert not (tmp_path / "loaded").exists()


def test_the_files_of_a_failed_load_are_uploaded(start, s3):
    """The status is the command's; a lost first attempt is counted."""
    s3.put_object(Bucket="results", Key="run-1/started.json", Body=b'{"attempt": 1}')
    run = start(*uploading("-c", "open('a', 'w').write('b'); raise SystemExit(3)"))
    assert run.wait() == 3, run.text
    marker = json.loads(content(s3, "finished.json"))
    assert (marker["status"], marker["attempt"]) == (3, 2)
    assert "a" in names(s3)


def test_a_command_that_loads_nothing_is_no_run(start, s3):
    """A mistake in the options ends the task, which stops a deployment, and uses up no name."""
    run = start(*uploading("-c", "raise SystemExit(2)", options=["--wait"]))
    assert run.wait() == 2
    assert "ended with status 2 and wrote no file, so nothing was loaded" in run.text
    assert names(s3) == {"started.json"}


def test_a_missing_bucket_is_one_line_before_the_load(start, tmp_path):
    """Nothing is loaded whose results would be lost; a service is not kept alive by it."""
    loading = ["-c", f"open({str(tmp_path / 'loaded')!r}, 'w')"]
    run = start(*uploading(*loading, options=["--wait"]))
    assert run.wait() == 2
    assert run.text == (
        "poolkit.loadtest.results_uploader: s3://results/run-1: there is no such bucket\n"
    )
    assert not (tmp_path / "loaded").exists()


def test_a_command_that_does_not_end_is_killed_and_its_files_are_uploaded(start, s3):
    """After the grace period, in which the files are uploaded again and again."""
    stubborn = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "open('a', 'w').close(); time.sleep(600)"
    )
    # As main(), with less patience than a test has.
    program = (
        "import sys; from poolkit.loadtest import results_uploader as r; r.GRACE_S = 0.5; "
        "r.UPLOAD_EVERY_S = 0.1; sys.exit(r.main(sys.argv[1:]))"
    )
    run = start("-c", program, *uploading("-c", stubborn)[2:])
    run.wait_until(lambda: "a" in names(s3))
    assert run.terminate() == 128 + signal.SIGKILL, run.text
    assert "is killed" in run.text
    assert json.loads(content(s3, "finished.json"))["stopped"] is True


def test_only_changed_files_are_uploaded_again(s3, tmp_path):
    """An unchanged file travels once."""
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
    ("arguments", "message"),
    [
        ([URL], "wanted the command to run behind --"),
        ([URL, "--"], "wanted the command to run behind --"),
        ([URL, "--options", "'", "--", "locust"], '--options "\'": No closing quotation'),
        ([URL, "--", "locust", "--database-url=postgresql://u:p@h/d"], "contains a password"),
        (["results/run", "--", "locust"], "wanted s3://BUCKET/RUN, found 'results/run'"),
        (["s3://results", "--", "locust"], "wanted s3://BUCKET/RUN, found 's3://results'"),
        ([URL, "--", "no-such-program"], "no-such-program: [Errno 2]"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, s3, capfd, monkeypatch):
    """Status 2, and the form that was wanted."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own stay
    assert results_uploader.main(arguments) == 2
    printed = capfd.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_more_arguments_for_the_command():
    """A template's parameter is split as a shell would."""
    arguments = [URL, "--wait", "--options", "--threshold 'http.p95 < 200'", "--", "locust"]
    assert read_options(arguments).command == ("locust", "--threshold", "http.p95 < 200")
