"""A project's settings, from pyproject.toml or poolkit.toml."""

import sys

import pytest

from poolkit.errors import ConfigurationError
from poolkit.project import Project, with_interpreter


def write(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def test_the_settings_can_stand_in_a_file_of_poolkit_s_own(tmp_path):
    """The same keys, without `tool.poolkit` before them; messages name that file."""
    write(tmp_path, "pyproject.toml", "[project]\nname = 'theirs'\n")
    write(tmp_path, "poolkit.toml", "directory = 'backend'\n[targets.web]\nkind = 'web'\n")
    project = Project.find(tmp_path)
    assert project.directory == tmp_path / "backend"
    assert project.table["targets"] == {"web": {"kind": "web"}}
    assert project.section("targets.web") == f"{tmp_path / 'poolkit.toml'}: [targets.web]"


def test_settings_in_both_files_are_refused(tmp_path):
    """Neither is silently ignored; the message names both."""
    write(tmp_path, "pyproject.toml", "[tool.poolkit]\ndirectory = 'a'\n")
    write(tmp_path, "poolkit.toml", "directory = 'b'\n")
    with pytest.raises(ConfigurationError, match=r"both .*poolkit.toml and .*pyproject.toml"):
        Project.find(tmp_path)


def test_a_package_within_a_repository_uses_the_settings_above_it(tmp_path):
    """Its own pyproject.toml without settings does not hide them."""
    write(tmp_path, "poolkit.toml", "directory = 'backend'\n")
    write(tmp_path / "backend", "pyproject.toml", "[project]\nname = 'theirs'\n")
    assert Project.find(tmp_path / "backend").root == tmp_path


def test_a_project_without_settings_is_the_nearest_pyproject(tmp_path):
    """`poolkit up` and its like say what is missing there."""
    write(tmp_path, "pyproject.toml", "[project]\nname = 'outer'\n")
    write(tmp_path / "inner", "pyproject.toml", "[project]\nname = 'inner'\n")
    assert Project.find(tmp_path / "inner").root == tmp_path / "inner"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("directroy = 'x'", "unknown key directroy; did you mean directory"),
        ("zzz = 1", "unknown key zzz; known: python, directory"),
        ("python = 3", "python must be the path of an interpreter, not 3"),
        ("schema = 'alembic upgrade head'", "schema must be a command, as a list of strings"),
        ("schema = []", "schema must be a command, as a list of strings"),
        ("env = { A = 1 }", "env must be a table of strings"),
        ("env = { A = '{db_hots}' }", r"env: '{db_hots}' has an unknown placeholder.*{db_host}"),
        ("env = { A = '{database_url:a b}' }", "unknown placeholder"),
        ("env = { A = '{db_host:x}' }", "unknown placeholder"),
        ("schema = ['psql', '{database_url}']", "schema cannot have {database_url}.*use env"),
        (
            "seed = ['x', '{port}']",
            "seed: '{port}' has an unknown placeholder; there are {python} ",
        ),
        ("extensions = 'vector'", "extensions must be a list of strings"),
        ("migrations = 3", "migrations must be the name of a folder or a module, not 3"),
    ],
)
def test_a_wrong_setting_is_refused_by_key(tmp_path, text, message):
    """The message names the file and the key, and what is allowed."""
    write(tmp_path, "pyproject.toml", f"[tool.poolkit]\n{text}\n")
    with pytest.raises(ConfigurationError, match=message) as caught:
        Project.find(tmp_path)
    assert "pyproject.toml: [tool.poolkit]" in str(caught.value)


def test_an_interpreter_without_a_folder_is_looked_up_on_path(tmp_path):
    """`python3` is a program; `.venv/bin/python` a path from the file's folder."""
    project = Project(root=tmp_path, table={})
    assert project.interpreter("sh").is_absolute()
    assert project.interpreter("sh") != tmp_path / "sh"
    assert project.interpreter(".venv/bin/python") == tmp_path / ".venv/bin/python"
    assert str(project.interpreter(None)) == sys.executable


def test_another_environment_comes_before_poolkit_s_on_path(tmp_path):
    """A command finds its programs as in an activated environment."""
    (tmp_path / "pyvenv.cfg").touch()
    inherited = {"PATH": "/of/poolkit", "VIRTUAL_ENV": "/poolkit", "HOME": "/me"}
    python = tmp_path / "bin" / "python"
    assert with_interpreter(inherited, python) == {
        "PATH": f"{tmp_path / 'bin'}:/of/poolkit",
        "VIRTUAL_ENV": str(tmp_path),
        "HOME": "/me",
    }
