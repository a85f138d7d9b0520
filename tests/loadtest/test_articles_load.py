"""loadtests/articles.py, against what does not answer."""

import socket
from pathlib import Path

FILE = Path(__file__).parents[2] / "loadtests/articles.py"


def test_a_server_that_is_gone_is_failed_requests_and_no_exception(locust):
    """A task that raised would be a mistake in the locustfile; nobody made one."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    run = locust(
        *("-f", str(FILE), "--headless", "--users", "8", "--spawn-rate", "8", "--run-time", "1s"),
        *("--host", f"http://127.0.0.1:{port}"),
    )
    assert run.wait() == 1, run.said
    assert "ConnectionRefusedError" in run.said
    assert "Traceback" not in run.said
