"""Which failures are tried again, after how long, and how a task of this base is called."""

import threading
from types import SimpleNamespace

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool

from poolkit.celery import DeliveredTask
from poolkit.celery.delivery import full_jitter, is_operational, is_redelivered
from poolkit.errors import (
    ConfigurationError,
    CredentialsError,
    DatabaseUnavailable,
    PoolExhausted,
    StatementTimeout,
)

RECEIVED_TWICE = {"ApproximateReceiveCount": "2"}


def _driver_error(sqlstate: str) -> DBAPIError:
    error = Exception(sqlstate)
    error.pgcode = sqlstate  # type: ignore[attr-defined]
    return DBAPIError("SELECT 1", {}, error)


@pytest.mark.parametrize(
    "error",
    [
        *(CredentialsError("x"), DatabaseUnavailable("x"), PoolExhausted("x")),
        *(StatementTimeout("x"), SoftTimeLimitExceeded(), PoolTimeout("QueuePool")),
        *map(_driver_error, ("40001", "40P01", "55P03")),
    ],
    ids=repr,
)
def test_operational_errors_are_tried_again(error):
    """What the pool, the server or another transaction caused may pass."""
    assert is_operational(error)


def test_error_of_a_session_of_the_task_s_own_is_tried_again():
    """SQLAlchemy's error for a server that is away counts as much as poolkit's."""
    with pytest.raises(OperationalError) as away:
        create_engine("postgresql+psycopg2://u:p@127.0.0.1:1/x").connect()
    assert is_operational(away.value)


@pytest.mark.parametrize(
    "error", [ValueError(), TypeError(), MemoryError(), _driver_error("23505")], ids=repr
)
def test_other_errors_are_not(error):
    """Bad input, a bug and a broken constraint fail again."""
    assert not is_operational(error)


def test_wait_is_random_up_to_a_bound_that_doubles():
    """Each wait lies between nothing and a bound, which doubles up to the longest, however many tries."""
    for retries, bound in ((0, 1), (1, 2), (3, 8), (10, 60), (10**6, 60)):
        waits = [full_jitter(retries, 1, 60) for _ in range(300)]
        assert 0 <= min(waits) < bound / 4
        assert bound * 3 / 4 < max(waits) <= bound


@pytest.mark.parametrize(
    ("delivery_info", "properties", "expected"),
    [
        (None, None, False),
        ({"redelivered": None}, {}, False),
        ({"redelivered": True}, {}, True),
        ({}, {"delivery_info": {"sqs_message": {"Attributes": {}}}}, False),
        ({}, {"delivery_info": {"sqs_message": {"Attributes": RECEIVED_TWICE}}}, True),
    ],
)
def test_redelivery_is_seen_on_every_broker(delivery_info, properties, expected):
    """Redis and RabbitMQ set a flag, SQS counts receives."""
    request = SimpleNamespace(delivery_info=delivery_info, properties=properties)
    assert is_redelivered(request) is expected


@pytest.fixture
def app():
    app = Celery("calls", broker="redis://127.0.0.1:1/0", set_as_current=False)
    yield app
    app.close()


def test_task_called_directly_or_eagerly_just_runs(app):
    """Its result and its error are the function's, without a broker, a database or a retry."""

    @app.task(base=DeliveredTask, bind=True, shared=False)
    def divide(self, a, b):
        return a / b

    assert divide(6, 3) == 2
    with pytest.raises(ZeroDivisionError):
        divide(1, 0)
    app.conf.update(task_always_eager=True)
    assert divide.delay(6, 3).get() == 2
    with pytest.raises(ZeroDivisionError):
        divide.delay(1, 0).get()


def test_sender_s_arguments_are_checked(app):
    """Arguments that do not fit the function are refused before the broker is asked."""

    @app.task(base=DeliveredTask, shared=False)
    def divide(a, b):
        return a / b

    with pytest.raises(TypeError):
        divide.delay(1)
    with pytest.raises(TypeError):
        divide.delay(1, 2, 3)


def test_options_of_a_task_win(app):
    """Celery's own words for retries and limits work as with any task."""

    @app.task(base=DeliveredTask, max_retries=2, retry_backoff_max=5, acks_late=False, shared=False)
    def some():
        pass

    assert (some.max_retries, some.retry_backoff_max, some.acks_late) == (2, 5, False)


def test_application_without_a_database_is_named(app):
    """A dead letter needs a database; the error says how the application gets one."""
    from poolkit.celery import Database

    with pytest.raises(ConfigurationError, match="'calls' has no database; write"):
        Database.of(app)


def test_deadlock_of_postgresql_is_operational(database):
    """A real one, made by two transactions, so that no SQLSTATE is guessed."""
    engine = create_engine(database.url(), poolclass=NullPool)
    met, found = threading.Barrier(2), []

    def update(first, second):
        try:
            with engine.begin() as connection:
                connection.execute(text("UPDATE a SET n = 1 WHERE id = :id"), {"id": first})
                met.wait(60)
                connection.execute(text("UPDATE a SET n = 2 WHERE id = :id"), {"id": second})
        except DBAPIError as error:
            found.append(is_operational(error))

    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE a AS SELECT generate_series(1, 2) AS id, 0 AS n"))
    threads = [threading.Thread(target=update, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True]
