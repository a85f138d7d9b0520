"""The search for the highest arrival rate that holds the thresholds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.errors import ConfigurationError
from poolkit.loadtest.open_loop.limit_search import (
    FACTOR,
    LOWEST_PER_S,
    MOST_STEPS,
    PRECISION,
    LimitSearch,
    Step,
    bounds,
)

SLOTS = Path(__file__).with_name("slots_server.py")


def searched(capacity, *, saturated_from=float("inf"), **options):
    """Return the search on a target that holds every rate up to a capacity."""
    search = LimitSearch(**options)
    while (per_s := search.next_per_s()) is not None:
        outcome = "held" if per_s <= capacity else "failed"
        outcome = "saturated" if per_s >= saturated_from else outcome
        reason = "" if outcome == "held" else f"{outcome} at {per_s:g}"
        search.add(Step(per_s=per_s, outcome=outcome, reason=reason, requests_per_s=per_s))
    return search


@given(
    capacity=st.floats(LOWEST_PER_S * FACTOR, 50_000), first=st.floats(LOWEST_PER_S * FACTOR, 2000)
)
def test_the_limit_is_at_most_ten_percent_below_the_lowest_rate_that_failed(capacity, first):
    """From any first rate, above or below it, in few steps."""
    search = searched(capacity, first_per_s=first)
    assert search.is_found
    assert search.held.per_s <= capacity < search.failed.per_s
    # Rates have three digits.
    assert search.failed.per_s / search.held.per_s <= PRECISION * 1.01
    assert len(search.steps) < MOST_STEPS


def test_a_highest_rate_that_holds_is_the_result():
    """Nothing above it is tried."""
    search = searched(1000, first_per_s=50, highest_per_s=120)
    assert [one.per_s for one in search.steps] == [50, 100, 120]
    assert search.is_found
    assert search.result == (
        "limit: at least 120 requests/s (120/s is the highest rate that was asked for)"
    )


def test_a_saturated_load_generator_ends_the_search_after_a_second_try():
    """What is above is not known, so the run does not pass."""
    search = searched(1000, first_per_s=50, saturated_from=180)
    assert [one.per_s for one in search.steps] == [50, 100, 200, 200]
    assert not search.is_found
    assert search.result == (
        "limit: at least 100 requests/s (the load generator was saturated at 200/s: saturated at 200)"
    )


def test_one_saturated_step_is_tried_again():
    """A moment in which the machine did something else ends nothing."""
    search = LimitSearch(first_per_s=50)
    search.add(Step(per_s=50, outcome="saturated", reason="busy"))
    assert search.next_per_s() == 50
    search.add(Step(per_s=50, outcome="held"))
    assert search.next_per_s() == 100


def test_a_target_that_holds_no_rate_has_no_limit():
    """The search ends, and the run does not pass."""
    search = searched(0)
    assert not search.is_found
    assert search.result.startswith("limit: not found, no rate held (")


def test_a_task_of_several_requests_is_shown_as_such():
    """The arrival rate is in tasks, and readers want requests."""
    search = LimitSearch()
    search.add(Step(per_s=100, outcome="held", requests_per_s=301))
    search.add(
        Step(
            per_s=105, outcome="failed", expression="http.p95 < 200 ms", reason="http.p95 is 400 ms"
        )
    )
    assert search.result == (
        "limit: 100 tasks/s, 301 requests/s (next step 105/s failed http.p95 < 200 ms)"
    )


@pytest.mark.parametrize("text", ["0", "fast", "20..10", "10..200/5m", "1..1e9", "..5"])
def test_other_rates_are_refused(text):
    """A first rate, or a first and a highest."""
    with pytest.raises(ConfigurationError, match=r"^--arrival-rate is .* with --find-limit"):
        bounds(text)


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--find-limit",), "--find-limit needs a threshold"),
        (
            ("--find-limit", "--threshold", "http.p95 < 1", "--junit", "j.xml"),
            "--find-limit and --junit cannot be used together",
        ),
        (("--find-limit-step", "soon"), "--find-limit-step is 'soon'; wanted a time"),
        (
            ("--find-limit", "--find-limit-step", "1s", "--threshold", "http.p95 < 600"),
            "is too short for 'http.p95 < 600 ms': no wait is longer than the step",
        ),
    ],
)
def test_options_that_find_nothing_are_refused(locust, arguments, said):
    """Before the load, in one line."""
    run = locust("--headless", *arguments)
    assert run.wait() == 2
    assert said in run.text
    assert "Traceback" not in run.text


@pytest.mark.process
@pytest.mark.parametrize(
    "processes",
    [
        pytest.param(("--processes", "2"), marks=pytest.mark.slow, id="workers"),
        pytest.param((), id="alone"),
    ],
)
def test_the_limit_of_a_server_is_below_what_it_cannot_serve(locust, master_port, processes):
    """Four slots of 0.1 s serve 40 requests/s: from 160/s on, waits grow by three seconds a second."""
    command = [sys.executable, str(SLOTS), "4", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
            run = locust(
                *("--headless", "--host", url, "--users", "5", "--json-file", "result"),
                *("--find-limit", "--find-limit-step", "2s", "--arrival-rate", "20"),
                *("--threshold", "http.p95 < 0.7s", "--only-summary", *processes),
                *(master_port if processes else ()),
            )
            assert run.wait() == 0, run.text
        finally:
            server.kill()
    found = run.document()["limit"]
    assert found["found"] is True, run.text
    assert 0 < found["per_s"] < found["next_per_s"] <= 160, run.text
    assert found["failed"].startswith("http.p95 is ")
    assert [line for line in run.text.splitlines() if line.startswith("limit: ")] == [
        found["words"]
    ]
    assert {step["outcome"] for step in found["steps"]} >= {"held", "failed"}
    # Each step measured its own rate, not the one before it.
    held = [step for step in found["steps"] if step["outcome"] == "held"]
    assert all(step["requests_per_s"] > 0.6 * step["per_s"] for step in held), run.text
    assert run.document()["partial"] is False
    json.dumps(found, allow_nan=False)


@pytest.mark.process
def test_a_search_that_is_interrupted_has_no_limit_yet(locust, server):
    """The steps up to then are printed, and the exit status is 1."""
    run = locust(
        *("--headless", "--users", "2", "--find-limit", "--find-limit-step", "1s"),
        *("--arrival-rate", "5..2000", "--threshold", "http.errors < 1%", "--only-summary"),
        *("--json-file", "result"),
    )
    # On a busy machine the first rate may fail, and a lower one hold.
    run.wait_for("/s held")
    assert run.stop() == 1, run.text
    (line,) = [line for line in run.text.splitlines() if line.startswith("limit: ")]
    has_failed = "/s failed" in line
    assert line.startswith("limit: " if has_failed else "limit: at least ")
    assert "the run ended before the search" in line
    assert run.document()["partial"] is True
