"""The project that `poolkit compare --app` makes up from an application's own files."""

import shutil

import pytest
from processes import ROOT

from poolkit.compare.plan.application import project_of_app
from poolkit.compare.plan.options import Options
from poolkit.compare.plan.targets import targets_of
from poolkit.errors import ConfigurationError
from poolkit.project import Project

pytestmark = pytest.mark.process


@pytest.fixture
def copied(tmp_path):
    """A function that copies one of the strangers' applications."""
    return lambda name: shutil.copytree(ROOT / "tests/strangers" / name, tmp_path / name)


def test_an_application_becomes_a_target_with_its_variables_and_its_load(copied):
    """What `poolkit init` would write holds for this run, and no file of the project changes."""
    root = copied("fastapi_sqlmodel")
    project, notes = project_of_app(Project(root=root), Options(app="app.main:app"))
    target = targets_of(project)["web"]
    assert (target.app, target.directory) == ("app.main:app", root / "backend")
    assert target.env["POSTGRES_SERVER"] == "{db_host}"
    assert project.commands.keys() == {"schema"}
    assert target.locustfile == str(root / ".poolkit/app/locustfile.py")
    assert any("2 paths from the application itself" in note for note in notes)
    assert not (root / "poolkit.toml").exists()


def test_the_project_s_own_settings_win(copied):
    """A schema or a variable that is written down is not guessed again."""
    root = copied("fastapi_sqlmodel")
    own = Project(root=root, table={"schema": ["true"], "env": {"POSTGRES_SERVER": "{db_host}"}})
    project, _ = project_of_app(own, Options(app="app.main:app"))
    assert project.commands == {"schema": ["true"]}
    assert project.env == {"POSTGRES_SERVER": "{db_host}"}


def test_a_load_of_one_s_own_replaces_the_generated_one(copied, tmp_path):
    """--locustfile is relative to the current folder, not to the project."""
    root = copied("mangum")
    options = Options(app="api.main:app", locustfile=tmp_path / "load.py")
    (tmp_path / "load.py").touch()
    project, _ = project_of_app(Project(root=root), options)
    assert targets_of(project)["web"].locustfile == str(tmp_path / "load.py")
    assert not (root / ".poolkit").exists()


def test_a_handler_is_run_as_a_function(copied):
    """The object decides about the kind of target."""
    root = copied("mangum")
    project, _ = project_of_app(Project(root=root), Options(app="api.main:handler"))
    assert targets_of(project)["function"].handler == "api.main.handler"


def test_a_worker_needs_a_load(copied):
    """Nothing in its source shows when a task is done."""
    with pytest.raises(ConfigurationError, match=r"is a worker.*--locustfile"):
        project_of_app(Project(root=copied("celery")), Options(app="reports.tasks:app"))
