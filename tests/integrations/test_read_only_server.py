"""Readiness, and the way to the new primary, of each web integration while its server is read-only."""

import subprocess
import sys
from contextlib import contextmanager

import psycopg2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask
from processes import wait_until
from sqlalchemy import text

from poolkit.fastapi import AsyncDatabase, Database, operations
from poolkit.flask import Poolkit

pytestmark = pytest.mark.process


class Server:
    """A PostgreSQL that can be demoted; new sessions find it writable if they are told to."""

    def __init__(self, postgres):
        self.url = postgres.url(driver="")
        self.admin_url = postgres.admin_url("postgres", driver="")

    def execute(self, *statements):
        connection = psycopg2.connect(
            self.admin_url, options="-c default_transaction_read_only=off", connect_timeout=60
        )
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        connection.close()

    @contextmanager
    def demoted(self):
        self.set("ALTER SYSTEM SET default_transaction_read_only = on", "on")
        try:
            yield
        finally:
            self.set("ALTER SYSTEM RESET default_transaction_read_only", "off")

    def set(self, statement, wanted):
        self.execute(statement, "SELECT pg_reload_conf()")

        def found():
            connection = psycopg2.connect(self.admin_url, connect_timeout=60)
            report = connection.info.parameter_status("default_transaction_read_only")
            connection.close()
            return report == wanted

        wait_until(found, f"the server to be {wanted}")


@pytest.fixture(scope="module")
def server(new_postgres):
    with new_postgres() as postgres:
        yield Server(postgres)


@pytest.fixture
def variables(server, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", server.url)
    monkeypatch.setenv("POOLKIT_ECHO", "false")
    # Enough for a busy machine. A refusal is not waited out, which would take as long.
    monkeypatch.setenv("POOLKIT_CONNECT_TIMEOUT", "60")
    monkeypatch.setenv("POOLKIT_RETRY_CONNECT", "false")
    monkeypatch.setenv("POOLKIT_POOL_TIMEOUT", "1")


@pytest.fixture(params=[Database, AsyncDatabase])
def kind(request):
    return request.param


def service(database):
    app = FastAPI(lifespan=database.lifespan)
    app.include_router(operations(database))
    return TestClient(app)


def test_a_service_that_writes_is_not_ready_while_its_server_is_read_only(variables, server, kind):
    """Its living connections say so, and so does the refusal to connect; then it is ready again."""
    with service(kind()) as client:
        assert client.get("/readyz").status_code == 200
        with server.demoted():
            for _ in range(2):
                answer = client.get("/readyz")
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert client.get("/healthz").status_code == 200
        wait_until(lambda: client.get("/readyz").status_code == 200, "the service to be ready")


@pytest.mark.parametrize("way", ["variable", "url"])
def test_a_service_that_only_reads_is_ready_on_a_read_only_server(
    variables, server, kind, way, monkeypatch
):
    if way == "variable":
        monkeypatch.setenv("POOLKIT_TARGET_SESSION_ATTRS", "any")
    else:
        monkeypatch.setenv("DATABASE_URL", server.url + "?target_session_attrs=any")
    with server.demoted(), service(kind()) as client:
        assert client.get("/readyz").status_code == 200


def test_flask_is_not_ready_while_its_server_is_read_only(variables, server, monkeypatch):
    def ready():
        kit, app = Poolkit(), Flask(__name__)
        kit.init_app(app)
        with app.app_context():
            before = app.test_client().get("/readyz").status_code
            with server.demoted():
                during = app.test_client().get("/readyz").status_code
            with kit.engine.connect() as connection:
                assert connection.scalar(text("SELECT 42")) == 42
            kit.engine.dispose()
        return before, during

    assert ready() == (200, 503)
    monkeypatch.setenv("POOLKIT_TARGET_SESSION_ATTRS", "any")
    assert ready() == (200, 200)


DJANGO = """
import sys
import django
from django.conf import settings
from poolkit.django import database

settings.configure(
    SECRET_KEY="of this test", ALLOWED_HOSTS=["testserver"], ROOT_URLCONF=__name__, USE_TZ=True,
    MIDDLEWARE=["poolkit.django.Failures"], DATABASES={"default": database("web")},
)
django.setup()
from django.db import connection
from django.http import HttpResponse
from django.test import Client
from django.urls import include, path

def write(request):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS written (n int)")
    return HttpResponse("written")

urlpatterns = [path("", include("poolkit.django")), path("write", write)]
handler500 = "poolkit.django.server_error"
client = Client(raise_request_exception=False)
for line in sys.stdin:
    print(client.get(line.strip()).status_code, flush=True)
from poolkit.django import _open_pools
for pool in _open_pools().values():
    pool.close()
"""


def test_django_leaves_a_read_only_server_after_one_refused_write(variables, server):
    """The pool is drained, so that the next write reaches a server that accepts it."""
    process = subprocess.Popen(
        [sys.executable, "-c", DJANGO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def get(path):
        process.stdin.write(path + "\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    try:
        # Within the pool's second, which a busy machine may use up.
        wait_until(lambda: (get("/write"), get("/readyz")) == (200, 200), "the first write")
        with server.demoted():
            assert get("/write") == 503
            assert get("/readyz") == 503
        wait_until(lambda: get("/write") == 200, "the next write")

        # Sessions that began before the demotion stay read-only, new ones are not.
        server.execute("ALTER DATABASE poolkit SET default_transaction_read_only = off")
        with server.demoted():
            assert get("/write") == 503
            # As above; a session that were kept would refuse each time.
            wait_until(lambda: get("/write") == 200, "a session that may write")
    finally:
        server.execute("ALTER DATABASE poolkit RESET default_transaction_read_only")
        process.stdin.close()
        process.wait(60)
        process.stdout.close()
