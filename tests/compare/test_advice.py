"""The recommended settings: the rules by a table of facts, and the sentences of a report."""

import json
from dataclasses import replace

import pytest

from poolkit.compare.report.advice_text import advice_text, settings_row
from poolkit.compare.report.findings import with_findings
from poolkit.compare.results.advice import HEADROOM, Advice, Facts, advise
from poolkit.compare.results.results import compute, results_json
from poolkit.compare.results.run_folder import PoolRow
from poolkit.compare.results.sweep import LittlesLaw, Sweep, SweepPoint
from poolkit.compare.results.wording import Spread

PLENTY = Facts(
    pool_size=20,
    max_overflow=10,
    most=30,
    out_max=5,
    mean_out=2.0,
    waited_p95_ms=0.1,
    checkouts=4_000,
    usable_connections=97,
)
"""5 of 30 connections used in an open loop that was long enough."""
FULL = replace(PLENTY, pool_size=5, most=15, out_max=15, waited_p95_ms=80.0)


@pytest.mark.parametrize(
    ("facts", "action", "reason", "size"),
    [
        (PLENTY, "smaller", "unused", (10, 5)),
        (replace(PLENTY, out_max=9), "keep", "in use", (20, 10)),
        (replace(PLENTY, out_max=0), "smaller", "unused", (2, 1)),
        (replace(PLENTY, most=None, max_overflow=-1), "smaller", "unlimited", (10, 5)),
        # Full, with checkouts that waited, or got nothing.
        (FULL, "larger", "waited", (10, 20)),
        (replace(FULL, waited_p95_ms=0.1, timeouts=3), "larger", "waited", (10, 20)),
        (replace(FULL, waited_p95_ms=0.1), "larger", "near limit", (5, 14)),
        (replace(PLENTY, out_max=28), "larger", "near limit", (20, 15)),
        (replace(FULL, holder="a.py:1 in a"), "shorten holds", "waited", (None, None)),
        (replace(FULL, usable_connections=18), "keep", "no room", (None, None)),
        (replace(FULL, usable_connections=28), "larger", "waited", (10, 15)),
        # Several processes share the server; behind a pooler they do not.
        (replace(PLENTY, processes=4), "smaller", "over budget", (10, 5)),
        (replace(PLENTY, processes=8), "smaller", "over budget", (10, 1)),
        (replace(PLENTY, processes=16), "keep", "no room", (None, None)),
        (replace(PLENTY, processes=16, behind_pooler=True), "smaller", "unused", (10, 5)),
        # No pool, and one connection for each request at a time.
        (
            replace(PLENTY, pool="NullPool", most=None, out_max=None, server_peak=4),
            "use a pool",
            "null pool",
            (8, 4),
        ),
        (
            replace(PLENTY, kind="lambda", pool="NullPool", out_max=None),
            "bound concurrency",
            "one per environment",
            (None, None),
        ),
        (
            replace(PLENTY, kind="worker", out_max=1),
            "bound concurrency",
            "one task at a time",
            (None, None),
        ),
        (replace(PLENTY, kind="worker", out_max=5), "smaller", "unused", (10, 5)),
        # What is unknown stays unknown.
        (replace(PLENTY, is_deployed=True), "unknown", "deployed", (None, None)),
        (replace(PLENTY, pool=""), "unknown", "not reported", (None, None)),
        (replace(PLENTY, checkouts=0), "unknown", "no checkout", (None, None)),
        (
            replace(PLENTY, pool="StaticPool", most=1, out_max=None),
            "unknown",
            "not counted",
            (None, None),
        ),
        (
            replace(PLENTY, pool="NullPool", out_max=None, server_peak=None),
            "unknown",
            "not counted",
            (None, None),
        ),
    ],
)
def test_the_recommendation_follows_from_the_facts(facts, action, reason, size):
    """What to do, why, and the size in each process."""
    found = advise(facts)
    assert (found.action, found.reason) == (action, reason)
    assert (found.pool_size, found.max_overflow) == size


@pytest.mark.parametrize("out", range(31))
@pytest.mark.parametrize("usable", [None, 10, 20, 40, 97])
def test_no_recommended_pool_is_below_the_peak_with_headroom(out, usable):
    """Whatever the server has room for; then there is no size instead of too small a one."""
    found = advise(replace(PLENTY, out_max=out, usable_connections=usable))
    if found.pool_size is not None:
        assert found.pool_size + found.max_overflow >= HEADROOM * out
    if found.action in ("smaller", "larger") and usable is not None:
        assert found.pool_size + found.max_overflow <= usable


@pytest.mark.parametrize(
    ("change", "doubt", "certainty"),
    [
        ({}, None, "fair"),
        ({"is_open_loop": False}, "closed loop", "fair"),
        ({"mean_out": 0.2}, "light load", "fair"),
        ({"is_busy_machine": True}, "busy machine", "fair"),
        ({"is_saturated": True}, "saturated", "low"),
        ({"is_partial": True}, "stopped early", "low"),
        ({"measured_s": 6.0}, "short", "low"),
        ({"checkouts": 100}, "few checkouts", "low"),
        ({"error_share": 0.02}, "errors", "low"),
    ],
)
def test_a_doubtful_measurement_makes_the_recommendation_less_sure(change, doubt, certainty):
    """The doubt is named; a serious one makes it unsure."""
    found = advise(replace(PLENTY, **change))
    assert (found.doubts, found.certainty) == ((doubt,) if doubt else (), certainty)


def test_a_pool_that_limited_the_need_leaves_it_unknown():
    """More than its size may have been wanted: the recommendation is unsure, and names sizes to try."""
    found = advise(FULL)
    assert (found.doubts[0], found.certainty, found.try_sizes) == ("limited", "low", (15, 23, 30))


# -- with the sizes of --pool-sizes ------------------------------------------------------------------


def point(size, out, **changes):
    values = {"name": f"web@{size}", "pool_size": size, "max_overflow": 0, "error_share": 0.0}
    values |= {"rate": Spread(200, 200, 200), "p95_ms": Spread(10, 10, 10), "out_max": out}
    values |= {"is_full": out == size, "mean_out": 2.0, "why_not": "", "in_force": True}
    return SweepPoint(**{**values, "waited_p95_ms": 0.1, "waited_max_ms": 1.0, **changes})


def sweep(knee, *points, peak=5):
    little = LittlesLaw(mean=2.0, size=7, measured_with="20")
    values = {"target": "web", "level": None, "processes": 1, "little": little, "peak": peak}
    return Sweep(points=points, knee=knee, **values)


def test_the_measured_size_is_recommended_with_room_for_the_peak():
    """The knee as pool_size; an overflow of half of it, or up to the peak of the larger pools."""
    sizes = point(2, 2), point(5, 5), point(10, 5), point(20, 5)
    found = advise(replace(PLENTY, has_repeats=True), sweep(sizes[2], *sizes))
    assert (found.action, found.basis, found.certainty) == ("set", "measured", "good")
    assert (found.pool_size, found.max_overflow, found.try_sizes) == (10, 5, ())
    found = advise(PLENTY, sweep(sizes[1], *sizes, peak=12))
    assert (found.pool_size, found.max_overflow) == (5, 10)
    assert (found.doubts, found.certainty) == (("once",), "fair")


def test_a_knee_at_the_end_of_the_sizes_suggests_others():
    """Below the smallest, or above the largest, there may be a better one."""
    sizes = point(8, 5), point(16, 5)
    assert advise(PLENTY, sweep(sizes[0], *sizes)).try_sizes == (2, 4, 8)
    assert advise(PLENTY, sweep(sizes[1], *sizes)).try_sizes == (16, 24, 32)


def test_sizes_that_were_all_full_suggest_a_larger_one():
    """A smaller one would show the need even less."""
    sizes = point(2, 2), point(5, 5)
    found = advise(PLENTY, sweep(sizes[0], *sizes, peak=None))
    assert (found.doubts[0], found.try_sizes) == ("limited", (2, 5, 10))


def test_sizes_that_sustained_nothing_recommend_nothing():
    """The load was too high for the target, whatever its pool."""
    found = advise(PLENTY, sweep(None, point(2, 2, why_not="x"), point(4, 4, why_not="x")))
    assert found == Advice(action="unknown", reason="no size sustained")


def test_sizes_that_the_pool_did_not_take_recommend_nothing():
    """As with NullPool: the load was not too high, and a lower one would not help."""
    same = [point(size, None, is_full=False, in_force=False, why_not="x") for size in (2, 4)]
    assert advise(PLENTY, sweep(None, *same)) == Advice(action="unknown", reason="no size in force")


# -- in a report ----------------------------------------------------------------------------------


def pool_row(**changes):
    values = {"pid": 1, "pool": "QueuePool", "pool_size": 20, "max_overflow": 10, "threads": 12}
    values |= {"timeout_s": 10.0, "recycle_s": -1.0, "pre_ping": True, "driver": "psycopg2"}
    values |= {"checkouts": 400, "timeouts": 0, "out_max": 5, "waited_max_s": 0.02}
    return PoolRow(**{**values, "waits": "-60:399 -40:1", **changes})


def test_the_report_has_settings_use_and_recommendation(made_up_run, made_up):
    """What the processes reported is on the page, the terminal and in results.json."""
    web = made_up("web", pools=(pool_row(), pool_row(pid=2, checkouts=0, out_max=None)))
    results = with_findings(compute(made_up_run(targets={"web": web})))
    row = settings_row(results.targets[0])
    assert (row.pool, row.timeout, row.recycle, row.driver) == (
        *("QueuePool 20+10", "10 s", "never"),
        "psycopg2",
    )
    assert (row.processes, row.in_use, row.overflow) == ("1 x 12 threads", "5/30", "0")
    text = advice_text("web", results)
    assert text.startswith("5 of 30 connections used at ")
    assert "10+5 would do. Fairly sure, estimated from the peak: users waited" in text
    found = json.loads(json.dumps(results_json(results)))
    assert found["advice"]["web"]["pool_size"] == 10
    assert found["targets"]["web"]["pool"]["settings"]["max_overflow"] == 10


def test_settings_that_nothing_reported_are_a_dash(results_of_six):
    """Unknown stays unknown, and the recommendation names the reason."""
    web = next(target for target in results_of_six.targets if target.name == "web")
    row = settings_row(web)
    assert {row.pool, row.in_use, row.waited} == {"–"}  # noqa: RUF001
    assert advice_text("web", results_of_six).startswith("Not known which settings it needs:")
