"""Thresholds: which of several apply to a target, their text, and their verdicts on figures."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.errors import ConfigurationError
from poolkit.thresholds import (
    METRICS,
    Threshold,
    check,
    check_all,
    check_targets,
    should_abort,
    thresholds_of,
    unmet,
    with_unseen,
)


def limits(thresholds, target, metric="http.p95"):
    return sorted(t.limit for t in thresholds if t.metric == metric and t.applies_to(target))


def test_without_any_there_are_none():
    """Neither the table nor the command line has to have thresholds."""
    assert thresholds_of({}) == ()
    assert thresholds_of({"thresholds": []}, []) == ()


def test_the_command_line_replaces_the_table():
    """For the same target and metric; other metrics stay."""
    table = {"thresholds": ["http.p95 < 200", "web: http.p95 < 100", "http.errors < 1%"]}
    found = thresholds_of(table, ["http.p95 < 300"])
    assert limits(found, "web") == limits(found, "lambda") == [300]
    assert limits(found, "web", "http.errors") == [0.01]


def test_the_command_line_replaces_for_its_targets_alone():
    """A threshold for one target leaves those of the others as they are."""
    table = {"thresholds": ["http.p95 < 200", "web,worker: http.p95 < 100"]}
    found = thresholds_of(table, ["web: http.p95 < 300"])
    assert limits(found, "web") == [300]
    assert limits(found, "worker") == [100]
    assert limits(found, "lambda") == [200]


def test_named_targets_go_before_all():
    """A target with a threshold of its own does not have to hold the general one, too."""
    found = thresholds_of({"thresholds": ["web: http.p95 < 500", "http.p95 < 200"]})
    assert limits(found, "web") == [500]
    assert limits(found, "") == limits(found, "lambda") == [200]


def test_two_for_the_same_target_are_both_to_hold():
    """A range is two thresholds; the same one twice is one."""
    found = thresholds_of({"thresholds": ["http.rate > 10", "http.rate<90", "http.rate > 10/s"]})
    assert limits(found, "web", "http.rate") == [10, 90]


NAMED = st.sampled_from(["", "a: ", "b: ", "a,b: ", "b,c: "])
TEXTS = st.lists(st.builds("{}http.p95 < {}".format, NAMED, st.integers(1, 5)), max_size=5)


@given(TEXTS, TEXTS, st.sampled_from(["", "a", "b", "c", "d"]))
def test_a_target_has_the_thresholds_of_the_first_place_that_has_any(table, given_here, target):
    """Command line by name, command line for all, table by name, table for all."""
    found = thresholds_of({"thresholds": table}, given_here)

    def place(texts, *, by_name):
        its = [t for t in map(Threshold.parse, texts) if t.applies_to(target)]
        return {t.limit for t in its if bool(t.targets) is by_name}

    places = [place(texts, by_name=by) for texts in (given_here, table) for by in (True, False)]
    wanted = next((place for place in places if place), set())
    assert set(limits(found, target)) == wanted


@pytest.mark.parametrize(
    ("table", "given_here", "said"),
    [
        ({"thresholds": "http.p95 < 2"}, [], "thresholds must be a list of strings such as"),
        ({"thresholds": {"http.p95": 2}}, [], "thresholds must be a list of strings such as"),
        ({"thresholds": ["http.p95 < 2", 7]}, [], "thresholds, number 2, must be a string"),
        (
            {"thresholds": ["http.p95 < 2", "http.p95"]},
            [],
            "pyproject.toml: [tool.poolkit] thresholds, number 2: threshold 'http.p95': an operator",
        ),
        (
            {},
            ["http.p9 < 1"],
            "--threshold: threshold 'http.p9 < 1': 'http.p9' is not a metric; did",
        ),
    ],
)
def test_a_mistake_says_where_it_stands(table, given_here, said):
    """The message has the line of the table, or the option."""
    with pytest.raises(ConfigurationError) as raised:
        thresholds_of(table, given_here)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lamda", "there is no target lamda; did you mean lambda?"),
        ("queue", "there is no target queue; there are: lambda, web"),
    ],
)
def test_a_target_that_there_is_not_is_refused(name, said):
    """A threshold that no target has would pass for ever."""
    threshold = Threshold.parse(f"web,{name}: http.p95 < 200")
    with pytest.raises(ConfigurationError) as raised:
        check_targets([threshold], ["lambda", "web"])
    assert said in str(raised.value)
    assert threshold.text in str(raised.value)


def test_targets_that_there_are_pass():
    """A threshold for all needs no name."""
    check_targets(map(Threshold.parse, ["web: http.p95 < 2", "http.p95 < 2"]), {"web"})


@given(TEXTS, TEXTS)
def test_the_texts_of_a_resolved_set_give_the_same_set(table, given_here):
    """So a run's folder can keep them as texts, without knowing which replaced which."""
    found = thresholds_of({"thresholds": table}, given_here)
    again = thresholds_of({"thresholds": [str(threshold) for threshold in found]})
    for target in ("", "a", "b", "c", "d"):
        assert limits(again, target) == limits(found, target)


# -- the text -------------------------------------------------------------------------------


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,12}", fullmatch=True)
NUMBERS = st.decimals(min_value=0, max_value=10**9, places=3).map(lambda d: f"{d.normalize():f}")


@st.composite
def texts(draw):
    """Draw a threshold that is one, however it is spaced."""
    metric = METRICS[draw(st.sampled_from(list(METRICS)))]
    number = draw(NUMBERS)
    unit = draw(st.sampled_from([*metric.units, *([] if metric.kind == "share" else [""])]))
    if metric.kind == "share":
        number = f"{draw(st.integers(1, 999))}e-1"
    operator = draw(st.sampled_from(["<=", "<", ">", ">="]))
    if operator == "<" and float(number) == 0:
        number = "1"
    can_abort = not metric.at_end and not (metric.grows and operator in (">", ">="))
    abort = draw(st.sampled_from(["", " abort", " abort after 1m30s", " abort  after 0.25 s"]))
    targets = ",".join(draw(st.lists(NAMES, max_size=3, unique=True)))
    blank = draw(st.sampled_from(["", " ", "   ", "\t"]))
    prefix = f"{targets}{blank}:{blank}" if targets else ""
    tail = abort if can_abort else ""
    return f"{prefix}{metric.name}{blank}{operator}{blank}{number}{blank}{unit}{tail}"


@given(texts())
def test_a_threshold_s_own_text_means_the_same(text):
    """A threshold's own text is parsed to the same threshold."""
    threshold = Threshold.parse(text)
    assert Threshold.parse(str(threshold)) == threshold
    assert str(Threshold.parse(str(threshold))) == str(threshold)


@given(st.one_of(st.text(), texts().flatmap(lambda t: st.permutations(t.split()).map(" ".join))))
def test_any_text_is_a_threshold_or_one_line(text):
    """Whatever is written, there is a finite limit or one line that repeats what was written."""
    threshold, said = None, ""
    try:
        threshold = Threshold.parse(text)
    except ConfigurationError as error:
        said = str(error)
    if threshold is None:
        assert len(said.splitlines()) == 1
        assert said.startswith(f"threshold {text!r}: ")
    else:
        assert math.isfinite(threshold.limit)
        assert threshold.limit >= 0
        assert threshold.delay_s >= 0


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("http.p95 < 200", 200),
        ("http.p95<200ms", 200),
        ("http.p95 < 0.2s", 200),
        ("http.p95 < 0.2 s", 200),
        ("http.p99.9 < 1.1s", 1100),
        ("http.p50 < 250us", 0.25),
        ("http.max < 1min", 60_000),
        ("http.errors < 0.1%", 0.001),
        ("http.errors < 57%", 0.57),
        ("http.errors == 0", 0),
        ("http.errors <= 0%", 0),
        ("http.rate > 1e3", 1000),
        ("http.rate > 50/s", 50),
        ("db.connections.share <= 80%", 0.8),
        ("db.opened_per_request < .1", 0.1),
        ("db.left_over == 0", 0),
        ("db.opened <= -0", 0),
    ],
)
def test_a_limit_is_in_the_unit_of_its_metric(text, limit):
    """Milliseconds, a share from 0 to 1, per second, or a number; without rounding errors."""
    assert Threshold.parse(text).limit == limit


def test_all_of_its_parts():
    """They are its targets, metric, operator, limit and when it may abort."""
    threshold = Threshold.parse("lambda, web: db.connections.max < 80 abort after 1m30s")
    assert threshold.targets == ("lambda", "web")
    assert (threshold.metric, threshold.operator) == ("db.connections.max", "<")
    assert threshold.limit == 80
    assert (threshold.abort, threshold.delay_s) == (True, 90)
    assert str(threshold) == "lambda,web: db.connections.max < 80 abort after 90s"
    assert threshold.expression == "db.connections.max < 80"


def test_abort_alone_is_at_once():
    """Without "after" there is no delay."""
    threshold = Threshold.parse("http.errors < 5% abort")
    assert (threshold.abort, threshold.delay_s) == (True, 0)
    assert Threshold.parse("http.errors < 5%").abort is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http.p96 < 5", "'http.p96' is not a metric; did you mean http.p99?"),
        ("HTTP.P95 < 5", "'HTTP.P95' is not a metric; did you mean http.p95?"),
        ("http.error < 5%", "did you mean http.errors?"),
        ("db.connections < 5", "did you mean db.connections.max?"),
        ("latency < 5", "'latency' is not a metric; there are: http.p50, "),
        ("http.p95 = 5", "'=' is not an operator; did you mean ==?"),
        ("http.p95 =< 5", "'=<' is not an operator; did you mean <=?"),
        ("http.p95 ≤ 5", "'≤' is not an operator; did you mean <=?"),
        ("http.p95 != 5", "'!=' is not an operator; there are: < <= > >= =="),
        ("http.p95 under 5", "'under' is not an operator; did you mean <?"),
        ("http.p95 200", "an operator is missing after http.p95; in a shell, quote it"),
        ("http.p95", "an operator is missing after http.p95; in a shell, quote it"),
        ("http.p95 <", "the limit is missing after <"),
        ("http.p95 < abort", "the limit is missing after <"),
        ("< 200", "the metric is missing before <; there are: "),
        ("", "nothing to check; wanted as in 'http.p95 < 200'"),
        ("web:", "nothing to check"),
        (": http.p95 < 5", "'' is not a target's name"),
        ("web,,lambda: http.p95 < 5", "'' is not a target's name"),
        ("my web: http.p95 < 5", "'my web' is not a target's name"),
        ("http.p95 < fast", "'fast' is not a number"),
        ("http.p95 < ٣", "'٣' is not a number"),
        ("http.p95 < nan", "nan is not a limit"),
        ("http.p95 < inf", "inf is not a limit"),
        ("http.p95 < 1e999", "1e999 is too large for a limit"),
        ("http.p95 < -5", "no figure is below 0, so -5 is not a limit"),
        ("http.p95 < 0", "no figure is below 0; did you mean == 0?"),
        (
            "http.p95 < 5%",
            "'%' is not a unit of http.p95 (latency that 95 % do not exceed); wanted us, ms, s, min",
        ),
        ("db.opened < 5ms", "(connections opened); wanted a number without a unit"),
        ("http.rate > 5 rps", "'rps' is not a unit of http.rate"),
        ("http.errors < 5ms", "wanted %"),
        ("http.errors < 0.5", "http.errors is a share, so write 0.5% or 50%"),
        ("http.errors < 5", "http.errors is a share, so write 5%"),
        ("http.errors < 101%", "a share is at most 100%, so < 101% always holds"),
        ("http.errors > 100%", "a share is at most 100%, so > 100% never holds"),
        ("http.p95 == 200", "http.p95 is hardly ever exactly 200 ms; write <= or >="),
        ("http.errors == 1%", "http.errors is hardly ever exactly 1%; write <= or >="),
        ("db.opened == 2.5", "db.opened is a whole number and never 2.5"),
        ("http.p95 < 5 after 10s", "'after 10s' must follow abort, as in 'abort after 10s'"),
        ("http.p95 < 5 abort 10s", "'10s' is not expected after abort"),
        ("http.p95 < 5 abort after", "the time is missing after 'abort after'"),
        ("http.p95 < 5 abort after 10", "'10' is not a time; wanted a number and ms, s, m or h"),
        ("http.p95 < 5 abort after -1s", "'-1s' is not a time"),
        ("db.left_over == 0 abort", "db.left_over is known only when the run has ended"),
        ("http.requests > 9 abort after 10s", "http.requests grows until the end, so > is decided"),
    ],
)
def test_a_mistake_is_one_line(text, said):
    """The line has the threshold, what is wrong with it, and what to write."""
    with pytest.raises(ConfigurationError) as raised:
        Threshold.parse(text)
    assert said in str(raised.value)
    assert repr(text) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["http.errors <= 100%", "http.p95 >= 0"])
def test_a_limit_that_everything_holds_is_allowed(text):
    """So a command line can take back what the project wants."""
    assert Threshold.parse(text).limit >= 0


def test_a_text_with_line_ends_is_one_line():
    """What was written is repeated as Python writes it."""
    message = r"^threshold 'http.p95\\n<': the limit is missing"
    with pytest.raises(ConfigurationError, match=message):
        Threshold.parse("http.p95\n<")


# -- verdicts -------------------------------------------------------------------------------


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
    """The operator decides exactly; the status without a number is unknown."""
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
    """The first threshold that fails and may abort ends the run, but not before its time."""
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
def test_an_unmeasured_figure_does_not_pass(text, value, status):
    """A full server refuses the watching role too; counters go on without samples."""
    threshold = Threshold.parse(text)
    verdicts = [check(threshold, "web", {threshold.metric: value})]
    (verdict,) = with_unseen(verdicts, 7.0)
    assert verdict.status == status
    if status == "unknown":
        assert "is not known (the server could not be asked for 7 s)" in verdict.message
    assert with_unseen(verdicts, 1.0) == tuple(verdicts), "a moment is forgiven"
