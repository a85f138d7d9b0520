"""Targets that were deployed before the run: put under load where they are, and left alone."""

import contextlib
import csv
import json
import urllib.request

import pytest

from poolkit.compare.run_folder import ProcessRow, Request, RunFolder
from poolkit.compare.running import Launcher
from poolkit.compare.targets import targets_of
from poolkit.local.processes import Supervisor
from poolkit.local.stack import EmbeddedStack, StackNeeds
from poolkit.project import Project
from tests.compare.end_to_end.conftest import ROOT

QUICK = ("--users", "2", "--rate", "5", "--duration", "1", "--warm-up", "1")


@contextlib.contextmanager
def deployed(database, folder, *names):
    """Run targets of the kit's own on a database, as if somebody had deployed them; give URLs."""
    targets = targets_of(Project.find(ROOT))
    needs = StackNeeds(database_url=database.url(""))
    with Supervisor(folder / "log") as supervisor, EmbeddedStack(folder, needs) as stack:
        launcher = Launcher(
            root=ROOT, environment="prod", supervisor=supervisor, stack=stack, logs=folder / "log"
        )
        yield [launcher.start(targets[name], 4).url for name in names]
        launcher.check()


def answers(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as answer:
        return answer.status == 200


def rows_of(folder, kind):
    with (folder.path / kind.FILE).open() as file:
        return list(csv.DictReader(file))


def test_deployed_targets_are_measured_and_left_alone(start, migrated_database, tmp_path):
    """A service and a function, seen by a role that may only watch; both still run afterwards."""
    out = tmp_path / "run"
    with deployed(migrated_database, tmp_path, "web", "lambda_warm") as (web, function):
        command = start(
            "compare",
            *("--target", f"web={web}/", "--target", f"lambda_warm@here={function}"),
            *("--database-url", migrated_database.monitor_url("")),
            *QUICK,
            *("--out", str(out)),
        )
        assert command.end() == 0, command.error
        assert command.left() == []
        assert answers(f"{web}/readyz")
    assert not any("starting PostgreSQL" in line for line in command.said)
    for name, preset in (("web", "web"), ("lambda_warm@here", "lambda_warm")):
        found = json.loads((out / "results.json").read_text())["targets"][name]
        assert (found["errors"], found["requests"]) == (0, pytest.approx(10, abs=1)), name
        assert 1 <= found["connections"]["peak"] <= 4, name
        assert (found["connections"]["ceiling"], found["connections"]["left_over"]) == (None, None)
        folder = RunFolder.open(out).target(name)
        assert {row["role"] for row in rows_of(folder, ProcessRow)} == {"load", "sampler"}
        assert {row["error"] for row in rows_of(folder, Request)} == {""}
        assert (folder.window().instances, folder.load_report().loop) == (None, "closed")
        plan = RunFolder.open(out).plan()
        (planned,) = [target for target in plan.targets if target.name == name]
        assert (planned.preset, planned.max_connections) == (preset, 100)
