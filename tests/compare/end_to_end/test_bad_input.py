"""Wrong input ends in one line that says what to do; nothing runs afterwards."""

import socket

import pytest
from click.testing import CliRunner

from poolkit.cli import main

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]
LAMBDA = '[tool.poolkit.targets.function]\nkind = "lambda"\nhandler = "mine.handler"\npreset = "lambda"\n'
WEB = '[tool.poolkit.targets.web]\nkind = "web"\napp = "mine:app"\ndatabase = false\n'
WORKER = '[tool.poolkit.targets.worker]\nkind = "worker"\ncommand = ["{python}", "-m", "mine"]\n'
NOWHERE, HERE = "postgresql://me:secret@127.0.0.1:1/nothing", "web=http://127.0.0.1:1"
AT = ("--database-url", NOWHERE, "--target")
QUICK = ("--users", "2", "--rate", "5", "--duration", "1", "--warm-up", "1")


def refused(command):
    """Wait for the end, and return the one line that it wrote to standard error."""
    status = command.end()
    assert (status, len(command.errors)) == (2, 1), (status, command.errors, command.said)
    assert command.left() == []
    return command.errors[0]


def failed(command):
    """Wait for the end of a run whose only target failed, and return its first error line."""
    assert command.end() == 1, (command.errors, command.said)
    assert command.left() == []
    return command.errors[0]


def refused_at_once(monkeypatch, folder, *arguments):
    """Run the command in this process, and return its error line; it must start nothing."""
    monkeypatch.chdir(folder)
    words = ["compare", *arguments]
    answer = CliRunner().invoke(main, words, prog_name="poolkit", catch_exceptions=False)
    lines = answer.stderr.splitlines()
    assert (answer.exit_code, len(lines)) == (2, 1), answer.output
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--targets", "wbe"),
            "target 'wbe' is not in pyproject.toml (did you mean web?); there are:",
        ),
        (("--users", "abc"), "'--users': 'abc' is not a valid integer (see"),
        (("--rates", "50", "--users", "5"), "give one of the two"),
        (("--threshold", "http.p59 < 9"), "'http.p59' is not a metric; did you mean"),
        (("--threshold", "wbe: http.p95 < 9"), "there is no target wbe; did you mean web?"),
        (("--junit", "no/such/folder.xml"), "--junit: no/such/folder.xml cannot be written"),
        (("--target", HERE), "--target needs --database-url"),
        ((*AT, "wbe=http://127.0.0.1:1"), "target 'wbe' is not in pyproject"),
        ((*AT, "web=http://no-such.invalid"), "no-such.invalid does not resolve"),
        ((*AT, HERE), "127.0.0.1:1 does not answer"),
        ((*AT, "web=http://198.51.100.7"), "--target web: 198.51.100.7 is not this machine"),
        ((*AT, HERE, "--targets", "web"), "web is in --targets and in --target"),
        (("--environment", "production"), "did you mean 'prod'?"),
        (("--no-such-option",), "No such option '--no-such-option' (see"),
        (("--out", "."), "is not empty; name a new folder with --out"),
        (("--out", "/proc/run"), "cannot write to /proc/run"),
        (
            ("--database-url", "nonsense"),
            "--database-url: not a database URL; wanted postgresql://",
        ),
    ],
)
def test_a_wrong_option_is_named(monkeypatch, stranger, arguments, message):
    """Nothing is started."""
    assert message in refused_at_once(monkeypatch, stranger(), *arguments)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ("", "[tool.poolkit.targets.NAME] is missing"),
        ("[tool.poolkit", "pyproject.toml: "),
        (WEB.replace('"web"', '"wbe"'), "kind must be one of lambda, web, worker, not 'wbe'"),
        (WEB.replace("app =", "ap ="), "unknown key ap; did you mean app?"),
        ("tool = 1", "tool must be a table, not 1"),
        (
            f"[tool.poolkit]\nmigrations = 3\n{WEB}",
            "migrations must be the name of a folder or a module, not 3",
        ),
    ],
)
def test_a_wrong_pyproject_is_named(monkeypatch, stranger, tables, message):
    """File, table and key are in the message."""
    line = refused_at_once(monkeypatch, stranger(tables))
    assert message in line
    assert "pyproject.toml" in line


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        ("def upgrade(engine): ...", "migrations 'mine' lack current and heads; wanted a"),
        ("def (", "migrations 'mine' cannot be imported: SyntaxError: invalid syntax"),
    ],
)
@pytest.mark.parametrize("name", ["compare", "up"])
def test_wrong_migrations_are_found_before_anything_starts(start, stranger, mine, message, name):
    """The message names what they lack, and what a module of migrations has."""
    command = start(name, cwd=stranger(f'[tool.poolkit]\nmigrations = "mine"\n{WEB}', mine=mine))
    assert message in refused(command)
    assert command.said == []


@pytest.mark.slow
def test_what_was_measured_is_reported_when_the_next_target_cannot_be_started(start, stranger):
    """The operating system refuses a process with this variable."""
    other = WEB.replace("web]", "other]").replace("mine:app", "plain:app")
    tables = f'{WEB.replace("mine", "plain")}{other}preset = "web"\nenv = {{ A = "\\u0000" }}\n'
    command = start("compare", *QUICK, cwd=stranger(tables))
    assert "null byte" in refused(command)
    assert any(line.startswith("Report: ") for line in command.said), command.said


def test_a_folder_without_a_project_is_named(monkeypatch, tmp_path):
    """There is no file with settings in it or above it."""
    assert f"no poolkit.toml in {tmp_path}" in refused_at_once(monkeypatch, tmp_path)


def test_a_locustfile_that_does_not_import_is_found_before_anything_starts(start, stranger):
    """The message has Python's reason."""
    command = start("compare", cwd=stranger(load="import no_such_thing\n"))
    message = "load.py cannot be used: ModuleNotFoundError: No module named 'no_such_thing'"
    assert message in refused(command)
    assert command.said == []


@pytest.mark.parametrize(
    ("tables", "ended"),
    [
        pytest.param(LAMBDA, "function ended with exit status 2", marks=pytest.mark.slow),
        (WEB, "web ended with exit status 1"),
        pytest.param(WORKER, "worker ended with exit status 1", marks=pytest.mark.slow),
    ],
)
def test_a_target_that_fails_at_import_is_named_with_python_s_last_line(
    start, stranger, tables, ended
):
    """The log has the rest, and its path is in the message."""
    project = stranger(tables, mine="import no_such_thing\n")
    line = failed(start("compare", *QUICK, cwd=project))
    message = f"poolkit: {ended} before it was ready; its log {project}"
    assert line.startswith(message), line
    assert "No module named 'no_such_thing'" in line


@pytest.mark.slow
def test_a_missing_program_of_a_worker_is_named(start, stranger):
    """The message names the program and its folder."""
    project = stranger(WORKER.replace("{python}", "no-such-program"))
    line = refused(start("compare", *QUICK, cwd=project))
    assert f"cannot run no-such-program in {project}" in line


@pytest.mark.slow
def test_a_wrong_path_of_metrics_is_found_before_the_load(start, stranger):
    """The target runs but does not answer there."""
    project = stranger(WEB + 'metrics = "/metrics"\n', mine=NO_METRICS)
    line = refused(start("compare", *QUICK, cwd=project))
    assert "web runs but does not answer /metrics: HTTP Error 404" in line


NO_METRICS = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        status = 404 if scope["path"] == "/metrics" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})
"""


@pytest.mark.slow
def test_a_taken_port_of_a_target_is_named(start, stranger):
    """A command with a fixed port that another process has: the message is uvicorn's own."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = f'["{{python}}", "-m", "uvicorn", "plain:app", "--port", "{port}"]'
        project = stranger(WEB.replace('app = "mine:app"', f"command = {words}"))
        assert "address already in use" in failed(start("compare", *QUICK, cwd=project))


def test_an_unreachable_database_is_named(start, stranger):
    """Nothing is started on this machine either."""
    command = start("compare", *QUICK, "--database-url", NOWHERE, cwd=stranger())
    line = refused(command)
    start_of_line = "poolkit: --database-url: cannot watch the database: connection to server"
    assert line.startswith(start_of_line)
    assert "secret" not in line
    assert command.said == []


def test_a_wrong_password_is_not_repeated(start, stranger, database):
    """The message is the server's own."""
    url = database.url("").replace(database.server.password(), "not-the-password")
    line = refused(start("compare", *QUICK, "--database-url", url, cwd=stranger()))
    assert "password authentication failed" in line
    assert "not-the-password" not in line


def test_a_role_that_may_not_sample_gets_the_grant_to_run(start, stranger, database):
    """The application's role alone cannot see who is connected."""
    line = refused(start("compare", *QUICK, "--database-url", database.url(""), cwd=stranger()))
    assert 'GRANT pg_monitor TO "poolkit"' in line


@pytest.mark.sample
def test_a_database_without_the_schema_needs_an_upgrade(start, database):
    """A database of the user's own is never changed."""
    command = start("compare", "--targets", "web", *QUICK, "--database-url", database.admin_url(""))
    assert "run `poolkit db upgrade` there first" in refused(command)
    assert database.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'") == []


def test_a_read_only_folder_is_named(start, stranger, read_only_disk):
    """The message has the reason, and what to do."""
    command = start("compare", *QUICK, "--out", str(read_only_disk), cwd=stranger())
    line = refused(command)
    assert f"cannot write to {read_only_disk}: Read-only file system; name a folder" in line


@pytest.mark.slow
def test_a_disk_that_fills_up_is_an_error_not_a_shorter_run(start, stranger, disk):
    """Rows that could not be written are never missing in silence."""
    command = start(
        "compare",
        *("--users", "20", "--rate", "20", "--duration", "30", "--warm-up", "1"),
        *("--out", str(disk / "run")),
        cwd=stranger(),
    )
    assert "No space left on device" in refused(command)


@pytest.mark.slow
def test_a_migrated_database_of_one_s_own_is_measured_and_left_alone(
    start, migrated_database, tmp_path
):
    """--database-url: the server is used, its limit is the plan's, and it is not stopped."""
    out = tmp_path / "run"
    url = migrated_database.admin_url("")
    command = start("compare", "--targets", "web", *QUICK, "--database-url", url, "--out", str(out))
    command.ends_with(0)
    assert "max_connections 100" in command.said[0]
    migrated_database.wait_for_backends(0, "web:")
