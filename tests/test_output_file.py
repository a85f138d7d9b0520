"""Files of results that cannot be written are refused before the work."""

import os

import pytest

from poolkit.errors import ConfigurationError
from poolkit.output_file import check_output_file


def test_a_file_in_missing_folders_is_fine_and_nothing_is_created(tmp_path):
    """Unless the writer does not create folders."""
    check_output_file("--html", tmp_path / "out/of/it.html")
    (tmp_path / "old.html").write_text("old")
    check_output_file("--html", tmp_path / "old.html")
    check_output_file("--html", tmp_path / "old.html", makes_folders=False)
    assert [one.name for one in tmp_path.iterdir()] == ["old.html"]
    with pytest.raises(ConfigurationError, match=r"--out: .* there is no folder .*/none$"):
        check_output_file("--out", tmp_path / "none/x.html", makes_folders=False)


def test_a_folder_and_a_file_in_place_of_a_folder_are_refused(tmp_path):
    """The line names the option, the file and the obstacle."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"--html: .* is a folder; wanted the name of a"):
        check_output_file("--html", tmp_path)
    for makes_folders in (True, False):
        with pytest.raises(ConfigurationError, match=r"--junit: .*/file is no folder"):
            check_output_file("--junit", tmp_path / "file/run.xml", makes_folders=makes_folders)
    with pytest.raises(ConfigurationError, match=r"--junit: .*/file is no folder"):
        check_output_file("--junit", tmp_path / "file/x/run.xml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    """Permissions count."""
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigurationError, match=r"no permission for"):
        check_output_file("--html", tmp_path / "run.html")
