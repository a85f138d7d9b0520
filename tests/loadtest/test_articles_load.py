"""loadtests/articles.py, against what does not answer."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.sample]

FILE = Path(__file__).parents[2] / "loadtests/articles.py"


def test_a_server_that_is_gone_is_failed_requests_and_no_exception(locust, refusing_port):
    """An exception in a task would be a mistake in the locustfile."""
    run = locust(
        *("-f", str(FILE), "--headless", "--users", "8", "--spawn-rate", "8", "--csv", "run"),
        *("--host", f"http://127.0.0.1:{refusing_port}", "--run-time", "10m"),
    )
    run.wait_until(lambda: any(float(row["Failures/s"] or 0) for row in run.rows()))
    assert run.stop() == 1, run.text
    assert "ConnectionRefusedError" in run.text
    assert "Traceback" not in run.text
