"""Files of results that cannot be written are refused before the load."""

import os

import pytest

from poolkit.errors import ConfigurationError
from poolkit.loadtest.output_checks import check_output


def test_a_file_in_folders_that_are_not_there_yet_is_fine_and_nothing_is_made(tmp_path):
    """Locust makes the folders when it writes."""
    check_output("--html", tmp_path / "out/of/it.html")
    (tmp_path / "old.html").write_text("old")
    check_output("--html", tmp_path / "old.html")
    assert [one.name for one in tmp_path.iterdir()] == ["old.html"]


def test_a_folder_and_a_file_in_place_of_a_folder_are_refused(tmp_path):
    """The line names the option, the file and what is in the way."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"--html: .* is a folder; wanted the name of a"):
        check_output("--html", tmp_path)
    with pytest.raises(ConfigurationError, match=r"--junit: .*/file is no folder"):
        check_output("--junit", tmp_path / "file/x/run.xml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused(tmp_path):
    """Permissions count."""
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match=r"no permission for"):
        check_output("--html", tmp_path / "run.html")


@pytest.mark.process
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
