"""Experiments, run as the command runs them, on one server for all tests of a process."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolkit.experiment.experiment import find_experiments
from poolkit.experiment.ground import PrivateGround
from poolkit.experiment.outcome import Judgement, Outcome, Status
from poolkit.experiment.run import Options, run_one
from poolkit.local.distance import Distance
from poolkit.local.postgres import EmbeddedPostgres


@pytest.fixture(scope="session")
def ground(new_postgres: Callable[..., EmbeddedPostgres]) -> Iterator[PrivateGround]:
    """The server of the experiments, as `poolkit experiment` starts it."""
    with new_postgres() as postgres:
        yield PrivateGround(postgres, Distance())


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """A folder for the files of further servers, which other accounts may enter."""
    with tempfile.TemporaryDirectory(prefix="poolkit-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def mongodb_url() -> str:
    """A MongoDB, where a module's tests have one."""
    return ""


@pytest.fixture
def outcome_of(
    ground: PrivateGround, servers_folder: Path, mongodb_url: str
) -> Callable[..., Outcome]:
    """A function that runs an experiment, with changed conditions, and returns its outcome."""
    found = find_experiments()

    def run(name: str, **conditions: object) -> Outcome:
        changes = {key: str(value) for key, value in conditions.items()}
        options = Options(command="", changes=changes, mongodb_url=mongodb_url)
        outcome = run_one(found[name], ground, servers_folder, options, say=print)
        assert outcome.status is Status.DONE, outcome.reason
        assert {judgement.row for judgement in outcome.judgements} == set(found[name].rows)
        return outcome

    return run


@pytest.fixture
def judged(outcome_of: Callable[..., Outcome]) -> Callable[..., dict[str, Judgement]]:
    """A function that runs an experiment, and returns its judgements by their rows."""

    def run(name: str, **conditions: object) -> dict[str, Judgement]:
        outcome = outcome_of(name, **conditions)
        return {judgement.row: judgement for judgement in outcome.judgements}

    return run
