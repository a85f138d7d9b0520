"""Who held connections in a measured time: from the records of a target's processes."""

import json

import pytest
from processes import run_python

from poolkit.compare.results.run_folder import HoldRow
from poolkit.compare.run.hold_rows import between, read_holds
from poolkit.config.holds import CallSite


def site(where="app.py:1 in a", unit="GET /a", count=10, **changes):
    values = {"held_s": 1.0, "busy_s": 0.5, "p95_s": 0.1, "longest_s": 0.1}
    values |= {"spread": ((-20, 9.0), (-10, 1.0)), **changes}
    return CallSite(where=where, unit=unit, count=count, **values)


def reading(folder, *rows, out=(), pid=1):
    """Write a process's record as it does, and read the folder."""
    record = {"time": 0, "rows": [vars(row) for row in rows], "out": list(out)}
    (folder / f"{pid}.json").write_text(json.dumps(record))
    return read_holds(folder)


def test_only_what_was_held_in_the_measured_time_counts(tmp_path):
    """The warm-up's holds are left out, in each of several processes."""
    before = reading(tmp_path, site(), site("b.py:2 in b"))
    reading(tmp_path, site(count=3, spread=((-20, 3.0),)), pid=2)
    after = reading(
        tmp_path,
        site(
            count=15,
            held_s=3.0,
            busy_s=0.6,
            longest_s=0.9,
            nested=2,
            spread=((-20, 14.0), (1, 1.0)),
        ),
        site("b.py:2 in b"),
    )
    rows = between(before, after)
    assert rows == [
        HoldRow(
            where="app.py:1 in a",
            unit="GET /a",
            count=8,
            held_s=3.0,
            busy_s=pytest.approx(0.6),
            unseen_s=0.0,
            longest_s=0.9,
            nested=2,
            after_response=0,
            leaked=0,
            out_s=0.0,
            spread="-20:8 1:1",
        )
    ]


def test_a_connection_that_never_comes_back_is_a_row(tmp_path):
    """Its age stands for the time that is not known yet."""
    held = {"where": "c.py:3 in c", "unit": "", "holder": "", "age_s": 7.5}
    (row,) = between(None, reading(tmp_path, out=[held]))
    assert (row.where, row.count, row.out_s, row.spread) == ("c.py:3 in c", 0, 7.5, "")


def test_without_a_record_nothing_is_claimed(tmp_path):
    """No process has an engine: not known, which is not zero."""
    assert read_holds(tmp_path) is None
    assert between(None, None) is None


RECORDED = """
import os, time
from sqlalchemy import text
from poolkit.config.engine import make_engine
from poolkit.config.holds import unit
from poolkit.config.metrics import PoolMetrics
from poolkit.config.settings import Settings

engine = make_engine(Settings.from_environ(), PoolMetrics())

def hold():
    with unit("GET /x"), engine.connect() as connection:
        connection.execute(text("SELECT 1"))

hold()
child = os.fork()
hold()
time.sleep(1.5)
if child:
    os.waitpid(child, 0)
os._exit(0)
"""


@pytest.mark.process
def test_each_process_records_its_own_holds(database, tmp_path):
    """A forked child begins at zero, in a file of its own."""
    environ = {
        "DATABASE_URL": database.url(driver=""),
        "POOLKIT_HOLD_SAMPLING": "1",  # the second hold follows at once
        "_POOLKIT_HOLDS_FOLDER": str(tmp_path),
    }
    answer = run_python("-c", RECORDED, environ=environ)
    assert answer.returncode == 0, answer.stderr
    found = read_holds(tmp_path).rows.values()
    assert sorted((row.unit, row.count) for row in found) == [("GET /x", 1), ("GET /x", 2)]
