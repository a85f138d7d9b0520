"""The engine of a process."""

import textwrap

import pytest
from processes import run_python
from sqlalchemy import text

from poolkit.config.settings import Settings
from worker.lifecycle import CLIENT_CHECK_INTERVAL, Database


def _settings(database):
    return Settings.from_environ({"DATABASE_URL": database.url()}, default_target="worker")


def test_engine_must_be_opened_first():
    """Asking for an engine that was not opened says what to do."""
    with pytest.raises(RuntimeError, match=r"call open\(\) first"):
        Database().engine  # noqa: B018


def test_server_is_asked_to_notice_a_dead_client(database):
    """Each connection tells the server how often to look whether its client lives."""
    opened = Database()
    opened.open(_settings(database))
    with opened.engine.connect() as connection:
        shown = connection.execute(
            text("SELECT setting FROM pg_settings WHERE name = 'client_connection_check_interval'")
        ).scalar_one()
    opened.close()
    opened.close()
    assert int(shown) == CLIENT_CHECK_INTERVAL
    database.wait_for_backends(0, "worker:")


def test_engine_of_the_parent_is_refused_in_a_fork_and_left_alone(database):
    """A fork may not use its parent's engine; opening its own leaves the parent's connection alive."""
    script = """
        import os
        from sqlalchemy import text
        from poolkit.config.settings import Settings
        from worker.lifecycle import Database

        settings = Settings.from_environ(default_target="worker")
        database = Database()

        def backend():
            with database.engine.connect() as connection:
                return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

        def use_in_fork():
            try:
                database.engine
            except RuntimeError as error:
                assert "must not be used in its fork" in str(error), error
            else:
                raise AssertionError("the parent's engine was returned")
            database.open(settings)
            assert backend() != mine

        database.open(settings)
        mine = backend()
        if os.fork() == 0:
            use_in_fork()
        else:
            assert os.wait()[1] == 0
            assert backend() == mine
    """
    done = run_python("-c", textwrap.dedent(script), environ={"DATABASE_URL": database.url()})
    assert done.returncode == 0, done.stderr
