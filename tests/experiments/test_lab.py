"""What an experiment leaves behind."""

import pytest

from poolkit.experiment.experiment import find_experiments
from poolkit.experiment.outcome import Status
from poolkit.experiment.run import Options, run_one

pytestmark = pytest.mark.process

TEXT = '''"""An experiment that notes its end."""
from pathlib import Path
from poolkit.experiment import experiment

@experiment(question="Does it end?", rows=(), seconds=1)
def run(lab, *, file: str = "", fails: str = "") -> None:
    lab.at_end(Path(file).write_text, "ended")
    if fails:
        raise ValueError(fails)
'''


@pytest.mark.parametrize(("fails", "status"), [("", Status.DONE), ("so", Status.FAILED)])
def test_what_an_experiment_opened_is_closed_at_its_end(
    ground, servers_folder, tmp_path, fails, status
):
    """Whether it raised or not."""
    (tmp_path / "chapter").mkdir()
    (tmp_path / "chapter" / "ends.py").write_text(TEXT)
    (made,) = find_experiments(tmp_path).values()
    changes = {"file": str(tmp_path / "end"), "fails": fails}
    options = Options(command="", changes=changes)
    outcome = run_one(made, ground, servers_folder, options, say=print)
    assert outcome.status is status
    assert (tmp_path / "end").read_text() == "ended"
