"""The records of Powertools' Idempotency in PostgreSQL."""

import datetime as dt
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyValidationError,
)
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import DataRecord
from lambda_events import new_context
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from poolkit.powertools import SqlPersistenceLayer


@pytest.fixture
def layer(environment):
    return SqlPersistenceLayer(environment)


def in_progress(key="k", lifetime=900.0, in_progress_lifetime=600.0):
    now = time.time()
    return DataRecord(
        idempotency_key=key,
        status="INPROGRESS",
        expiry_timestamp=int(now + lifetime),
        in_progress_expiry_timestamp=int((now + in_progress_lifetime) * 1000),
    )


def completed(key="k", lifetime=900.0, data='{"done": 1}'):
    expiry = int(time.time() + lifetime)
    return DataRecord(key, "COMPLETED", expiry_timestamp=expiry, response_data=data)


def test_a_record_is_what_was_put(layer):
    """Status and both ends come back as they were written, to the second."""
    began = time.time()
    put = in_progress()
    layer._put_record(put)
    got = layer._get_record("k")
    # What it takes to ask the database its time is the records' error.
    second = 1 + time.time() - began
    assert got.status == "INPROGRESS"
    assert abs(got.expiry_timestamp - put.expiry_timestamp) <= second
    off = got.in_progress_expiry_timestamp - put.in_progress_expiry_timestamp
    assert abs(off) < second * 1_000


def test_a_record_that_is_there_stays(layer):
    """The refusal brings the record that is there, which saves asking for it."""
    layer._put_record(in_progress())
    layer._update_record(completed())
    with pytest.raises(IdempotencyItemAlreadyExistsError) as refused:
        layer._put_record(in_progress())
    assert refused.value.old_data_record.status == "COMPLETED"
    assert refused.value.old_data_record.response_json_as_dict() == {"done": 1}


@pytest.mark.parametrize(
    "expired", [{"lifetime": -5}, {"in_progress_lifetime": -0.1}], ids=["expired", "timed out"]
)
def test_an_expired_record_gives_way(layer, expired):
    """Whether it is too old, or in progress for longer than its invoke can live."""
    layer._put_record(in_progress(**expired))
    layer._put_record(in_progress())
    assert layer._get_record("k").status == "INPROGRESS"


def test_a_completed_record_does_not_time_out(layer):
    """The end of its progress no longer counts."""
    layer._put_record(in_progress(in_progress_lifetime=-0.1))
    layer._update_record(completed())
    with pytest.raises(IdempotencyItemAlreadyExistsError):
        layer._put_record(in_progress())


def test_a_missing_record_is_not_found(layer):
    """Powertools then tries again."""
    with pytest.raises(IdempotencyItemNotFoundError):
        layer._get_record("k")


def test_of_writers_at_the_same_time_one_wins(layer):
    """Also where all of them find an expired record."""
    for round_ in range(5):
        if round_ % 2:
            layer._put_record(in_progress(f"k{round_}", in_progress_lifetime=-0.1))
        barrier = Barrier(8)

        def put(key, barrier=barrier):
            barrier.wait(60)
            try:
                layer._put_record(in_progress(key))
            except IdempotencyItemAlreadyExistsError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(put, [f"k{round_}"] * 8))
        assert won.count(True) == 1


def test_a_failure_makes_way_for_the_next_attempt(layer):
    """What raised is forgotten."""
    layer._put_record(in_progress())
    layer._delete_record(DataRecord("k"))
    layer._put_record(in_progress())


def test_a_late_failure_does_not_delete_a_later_attempts_record(environment, layer):
    """An attempt whose time is up has lost its record to the one that took over."""
    later = SqlPersistenceLayer(environment)
    layer._put_record(in_progress(in_progress_lifetime=-0.1))
    later._put_record(in_progress())
    layer._delete_record(DataRecord("k"))
    assert layer._get_record("k").status == "INPROGRESS"


def test_a_late_clock_does_not_make_records_live_longer(layer, database, monkeypatch):
    """Ends are durations from the database's now; the local clock is never compared with it."""
    offset = 7_200
    real_time, real_datetime = time.time, dt.datetime

    class Late(real_datetime):
        @classmethod
        def now(cls, tz=None):
            return real_datetime.now(tz) - dt.timedelta(seconds=offset)

    monkeypatch.setattr(time, "time", lambda: real_time() - offset)
    monkeypatch.setattr(dt, "datetime", Late)
    layer._put_record(in_progress())
    assert layer._get_record("k").status == "INPROGRESS"
    (row,) = database.execute(
        "SELECT extract(epoch FROM in_progress_expires_at - now()) AS held FROM idempotency_records"
    )
    assert 500 < row["held"] <= 600


def test_purging_deletes_what_has_expired(layer, database):
    """At most as many as asked for, the oldest first, and nothing that still counts."""
    layer._put_record(in_progress("first"))  # which purges
    for number in range(5):
        # Far from each other: each one's life begins when the database has its connection.
        layer._put_record(in_progress(f"old-{number}", lifetime=-1000 + 100 * number))
    layer._put_record(in_progress("new"))
    assert layer.purge(limit=2) == 2
    left = {row["id"] for row in database.execute("SELECT id FROM idempotency_records")}
    assert left == {"first", "old-2", "old-3", "old-4", "new"}
    assert layer.purge() == 3
    assert layer.purge() == 0


def test_it_serves_powertools_decorator(layer):
    """A function's answer is remembered by its payload; another payload is refused."""
    parts = {"event_key_jmespath": "id", "payload_validation_jmespath": "amount"}
    config = IdempotencyConfig(**parts, lambda_context=new_context(timeout_s=600))
    calls = []

    @idempotent_function(data_keyword_argument="order", persistence_store=layer, config=config)
    def pay(order):
        calls.append(order)
        return {"paid": order["amount"]}

    assert pay(order={"id": 1, "amount": 5}) == {"paid": 5}
    assert pay(order={"id": 1, "amount": 5}) == {"paid": 5}
    assert len(calls) == 1
    with pytest.raises(IdempotencyValidationError):
        pay(order={"id": 1, "amount": 6})


def test_a_second_call_meanwhile_is_refused(layer):
    """By Powertools' own error, which leaves the message to a later delivery."""
    config = IdempotencyConfig(lambda_context=new_context(timeout_s=600))

    @idempotent_function(data_keyword_argument="order", persistence_store=layer, config=config)
    def pay(order, again):
        if again:
            pay(order=order, again=False)

    with pytest.raises(IdempotencyAlreadyInProgressError):
        pay(order={"id": 1}, again=True)


def test_expired_records_are_deleted_along_the_way(layer, database):
    """A function that only ever writes records does not fill the table."""
    for number in range(30):
        layer._put_record(in_progress(f"old-{number}", lifetime=-100))
    assert len(database.execute("SELECT id FROM idempotency_records")) < 15


# -- in the transaction of the work -----------------------------------------------------------


@pytest.fixture
def note_once(layer):
    """Give a function that writes a note once for each id, on a session or a connection."""

    config = IdempotencyConfig(lambda_context=new_context(timeout_s=600))

    @idempotent_function(data_keyword_argument="key", persistence_store=layer, config=config)
    def note(*, key, work, fails=False):
        work.execute(text("INSERT INTO notes VALUES (:id, 'text')"), {"id": key["id"]})
        if fails:
            raise RuntimeError("the work failed")
        return {"id": key["id"]}

    return note


def notes(database):
    return [row["id"] for row in database.execute("SELECT id FROM notes ORDER BY id")]


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_in_a_unit_of_work_the_record_is_committed_with_the_work(
    environment, note_once, database, kind
):
    """A second attempt finds the record; it has the first one's answer and does nothing."""
    begin = getattr(environment, kind)
    for _ in range(2):
        with begin() as work:
            assert note_once(key={"id": 1}, work=work) == {"id": 1}
    assert notes(database) == [1]
    (record,) = database.execute("SELECT status FROM idempotency_records")
    assert record["status"] == "COMPLETED"


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_in_a_unit_of_work_that_fails_nothing_is_left(environment, note_once, database, kind):
    """Neither the work nor its record; the next attempt begins anew, and at once."""
    begin = getattr(environment, kind)
    with pytest.raises(RuntimeError), begin() as work:
        note_once(key={"id": 1}, work=work, fails=True)
    assert notes(database) == []
    assert database.execute("SELECT * FROM idempotency_records") == []
    with begin() as work:
        note_once(key={"id": 1}, work=work)
    assert notes(database) == [1]


@pytest.mark.parametrize("kind", ["read_session", "read_connection"])
def test_beside_reads_a_record_is_committed_at_once(environment, note_once, database, kind):
    """So what failed has to be deleted, for the next attempt to begin."""
    begin = getattr(environment, kind)
    with begin() as work, pytest.raises(RuntimeError):
        note_once(key={"id": 1}, work=work, fails=True)
    assert database.execute("SELECT * FROM idempotency_records") == []
    with begin() as work:
        assert note_once(key={"id": 2}, work=work) == {"id": 2}
    assert len(database.execute("SELECT * FROM idempotency_records")) == 1


def test_a_statement_that_failed_keeps_its_own_error(environment, note_once, database):
    """PostgreSQL refuses any statement after it, so the record is left to the rollback."""
    database.execute("INSERT INTO notes VALUES (1, 'there')")
    with pytest.raises(IntegrityError), environment.session() as session:
        note_once(key={"id": 1}, work=session)
    assert database.execute("SELECT * FROM idempotency_records") == []


def test_of_two_attempts_at_the_same_time_the_second_waits(environment, note_once, database):
    """It then finds the work done, and is no failure."""

    def second():
        with environment.session() as other:
            return note_once(key={"id": 1}, work=other)

    with ThreadPoolExecutor(1) as pool:
        with environment.session() as session:
            note_once(key={"id": 1}, work=session)
            waiting = pool.submit(second)
            database.wait_for_lock("lambda:")
        assert waiting.result(60) == {"id": 1}
    assert notes(database) == [1]
