"""What a measurement reads from its target."""

import os

import psutil
import pytest

from poolkit.compare.plan.options import Options
from poolkit.compare.plan.plan import make_plan
from poolkit.compare.plan.targets import Target
from poolkit.compare.results.run_folder import InvokeRow, TargetFolder
from poolkit.compare.run.hosts import Running
from poolkit.compare.run.measure import Measurement
from poolkit.lambda_fleet import FunctionConfig, LambdaFleet

pytestmark = pytest.mark.process

FUNCTION = Target(
    name="f", kind="lambda", preset="lambda", locustfile="load.py", handler="app.handler"
)
DROPPED = "invokes.csv lacks 6 of the oldest invokes, which the fleet no longer has; the counts include them"


@pytest.fixture
def fleet(tmp_path):
    """A fleet that keeps few records."""
    (tmp_path / "app.py").write_text("def handler(event, context): return 1")
    config = FunctionConfig(
        handler="app.handler",
        task_root=tmp_path,
        timeout_s=100,
        init_limit_s=100,
        records_kept=5,
    )
    with LambdaFleet(config, log_dir=tmp_path / "logs") as running:
        yield running


@pytest.mark.parametrize(
    ("invokes", "warnings"),
    [
        (6, []),
        (12, [DROPPED]),
    ],
)
def test_records_that_the_fleet_has_dropped_are_reported(fleet, tmp_path, invokes, warnings):
    """The window has a warning, and the file still has the cold start."""
    for _ in range(invokes):
        fleet.invoke({})
    plan = make_plan([FUNCTION], Options())
    (step,) = plan.steps()
    folder = TargetFolder(tmp_path)
    measurement = Measurement(step, Options(), host=None, folder=folder)
    process = psutil.Process(os.getpid())  # a placeholder: only None has a meaning
    measurement._read_fleet(Running(target=FUNCTION, url=fleet.url, process=process))
    assert measurement.state.warnings == warnings
    assert [row.cold for row in folder.rows(InvokeRow).rows] == [True, *[False] * 5]
