"""`poolkit experiment` as a user starts it: what it refuses, its early ends, and what it writes."""

import io
import json
import re
import signal
import sys
from pathlib import Path

import psutil
import psycopg2
import pytest
from poolkit_command import POOLKIT, refused, run_here, run_process, succeeded
from processes import ROOT, RunningProcess, run, runs, started, wait_until
from programs import needs_pgbouncer
from rich.console import Console
from small_disks import small_disk

from poolkit.experiment.experiment import find_experiments
from poolkit.experiment.outcome import (
    Chart,
    Outcome,
    Report,
    Status,
    Table,
    judged,
    report_from_json,
)
from poolkit.experiment.report import report_page
from poolkit.experiment.terminal import print_list, print_outcome
from poolkit.local import pgbouncer

QUICK = ("ping_cost", "--set", "times=5")
# Long enough to be interrupted: 5,000 round trips of 200 ms.
LONG = ("ping_cost", "--set", "times=5000", "--set", "rtt_ms=200", "--tls")


# -- what it refuses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ping_cosst"], "there is no experiment ping_cosst; did you mean ping_cost?"),
        (["ping-cost-x"], "did you mean ping_cost?"),
        (["zzz"], "`poolkit experiment list` shows them all"),
        ([], "name an experiment, or --all"),
        (["--all", "ping_cost"], "name an experiment, or --all"),
        (["list", "ping_cost"], "list stands alone"),
        (["ping_cost", "--set", "times"], "--set takes NAME=VALUE"),
        (["ping_cost", "--set", "times=abc"], "times must be a whole number"),
        (["ping_cost", "--set", "times=1.5"], "times must be a whole number"),
        (["ping_cost", "--set", "times=-5"], "not negative, such as 100, not '-5'"),
        (["full_pools", "--set", "max_overflow=-1"], "max_overflow must be a whole number and not"),
        (["ping_cost", "--set", "rtt_ms=nan"], "rtt_ms must be a number and not negative"),
        (["ping_cost", "--set", "rtt_ms=inf"], "rtt_ms must be a number and not negative"),
        (["ping_cost", "--set", "speed=1"], "has no condition speed; its conditions are: queries="),
        (["ping_cost", "pool_modes", "--set", "times=5"], "name it alone"),
        (["ping_cost", "--claims", "claims.md"], "--claims needs --all"),
        (["ping_cost", "--report", "/nowhere/page.html"], "there is no folder /nowhere"),
        (["ping_cost", "--database-url", "mysql://u:secret@h/d"], "on PostgreSQL, not on mysql"),
        (["ping_cost", "--database-url", "sqlite:///x.db"], "on PostgreSQL, not on sqlite"),
        (["ping_cost", "--database-url", "postgresql:///d?host=/run"], "one host over TCP"),
        (["ping_cost", "--database-url", "postgresql://u:secret@a,b/d"], "one host over TCP"),
        (["ping_cost", "--database-url", "postgresql://u:secret@h/d?ssl=yes"], 'parameter: "ssl"'),
        (["ping_cost", "--database-url", "postgresql://u:secret@h/d?port=x"], "no URL of libpq"),
        (["ping_cost", "--database-url", "u:secret@h"], "--database-url is no URL such as"),
        (
            ["ping_cost", "--database-url", "postgresql://u:secret@h:x/d"],
            "--database-url is no URL",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_line_before_anything_starts(arguments, message):
    """Exit status 2, a line that names the mistake, no password, and no server."""
    error = refused(run_here("experiment", *arguments), message, lines=1)
    assert "secret" not in error


@pytest.mark.process
def test_a_role_without_the_right_to_make_a_schema_is_told_which_one(database):
    """The line has the statement that grants it."""
    answer = run_here("experiment", *QUICK, "--database-url", database.monitor_url(""))
    refused(answer, f"GRANT CREATE ON DATABASE {database.name} TO poolkit_monitor", lines=1)


@pytest.mark.process
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("://poolkit:", "://poolkit:wrong", "password authentication failed"),
        ("/test_", "/none_", "does not exist"),
        ("127.0.0.1", "host.invalid", "could not translate host name"),
        (r":\d+/", ":1/", "Connection refused"),
    ],
)
def test_a_database_that_cannot_be_reached_is_one_line(database, old, new, message):
    """Exit status 2, the server's reason, and not the password."""
    url = re.sub(old, new, database.url(""), count=1)
    answer = run_here("experiment", *QUICK, "--database-url", url)
    error = refused(answer, "cannot connect to the database", message, lines=1)
    assert database.server.password() not in error


def _schemas(url):
    """Return the schemas of experiments in a database."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(r"SELECT nspname FROM pg_namespace WHERE nspname LIKE 'poolkit\_%'")
        found = [name for (name,) in cursor.fetchall()]
    connection.close()
    return found


@pytest.mark.process
def test_a_full_server_is_one_line_and_keeps_nothing(new_postgres):
    """Without a free place nothing begins; with one, the experiment fails and its schema goes."""
    with new_postgres(max_connections=5) as server:  # of which 3 are the superuser's
        url = server.url(driver="")
        held = [psycopg2.connect(url) for _ in range(2)]
        answer = run_here("experiment", *QUICK, "--database-url", url)
        refused(answer, "cannot connect to the database poolkit", "connection slots", lines=1)
        held.pop().close()
        # Its place is free when its process has ended.
        wait_until(lambda: len(_backends(server)) == 1, "one connection is left")
        answer = run_here("experiment", *QUICK, "--database-url", url)
        assert answer.returncode == 1
        assert re.search(r"^failed: .*connection slots", answer.stdout, re.MULTILINE)
        assert _schemas(server.admin_url(driver="")) == []
        for connection in held:
            connection.close()


def _backends(server):
    """Return the application's connections to a server."""
    connection = psycopg2.connect(server.admin_url(driver=""))
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE usename = 'poolkit'")
        found = cursor.fetchall()
    connection.close()
    return found


@pytest.mark.process
def test_a_standby_is_one_line(new_postgres):
    """It answers, and nothing can be made there."""
    with new_postgres() as server, server.standby() as standby:
        answer = run_here("experiment", *QUICK, "--database-url", standby.url(driver=""))
        refused(answer, "cannot make a schema", "read-only transaction", lines=1)


@pytest.mark.process
@needs_pgbouncer
def test_a_pooler_is_one_line(postgres, tmp_path):
    """What is asked behind it is not the experiment's own connections."""
    with pgbouncer.EmbeddedPgBouncer(postgres, tmp_path) as bouncer:
        answer = run_here("experiment", *QUICK, "--database-url", bouncer.url(driver=""))
        refused(answer, f"a pooler such as PgBouncer answers at 127.0.0.1:{bouncer.port}", lines=1)


def test_a_missing_pgbouncer_is_named_with_its_package(monkeypatch, tmp_path):
    """The experiment is not run, which is neither a success nor a failure: exit status 3."""
    monkeypatch.setattr(pgbouncer, "_MORE_PLACES", str(tmp_path))
    answer = run_here("experiment", "pool_modes", PATH=str(tmp_path))
    assert answer.returncode == 3, answer.stderr
    assert "not run: needs PgBouncer (apt-get install pgbouncer)" in answer.stdout


def test_what_needs_a_server_of_its_own_does_not_run_on_another():
    """A restart would disturb its other users."""
    answer = run_here("experiment", "stale_connections", "--database-url", "postgresql://h/d")
    assert answer.returncode == 3, answer.stderr
    assert "not run: needs a server of its own" in answer.stdout


@pytest.mark.process
def test_a_disk_that_is_full_at_the_end_is_one_line(tmp_path):
    """The file could be made at the start, and its text does not fit at the end."""
    with small_disk(tmp_path, "4k"):
        (tmp_path / "page.html").touch()
        (tmp_path / "rest").write_bytes(b"x" * 4096)
        answer = run_here("experiment", *QUICK, "--json", "--report", tmp_path / "page.html")
    assert answer.returncode != 0
    assert "--report: cannot write" in answer.stderr.splitlines()[-1]
    assert json.loads(answer.stdout)["outcomes"]


@pytest.mark.slow
@pytest.mark.process
def test_an_installed_wheel_has_the_experiments(tmp_path):
    """`list` and a run work in an environment without the checkout."""

    def done(*command):
        answer = run(*command, cwd=tmp_path, timeout_s=250)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    assert run(*build, cwd=ROOT, timeout_s=100).returncode == 0
    (wheel,) = tmp_path.glob("*.whl")
    uv, environment = (sys.executable, "-m", "uv"), tmp_path / "environment"
    done(*uv, "venv", "--python", sys.executable, environment)
    locked = ("--constraint", ROOT / "requirements.lock")
    done(*uv, "pip", "install", "--python", environment, *locked, f"{wheel}[experiments]")
    program = environment / "bin/poolkit"
    assert done(program, "experiment", "list").count("    rows ") == len(find_experiments())
    assert "0.8  false" in done(program, "experiment", "when_connections_open")


# -- early ends ------------------------------------------------------------------------------------


def _everything_of(process: RunningProcess) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *process.children()]


def _is_clean(folder: Path) -> bool:
    """Return whether nothing is left but the empty folder of records."""
    left = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return not left and len(list(folder.iterdir())) <= 1


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "moment"),
    [(signal.SIGINT, "black hole"), (signal.SIGTERM, "starting PostgreSQL")],
)
def test_an_interrupted_experiment_leaves_nothing_running(data_path, number, moment):
    """Exit status 130 after Ctrl-C, 143 after SIGTERM; also while its threads hang."""
    command = (POOLKIT, "experiment", "stale_connections", "--set", "patience_s=600")
    with started(
        *command, clean=True, new_session=True, environ={"TMPDIR": str(data_path)}
    ) as process:
        process.wait_for(moment)
        below = _everything_of(process)
        process.signal_group(number)
        assert process.wait() == 128 + number, process.text
        assert process.stderr.splitlines()[-1].startswith("Interrupted: nothing is left running")
        assert process.stdout == ""
        assert "Traceback" not in process.stderr
        # A reaper that was just being started sees a moment later that its owner is gone.
        wait_until(lambda: not [each for each in below if runs(each)], "everything has ended")
        wait_until(lambda: _is_clean(data_path), lambda: list(data_path.rglob("*")))


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_experiment_leaves_no_schema(database, number):
    """On a database that is not its own it takes back what it made."""
    url = database.url("").replace("+psycopg2", "")
    command = (POOLKIT, "experiment", *LONG, "--database-url", url)
    with started(*command, clean=True, new_session=True) as process:
        process.wait_for("5000 checkouts")
        assert len(_schemas(url)) == 1
        process.signal_group(number)
        assert process.wait() == 128 + number, process.text
        assert "nothing is left running or in the database" in process.stderr
    assert _schemas(url) == []
    database.wait_for_backends(0)


@pytest.mark.process
def test_after_a_kill_the_schema_goes_too(database):
    """A process that outlives the run drops it, and ends."""
    url = database.url("")
    with started(
        POOLKIT, "experiment", *LONG, "--database-url", url, clean=True, new_session=True
    ) as process:
        process.wait_for("5000 checkouts")
        assert len(_schemas(url)) == 1
        below = _everything_of(process)
        process.kill()
        wait_until(lambda: _schemas(url) == [], "the schema is dropped")
        wait_until(lambda: not [each for each in below if runs(each)], "everything has ended")
    database.wait_for_backends(0)


@pytest.mark.process
def test_after_a_kill_the_server_and_the_proxies_end(data_path):
    """What the command could not end, the reaper ends; its folders go too."""
    command = (POOLKIT, "experiment", *LONG)
    with started(
        *command, clean=True, new_session=True, environ={"TMPDIR": str(data_path)}
    ) as process:
        process.wait_for("5000 checkouts")
        below = _everything_of(process)
        assert len(below) > 3, "a server, its processes, a proxy"
        process.kill()
        wait_until(lambda: not [each for each in below if runs(each)], "everything has ended")
        wait_until(lambda: _is_clean(data_path), lambda: list(data_path.rglob("*")))


# -- what it writes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[str, str, str]:
    """The standard output, the standard error and the page of a run with --json and --report."""
    page = tmp_path_factory.mktemp("experiments") / "page.html"
    answer = run_process("experiment", *QUICK, "--json", "--report", page)
    succeeded(answer)
    return answer.stdout, answer.stderr, page.read_text(encoding="utf-8")


@pytest.mark.process
def test_json_stands_alone_on_standard_output(written):
    """Progress goes to standard error; the document has all that was found."""
    output, error, _ = written
    report = report_from_json(json.loads(output))
    (outcome,) = report.outcomes
    assert (outcome.name, outcome.status) == ("ping_cost", Status.DONE)
    assert outcome.conditions["times"] == 5
    assert {judgement.row for judgement in outcome.judgements} == {"1.18", "1.19"}
    assert "PostgreSQL" in report.versions
    assert (
        report.command
        == f"poolkit experiment {' '.join(QUICK)} --json --report " + (report.command.split()[-1])
    )
    assert "ping_cost: 5 checkouts" in error


@pytest.mark.process
def test_the_page_loads_nothing(written):
    """Its style and its pictures are within: it can be sent, and read without a network."""
    _, _, page = written
    loaded = re.findall(r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["']?([^"' >]+)""", page)
    assert [each for each in loaded if not each.startswith(("data:", "#"))] == []
    assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", page)
    assert "pool_pre_ping sends SELECT 1 before each use" in page


def _page(table=None, chart=None) -> str:
    """Return the page of an experiment that judges one claim for two rows."""
    outcome = Outcome(
        name="an_experiment",
        chapter="pools",
        question="What is measured?",
        status=Status.DONE,
        judgements=tuple(
            judged(row, "a pool has <b>", {"near": True, "far": False}, "5 of 7", "So it is.")
            for row in ("0.1", "1.2")
        ),
        tables=(table,) if table else (),
        charts=(chart,) if chart else (),
    )
    report = Report(
        command="poolkit", date="", machine="", versions={}, distance="", outcomes=(outcome,)
    )
    return report_page(report)


def test_the_page_has_the_rows_of_one_claim_together():
    """As on the terminal: one verdict, one measurement and one explanation."""
    page = _page()
    assert page.count("So it is.") == 1
    assert page.count("a pool has &lt;b&gt;") == 2, "in the list of verdicts, and below"
    assert '<span class="rows">0.1, 1.2</span>' in page
    assert "It is true for near; false for far." in page


def test_the_page_has_numbers_at_the_right_and_words_at_the_left():
    """A heading stands over its column, whatever the column has."""
    rows = (("QueuePool", "1,000", "+16%", "fails"), ("NullPool", "0.5 ms", "-", "3"))
    page = _page(Table(title="", columns=("pool", "time", "change", "end"), rows=rows))
    sides = re.findall(r'<th scope="col" class="(\w+)">(\w+)</th>', page)
    assert [(name, side) for side, name in sides] == [
        ("pool", "text"),
        ("time", "number"),
        ("change", "number"),
        ("end", "text"),
    ]
    assert '<td class="number">0.5 ms</td>' in page


@pytest.mark.parametrize("kind", ["bars", "lines"])
def test_a_chart_is_drawn_for_a_phone_too(kind):
    """At 390 pixels none of it is cut off: its picture is no wider than the page."""
    points = tuple((name, x, 5.0 * x) for name in ("one pool", "another") for x in (1, 2))
    page = _page(chart=Chart(kind=kind, title="Time", unit="ms", points=points, x_title="x"))
    wide, narrow = (float(width) for width in re.findall(r'<svg[^>]* width="([\d.]+)"', page))
    assert narrow <= 390 < wide


def _lines(print_it) -> list[str]:
    """Return what is printed on a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80)
    print_it(console)
    return console.file.getvalue().splitlines()


def test_the_list_fits_80_columns():
    """Every experiment with its question, its rows and its needs."""
    found = find_experiments()
    lines = _lines(lambda console: print_list(found.values(), console))
    assert [line for line in lines if len(line) > 80] == []
    for name, experiment in found.items():
        assert any(line.startswith(f"  {name} (") for line in lines)
        assert " ".join(experiment.rows) in " ".join(line.strip() for line in lines)


@pytest.mark.process
def test_an_outcome_fits_80_columns(written):
    """Its tables and its judgements, whose conditions may be long."""
    (outcome,) = report_from_json(json.loads(written[0])).outcomes
    lines = _lines(lambda console: print_outcome(outcome, console))
    assert [line for line in lines if len(line) > 80] == []
    text = " ".join(line.strip() for line in lines)
    for judgement in outcome.judgements:
        assert judgement.measured in text
        assert judgement.condition in text
