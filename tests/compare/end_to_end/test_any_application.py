"""Applications that know nothing of poolkit: the figures are the server's, or they are unknown."""

import csv
import json
from collections import Counter

import pytest

from poolkit.compare.results.run_folder import ConnectionRow, RunFolder
from poolkit.compare.run.load import FIRST_REQUESTS

pytestmark = [pytest.mark.process, pytest.mark.timeout(300), pytest.mark.slow]
SHORT = ("--users", "6", "--rate", "4", "--duration", "2", "--warm-up", "1")

# An engine as people write it: QueuePool 5+10 and no name. Of six users with four requests a second
# of 0.1 s, two are at it at once, whatever their schedules are.
PLAIN = """
import asyncio, os
from concurrent.futures import ThreadPoolExecutor
from sqlalchemy import create_engine, text

url = os.environ.get("ELSEWHERE") or os.environ["DATABASE_URL"]
engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://"))
threads = ThreadPoolExecutor(20)

def work(path):
    if path == "/broken":
        raise KeyError("httpMethod")
    with engine.begin() as connection:
        connection.execute(text(os.environ.get("STATEMENT", "SELECT pg_sleep(0.1)")))

async def app(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] != "/":
            await asyncio.get_running_loop().run_in_executor(threads, work, scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
"""
LOAD = """
import os
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get(os.environ.get("PATH_OF_LOAD", "/work"))
"""
ASYNC = PLAIN.replace("postgresql+psycopg2", "postgresql+asyncpg")


def table(name, **env):
    """Return the table of a target without a preset's engine."""
    variables = ", ".join(f'{name} = "{value}"' for name, value in env.items())
    return (
        f'[tool.poolkit.targets.{name}]\nkind = "web"\napp = "app:app"\nready = "/"\n'
        f'preset = "web"\nenv = {{ {variables} }}\n'
    )


def most_at_once(folder):
    """Return the most client backends in one sample of the measured time, whatever their names are."""
    window = folder.window()
    with (folder.path / ConnectionRow.FILE).open() as file:
        times = [float(row["time"]) for row in csv.DictReader(file)]
    inside = (time for time in times if window.from_ <= time <= window.to)
    return max(Counter(inside).values(), default=0)


def test_an_engine_without_a_preset_is_counted_and_a_failing_target_beside_it(
    start, stranger, tmp_path
):
    """Its peak is the server's, its ceiling that of its own engine. The failing one has its cause."""
    out = tmp_path / "run"
    tables = (
        table("plain")
        + table("unnamed", PGAPPNAME="")
        + table("broken", PATH_OF_LOAD="/broken")
        + table("never", STATEMENT="{{").replace('"app:app"', '"no_such:app"')
        + table("last")
    )
    command = start(
        "compare",
        *SHORT,
        *("--out", str(out), "--threshold", "plain,unnamed: db.connections.max < 2"),
        cwd=stranger(tables, app=PLAIN, load=LOAD),
    )
    command.ends_with(1)
    found = json.loads((out / "results.json").read_text())
    run = RunFolder.open(out)
    for name in ("plain", "unnamed", "last"):
        connections = found["targets"][name]["connections"]
        assert connections["peak"] == most_at_once(run.target(name)) >= 2, name
        assert connections["peak"] <= 15, name
        assert (connections["ceiling"], connections["left_over"]) == (15, 0), name
        settings = found["targets"][name]["pool"]["settings"]
        assert (settings["pool_size"], settings["max_overflow"]) == (5, 10), name
        assert connections["uses_preset"] is False
    assert set(found["targets"]["plain"]["connections"]["attributed_by"]) == {"name"}
    assert set(found["targets"]["unnamed"]["connections"]["attributed_by"]) == {"rest"}
    failed = {verdict["target"] for verdict in found["thresholds"] if verdict["status"] == "failed"}
    assert failed == {"plain", "unnamed"}
    broken = found["targets"]["broken"]
    assert broken["errors"] == broken["requests"] > 0
    assert broken["evidence"]["target_errors"][-1] == "KeyError: 'httpMethod'"
    assert (out / broken["evidence"]["target_log"]).is_file()
    assert (out / broken["evidence"]["load_log"]).is_file()
    said, page = "\n".join(command.said), (out / "report.html").read_text()
    for text in ("KeyError", "log/broken.log", "log/locust@broken.log", "500"):
        assert text in said
        assert text in page
    (absent,) = found["absent"]
    assert absent["name"] == "never"
    assert 'Could not import module "no_such"' in command.error


@pytest.mark.parametrize("pool", ["", ", poolclass=NullPool"])
def test_an_application_on_another_database_is_stopped_before_the_load(
    start, stranger, database, pool
):
    """One error line with where it is connected, status 2, and a few rows at most there."""
    database.execute("CREATE TABLE written (at timestamptz DEFAULT now())")
    database.execute("GRANT INSERT ON written TO PUBLIC")
    other = database.url("")
    application = PLAIN.replace('2://")', f'2://"){pool}').replace(
        "import create_engine", "import NullPool, create_engine"
    )
    tables = table("web", ELSEWHERE=other, STATEMENT="INSERT INTO written DEFAULT VALUES")
    command = start("compare", *SHORT, cwd=stranger(tables, app=application, load=LOAD))
    command.ends_with(2)
    assert "it opened no connection to the embedded PostgreSQL" in command.error
    assert 'env = { POSTGRES_SERVER = "{db_host}"' in command.error
    ((rows,),) = [tuple(row.values()) for row in database.execute("SELECT count(*) FROM written")]
    if not pool:
        assert f"127.0.0.1:{database.server.port} instead" in command.error
    # The single user that begins sends no more of them, however late the run looks at its first ones.
    assert 1 <= rows <= FIRST_REQUESTS


def test_a_lazy_asynchronous_engine_is_not_stopped(start, stranger, tmp_path):
    """Neither `/` nor the first requests ask the database, and asyncpg has no PGAPPNAME."""
    out = tmp_path / "run"
    application = (
        ASYNC.replace("import create_engine, text", "import text")
        .replace(
            "from concurrent",
            "from sqlalchemy.ext.asyncio import create_async_engine\nfrom concurrent",
        )
        .replace("engine = create_engine", "engine, asked = create_async_engine")
        .replace('asyncpg://"))', 'asyncpg://")), []')
        .replace(
            "def work(path):",
            "async def work(path):\n    asked.append(path)\n    if len(asked) < 4:\n        return",
        )
        .replace(
            "with engine.begin() as connection:\n        ",
            "async with engine.begin() as connection:\n        await ",
        )
        .replace(
            'await asyncio.get_running_loop().run_in_executor(threads, work, scope["path"])',
            'await work(scope["path"])',
        )
    )
    project = stranger(table("web"), app=application, load=LOAD)
    start("compare", *SHORT, "--out", str(out), cwd=project).ends_with(0)
    connections = json.loads((out / "results.json").read_text())["targets"]["web"]["connections"]
    assert set(connections["attributed_by"]) == {"rest"}
    assert connections["peak"] == most_at_once(RunFolder.open(out).target("web"))


def test_on_a_shared_server_connections_are_recognised_by_their_sockets(
    start, stranger, database, tmp_path
):
    """Beside a connection of somebody else's, which is not counted."""
    out = tmp_path / "run"
    project = stranger(table("web", PGAPPNAME=""), app=PLAIN, load=LOAD)
    database.execute("SELECT 1")
    command = start(
        "compare", *SHORT, "--out", str(out), "--database-url", database.admin_url(""), cwd=project
    )
    command.ends_with(0)
    connections = json.loads((out / "results.json").read_text())["targets"]["web"]["connections"]
    assert set(connections["attributed_by"]) == {"address"}
    assert 1 <= connections["peak"] < most_at_once(RunFolder.open(out).target("web")) + 1
