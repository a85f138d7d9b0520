"""The targets that a project's pyproject.toml names."""

import sys

import pytest
from processes import ROOT

from poolkit.compare.plan.checks import check_interpreters
from poolkit.compare.plan.option_types import TargetUrl
from poolkit.compare.plan.targets import choose, deployed_of, targets_of, with_pools
from poolkit.errors import ConfigurationError
from poolkit.project import Project

WEB = {"kind": "web", "app": "m:app", "locustfile": "load.py", "preset": "web"}


@pytest.fixture
def project(tmp_path):
    """Make a project with one locustfile from a table of targets."""
    (tmp_path / "load.py").touch()
    return lambda settings=None, **targets: Project(
        root=tmp_path, table={**(settings or {}), "targets": targets}
    )


@pytest.mark.sample
def test_the_kit_s_own_targets_are_read_in_order():
    """This project compares six targets, each with a preset and an existing locustfile."""
    targets = targets_of(Project.find(ROOT))
    assert list(targets) == ["lambda", "lambda_warm", "lambda_proxy", "web", "web_async", "worker"]
    assert targets["worker"].needs_broker
    assert not targets["web"].needs_broker


def test_the_preset_is_by_default_the_target_s_name(project):
    """A table without `preset` means the preset of the target's name."""
    table = {key: value for key, value in WEB.items() if key != "preset"}
    assert targets_of(project(web=table))["web"].preset == "web"


def test_a_target_of_another_name_has_no_preset(project):
    """Its application makes its engines itself."""
    table = {key: value for key, value in WEB.items() if key != "preset"}
    assert targets_of(project(shop=table))["shop"].preset is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "wbe"}, r"kind must be one of lambda, web, worker, not 'wbe'"),
        ({"preset": "website"}, r"preset must be one of web, .*not 'website'"),
        ({"locustfil": "x"}, r"unknown key locustfil; did you mean locustfile"),
        ({"locustfile": "no.py"}, r"there is no file no.py"),
        ({"locustfile": None}, r"locustfile must be a string"),
        ({"processes": 0}, r"processes must be from 1 to 64, not 0"),
        ({"processes": True}, r"processes must be from 1 to 64, not True"),
        ({"command": "python"}, r"command must be a list of strings"),
        ({"env": {"A": 1}}, r"env must be a table of strings"),
        ({"kind": ["web"]}, r"kind must be a string"),
        ({"env": {"A": "{prot}"}}, r"unknown placeholder; there are \{python\}.*\{broker_url\}"),
        ({"env": {"A=B": "x"}}, r"env: 'A=B' cannot name a variable"),
        ({"command": ["{"]}, r"unknown placeholder"),
        ({"command": ["{port.x}"]}, r"unknown placeholder; there are \{python\}"),
        ({"command": ["{port[x]}"]}, r"unknown placeholder"),
        ({"command": ["{port!r}"]}, r"unknown placeholder"),
        ({"command": ["{port:x}"]}, r"unknown placeholder"),
        ({"command": ["{}"]}, r"unknown placeholder"),
        ({"command": ["-b", "{broker_url}"]}, r"command cannot have \{broker_url\}.*in env"),
        ({"ready": "readyz"}, r"ready must be a path that begins with /, not 'readyz'"),
        ({"ready": "/ready yet"}, r"ready must be a path that begins with /"),
        ({"metrics": "metrics"}, r"metrics must be a path that begins with /, not 'metrics'"),
        ({"kind": "worker", "command": ["x"], "ready": "("}, r"ready: '\(' is not a regular expr"),
        ({"through": "pgbuoncer"}, r"through must be one of postgresql, pgbouncer"),
        ({"kind": "lambda", "handler": "m.h", "event": "soap"}, r"event must be one of http, rest"),
        ({"kind": "lambda", "handler": "m.h", "memory": 64}, r"memory must be from 128 to 10240"),
        ({"kind": "lambda", "handler": "m.h", "timeout": 0}, r"timeout must be from 1 to 900"),
        ({"timeout": 3}, r"timeout is for targets of the kind lambda only"),
        ({"reserved_concurrency": "all"}, r'reserved_concurrency must be "fit" or a whole number'),
    ],
)
def test_a_wrong_table_is_refused_by_key(project, change, message):
    """The message names the file, the table and the key, and what is allowed."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        targets_of(project(web={**WEB, **change}))
    assert "pyproject.toml: [tool.poolkit.targets.web]" in str(caught.value)


@pytest.mark.parametrize("table", [{}, {"targets": {}}, {"targets": "web"}])
def test_a_project_without_targets_is_refused(tmp_path, table):
    """There is nothing to compare, and the message names the table to write."""
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(ConfigurationError, match=r"\[tool.poolkit.targets.NAME\] is missing"):
        targets_of(Project(root=tmp_path, table=table))


def test_a_folder_that_is_no_project_is_refused(tmp_path):
    """In a wrong folder, the advice is not to edit a file that does not exist."""
    with pytest.raises(
        ConfigurationError,
        match=r"there is no pyproject.toml and no poolkit.toml in .* or above it",
    ):
        targets_of(Project.find(tmp_path))


def test_a_target_that_is_not_a_table_is_refused(project):
    """The message quotes the wrong value."""
    with pytest.raises(ConfigurationError, match="must be a table, not 1"):
        targets_of(project(web=1))


def test_an_unknown_name_gets_the_nearest(project):
    """`--targets wbe` gets the nearest name and the list of all."""
    targets = targets_of(project(web=WEB, web2=WEB))
    with pytest.raises(ConfigurationError, match=r"did you mean web.*there are: web, web2"):
        choose(targets, ["wbe"])
    assert [target.name for target in choose(targets, [])] == ["web", "web2"]
    assert [target.name for target in choose(targets, ["web2"])] == ["web2"]


def test_a_target_that_is_named_twice_is_refused(project):
    """Two with one name would share a process, a folder and a row."""
    targets = targets_of(project(web=WEB, web2=WEB))
    with pytest.raises(ConfigurationError, match="target 'web' is named twice; name each once"):
        choose(targets, ["web", "web2", "web"])


@pytest.mark.parametrize("name", ["my web", "web@here", "../web", "", ".", "a\nb", "a,b"])
def test_a_name_that_cannot_name_a_process_is_refused(project, name):
    """It becomes part of a folder, a log and an option; @ begins a label."""
    with pytest.raises(ConfigurationError, match=r"cannot name a target; use letters") as caught:
        targets_of(project(**{name: WEB}))
    assert "\n" not in str(caught.value)


def test_escaped_braces_and_a_worker_s_pattern_are_accepted(project):
    """`{{` is a brace itself, and a regular expression need not begin with a slash."""
    table = {**WEB, "command": ["sh", "-c", "echo {{}} {port}"], "env": {"A": "{{broker_url}}"}}
    worker = {**WEB, "kind": "worker", "command": ["x"], "ready": r"ready\.$"}
    targets = targets_of(project(web=table, worker=worker))
    assert not targets["web"].needs_broker
    assert targets["worker"].ready == r"ready\.$"


def test_a_target_has_the_project_s_settings_unless_its_own_say_otherwise(project, tmp_path):
    """Interpreter, folder and variables; relative paths begin in the folder of the file."""
    settings = {
        "python": ".venv/bin/python",
        "directory": "backend",
        "env": {"A": "project", "B": "{db_host}"},
    }
    own = {**WEB, "python": "/usr/bin/python3", "directory": "api", "env": {"A": "target"}}
    targets = targets_of(project(settings, web=WEB, api=own))
    assert targets["web"].python == tmp_path / ".venv/bin/python"
    assert targets["web"].directory == tmp_path / "backend"
    assert targets["web"].env == {"A": "project", "B": "{db_host}"}
    assert str(targets["api"].python) == "/usr/bin/python3"
    assert targets["api"].directory == tmp_path / "api"
    assert targets["api"].env == {"A": "target", "B": "{db_host}"}


def test_a_target_of_a_project_without_settings_runs_as_poolkit_does(project, tmp_path):
    """In the project's folder, with poolkit's own interpreter."""
    target = targets_of(project(web=WEB))["web"]
    assert (str(target.python), target.directory) == (sys.executable, tmp_path)


def test_a_database_s_password_cannot_be_an_argument(project):
    """Every user can list the arguments of processes; the message names the way that works."""
    table = {**WEB, "command": ["x", "--db", "{database_url:asyncpg}"]}
    with pytest.raises(ConfigurationError, match=r"command cannot have .*asyncpg.*use env"):
        targets_of(project(web=table))


def test_each_target_is_run_once_with_each_pool(project):
    """`now` changes nothing; a preset is what the target is told to use, without overrides."""
    table = {**WEB, "env": {"POOLKIT_POOL_SIZE": "7", "A": "1"}}
    target = targets_of(project(web=table))["web"]
    now, warm = with_pools([target], ["now", "lambda_warm"])
    assert (now.name, now.pool, now.preset, now.env) == ("web@now", "now", "web", target.env)
    assert (warm.name, warm.pool, warm.preset) == ("web@lambda_warm", "lambda_warm", "lambda_warm")
    assert warm.env == {"A": "1"}


@pytest.mark.parametrize(
    ("pools", "message"),
    [
        (["nwo"], r"--pool nwo is unknown \(did you mean now\?\); there are: now, web, "),
        (["web", "web"], r"--pool has web twice"),
    ],
)
def test_a_wrong_pool_is_refused(project, pools, message):
    """The message lists the presets."""
    with pytest.raises(ConfigurationError, match=message):
        with_pools([targets_of(project(web=WEB))["web"]], pools)


def test_a_locustfile_of_the_command_line_goes_before_those_of_the_tables(project, tmp_path):
    """A table needs none then."""
    table = {key: value for key, value in WEB.items() if key != "locustfile"}
    (tmp_path / "other.py").touch()
    found = targets_of(project(web=table), tmp_path / "other.py")["web"]
    assert found.locustfile == str(tmp_path / "other.py")


def test_a_table_without_a_start_is_for_a_deployed_target_only(project):
    """`--target NAME=URL` needs neither app nor command; a run that has to start it says so."""
    made = project(web={key: value for key, value in WEB.items() if key != "app"})
    targets = targets_of(made)
    assert deployed_of([TargetUrl("web", "web", "http://127.0.0.1:1")], targets)
    message = r"targets.web\] needs app or command; if it is deployed, give its URL: --target web="
    with pytest.raises(ConfigurationError, match=message):
        check_interpreters(made, targets.values())
