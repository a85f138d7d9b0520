"""One suite for every deployable with an HTTP API: each test runs once per face.

A face is opened by `open_face(database_url, **environ)`, a context manager. A deployable of
another kind joins by one line in `faces.py`.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

import psycopg2
import pytest
from behaviour.face import Face
from behaviour.faces import FACES, opened

from poolkit.local.postgres import APP_ROLE, EmbeddedPostgres
from poolkit.pytest_plugin import PoolBaseline

OpenFace: TypeAlias = Callable[..., AbstractContextManager[Face]]


@pytest.fixture(autouse=True)
def every_connection_comes_back() -> Iterator[None]:
    """Fail a test that leaves a connection out, or holds one for seconds without SQL, at any face.

    It is the plugin's fixture `pool_baseline`; by its class, so that the plugin need not be
    installed.
    """
    baseline = PoolBaseline()(idle_ms=10_000, grace=10)
    baseline.start()
    try:
        yield
        baseline.check()
    finally:
        baseline.stop()


@pytest.fixture(params=FACES)
def face_name(request) -> str:
    return request.param


@pytest.fixture
def open_face(face_name) -> OpenFace:
    """Give the function that opens the face under test, for tests with needs of their own."""
    return lambda database_url, **environ: opened(face_name, database_url, **environ)


@pytest.fixture
def face(open_face, migrated_database) -> Iterator[Face]:
    # Without a driver, as a platform hands URLs out: each deployable takes its own.
    with open_face(migrated_database.url(driver="")) as face:
        yield face


@pytest.fixture(scope="module")
def shared_database(postgres, migrated_template) -> Iterator[str]:
    """Give the URL of a database that a module's tests share."""
    name = f"shared_{secrets.token_hex(6)}"
    execute(postgres, f"CREATE DATABASE {name} OWNER {APP_ROLE} TEMPLATE {migrated_template}")
    yield postgres.url(name, driver="")
    execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


def execute(server: EmbeddedPostgres, statement: str) -> None:
    connection = psycopg2.connect(server.admin_url("postgres", driver=""), connect_timeout=60)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


@pytest.fixture(scope="module", params=FACES)
def shared_face(request, shared_database) -> Iterator[Face]:
    """Give each face in turn to a module's tests that write nothing."""
    with opened(request.param, shared_database) as face:
        yield face
