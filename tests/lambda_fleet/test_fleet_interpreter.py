"""Functions that run in an interpreter without `awslambdaric`, or with one of another version."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from poolkit import lambda_fleet
from poolkit.lambda_fleet import Status

pytestmark = pytest.mark.process

TELL = """
    import json, sys

    def handler(event, context):
        import runtime_client
        if event.get("fail"):
            raise ValueError("asked to")
        try:
            import sqlalchemy
        except ImportError:
            sqlalchemy = None
        return {
            "prefix": sys.prefix,
            "event": event,
            "request_id": context.aws_request_id,
            "client": runtime_client.__file__,
            "has_sqlalchemy": sqlalchemy is not None,
        }
"""
CLIENT = Path(lambda_fleet.__file__).with_name("runtime_client.py")


def other_pythons():
    """Return the other versions that pyenv has, as the versions of a user's projects."""
    found = Path.home().glob(".pyenv/versions/3.*/bin/python")
    return [path for path in sorted(found) if int(path.parts[-3].split(".")[1]) >= 10]


def test_an_environment_without_awslambdaric_borrows_the_fleet_s(start, bare_python):
    """The runtime alone: none of poolkit's other packages can be imported."""
    fleet = start(TELL, python=bare_python)
    told = json.loads(fleet.invoke({"a": 1}).payload)
    assert told["prefix"] == str(bare_python.parents[1])
    assert told["event"] == {"a": 1}
    assert not told["has_sqlalchemy"]


def test_the_client_in_pure_python_does_what_the_native_one_does(start, task_root):
    """Events, answers, errors, and one connection for many invokes."""
    shutil.copy(CLIENT, task_root / "runtime_client.py")
    fleet = start(TELL, reserved_concurrency=1)
    for number in range(3):
        outcome = fleet.invoke({"number": number})
        told = json.loads(outcome.payload)
        assert told["event"] == {"number": number}
        assert told["request_id"] == outcome.request_id
        assert told["client"] == str(task_root / "runtime_client.py")
    failed = fleet.invoke({"fail": True})
    assert failed.status is Status.HANDLER_ERROR
    assert json.loads(failed.payload)["errorMessage"] == "asked to"
    assert fleet.invoke({}).status is Status.OK


@pytest.mark.parametrize("python", other_pythons(), ids=lambda path: path.parts[-3])
def test_another_version_of_python_runs_the_function(start, python):
    """The native client does not fit, so the one in pure Python takes its place."""
    if subprocess.run([python, "-c", ""], check=False).returncode:
        pytest.skip("this interpreter does not start")
    told = json.loads(start(TELL, python=python).invoke({"a": 1}).payload)
    assert told["event"] == {"a": 1}
