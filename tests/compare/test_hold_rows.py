"""Who held connections in a measured time: from the records of a target's processes."""

import json
import os
import subprocess
import sys

import pytest
from processes import run_python, wait_until

from poolkit.compare.results.run_folder import HoldRow
from poolkit.compare.run.hold_rows import begin_window, between, read_holds, read_pools
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
import json, os, pathlib, time
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
file = pathlib.Path(os.environ["_POOLKIT_HOLDS_FOLDER"], f"{os.getpid()}.json")
held, written = time.time(), set()
# The first record after the hold may have been begun before it.
while len([at for at in written if at > held]) < 2:
    time.sleep(0.02)
    if file.exists():
        written.add(json.loads(file.read_text())["time"])
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


USED = """
import sys
from threading import Barrier, Thread
from sqlalchemy import text
from poolkit.config.engine import make_engine
from poolkit.config.metrics import PoolMetrics
from poolkit.config.settings import Settings

engine = make_engine(Settings.from_environ(), PoolMetrics())

def use(at_once):
    met = Barrier(at_once)
    def hold():
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            met.wait()
    threads = [Thread(target=hold) for _ in range(at_once)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

use(4)
print("warmed up", flush=True)
sys.stdin.readline()
use(2)
print("used", flush=True)
sys.stdin.readline()
"""


@pytest.mark.process
def test_a_pool_is_recorded_with_its_settings_and_its_use_in_the_measured_time(database, tmp_path):
    """The peak of the warm-up is left out, and so are other databases."""
    environ = {
        **os.environ,
        "DATABASE_URL": database.url(driver=""),
        "POOLKIT_TARGET": "web",
        "POOLKIT_POOL_SIZE": "7",
        "POOLKIT_ECHO": "false",
        "_POOLKIT_HOLDS_FOLDER": str(tmp_path),
    }
    port = database.server.port
    with subprocess.Popen(
        [sys.executable, "-c", USED],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "warmed up\n"
        wait_until(lambda: [r for r in read_pools(tmp_path, [port]) if r.out_max == 4])
        begin_window(tmp_path)
        wait_until(lambda: [r for r in read_pools(tmp_path, [port]) if r.out_max is None])
        wait_until(lambda: since_of(tmp_path) > 0)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "used\n"
        wait_until(lambda: [r for r in read_pools(tmp_path, [port]) if r.checkouts == 2])
        (row,) = read_pools(tmp_path, [port])
        assert read_pools(tmp_path, [port + 1]) == []
        process.stdin.write("\n")
        process.stdin.flush()
    assert (row.pool_size, row.out_max, row.checkouts, row.timeouts) == (7, 2, 2, 0)
    assert (row.driver, row.timeout_s > 0, row.waited_max_s > 0) == ("psycopg2", True, True)


def since_of(folder):
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text())["since"]
