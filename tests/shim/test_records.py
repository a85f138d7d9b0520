"""The ceiling of a target, from the records of its processes."""

import pytest

from poolkit.shim.records import Engine, Record, ceiling_of, notes_on


def engine(**values):
    given = {"pool": "QueuePool", "size": 5, "max_overflow": 10, "most": 15, "port": 5432}
    return Engine(**given | {"backend": "postgresql", **values})


def record(pid, *engines, **values):
    given = {"parent": 1, "inherited": False, "connected": True, "made": len(engines)}
    return Record(pid=pid, engines=engines, **given | values)


def ceiling(*found, alive=None, **values):
    return ceiling_of(found, alive=alive or {r.pid for r in found}, ports={5432}, **values)


def test_processes_and_engines_are_added():
    """Each process has its own pools, and a process may have several engines."""
    small = engine(size=1, max_overflow=0, most=1)
    assert ceiling(record(10, engine(), small), record(11, engine(), small)) == (
        32,
        "2 processes x QueuePool 5+10 and QueuePool 1+0, read from its engines",
    )


def test_a_process_that_has_ended_holds_nothing():
    """A worker that was replaced leaves its record behind."""
    assert ceiling(record(10, engine()), record(11, engine()), alive={11}).connections == 15


def test_a_master_that_never_connected_is_not_counted():
    """Its children have the engine; if it connects itself, it holds connections too."""
    master, child = (
        record(10, engine(), connected=False),
        record(11, engine(), inherited=True, parent=10),
    )
    assert ceiling(master, child).connections == 15
    assert ceiling(record(10, engine()), child).connections == 30


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (
            record(10, engine(pool="NullPool", size=None, most=None, is_null=True)),
            "its NullPool has no limit",
        ),
        (record(10, engine(max_overflow=-1, most=None)), "its QueuePool 5+-1 has no limit"),
        (record(10, engine(), made=51), "it makes engines all the time: 51 in one process"),
        (record(10, made=0), "no engine of SQLAlchemy"),
        (record(10, has_django=True), "Django keeps a connection in each thread"),
    ],
)
def test_what_has_no_limit_is_unknown(found, reason):
    """No number is better than a wrong one, and the reason is part of the report."""
    answer = ceiling(found)
    assert answer.connections is None
    assert reason in answer.reason


def test_an_engine_for_another_database_is_not_counted():
    """Its port is not that of the server that is measured."""
    assert (
        ceiling(record(10, engine(), engine(port=5433), engine(backend="sqlite"))).connections == 15
    )


def test_a_function_has_one_process_for_each_execution_environment():
    """Its ceiling is concurrency times what one holds; a null pool holds one at a time there."""
    null = engine(pool="NullPool", size=None, most=None, is_null=True)
    assert ceiling(record(10, null), execution_environments=8) == (8, "concurrency 8 x NullPool")
    assert ceiling(record(10, engine()), execution_environments=8).connections == 120


@pytest.mark.parametrize(
    ("pool", "found", "notes"),
    [
        ("web", record(10, engine()), []),
        ("now", record(10), []),
        ("web", record(10), ["--pool web changed nothing"]),
        ("now", record(10, engine(), engine(backend="sqlite")), ["not counted: sqlite"]),
        ("now", record(10, engine(host="other", port=5433)), ["not counted: other:5433"]),
    ],
)
def test_what_the_numbers_leave_out_is_noted(pool, found, notes):
    """A preset that found no engine to change, and engines of other databases."""
    answers = notes_on([found], pool=pool, ports={5432})
    assert len(answers) == len(notes)
    assert all(note in answer for note, answer in zip(notes, answers, strict=True))
