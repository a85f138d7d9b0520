"""What `poolkit init` reads from source code: objects, variables, migrations."""

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from poolkit.errors import ConfigurationError
from poolkit.init.applications import applications_in
from poolkit.init.findings import find
from poolkit.init.runtime import find_interpreter
from poolkit.init.schema import schema_of
from poolkit.init.sources import Sources
from poolkit.init.variables import part_of
from poolkit.init.writing import locustfile_text


@pytest.fixture
def project(tmp_path):
    """A function that makes a project from texts by path."""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(dedent(text))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from fastapi import FastAPI\napp = FastAPI()", "fastapi m:app"),
        ("import fastapi as f\nservice: f.FastAPI = f.FastAPI()", "fastapi m:service"),
        ("from flask import Flask as F\nif True:\n    app = F(__name__)", "flask m:app"),
        (
            "from fastapi import FastAPI\nfrom x import Wrapped\napp = Wrapped(FastAPI())",
            "fastapi m:app",
        ),
        (
            "from flask import Flask\ndef make():\n    app = Flask('x')\n    return app",
            "flask m:make()",
        ),
        (
            "from flask import Flask\ndef make():\n    return Flask('x')\napplication = make()",
            "flask m:application",
        ),
        (
            "from django.core.wsgi import get_wsgi_application\napplication = get_wsgi_application()",
            "django m:application",
        ),
        ("from celery import Celery\nqueue = Celery('x')", "celery m:queue"),
        ("def handler(event, context):\n    return {}", "lambda m:handler"),
    ],
)
def test_an_application_has_many_spellings(project, code, found):
    """Aliases, annotations, conditions, wrappers and factories name the same objects."""
    (application, *_) = applications_in(Sources.read(project({"m.py": code})))
    factory = "()" if application.is_factory else ""
    assert f"{application.framework} {application.name}{factory}" == found


def test_a_factory_of_another_module_is_followed(project):
    """`from blog import create_app` leads to the function that makes a Flask application."""
    root = project(
        {
            "blog/__init__.py": "from blog.factory import create_app",
            "blog/factory.py": "from flask import Flask\ndef create_app():\n    return Flask('x')",
            "wsgi.py": "from blog import create_app\napp = create_app()",
        }
    )
    assert [a.name for a in applications_in(Sources.read(root))] == ["wsgi:app"]


def test_tests_and_environments_are_not_searched(project):
    """An application in a test or in an installed package is not the project's."""
    text = "from fastapi import FastAPI\napp = FastAPI()"
    root = project(
        {
            "tests/main.py": text,
            "test_main.py": text,
            ".venv/lib/main.py": text,
            "env2/pyvenv.cfg": "",
            "env2/main.py": text,
        }
    )
    assert applications_in(Sources.read(root)) == []


def test_a_file_that_is_no_python_is_left_out(project):
    """A template or a file for Python 2 does not end the search."""
    root = project(
        {"broken.py": "print 'x'", "main.py": "from flask import Flask\napp = Flask('x')"}
    )
    assert [a.name for a in applications_in(Sources.read(root))] == ["main:app"]


def test_imports_decide_where_a_module_is_imported_from(project):
    """A package without `__init__.py` is one if its modules import each other by its name."""
    root = project(
        {
            "service/app/main.py": "from app.routes import r\nfrom fastapi import FastAPI\n"
            "app = FastAPI()",
            "service/app/routes.py": "r = 1",
        }
    )
    found = find(root, imports=False)
    assert (found.table["directory"], found.deployables[0].application.name) == (
        "service",
        "app.main:app",
    )


def test_several_applications_are_listed_and_one_can_be_named(project):
    """The likeliest is taken; --app takes another."""
    text = "from fastapi import FastAPI\napp = FastAPI()"
    root = project({"main.py": text, "admin.py": text})
    found = find(root, imports=False)
    assert found.deployables[0].application.name == "main:app"
    assert [a.name for a in found.others] == ["admin:app"]
    named = find(root, app="admin:app", imports=False)
    assert named.deployables[0].application.name == "admin:app"
    with pytest.raises(
        ConfigurationError, match=r"--app x:y: there is no such.*main:app, admin:app"
    ):
        find(root, app="x:y", imports=False)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("DATABASE_URL", "{database_url}"),
        ("SQLALCHEMY_DATABASE_URI", "{database_url}"),
        ("PG_DSN", "{database_url}"),
        ("POSTGRES_SERVER", "{db_host}"),
        ("DATABASE__HOSTNAME", "{db_host}"),
        ("MYAPP_DB_PORT", "{db_port}"),
        ("PGUSER", "{db_user}"),
        ("DB_PASS", "{db_password}"),
        ("POSTGRES_DB", "{db_name}"),
        ("SQL_DATABASE", "{db_name}"),
        ("REDIS_DB", None),
        ("TEST_DATABASE_URL", None),
        ("DATABASE_POOL_SIZE", None),
        ("DB", None),
        ("SENTRY_DSN", None),
        ("SMTP_HOST", None),
    ],
)
def test_a_variable_s_name_says_which_part_it_holds(name, part):
    """Other services and the tests' own database are not the application's database."""
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("code", "env"),
    [
        ("import os\nx = os.environ['DB_HOST']", {"DB_HOST": "{db_host}"}),
        ("from os import getenv\nx = getenv('DB_HOST', 'localhost')", {"DB_HOST": "{db_host}"}),
        ("from decouple import config\nx = config('DB_NAME')", {"DB_NAME": "{db_name}"}),
        ("from environs import Env\nenv = Env()\nx = env.str('DB_USER')", {"DB_USER": "{db_user}"}),
        ("app.config['DATABASE_URI']", {}),
        ("import os\nx = os.environ['DATABASE_URL']", {}),
        (
            """
            from pydantic_settings import BaseSettings, SettingsConfigDict
            class Settings(BaseSettings):
                model_config = SettingsConfigDict(env_prefix="SHOP_")
                db_host: str = "x"
            """,
            {"SHOP_DB_HOST": "{db_host}"},
        ),
        (
            """
            from pydantic import Field
            from pydantic_settings import BaseSettings
            class Base(BaseSettings):
                class Config:
                    env_prefix = "A_"
            class Settings(Base):
                url: str = Field(..., alias="PG_URL")
                db_name: str = "x"
            """,
            {"PG_URL": "{database_url}", "A_DB_NAME": "{db_name}"},
        ),
    ],
)
def test_variables_are_read_where_code_reads_them(project, code, env):
    """Plain code, decouple, environs and pydantic's settings, with prefixes and aliases."""
    root = project({"settings.py": code, "main.py": "from flask import Flask\napp = Flask('x')"})
    assert find(root, imports=False).table.get("env", {}) == env


@pytest.mark.parametrize(
    ("env_file", "value"),
    [
        ("DATABASE_ASYNC_URL=postgresql+asyncpg://u:p@h/d", "{database_url:asyncpg}"),
        ("DATABASE_ASYNC_URL=postgresql+psycopg://u:p@h/d", "{database_url:psycopg}"),
        ("", "{database_url:asyncpg}"),
    ],
)
def test_a_url_names_the_driver_of_the_project_s_own(project, env_file, value):
    """The value in .env or .env.example shows which scheme the application expects."""
    root = project(
        {
            ".env.example": env_file,
            "main.py": "import os\nfrom fastapi import FastAPI\napp = FastAPI()\n"
            "url = os.environ['DATABASE_ASYNC_URL']",
        }
    )
    assert find(root, imports=False).table["env"] == {"DATABASE_ASYNC_URL": value}


def test_a_database_in_the_code_is_pointed_out(project):
    """No variable can replace it, and the line is named."""
    root = project(
        {"main.py": "from flask import Flask\napp = Flask('x')\nurl = 'postgresql://u:p@db/app'"}
    )
    assert "main.py:3 names its database in the code" in " ".join(find(root, imports=False).missing)


def test_a_required_setting_takes_its_value_from_the_example(project):
    """Without .env the application would not import; what the example does not have is listed."""
    root = project(
        {
            ".env.example": "SECRET_KEY=for-development",
            "main.py": """
            from fastapi import FastAPI
            from pydantic_settings import BaseSettings
            class Settings(BaseSettings):
                secret_key: str
                other: int
                optional: str | None = None
            app = FastAPI()
            """,
        }
    )
    found = find(root, imports=False)
    assert found.table["env"] == {"SECRET_KEY": "for-development"}
    assert any("without a value in .env: OTHER" in line for line in found.missing)


def test_alembic_that_would_change_another_database_is_not_run(project):
    """An env.py that takes its URL from alembic.ini migrates what is named there."""
    root = project(
        {
            "alembic.ini": "[alembic]\nscript_location = alembic\nsqlalchemy.url = postgresql://u@h/d",
            "alembic/env.py": "engine_from_config(config.get_section('alembic'))",
        }
    )
    found = schema_of(Sources.read(root), root, None)
    assert found.command == ()
    assert "would change that one" in found.notes[0]


def test_the_interpreter_is_that_of_the_nearest_environment(tmp_path):
    """`.venv` of the project wins over an activated environment; versions come from metadata."""
    for name in (".venv", "activated"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin/python").symlink_to(sys.executable)
        (tmp_path / name / "pyvenv.cfg").write_text("version = 3.12.1\n")
    metadata = tmp_path / ".venv/lib/python3.12/site-packages/Flask_X-1.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Name: Flask_X\nVersion: 1.0\n")
    activated = {"VIRTUAL_ENV": str(tmp_path / "activated")}
    found = find_interpreter([tmp_path], activated)
    assert found is not None
    assert (found.path, found.version) == (tmp_path / ".venv/bin/python", "3.12.1")
    assert found.packages == {"flask-x": "1.0"}
    other = find_interpreter([tmp_path / "elsewhere"], activated)
    assert other is not None
    assert other.path == tmp_path / "activated/bin/python"


def test_a_module_alone_runs_where_the_project_s_files_are(project):
    """Without imports of its own it could run from anywhere; .env and migrations are at the root."""
    text = "from fastapi import FastAPI\napp = FastAPI()"
    root = project({"requirements.txt": "fastapi", "app/main.py": text})
    found = find(root, imports=False)
    assert found.deployables[0].application.name == "app.main:app"
    assert "directory" not in found.table


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Dockerfile", 'CMD ["fastapi", "run", "--workers", "4", "main.py"]'),
        ("Procfile", "web: gunicorn -w 4 -k uvicorn.workers.UvicornWorker main:app"),
        ("start.sh", "exec uvicorn main:app \\\n  --host 0.0.0.0 --workers=4"),
        ("compose.yaml", "    command: uvicorn main:app --workers 4"),
    ],
)
def test_the_project_s_own_server_decides_about_processes(project, name, text):
    """Each process has a pool of its own, so their number is what the ceiling depends on most."""
    root = project({name: text, "main.py": "from fastapi import FastAPI\napp = FastAPI()"})
    (deployable,) = find(root, imports=False).deployables
    assert deployable.table["processes"] == 4


@pytest.mark.process
@pytest.mark.parametrize(
    ("call", "key"),
    [
        ("async def __call__(self, scope, receive, send): ...", "app"),
        ("def __call__(self, environ, start_response): ...", "command"),
    ],
)
def test_an_application_of_another_kind_can_be_named(project, call, key):
    """Its import shows whether it is ASGI or WSGI, and so which server runs it."""
    root = project({"main.py": f"class App:\n    {call}\n\nservice = {{'x': App()}}['x']\n"})
    (deployable,) = find(root, app="main:service").deployables
    assert "main:service" in str(deployable.table[key])


API_WITH_LOGIN = """
    from fastapi import APIRouter, Depends, FastAPI
    from fastapi.security import OAuth2PasswordBearer
    from pydantic import BaseModel

    class Account(BaseModel):
        email: str
        password: str
        age: int
        nickname: str = ""

    app = FastAPI()
    router = APIRouter(prefix="/users")
    token = OAuth2PasswordBearer(tokenUrl="login/token")

    def current_superuser(token: str = Depends(token)): ...

    @router.post("/signup")
    def sign_up(account: Account): ...

    @router.get("/me", dependencies=[Depends(token)])
    def me(): ...

    @router.get("/", dependencies=[Depends(current_superuser)])
    def everybody(): ...

    @app.get("/health")
    def health(): ...

    app.include_router(router)
    """


def tasks_in(locustfile: str) -> list[str]:
    """Return the requests of a locustfile's tasks that are no comments."""
    lines = locustfile.partition("    @task\n")[2].splitlines()
    return [line.strip() for line in lines if line.strip().startswith("self.client")]


@pytest.mark.process
def test_users_of_the_load_sign_up_where_openapi_shows_how(project):
    """Paths behind a login become tasks, those that want more rights do not."""
    (deployable,) = find(project({"main.py": API_WITH_LOGIN})).deployables
    text = locustfile_text(deployable)
    compile(text, "locustfile", "exec")
    assert tasks_in(text) == ['self.client.get("/users/me")  # needs a login']
    assert 'account = {"email": email, "password": password, "age": 1}' in text
    assert 'self.client.post("/users/signup", json=account)' in text
    assert 'login = {"username": email, "password": password}' in text
    assert 'self.client.post("/login/token", data=login)' in text


FLASK_WITH_LOGIN = """
    from flask import Flask
    from flask_login import login_required
    from .api import token_auth

    app = Flask(__name__)

    @app.route("/auth/register", methods=["GET", "POST"])
    def register(): ...

    @app.route("/auth/login", methods=["GET", "POST"])
    def login(): ...

    @app.route("/")
    @login_required
    def home(): ...

    @app.route("/api/users")
    @token_auth.login_required
    def users(): ...

    @app.route("/logout")
    def logout(): ...
    """


def test_users_of_the_load_fill_in_forms(project):
    """Pages to register and to log in are enough; a token for an API is another matter."""
    (deployable,) = find(project({"main.py": FLASK_WITH_LOGIN}), imports=False).deployables
    text = locustfile_text(deployable)
    compile(text, "locustfile", "exec")
    assert tasks_in(text) == ['self.client.get("/")  # needs a login']
    assert 'submit_form(self.client, "/auth/register", account)' in text
    assert 'submit_form(self.client, "/auth/login", account)' in text


def test_a_django_project_for_heroku_gets_its_scheme(project):
    """Some settings depend on a URL that begins with postgres://."""
    root = project(
        {
            "site/wsgi.py": "from django.core.wsgi import get_wsgi_application\n"
            "application = get_wsgi_application()",
            "site/settings.py": "import os\n"
            "if os.environ['DATABASE_URL'].startswith('postgres://'): ...",
        }
    )
    url = find(root, imports=False).table["env"]["DATABASE_URL"]
    assert url == "postgres://{db_user}:{db_password}@{db_host}:{db_port}/{db_name}"


def test_a_locustfile_has_no_endless_list(project):
    """Of hundreds of paths the first are tasks, and the number of the others is named."""
    views = "".join(f"@app.route('/p{n}')\ndef p{n}(): ...\n" for n in range(100))
    code = f"from flask import Flask\napp = Flask('x')\n{views}"
    (deployable,) = find(project({"main.py": code}), imports=False).deployables
    text = locustfile_text(deployable)
    assert len(tasks_in(text)) == 30
    assert "# And 40 more paths." in text
