"""Thresholds held against figures: passed, failed, not known, not applicable."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.thresholds import (
    METRICS,
    Threshold,
    check,
    check_all,
    should_abort,
    unmet,
    with_unseen,
)


@pytest.mark.parametrize(
    ("text", "value", "status"),
    [
        ("http.p95 < 200", 199.9, "passed"),
        ("http.p95 < 200", 200.0, "failed"),
        ("http.p95 <= 200", 200.0, "passed"),
        ("http.errors < 0.1%", 1 / 1000, "failed"),
        ("http.errors <= 0.1%", 1 / 1000, "passed"),
        ("http.errors == 0", 0.0, "passed"),
        ("http.errors == 0", 1e-9, "failed"),
        ("http.rate > 50", 50.1, "passed"),
        ("http.rate >= 50", 49.9, "failed"),
        ("db.left_over == 0", 0, "passed"),
        ("db.left_over == 0", 1, "failed"),
        ("http.p95 < 200", None, "unknown"),
        ("http.p95 < 200", float("nan"), "unknown"),
    ],
)
def test_a_value_passes_or_fails(text, value, status):
    """By its operator, exactly; what is not a number is not known."""
    threshold = Threshold.parse(text)
    verdict = check(threshold, "web", {threshold.metric: value})
    assert verdict.status == status
    assert verdict.ok is (status == "passed")


def test_what_is_not_known_is_not_ok():
    """A figure that was never measured must not pass, and says why."""
    verdict = check(
        Threshold.parse("db.opened < 5"), "web", {}, reasons={"db.opened": "no database\n URL"}
    )
    assert (verdict.status, verdict.ok, verdict.value) == ("unknown", False, None)
    assert verdict.message == "web: db.opened is not known (no database URL), wanted < 5"


def test_what_a_target_does_not_have_is_ok():
    """A web service has no cold starts to limit."""
    threshold = Threshold.parse("lambda.cold_starts < 5")
    verdict = check(threshold, "web", {"lambda.cold_starts": 9}, ["lambda.cold_starts"])
    assert (verdict.status, verdict.ok) == ("not applicable", True)
    assert verdict.message == "web: lambda.cold_starts does not apply, wanted < 5"


def test_only_thresholds_for_the_target_are_checked():
    """Those for others are passed over; held against it one by one they do not apply."""
    other, for_all = Threshold.parse("web: http.p95 < 1"), Threshold.parse("http.p95 < 2")
    figures = {"http.p95": 5.0}
    verdicts = check_all([other, for_all], "lambda", figures, load="50 users")
    assert [v.threshold for v in verdicts] == [for_all]
    assert verdicts[0].message == "lambda at 50 users: http.p95 is 5 ms, wanted < 2 ms"
    assert check(other, "lambda", figures).status == "not applicable"


@pytest.mark.parametrize(
    ("text", "value", "words"),
    [
        ("http.p95 < 200", 243.4321, "http.p95 is 243 ms, wanted < 200 ms"),
        ("http.p95 < 200", 200.0004, "http.p95 is 200.0004 ms, wanted < 200 ms"),
        ("http.p95 < 200", 199.99, "http.p95 is 199.99 ms, wanted < 200 ms"),
        ("http.max < 1min", 12345.678, "http.max is 12346 ms, wanted < 60000 ms"),
        ("http.errors < 0.1%", 0.00123456, "http.errors is 0.123%, wanted < 0.1%"),
        ("http.rate > 50", 81.5555, "http.rate is 81.6/s, wanted > 50/s"),
        ("db.connections.max < 80", 123456, "db.connections.max is 123456, wanted < 80"),
        ("db.left_over == 0", 0, "db.left_over is 0, wanted == 0"),
    ],
)
def test_words_have_three_digits_or_as_many_as_tell(text, value, words):
    """A value over a limit never reads as if it were at it."""
    threshold = Threshold.parse(text)
    assert check(threshold, "", {threshold.metric: value}).message == words


@given(
    st.sampled_from(["<", "<=", ">", ">="]),
    st.floats(0.001, 1e9),
    st.floats(0, 1e9) | st.integers(-9, 9),
    st.sampled_from([name for name, metric in METRICS.items() if metric.kind != "share"]),
)
def test_words_never_contradict_the_status(operator, limit, value, metric):
    """The two numbers that are shown compare as the status says."""
    if isinstance(value, int):
        value = limit * (1 + value * 1e-12)
    verdict = check(Threshold.parse(f"{metric} {operator} {limit!r}"), "", {metric: value})
    shown, wanted = re.search(r"is ([\d.]+).* wanted \S+ ([\d.]+)", verdict.message).groups()
    holds = {"<": float.__lt__, "<=": float.__le__, ">": float.__gt__, ">=": float.__ge__}
    assert holds[operator](float(shown), float(wanted)) is verdict.ok


def test_a_run_is_aborted_after_its_delay():
    """The first that fails and may abort, but not before its time."""
    thresholds = [
        Threshold.parse("http.p95 < 1"),
        Threshold.parse("http.errors < 5% abort after 10s"),
        Threshold.parse("db.connections.max < 80 abort"),
    ]
    figures = {"http.p95": 9.0, "http.errors": 0.5, "db.connections.max": 10}
    assert should_abort(thresholds, "web", figures, 9.9) is None
    verdict = should_abort(thresholds, "web", figures, 10.0, load="50 users")
    assert verdict.message == "web at 50 users: http.errors is 50%, wanted < 5%"
    over = should_abort(thresholds, "web", {"db.connections.max": 80}, 0.0)
    assert over.threshold.metric == "db.connections.max"


def test_what_is_not_known_yet_aborts_nothing():
    """In the first second there may be no figure at all."""
    assert should_abort([Threshold.parse("http.p95 < 1 abort")], "web", {}, 60) is None


def test_a_threshold_for_another_target_aborts_nothing():
    """Each target is held to its own."""
    threshold = Threshold.parse("web: http.p95 < 1 abort")
    assert should_abort([threshold], "lambda", {"http.p95": 5.0}, 60) is None
    assert should_abort([threshold], "web", {"http.p95": 5.0}, 60) is not None


def test_a_count_that_may_still_come_up_to_its_limit_aborts_nothing():
    """Four of five cold starts is not wrong yet; six of five is."""
    threshold = Threshold.parse("lambda.cold_starts == 5 abort")
    assert should_abort([threshold], "lambda", {"lambda.cold_starts": 4}, 60) is None
    assert should_abort([threshold], "lambda", {"lambda.cold_starts": 6}, 60) is not None


def test_unmet_are_those_that_make_a_run_fail():
    """Failed and not known."""
    texts = ["http.p95 < 1", "http.p50 < 1", "http.max < 1", "lambda.cold_starts < 1"]
    figures = {"http.p95": 2.0, "http.max": 0.5}
    verdicts = check_all(map(Threshold.parse, texts), "web", figures, ["lambda.cold_starts"])
    assert [v.threshold.metric for v in unmet(verdicts)] == ["http.p95", "http.p50"]


@pytest.mark.parametrize(
    ("text", "value", "status"),
    [
        ("db.connections.share < 90%", 0.08, "unknown"),
        ("db.connections.max < 80", 81, "failed"),
        ("db.connections.mean < 80", 3, "unknown"),
        ("db.connections.max > 5", 6, "passed"),
        ("db.opened < 80", 79, "passed"),
        ("http.p95 < 200", 3, "passed"),
    ],
)
def test_what_nobody_could_see_does_not_pass(text, value, status):
    """A full server refuses the watching role too; counters go on without samples."""
    threshold = Threshold.parse(text)
    verdicts = [check(threshold, "web", {threshold.metric: value})]
    (verdict,) = with_unseen(verdicts, 7.0)
    assert verdict.status == status
    if status == "unknown":
        assert "is not known (the server could not be asked for 7 s)" in verdict.message
    assert with_unseen(verdicts, 1.0) == tuple(verdicts), "a moment is forgiven"
