"""`poolkit compare` names the line of an application that holds connections over something else."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from processes import ROOT

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(300)]


class Planted(NamedTuple):
    """An application of tests/strangers, with a wait planted behind a query."""

    app: str
    file: str
    query: str
    """The line with the query, whose result is returned."""
    wait: str
    unit: str
    function: str
    module: str
    """Of the app, from the application's folder."""


SQLMODEL = Planted(
    app="fastapi_sqlmodel",
    module="app.main:app",
    file="backend/app/routes.py",
    query='    return {"count": session.exec(select(func.count()).select_from(Entry)).one()}\n',
    wait="__import__('time').sleep(0.2)",
    unit="GET /entries/count",
    function="count_entries",
)
ASYNC = Planted(
    app="fastapi_async",
    module="stock.main:app",
    file="src/stock/main.py",
    query="        return await session.scalar(select(func.coalesce(func.sum(Item.amount), 0)))\n",
    wait="await __import__('asyncio').sleep(0.2)",
    unit="GET /items/total",
    function="total",
)


@pytest.mark.parametrize("planted", [SQLMODEL, ASYNC], ids=lambda planted: planted.app)
def test_a_planted_wait_is_found_with_its_line_and_endpoint(stranger, start, planted):
    """In an application that knows nothing of poolkit; the threshold fails, the others are quick."""
    project = stranger("")
    (project / "pyproject.toml").unlink()
    shutil.copytree(ROOT / "tests/strangers" / planted.app, project, dirs_exist_ok=True)
    file = Path(project / planted.file)
    code = file.read_text()
    indent = planted.query[: -len(planted.query.lstrip())]
    slow = (
        planted.query.replace("return ", "found = ")
        + f"{indent}{planted.wait}\n{indent}return found\n"
    )
    assert planted.query in code
    file.write_text(code.replace(planted.query, slow))
    line = code[: code.index(planted.query)].count("\n") + 1
    command = start(
        *("compare", "--app", planted.module, "--out", "run", "--threshold", "db.hold.p95 < 100"),
        *("--users", "4", "--duration", "4", "--warm-up", "2"),
        cwd=project,
    )
    command.ends_with(1)
    results = json.loads((project / "run/results.json").read_text())
    (target,) = results["targets"].values()
    worst, *others = target["holds"]["sites"]
    where, function = worst["where"].split(" in ")
    assert where.endswith(f"{file.name}:{line}"), worst
    assert function.endswith(planted.function)
    assert worst["unit"] == planted.unit
    # A percentile is the middle of its bucket, which may be 6 % off.
    assert worst["p95_ms"] >= 0.94 * 200
    assert worst["busy_share"] < 0.5
    assert others
    assert worst["where"] in target["finding"]
    (verdict,) = results["thresholds"]
    assert verdict["status"] == "failed"
