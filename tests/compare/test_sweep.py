"""`--pool-sizes`: the sizes that are refused, the knee, Little's law, and the report."""

from dataclasses import replace

import pytest

from poolkit.compare.plan.option_types import PoolSize, PoolSizes
from poolkit.compare.plan.targets import Target, check_pool_sizes, with_pool_sizes
from poolkit.compare.report.advice_text import advice_text
from poolkit.compare.report.write import write_report
from poolkit.compare.results.run_folder import PoolRow
from poolkit.compare.results.sweep import SweepPoint, knee_of_sizes, littles_law, size_for
from poolkit.compare.results.wording import Spread
from poolkit.errors import ConfigurationError


def target(kind="web", **values):
    return Target(**{"name": kind, "kind": kind, "preset": kind, "locustfile": "load.py"} | values)


# -- the plan -------------------------------------------------------------------------------------


def test_sizes_are_read_with_their_overflow_and_sorted():
    """A size alone has no overflow, so that it is the most connections of a process."""
    assert PoolSizes().convert("20, 10+5,2", None, None) == (
        *(PoolSize(2, 0), PoolSize(10, 5), PoolSize(20, 0)),
    )


@pytest.mark.parametrize("text", ["0", "a", "5,5", "5+-1", ""])
def test_a_wrong_size_is_refused(text):
    """With a message for the command line."""
    with pytest.raises(Exception, match=r"is not|is named twice"):
        PoolSizes().convert(text, None, None)


def test_a_target_runs_once_with_each_size():
    """Its engines get the size, and so does what reads the preset's variables."""
    small, large = with_pool_sizes([target(env={"A": "1"})], (PoolSize(2, 0), PoolSize(10, 5)))
    assert (small.name, large.name, large.swept_from) == ("web@2", "web@10+5", "web")
    assert large.env == {"A": "1", "POOLKIT_POOL_SIZE": "10", "POOLKIT_MAX_OVERFLOW": "5"}
    (own,) = with_pool_sizes([target(preset=None)], (PoolSize(2, 0),))
    assert (own.env, own.pool_size) == ({}, PoolSize(2, 0))


@pytest.mark.parametrize(("kind", "key"), [("worker", "processes"), ("lambda", "concurrency")])
def test_a_target_that_uses_one_connection_at_a_time_has_no_sizes(kind, key):
    """The message names the key that matters instead."""
    with pytest.raises(ConfigurationError, match=key):
        with_pool_sizes([target(kind)], (PoolSize(2, 0),))


def test_a_size_that_does_not_fit_the_server_is_refused_with_the_largest():
    """All processes together count; behind PgBouncer the server sees the pooler's connections."""
    sizes = with_pool_sizes([target(processes=4)], (PoolSize(10, 15),))
    with pytest.raises(ConfigurationError, match=r"can open 100 connections.* fits is 23"):
        check_pool_sizes(sizes, 94)
    check_pool_sizes(sizes, 100)
    check_pool_sizes([replace(one, through="pgbouncer") for one in sizes], 94)


# -- the knee, and Little's law ---------------------------------------------------------------------


def point(size, p95, rate=200.0, spread=0.0, **changes):
    values = {"name": f"web@{size}", "pool_size": size, "max_overflow": 0, "error_share": 0.0}
    values |= {"rate": Spread(rate, rate, rate), "p95_ms": Spread(p95 - spread, p95, p95 + spread)}
    values |= {
        "out_max": size // 2,
        "is_full": False,
        "mean_out": 2.0,
        "why_not": "",
        "in_force": True,
    }
    return SweepPoint(**{**values, "waited_p95_ms": 0.1, "waited_max_ms": 1.0, **changes})


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        ([point(2, 80), point(5, 20.9), point(10, 20), point(20, 21)], 5),
        ([point(2, 80), point(5, 21.1), point(10, 20), point(20, 21)], 10),
        # Throughput counts too.
        ([point(2, 20, rate=150), point(5, 20, rate=195), point(10, 20)], 5),
        # A larger pool may be worse.
        ([point(5, 20), point(10, 20), point(50, 90)], 5),
        # Between repeats that differ, a small difference is noise.
        ([point(5, 24, spread=5), point(10, 20, spread=5)], 5),
        # A size that did not sustain the load is too small; one that failed proves nothing.
        ([point(2, 20, why_not="too slow"), point(5, 20)], 5),
        ([point(2, 20, why_not="x"), point(5, 20, why_not="x")], None),
        ([point(5, 20), replace(point(10, 20), rate=None, p95_ms=None, why_not="it failed")], None),
        ([point(5, 20)], None),
    ],
)
def test_the_knee_is_the_smallest_size_that_is_as_good_as_the_best(points, knee):
    """Within 5 % of the best p95 and throughput."""
    found = knee_of_sizes(points)
    assert (found and found.pool_size) == knee


def test_littles_law_is_read_from_the_largest_pool_that_was_never_full():
    """A full pool limits the checkouts that the law needs the rate of."""
    full = point(5, 20, is_full=True, mean_out=5.0)
    found = littles_law([full, point(10, 20, mean_out=3.0), point(20, 20, mean_out=4.0)])
    assert (found.mean, found.size, found.measured_with) == (4.0, 10, "20")
    assert littles_law([full]) is None


@pytest.mark.parametrize(("mean", "size"), [(0.0, 1), (0.25, 2), (1.0, 4), (4.0, 10), (16.0, 28)])
def test_the_allowance_is_three_standard_deviations(mean, size):
    """Those of a Poisson distribution, whose variance is its mean."""
    assert size_for(mean) == size


# -- a run ----------------------------------------------------------------------------------------


def row(size, out):
    values = {"pid": 1, "pool": "QueuePool", "pool_size": size, "max_overflow": 0, "threads": 4}
    values |= {"timeout_s": 30.0, "recycle_s": -1.0, "pre_ping": False, "driver": "psycopg2"}
    values |= {"checkouts": 400, "timeouts": 0, "out_max": out, "waited_max_s": 0.01}
    return PoolRow(**values, waits="-60:400")


def test_a_report_shows_every_size_and_the_one_that_failed(made_up_run, made_up):
    """The chart and the table have the sizes; the one whose pool stayed as it was is marked."""
    sizes = {
        size: made_up("web", kept=size, swept_from="web", pool_size=size, pools=(row(got, size),))
        for size, got in ((2, 2), (5, 5), (10, 20))
    }
    targets = {f"web@{size}": one for size, one in sizes.items()}
    targets["web@2"] = replace(targets["web@2"], capacity=20.0)
    run = made_up_run(targets=targets)
    results = write_report(run.path)
    (sweep,) = results.sweeps
    assert [each.why_not for each in sweep.points] == [
        "only 50 % of its load was answered",
        "",
        "its pool stayed QueuePool 20+0",
    ]
    assert sweep.knee.name == "web@5"
    assert list(results.advice) == ["web"]
    text = advice_text("web", results)
    assert "Take 5+8 in each process: 5 is the smallest size" in text
    assert "The overflow of 8 is room for a higher peak." in text
    assert (run.path / "charts/pool-sizes.png").stat().st_size > 1_000
    page = (run.path / "report.html").read_text()
    assert "Pool sizes of web" in page
    assert "its pool stayed QueuePool 20+0" in page
