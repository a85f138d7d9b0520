"""`poolkit init` in applications of seven kinds, written as other people write them."""

import re
import shutil
import tomllib

import pytest
from poolkit_command import ROOT, refused, run_here, succeeded
from processes import PATIENCE_S

from poolkit.init import routes
from poolkit.init.findings import find
from poolkit.project import Project

STRANGERS = ROOT / "tests/strangers"
DATABASE = {"{db_host}", "{db_port}", "{db_user}", "{db_password}", "{db_name}"}


def copy_of(name, folder):
    # Another process may be writing bytecode there.
    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(STRANGERS / name, folder / name, ignore=ignored)


@pytest.fixture(params=sorted(path.name for path in STRANGERS.iterdir()))
def stranger(request, tmp_path):
    """A copy of one application."""
    return copy_of(request.param, tmp_path)


@pytest.fixture
def copied(tmp_path):
    """A function that copies one application."""
    return lambda name: copy_of(name, tmp_path)


@pytest.fixture(autouse=True)
def _imports_take_their_time(monkeypatch):
    """A busy machine may need more than the half minute that is for imports that hang."""
    monkeypatch.setattr(routes, "IMPORT_TIMEOUT_S", PATIENCE_S)


@pytest.mark.process
def test_what_is_written_is_a_project_of_poolkit(stranger):
    """The files pass the checks of `poolkit compare`, and every target has its locustfile."""
    answer = run_here("init", stranger)
    succeeded(answer, "found ", "wrote loadtests/", "poolkit compare --quick --pool now")
    project = Project.find(stranger)
    assert project.root == stranger
    for table in project.table["targets"].values():
        compile((stranger / table["locustfile"]).read_text(), "locustfile", "exec")


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("celery", {"worker": "reports.tasks:app"}),
        ("django", {"web": "bookshop.wsgi:application"}),
        ("fastapi_async", {"web": "stock.main:app"}),
        ("fastapi_sqlmodel", {"web": "app.main:app"}),
        ("flask_sqlalchemy", {"web": "wsgi:app"}),
        ("mangum", {"web": "api.main:app", "function": "api.main:handler"}),
        ("powertools", {"function": "app:lambda_handler"}),
    ],
)
def test_each_kind_of_application_is_found(name, targets):
    """A target for each object that a server, AWS Lambda or Celery would run, without an import."""
    found = find(STRANGERS / name, imports=False)
    assert {d.target: d.application.name for d in found.deployables} == targets


@pytest.mark.parametrize(
    "name", ["celery", "django", "fastapi_async", "fastapi_sqlmodel", "powertools"]
)
def test_every_part_of_the_database_has_a_variable(name):
    """Settings classes, nested ones and plain code name the same five parts in their own words."""
    found = find(STRANGERS / name, imports=False)
    assert set(found.table["env"].values()) >= DATABASE


def test_a_url_has_the_variable_that_the_code_reads():
    """`DATABASE_URL` is set for every target, so only another name needs a line."""
    assert find(STRANGERS / "mangum", imports=False).table["env"] == {"PG_DSN": "{database_url}"}
    assert "env" not in find(STRANGERS / "flask_sqlalchemy", imports=False).table


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("celery", "-m alembic upgrade head"),
        ("django", "manage.py migrate --noinput"),
        ("fastapi_sqlmodel", "-m alembic upgrade head"),
        ("flask_sqlalchemy", "-m flask --app wsgi:app db upgrade"),
        ("powertools", "-m alembic upgrade head"),
    ],
)
def test_the_schema_is_made_by_the_project_s_own_tool(name, command):
    """Alembic, Flask-Migrate and Django's migrations are commands."""
    python, *words = find(STRANGERS / name, imports=False).table["schema"]
    assert (python, " ".join(words)) == ("{python}", command)


def test_code_in_a_folder_below_runs_there():
    """A repository with a backend has a `directory`; one with src puts that on the path."""
    assert find(STRANGERS / "fastapi_sqlmodel", imports=False).table["directory"] == "backend"
    table = find(STRANGERS / "fastapi_async", imports=False).table
    assert "directory" not in table
    assert table["env"]["PYTHONPATH"] == "src"


def test_migrations_name_their_extensions():
    """`CREATE EXTENSION` in a migration becomes a line for the superuser."""
    assert find(STRANGERS / "fastapi_async", imports=False).table["extensions"] == ["citext"]


def test_a_function_has_its_event_and_its_template_s_numbers():
    """Powertools' resolver decides which events it reads; the template has memory and timeout."""
    (deployable,) = find(STRANGERS / "powertools", imports=False).deployables
    assert deployable.table == {
        "kind": "lambda",
        "handler": "app.lambda_handler",
        "event": "rest",
        "memory": 256,
        "timeout": 10,
        "reserved_concurrency": 10,
    }


def test_gunicorn_runs_as_in_the_procfile():
    """The number of workers and threads is that of the project's own deployment."""
    (deployable,) = find(STRANGERS / "flask_sqlalchemy", imports=False).deployables
    assert deployable.table["processes"] == 2
    assert "--threads 4" in " ".join(deployable.table["command"])


@pytest.mark.process
def test_the_paths_are_those_of_the_application(copied):
    """It is imported in its own interpreter; paths that need nothing become tasks."""
    root = copied("fastapi_sqlmodel")
    succeeded(run_here("init", root), "5 paths from the application itself, 2 of them")
    text = (root / "loadtests/web.py").read_text()
    active = [line for line in text.splitlines() if line.strip().startswith("self.client")]
    assert active == [
        '        self.client.get("/api/v1/entries/")',
        '        self.client.get("/api/v1/entries/count")',
    ]
    assert "# needs a value of entry_id" in text
    assert "post(\"/api/v1/entries/\", json={'author': 'text', 'text': 'text'})" in text


def test_a_worker_s_load_is_complete_but_for_its_comments(copied):
    """Without its #, the file sends the first task and looks for its row in a table of the models."""
    root = copied("celery")
    succeeded(run_here("init", root), "edit loadtests/worker.py")
    text = re.sub(
        r"^# ?(class|   )", r"\1", (root / "loadtests/worker.py").read_text(), flags=re.MULTILINE
    )
    assert 'committed = "SELECT id FROM report WHERE id = ANY(:keys)"' in text
    assert 'send_task("reports.count_words", args=arguments)' in text
    assert "class Sender" in [line.partition("(")[0] for line in text.splitlines()]
    compile(text, "locustfile", "exec")


@pytest.mark.process
def test_without_an_import_the_paths_come_from_the_source(copied):
    """An application that does not import is read; the reason is printed."""
    root = copied("fastapi_sqlmodel")
    with (root / "backend/app/main.py").open("a") as file:
        file.write("import not_installed_here\n")
    answer = run_here("init", root)
    succeeded(answer, "No module named 'not_installed_here'", "paths from the source")
    assert 'get("/api/v1/entries/count")' in (root / "loadtests/web.py").read_text()


@pytest.mark.process
def test_an_import_reaches_no_database(copied):
    """While it is imported, the variables of the database name a closed port."""
    root = copied("mangum")
    with (root / "api/database.py").open("a") as file:
        file.write("engine.connect()\n")
    succeeded(run_here("init", root), "its import failed", "Connection refused")


def test_a_dry_run_writes_nothing(copied):
    """It prints the files instead."""
    root = copied("django")
    before = sorted(root.rglob("*"))
    succeeded(
        run_here("init", root, "--dry-run", "--no-import"),
        "would write poolkit.toml",
        "[targets.web]",
    )
    assert sorted(root.rglob("*")) == before


def test_pyproject_keeps_every_line(copied):
    """The tables stand at its end; what was there before is unchanged."""
    root = copied("powertools")
    before = (root / "pyproject.toml").read_text()
    succeeded(run_here("init", root, "--no-import"), "wrote pyproject.toml")
    after = (root / "pyproject.toml").read_text()
    assert after.startswith(before)
    assert tomllib.loads(after)["tool"].keys() == {"alembic", "poolkit"}


def test_django_is_not_measured_with_the_pool_of_a_preset(copied):
    """It makes no engine of SQLAlchemy, so `--pool` with a preset would change nothing."""
    assert "--pool now," not in succeeded(run_here("init", copied("django"), "--no-import"))
    assert "--pool now,web" in succeeded(run_here("init", copied("fastapi_async"), "--no-import"))


def test_what_exists_is_replaced_only_on_consent(copied):
    """Without a terminal to ask at, --yes is needed; the file's other lines stay."""
    root = copied("powertools")
    run_here("init", root, "--no-import")
    file = root / "pyproject.toml"
    file.write_text(f"{file.read_text()}\n[tool.other]\nkey = 1\n")
    refused(run_here("init", root, "--no-import"), "would replace [tool.poolkit]", "--yes")
    succeeded(run_here("init", root, "--no-import", "--yes"), "wrote pyproject.toml")
    tool = tomllib.loads(file.read_text())["tool"]
    assert tool.keys() == {"alembic", "poolkit", "other"}
    assert tool["other"] == {"key": 1}


def test_a_locustfile_of_the_project_s_own_is_kept(copied):
    """A file of that name gets company, never another content."""
    root = copied("django")
    (root / "loadtests").mkdir()
    (root / "loadtests/web.py").write_text("# by hand\n")
    succeeded(run_here("init", root, "--no-import"), "wrote loadtests/web_2.py")
    assert (root / "loadtests/web.py").read_text() == "# by hand\n"


def test_a_folder_without_an_application_is_refused(tmp_path):
    """The message names what was looked for, and the option."""
    refused(run_here("init", tmp_path), "found no application", "--app package.module:application")


def test_line_ends_stay(copied):
    """A pyproject.toml from Windows keeps its own, and the tables get the same."""
    root = copied("powertools")
    file = root / "pyproject.toml"
    before = file.read_bytes().replace(b"\n", b"\r\n")
    file.write_bytes(before)
    succeeded(run_here("init", root, "--no-import"))
    assert file.read_bytes().startswith(before)
    assert b"\n" not in file.read_bytes().replace(b"\r\n", b"")


def test_settings_stay_in_the_file_that_has_them(copied):
    """Two files with settings would be refused later."""
    root = copied("powertools")
    (root / "poolkit.toml").touch()
    succeeded(run_here("init", root, "--no-import", "--yes"), "wrote poolkit.toml")
    assert "poolkit" not in tomllib.loads((root / "pyproject.toml").read_text())["tool"]


def test_a_form_that_cannot_be_rewritten_is_refused(copied):
    """Dotted keys in another table would be doubled."""
    root = copied("powertools")
    (root / "pyproject.toml").write_text('[tool]\npoolkit.python = "python3"\n')
    refused(run_here("init", root, "--no-import", "--yes"), "tool.poolkit in a form that is not")
