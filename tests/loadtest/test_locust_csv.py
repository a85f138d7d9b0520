"""Locust's own CSV files, as a run leaves them with the plugin."""

import pytest

pytestmark = pytest.mark.process

LATER = """
import atexit
import gevent

atexit.register(gevent.sleep, 1.5)
"""


def test_their_writer_ends_before_they_are_closed(locust, tmp_path):
    """At exit the hub may run for long enough to wake it, as it does while workers are waited for."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(LATER)
    run = locust("--headless", "--users", "1", "--run-time", "1s", "--csv", "run")
    assert run.wait() == 0, run.said
    assert "Traceback" not in run.said
    assert (run.folder / "run_stats.csv").read_text().count("\n") >= 2
