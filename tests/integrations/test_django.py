"""Django: settings from a preset, 503 for a full pool or no server, readiness, metrics, forks."""

import json
import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from processes import run_python, started, wait_until
from psycopg2 import sql

from poolkit import ConfigurationError, PresetError, preset
from poolkit.django import database

pytestmark = pytest.mark.process

SETTINGS = """
from poolkit.django import database

SECRET_KEY = "of this test"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
ROOT_URLCONF = "urls"
USE_TZ = True
MIDDLEWARE = ["poolkit.django.Failures", "django.middleware.common.CommonMiddleware"]
DATABASES = {"default": database("web")}
"""
URLS = """
import os
from django.db import connection
from django.http import JsonResponse
from django.urls import include, path

WHO = "SELECT pg_backend_pid(), current_setting('application_name')"


def who(request):
    with connection.cursor() as cursor:
        cursor.execute(WHO)
        return JsonResponse([os.getpid(), *cursor.fetchone()], safe=False)


def slow(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [float(request.GET["s"])])
    return JsonResponse({})


def locked(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock_shared(1), pg_advisory_unlock_shared(1)")
    return JsonResponse({})


def broken(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")


urlpatterns = [path("", include("poolkit.django")), path("who", who), path("slow", slow), path("locked", locked), path("broken", broken)]
handler500 = "poolkit.django.server_error"
"""
WSGI = """
import os
from django.core.wsgi import get_wsgi_application

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
app = get_wsgi_application()
if os.environ.get("CONNECT_AT_IMPORT"):
    from django.db import connection
    connection.ensure_connection()
"""


@pytest.fixture
def site(tmp_path):
    """A Django project as its own tutorial would have it."""
    for name, text in {"settings": SETTINGS, "urls": URLS, "wsgi": WSGI}.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@contextmanager
def served(site, url, *options, **variables):
    command = ("-m", "gunicorn", "wsgi:app", "--bind", "127.0.0.1:0", "--access-logfile", "-")
    with started(
        *(sys.executable, *command, "--worker-class", "gthread", "--threads", "4", *options),
        cwd=site,
        environ={"DATABASE_URL": url, "POOLKIT_CONNECT_TIMEOUT": "2", **variables},
        clean=True,
    ) as server:
        address = server.wait_for(r"Listening at: (http://\S+)")[1]

        def get(path):
            try:
                with urllib.request.urlopen(address + path, timeout=60) as answer:
                    return answer.status, answer.headers, answer.read().decode()
            except urllib.error.HTTPError as answer:
                with answer:
                    return answer.status, answer.headers, answer.read().decode()

        yield get


def assert_problem(answer, status, retry_after):
    found, headers, body = answer
    assert (found, headers["Retry-After"]) == (status, retry_after), body
    assert headers["Content-Type"] == "application/problem+json"
    assert json.loads(body)["status"] == status
    assert "127.0.0.1" not in body


# -- a real server --------------------------------------------------------------------------


def test_threads_share_the_pool_and_connections_have_the_presets_name(site, database):
    """Four threads that work one after the other need fewer backends than threads."""
    with served(site, database.url(driver="")) as get:
        assert get("/readyz")[0] == 200
        names = {json.loads(get("/who")[2])[2] for _ in range(8)}
        assert {row["application_name"] for row in database.backends()} == names
        assert len(database.backends()) < 4
        assert names.pop().startswith("web:")
        opened = re.search(r'poolkit_pool_opened_total{target="default"} (\S+)', get("/metrics")[2])
        assert 1 <= float(opened[1]) < 4
        assert get("/broken")[0] == 500


def test_a_full_pool_is_503_after_pool_timeout(site, database):
    """The second request waits for the first one's connection, then is told when to come back."""
    small = {"POOL_SIZE": "1", "MAX_OVERFLOW": "1", "POOL_TIMEOUT": "0.3"}
    variables = {f"POOLKIT_{name}": value for name, value in small.items()}
    with (
        served(site, database.url(driver=""), **variables) as get,
        ThreadPoolExecutor(2) as pool,
        database.connect() as connection,
    ):
        cursor = connection.cursor()
        cursor.execute("SELECT pg_advisory_lock(1)")

        def hold():
            # Again: on a busy machine its own connection may take longer than the pool's time.
            wait_until(lambda: get("/locked")[0] == 200, "an answer")

        held = [pool.submit(hold) for _ in range(2)]
        wait_until(
            lambda: sum(row["wait_event"] == "advisory" for row in database.backends()) == 2,
            "two requests that hold their connections",
        )
        assert_problem(get("/who"), 503, "1")
        cursor.execute("SELECT pg_advisory_unlock(1)")
        for each in held:
            each.result(timeout=100)


@pytest.mark.slow
def test_a_server_that_is_away_is_503_until_it_is_back(site, new_postgres):
    """The broken connection in the pool is replaced."""
    with new_postgres() as server, served(site, server.url(), POOLKIT_POOL_TIMEOUT="1") as get:
        wait_until(lambda: get("/readyz")[0] == 200, "the pool to connect")
        server.stop()
        assert_problem(get("/readyz"), 503, "5")
        assert_problem(get("/who"), 503, "5")
        server.start()
        wait_until(lambda: get("/readyz")[0] == 200, "the pool to connect again")


def test_a_statement_that_takes_too_long_is_503(site, database):
    """The preset's statement_timeout reaches the server."""
    with served(site, database.url(driver=""), POOLKIT_STATEMENT_TIMEOUT="1000") as get:
        assert_problem(get("/slow?s=30"), 503, "1")


@pytest.mark.slow
def test_workers_of_gunicorn_with_preload_have_pools_of_their_own(site, database):
    """A connection at import stays the parent's, and each worker's has the worker's name."""
    with served(
        site, database.url(driver=""), "--workers", "2", "--preload", CONNECT_AT_IMPORT="1"
    ) as get:
        answers = {}

        def both_workers_answered():
            process, backend, name = json.loads(get("/who")[2])
            answers[process] = (backend, name)
            return len(answers) == 2

        wait_until(both_workers_answered, "an answer of each worker")
        assert len({backend for backend, _ in answers.values()}) == 2
        assert all(name.endswith(f"-{process}") for process, (_, name) in answers.items())
        assert len(database.backends()) == 3


# -- settings -------------------------------------------------------------------------------

URL = "postgresql://me:secret@db.example.com:5433/shop?sslmode=require"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("DATABASE_URL", "POOLKIT_TARGET", "POOLKIT_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)


def test_a_web_preset_is_a_pool():
    """Its ceiling is the pool's size, and its limits are psycopg's arguments."""
    web = preset("web", "prod").replace(max_waiting=7)
    found = database(url=URL, preset=web)
    assert {name: found[name] for name in ("NAME", "USER", "PASSWORD", "HOST", "PORT")} == {
        "NAME": "shop",
        "USER": "me",
        "PASSWORD": "secret",
        "HOST": "db.example.com",
        "PORT": 5433,
    }
    options = found["OPTIONS"]
    assert options["pool"]["max_size"] == web.max_connections_per_process
    assert options["pool"]["max_waiting"] == 7
    assert options["sslmode"] == "require"
    assert "statement_timeout=15000" in options["options"]
    assert (found["CONN_MAX_AGE"], found["CONN_HEALTH_CHECKS"]) == (0, True)


@pytest.mark.parametrize(
    ("target", "age", "checks"),
    [("lambda_warm", 1800, True), ("lambda", 0, False), ("script", 0, False)],
)
def test_a_process_with_one_connection_has_no_pool(target, age, checks):
    """It keeps the connection as long as the preset does, or closes it after each request."""
    found = database(url=URL, preset=preset(target))
    assert (found["CONN_MAX_AGE"], found["CONN_HEALTH_CHECKS"]) == (age, checks)
    assert "pool" not in found["OPTIONS"]


def test_a_prefork_child_keeps_one_connection():
    """Celery's: `per_task` of the worker's preset."""
    worker = preset("worker", "prod")
    assert database(url=URL, preset=worker.per_task())["CONN_MAX_AGE"] == worker.pool_recycle


def test_behind_a_transaction_pooler_nothing_outlives_a_transaction():
    """No startup options and no server-side cursors."""
    found = database(url=URL, preset=preset("lambda_proxy"))
    assert found["DISABLE_SERVER_SIDE_CURSORS"]
    assert "options" not in found["OPTIONS"]


def test_sqlite_in_tests_has_djangos_own_settings():
    """Neither a pool nor checks."""
    assert database(url="sqlite:///notes.db") == {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "notes.db",
    }


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"DATABASE_URL": "mysql://me:secret@127.0.0.1/shop"},
        {
            "DATABASE_IAM_AUTH": "true",
            "DATABASE_HOST": "db",
            "DATABASE_USER": "me",
            "DATABASE_NAME": "shop",
        },
    ],
)
def test_another_database_or_a_password_that_changes_is_refused(monkeypatch, variables):
    """The message says what is wanted."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        database()


def test_an_asynchronous_preset_is_refused():
    """Django's ORM is synchronous."""
    with pytest.raises(PresetError, match="synchronous"):
        database(url=URL, preset=preset("web_async"))


def test_importing_the_module_needs_no_settings():
    """settings.py imports it before there are any."""
    answer = run_python("-c", "import poolkit.django", clean=True)
    assert answer.returncode == 0, answer.stderr


def full(database):
    limit = sql.SQL("ALTER DATABASE {} CONNECTION LIMIT 0")
    database.execute(limit.format(sql.Identifier(database.name)))


def test_a_full_server_is_503_without_a_pool(site, database):
    """A connection for each request: the server's refusal is the answer."""
    full(database)
    with served(site, database.url(driver=""), POOLKIT_TARGET="script") as get:
        assert_problem(get("/who"), 503, "5")
        assert_problem(get("/readyz"), 503, "5")
