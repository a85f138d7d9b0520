"""`poolkit drill` as a user starts it: its results, its early ends, and what it refuses."""

import contextlib
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from poolkit_command import POOLKIT, refused, run_here, run_process, succeeded
from processes import RunningProcess, is_listening, runs, started, wait_until

from poolkit.drill import bare
from poolkit.local.ports import free_port
from poolkit.local.postgres import EmbeddedPostgres

RULES = {"lost", "doubled", "leaked", "500", "recovery", "fault"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the account of the servers may enter too, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="poolkit-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def everything_below(pid: int) -> list[psutil.Process]:
    """Return a process, those that it has started, and those of their sessions."""
    found = psutil.Process(pid).children(recursive=True)
    return [psutil.Process(pid), *found]


@pytest.mark.process
def test_a_drill_of_the_bare_application_writes_its_figures(folder):
    answer = run_process(
        *("drill", "--targets", "bare", "--fault", "restart", "--rate", "10"),
        *("--json", "--out", "results"),
        cwd=folder,
    )
    document = json.loads(succeeded(answer))
    assert document == json.loads((folder / "results/drill.json").read_text())
    assert document["targets"] == ["bare"]
    (fault,) = document["faults"]
    (outcome,) = fault["outcomes"]
    assert fault["fault"] == "restart"
    assert fault["before"] < fault["began"] < fault["ended"] < fault["until"]
    assert outcome["sent"] >= 20
    assert outcome["written"] > 0
    assert (outcome["lost"], outcome["doubled"]) == (0, 0)
    assert sum(outcome["by"].values()) == outcome["failed"]
    # The bare application is there to compare with: it breaks no rule.
    assert document["broken"] == []
    assert "| restart | bare | " in (folder / "results/drill.md").read_text()
    # The progress is no part of the document.
    assert "restart (1 of 1): recovering" in answer.stderr


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.process
@pytest.mark.timeout(600)
def test_the_sample_loses_no_write_and_leaks_no_connection_under_two_faults(tmp_path):
    answer = run_process(
        *("drill", "--targets", "web,bare", "--fault", "kill_backends", "--fault", "crash"),
        # Time is for a quiet machine; the other rules hold on any.
        *("--recovery-limit", "60s", "--json"),
    )
    document = json.loads(succeeded(answer))
    assert [fault["fault"] for fault in document["faults"]] == ["kill_backends", "crash"]
    for fault in document["faults"]:
        web, bare_one = fault["outcomes"]
        assert (web["target"], bare_one["target"]) == ("web", "bare")
        assert (web["lost"], web["doubled"], web["leaked"]) == (0, 0, 0)
        assert set(web["by"]) <= {"503", "timeout"}, web


@contextlib.contextmanager
def frozen(folder: Path) -> Iterator[RunningProcess]:
    """A drill whose server stands still, for as long as it is left alone."""
    with started(
        *(POOLKIT, "drill", "--targets", "bare", "--fault", "freeze", "--seconds", "300"),
        cwd=folder,
        clean=True,
        new_session=True,
    ) as process:
        process.wait_for(r"freeze \(1 of 1\): fault")
        process.wait_until(
            lambda: any(
                each.status() == psutil.STATUS_STOPPED for each in everything_below(process.pid)
            ),
            "the server stands still",
        )
        yield process


@pytest.mark.process
def test_ctrl_c_undoes_the_fault_and_leaves_nothing_running(folder):
    with frozen(folder) as process:
        below = everything_below(process.pid)
        process.signal_group(signal.SIGINT)
        assert process.wait() == 128 + signal.SIGINT
        assert "every fault is undone" in process.text
        assert not [each for each in below if runs(each)]


@pytest.mark.slow
@pytest.mark.process
def test_after_a_kill_of_the_drill_the_reaper_leaves_nothing_running(folder):
    with frozen(folder) as process:
        below = everything_below(process.pid)
        process.kill()
        wait_until(lambda: not [each for each in below if runs(each)], "everything has ended")
        assert not list((folder / ".poolkit").glob("postgres-*"))


@pytest.fixture
def application(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[str]:
    """The bare application on a server of the tests; its URL."""
    port = free_port()
    with contextlib.closing(psycopg2.connect(postgres.url(driver=""))) as connection:
        connection.autocommit = True
        connection.cursor().execute(bare.CREATE_TABLE)
    with started(
        *(sys.executable, "-m", "uvicorn", "--factory", "poolkit.drill.bare:application"),
        *("--port", port),
        environ={"DATABASE_URL": postgres.url(driver="")},
        clean=True,
    ) as process:
        process.wait_until(lambda: is_listening(port), "the application listens")
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
@pytest.mark.process
def test_an_application_that_runs_already_gets_the_faults_that_its_database_allows(
    application, postgres, folder
):
    (folder / "poolkit.toml").write_text(
        f"""
        [drill]
        write = "POST /notes"
        body = {{ title = "{{key}}", body = "x" }}
        read = "GET /notes/{{id}}"
        table = "{bare.TABLE}"
        column = "title"
        """
    )
    answer = run_process(
        *("drill", "--url", application, "--role", "poolkit", "--rate", "10", "--seconds", "1"),
        *("--fault", "kill_backends", "--fault", "freeze", "--recovery-limit", "60", "--json"),
        cwd=folder,
        POOLKIT_DATABASE_URL=postgres.admin_url(driver=""),
    )
    document = json.loads(answer.stdout)
    assert "kill_backends ends every database session" in answer.stderr
    assert document["not_run"] == {"freeze": "needs a server that the drill has started"}
    (outcome,) = document["faults"][0]["outcomes"]
    assert outcome["target"] == "application"
    assert outcome["written"] > 0
    assert (outcome["lost"], outcome["doubled"]) == (0, 0)
    # Exit status and document agree, whatever the application answered.
    assert {each["rule"] for each in document["broken"]} <= RULES
    assert answer.returncode == (1 if document["broken"] else 0)


def test_the_list_names_every_fault(tmp_path):
    lines = succeeded(run_here("drill", "--list", cwd=tmp_path)).splitlines()
    assert len(lines) >= 15
    assert lines[0].startswith("kill_backends ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--list"),
        (("--all", "--fault", "freeze"), "--fault or --all"),
        (("--fault", "frezee"), "did you mean freeze?"),
        (("--all", "--seconds", "soon"), "--seconds"),
        (("--all", "--recovery-limit", "0"), "--recovery-limit"),
        (("--all", "--request", "GET /"), "--request"),
        (("--all", "--url", "http://127.0.0.1:1", "--targets", "web"), "--targets"),
        (("--all", "--url", "http://192.0.2.1"), "--yes-load-this-host"),
        (("--all", "--url", "http://127.0.0.1:1", "--request", "/"), "--request"),
        (("--all", "--url", "http://127.0.0.1:1", "--locustfile", "none.py"), "none.py"),
        (("--all", "--url", "http://127.0.0.1:1", "--proxy-port", "6543"), "--proxy-port"),
        (
            ("--all", "--url", "http://127.0.0.1:1", "--database-url", "postgresql://192.0.2.1/x"),
            "--yes-break-this-database",
        ),
        (("--all",), "[tool.poolkit.targets.NAME]"),
    ],
)
def test_wrong_input_is_refused_with_one_line(tmp_path, arguments, message):
    refused(run_here("drill", *arguments, cwd=tmp_path), message, lines=1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "is missing"),
        ("requests = ['/']", "is no request"),
        ("requests = 'GET /'", "must be a list of strings"),
        ("writes = 'POST /'", "did you mean write?"),
        ("write = 'POST /'", "body needs {key}"),
        ("write = 'POST /'\nbody = { title = 'x' }", "body needs {key}"),
        ("write = 'POST /'\nbody = { title = '{key}' }\ntable = 'notes'", "table needs column"),
        (
            "write = 'POST /'\nbody = { title = '{key}' }\ntable = 'a b'\ncolumn = 'title'",
            "table must be the name of a table",
        ),
        ("read = 'GET /'\nrequests = ['GET /']", "read needs write"),
    ],
)
def test_a_wrong_table_of_requests_is_refused_with_the_key(tmp_path, table, message):
    (tmp_path / "load.py").touch()
    (tmp_path / "poolkit.toml").write_text(
        '[targets.web]\nkind = "web"\napp = "app:app"\nlocustfile = "load.py"\n[drill]\n' + table
    )
    refused(run_here("drill", "--all", cwd=tmp_path), message, lines=1)


def test_a_worker_answers_no_requests(tmp_path):
    (tmp_path / "load.py").touch()
    (tmp_path / "poolkit.toml").write_text(
        '[targets.queue]\nkind = "worker"\ncommand = ["x"]\nlocustfile = "load.py"\n'
        '[drill]\nrequests = ["GET /"]\n'
    )
    refused(run_here("drill", "--all", "--targets", "queue", cwd=tmp_path), "takes tasks")
