"""What is refused before the load: one line, exit status 2, no request, no process left behind."""

import pytest

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("given", "file"),
    [
        (("--html", "file/run.html"), "file/run.html"),
        (("--csv", "file/run"), "file/run_stats.csv"),
    ],
)
def test_locust_ends_with_one_line_before_the_first_request(locust, server, tmp_path, given, file):
    """The exit status is 2."""
    (tmp_path / "file").write_text("")
    run = locust("--headless", "--run-time", "10m", *given)
    assert run.wait() == 2, run.said
    assert run.said.startswith(f"{given[0]}: {file} cannot be written: ")
    assert len(run.said.splitlines()) == 1
    assert server.moments == []
