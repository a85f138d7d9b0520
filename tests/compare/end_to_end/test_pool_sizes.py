"""`poolkit compare --pool-sizes`: an application with an engine of its own, and the kit's own service."""

import json

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(300)]

APP = """
import asyncio, os
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
engine = create_async_engine(url, pool_size=4, max_overflow=3, pool_pre_ping=True)
if engine.pool.size() == 3:
    raise RuntimeError("this size does not start")

async def app(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] != "/":
            async with engine.connect() as connection:
                await connection.execute(text("SELECT pg_sleep(0.03)"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
"""
LOAD = """
from locust import FastHttpUser, task

class Visitor(FastHttpUser):
    @task
    def visit(self):
        self.client.get("/work")
"""
TABLE = '[tool.poolkit.targets.web]\nkind = "web"\napp = "app:app"\nready = "/"\n'
SHORT = ("--rates", "60", "--duration", "3", "--warm-up", "1")


def pools_of(found):
    """Return the size that each target's pool had in its process, and the most in use at once."""
    return {
        name: (
            each["pool"]["settings"]["pool_size"],
            each["pool"]["settings"]["max_overflow"],
            each["pool"]["out_max"],
        )
        for name, each in found["targets"].items()
    }


def test_a_stranger_s_engine_gets_each_size_and_one_that_fails_is_marked(start, stranger, tmp_path):
    """The others are measured; a pool of one connection cannot sustain what the larger one does."""
    out = tmp_path / "run"
    command = start(
        *("compare", *SHORT, "--pool-sizes", "1,3,5+1", "--out", str(out)),
        cwd=stranger(TABLE, app=APP, load=LOAD),
    )
    command.ends_with(1)
    assert "web@3" in command.error
    found = json.loads((out / "results.json").read_text())
    small, large = (pools_of(found)[name] for name in ("web@1", "web@5+1"))
    assert (small, large[:2]) == ((1, 0, 1), (5, 1))
    assert 1 <= large[2] <= 6
    (sweep,) = found["sweeps"]
    assert [point["pool_size"] for point in sweep["points"]] == [1, 3, 5]
    assert sweep["points"][1]["why_not"].startswith("it failed")
    assert sweep["points"][0]["rate"][1] < 40
    assert found["advice"]["web"]["action"] != "unknown"
    assert (out / "charts/pool-sizes.png").is_file()


def test_the_kit_s_own_service_admits_as_many_requests_as_the_size_has_connections(start, tmp_path):
    """The preset's variables are set too; its report has settings, use and Little's law."""
    out = tmp_path / "run"
    command = start(
        *("compare", "--targets", "web", "--rates", "20", "--duration", "3", "--warm-up", "1"),
        *("--pool-sizes", "2,8", "--out", str(out)),
    )
    assert command.end() == 0, command.error
    found = json.loads((out / "results.json").read_text())
    assert {name: pool[:2] for name, pool in pools_of(found).items()} == {
        "web@2": (2, 0),
        "web@8": (8, 0),
    }
    assert found["targets"]["web@8"]["connections"]["ceiling"] == 8
    assert found["sweeps"][0]["little"]["mean"] > 0
