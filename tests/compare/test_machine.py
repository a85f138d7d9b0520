"""The versions that a run records: those of poolkit, and those that the targets run with."""

import platform
import sys
from pathlib import Path

import pytest

from poolkit.compare.plan.targets import Target
from poolkit.compare.run.machine import this_machine

pytestmark = pytest.mark.process


def target(python):
    return Target(name="web", kind="web", preset="web", locustfile="-", app="m:app", python=python)


def test_a_target_in_poolkit_s_environment_has_its_versions(tmp_path):
    """They are what was measured."""
    versions = this_machine("18.1", tmp_path, [target(Path(sys.executable))]).versions
    assert {"postgresql", "poolkit", "sqlalchemy", "fastapi"} <= set(versions)


def test_a_target_in_an_environment_of_its_own_has_the_versions_there(bare_python):
    """SQLAlchemy as poolkit has it is not what was measured, and is left out."""
    root = bare_python.parents[2]
    versions = this_machine("18.1", root, [target(bare_python)]).versions
    assert "sqlalchemy" not in versions
    assert versions["bare/bin/python:"] == f"Python {platform.python_version()}"
