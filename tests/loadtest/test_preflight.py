"""What is refused before the load: one line, exit status 2, no request, no process left behind."""

import json
from dataclasses import dataclass, field

import pytest
from loadtest.conftest import LOCUSTFILE, wait_for_no_process
from processes import ROOT, run_python

pytestmark = pytest.mark.process

# Reserved for documentation (RFC 5737): no machine has it.
ELSEWHERE = "https://192.0.2.1"
SENDER = str(ROOT / "tests/loadtest/sender.py")
DATABASE = {"DATABASE_URL": "postgresql://w:w@127.0.0.1:9/a"}
BROKER = {"WORKER_BROKER_URL": "redis://127.0.0.1:9/0"}
WITH_HOST = f"\n    host = {ELSEWHERE!r}\n"
CHANGES_HOST = f"""
from locust import events

@events.init.add_listener
def change(environment, **_):
    environment.host = {ELSEWHERE!r}
"""


@dataclass(frozen=True)
class Case:
    """A command line of Locust, and the line with which it is refused."""

    arguments: tuple[str, ...]
    line: str
    environ: dict[str, str] = field(default_factory=dict)
    more: str = ""
    """Appended to the locustfile."""
    pyproject: str = ""
    logs: bool = False
    """Whether Locust has begun, and logs lines of its own."""
    reports: bool = False
    """Whether it prints its reports, too: it began when a test was about to start."""


NOT_HERE = "192.0.2.1 is not this machine"
IS_NOT_SET = "is not set; Sender needs it: "
AT_5, TWO = ("--arrival-rate", "5"), ("--processes", "2")


def options(line, *arguments, **fields):
    return Case(("--headless", *arguments), line, **fields)


def begun(line, *arguments, **fields):
    return options(line, *arguments, logs=True, **fields)


CASES = {
    # A host that is not this machine
    "host, web page": Case(("--host", ELSEWHERE), f"--host: {NOT_HERE}"),
    "host": options(f"--host: {NOT_HERE}", "--host", ELSEWHERE),
    "host, processes": options(f"--host: {NOT_HERE}", "--host", ELSEWHERE, *TWO),
    "host that does not resolve": options(
        "--host: no-such-host.invalid does not resolve",
        *("--host", "http://no-such-host.invalid", "--yes-load-this-host"),
    ),
    "host of a user class": begun(NOT_HERE, "--host", "", more=WITH_HOST),
    "host of a user class, processes": begun(NOT_HERE, "--host", "", *TWO, more=WITH_HOST),
    "host that changed meanwhile": options(NOT_HERE, more=CHANGES_HOST, reports=True),
    # Arrivals
    "no rate": options("--arrival-rate is 0; wanted arrivals per second", "--arrival-rate", "0"),
    "rate nan": options("--arrival-rate is nan; wanted arrivals per", "--arrival-rate", "nan"),
    "rate below 0": options("--arrival-rate is -1; wanted arrivals per", "--arrival-rate=-1"),
    "rate too high": options("at most 100,000", "--arrival-rate", "1e9", *TWO),
    "unknown arrivals": options("wanted one of constant, poisson", *AT_5, "--arrivals", "uniform"),
    "arrivals without a rate": options(
        "--arrivals is for an open loop; add --arrival-rate", "--arrivals", "poisson"
    ),
    "no user": options("--max-users is 0; wanted 1 or more", *AT_5, "--max-users", "0"),
    "too many users": options("more than --max-users 2", *AT_5, "--max-users=2", "--users", "3"),
    "rate and shape": begun(
        "--arrival-rate and the shape Ramp cannot be used together",
        *("-f", f"visitors.py,{ROOT / 'loadtests/ramp.py'}", *TWO, *AT_5),
    ),
    # Files of results
    "report": options("--html: file/run.html cannot be written: ", "--html", "file/run.html"),
    "csv": options("--csv: file/run_stats.csv cannot be written: ", "--csv", "file/run"),
    # Variables of user classes
    "no DATABASE_URL": begun(
        f"DATABASE_URL {IS_NOT_SET}",
        *("-f", SENDER, "--database-url", "postgresql://w:w@127.0.0.1:9/a"),
        environ=BROKER,
    ),
    "no broker": begun(f"WORKER_BROKER_URL {IS_NOT_SET}", "-f", SENDER, environ=DATABASE),
    "no broker, processes": begun(
        f"WORKER_BROKER_URL {IS_NOT_SET}", "-f", SENDER, *TWO, environ=DATABASE
    ),
    # Thresholds
    "no operator": options(
        "--threshold: threshold 'http.p95': an operator is missing", "--threshold", "http.p95"
    ),
    "no target": options(
        "is for the target web, and the run has none; add --target web, or leave the name out",
        *("--threshold", "web: http.p95 < 9"),
    ),
    "another target": options(
        "is for the target web, not wep; add --target web",
        *("--target", "wep", *TWO, "--threshold", "web: http.p95 < 9"),
    ),
    "pyproject": options(
        "pyproject.toml: [tool.poolkit] thresholds, number 1: threshold 'http.p9",
        pyproject="[tool.poolkit]\nthresholds = ['http.p9 < 1']",
    ),
}

# Locust is imported once, and each command line is a fork of that process.
SCRIPT = """
import atexit, json, os, sys
import locust.main

for case in json.load(sys.stdin):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.chdir(case["folder"])
        log = os.open("log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1), os.dup2(log, 2)
        os.environ.update(case["environ"])
        sys.argv = ["locust", *case["arguments"]]
        status = 0
        try:
            locust.main.main()
        except SystemExit as ended:
            status = ended.code or 0
        finally:
            atexit._run_exitfuncs()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    """The folder of all cases."""
    return tmp_path_factory.mktemp("preflight")


@pytest.fixture(scope="module")
def refused(module_folder, module_server, free_port):
    """The exit status and the output of every case, and the port of their masters."""
    port = str(free_port())
    ports = ("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port)
    typed = []
    for number, case in enumerate(CASES.values()):
        folder = module_folder / str(number)
        folder.mkdir()
        (folder / "file").write_text("")
        (folder / "visitors.py").write_text(LOCUSTFILE + case.more)
        if case.pyproject:
            (folder / "pyproject.toml").write_text(case.pyproject)
        given = ("-f", "visitors.py") if "-f" not in case.arguments else ()
        url = ("--host", module_server.url)
        words = [*given, *url, "--run-time", "10m", *ports, *case.arguments]
        typed.append({"folder": str(folder), "arguments": words, "environ": case.environ})
    done = run_python("-c", SCRIPT, clean=True, typed=json.dumps(typed), timeout_s=250)
    assert done.returncode == 0, done.stderr
    outputs = ((module_folder / str(n) / "log").read_text() for n in range(len(CASES)))
    statuses = map(int, done.stdout.split())
    return dict(zip(CASES, zip(statuses, outputs, strict=True), strict=True)), port


@pytest.mark.parametrize("name", CASES)
def test_it_ends_with_status_2_and_one_line(refused, name):
    """One line says why, with several processes too, and no traceback."""
    status, text = refused[0][name]
    assert status == 2, text
    assert "Traceback" not in text
    case, lines = CASES[name], text.splitlines()
    assert len([line for line in lines if case.line in line]) == 1, text
    if case.logs:
        lines = [line for line in lines if "/INFO/" not in line]
    assert case.reports or len(lines) == 1, text


def test_nothing_was_sent_and_no_process_is_left(refused, module_server):
    """Processes of --processes do not wait for a master that has gone."""
    wait_for_no_process(refused[1])
    assert module_server.moments == []
