"""The engine of a process, with and without a worker."""

import textwrap

import pytest
from celery import Celery
from processes import run_python
from sqlalchemy import text
from sqlalchemy.orm import Session, sessionmaker

from poolkit.celery import Database
from poolkit.celery.database import CLIENT_CHECK_INTERVAL
from poolkit.config.settings import Settings
from poolkit.errors import DatabaseUnavailable


@pytest.fixture
def opened(database):
    """Give a Database outside of a worker."""
    app = Celery("alone", set_as_current=False)
    environ = {"DATABASE_URL": database.url()}
    opened = Database(app, settings=lambda: Settings.from_environ(environ, default_target="worker"))
    yield opened
    opened.close()
    app.close()


def test_constructor_opens_nothing(monkeypatch):
    """It reads no settings: an application can be imported where there are none."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    Database(Celery("alone", set_as_current=False))


def insert_and_fail(opened):
    with opened.session() as session:
        session.execute(text("INSERT INTO t VALUES (3)"))
        raise ZeroDivisionError


def test_session_and_connection_are_units_of_work(opened, database):
    """Committed at the end of the block, rolled back on an exception, and returned either way."""
    with opened.connection() as connection:
        connection.execute(text("CREATE TABLE t AS SELECT 1 AS n"))
    with opened.session() as session:
        session.execute(text("INSERT INTO t VALUES (2)"))
    with pytest.raises(ZeroDivisionError):
        insert_and_fail(opened)
    assert len(database.execute("SELECT * FROM t")) == 2
    assert opened.snapshot().checked_out == 0
    opened.close()
    opened.close()
    database.wait_for_backends(0)


def test_failures_of_the_database_are_poolkit_s(opened):
    """A task catches the same errors as a web service."""
    with pytest.raises(DatabaseUnavailable), opened.session() as session:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def test_sessions_are_the_application_s_own(database):
    """A sessionmaker of the application is bound to the engine of the process."""

    class OurSession(Session):
        pass

    sessions = sessionmaker(class_=OurSession, expire_on_commit=False)
    environ = {"DATABASE_URL": database.url()}
    opened = Database(
        Celery("alone", set_as_current=False),
        settings=lambda: Settings.from_environ(environ, default_target="worker"),
        sessions=sessions,
    )
    with opened.session() as session:
        assert isinstance(session, OurSession)
    assert sessions.kw["bind"] is opened.engine
    opened.close()


def test_server_is_asked_to_notice_a_dead_client(opened):
    """Each connection tells the server how often to look whether its client lives."""
    with opened.connection() as connection:
        shown = connection.execute(
            text("SELECT setting FROM pg_settings WHERE name = 'client_connection_check_interval'")
        ).scalar_one()
    assert int(shown) == CLIENT_CHECK_INTERVAL


@pytest.mark.process
def test_engine_of_the_parent_is_left_alone_in_a_fork(database):
    """A fork gets an engine of its own, and the parent's connection stays alive and its own."""
    script = """
        import os
        from celery import Celery
        from sqlalchemy import text
        from poolkit.celery import Database

        database = Database(Celery("alone"))

        def backend():
            with database.session() as session:
                return session.execute(text("SELECT pg_backend_pid()")).scalar_one()

        mine = backend()
        if (child := os.fork()) == 0:
            assert backend() != mine
            database.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert backend() == mine
    """
    done = run_python("-c", textwrap.dedent(script), environ={"DATABASE_URL": database.url()})
    assert done.returncode == 0, done.stderr
