"""A variable that a user class needs is looked for once, before the load."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.process

INGEST = Path(__file__).parents[2] / "loadtests/ingest.py"
BROKER = {"WORKER_BROKER_URL": "redis://127.0.0.1:9/0"}


@pytest.mark.parametrize(
    ("options", "variables", "name"),
    [
        (("--database-url", "postgresql://w:w@127.0.0.1:9/a"), BROKER, "DATABASE_URL"),
        ((), {"DATABASE_URL": "postgresql://w:w@127.0.0.1:9/a"}, "WORKER_BROKER_URL"),
    ],
)
def test_the_ingest_test_names_the_variable_that_is_missing(locust, options, variables, name):
    """One line and status 2, and no traceback for each user."""
    run = locust(
        *("-f", str(INGEST), "--headless", "--run-time", "10m", *options),
        **{"WORKER_BROKER_URL": "", **variables},
    )
    assert run.wait() == 2, run.said
    (line,) = [line for line in run.said.splitlines() if "is not set" in line]
    assert line.startswith(f"{name} is not set; Sender needs it: ")
    assert "Traceback" not in run.said


@pytest.mark.slow
def test_the_processes_of_a_master_end_with_it(locust, master_port):
    """The master says it for them, once."""
    run = locust(
        *("-f", str(INGEST), "--headless", "--processes", "2", *master_port),
        WORKER_BROKER_URL="",
        DATABASE_URL="postgresql://w:w@127.0.0.1:9/a",
    )
    assert run.wait() == 2, run.said
    run.wait_for_no_process(master_port[-1])
    assert run.said.count("WORKER_BROKER_URL is not set") == 1
    assert "Traceback" not in run.said
