"""The text of a threshold: what it means, and what is said when it is none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.errors import ConfigurationError
from poolkit.thresholds import METRICS, Threshold

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
def test_what_it_says_of_itself_means_the_same(text):
    """A threshold's own text is one, and is read as the same."""
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
    """Targets, metric, operator, limit and when it may abort."""
    threshold = Threshold.parse("lambda, web: db.connections.max < 80 abort after 1m30s")
    assert threshold.targets == ("lambda", "web")
    assert (threshold.metric, threshold.operator, threshold.limit) == (
        "db.connections.max",
        "<",
        80,
    )
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
        ("http.p96 < 5", "'http.p96' is no metric; did you mean http.p99?"),
        ("HTTP.P95 < 5", "'HTTP.P95' is no metric; did you mean http.p95?"),
        ("http.error < 5%", "did you mean http.errors?"),
        ("db.connections < 5", "did you mean db.connections.max?"),
        ("latency < 5", "'latency' is no metric; there are: http.p50, "),
        ("http.p95 = 5", "'=' is no operator; did you mean ==?"),
        ("http.p95 =< 5", "'=<' is no operator; did you mean <=?"),
        ("http.p95 ≤ 5", "'≤' is no operator; did you mean <=?"),
        ("http.p95 != 5", "'!=' is no operator; there are: < <= > >= =="),
        ("http.p95 under 5", "'under' is no operator; did you mean <?"),
        ("http.p95 200", "an operator is missing after http.p95; in a shell, quote it"),
        ("http.p95", "an operator is missing after http.p95; in a shell, quote it"),
        ("http.p95 <", "the limit is missing after <"),
        ("http.p95 < abort", "the limit is missing after <"),
        ("< 200", "the metric is missing before <; there are: "),
        ("", "nothing to check; wanted as in 'http.p95 < 200'"),
        ("web:", "nothing to check"),
        (": http.p95 < 5", "'' is no name of a target"),
        ("web,,lambda: http.p95 < 5", "'' is no name of a target"),
        ("my web: http.p95 < 5", "'my web' is no name of a target"),
        ("http.p95 < fast", "'fast' is no number"),
        ("http.p95 < ٣", "'٣' is no number"),
        ("http.p95 < nan", "nan is no limit"),
        ("http.p95 < inf", "inf is no limit"),
        ("http.p95 < 1e999", "1e999 is too large for a limit"),
        ("http.p95 < -5", "nothing that is measured is below 0, so -5 is no limit"),
        ("http.p95 < 0", "nothing that is measured is below 0; did you mean == 0?"),
        (
            "http.p95 < 5%",
            "'%' is no unit of http.p95 (latency that 95 % do not exceed); wanted us, ms, s, min",
        ),
        ("db.opened < 5ms", "(connections opened); it takes a number alone"),
        ("http.rate > 5 rps", "'rps' is no unit of http.rate"),
        ("http.errors < 5ms", "wanted %"),
        ("http.errors < 0.5", "http.errors is a share, so write 0.5% or 50%"),
        ("http.errors < 5", "http.errors is a share, so write 5%"),
        ("http.errors < 101%", "a share is at most 100%, so < 101% says nothing"),
        ("http.errors > 100%", "a share is at most 100%, so > 100% says nothing"),
        ("http.p95 == 200", "http.p95 is hardly ever exactly 200 ms; write <= or >="),
        ("http.errors == 1%", "http.errors is hardly ever exactly 1%; write <= or >="),
        ("db.opened == 2.5", "db.opened is a whole number and never 2.5"),
        ("http.p95 < 5 after 10s", "'after 10s' belongs behind abort, as in 'abort after 10s'"),
        ("http.p95 < 5 abort 10s", "'10s' is not expected behind abort"),
        ("http.p95 < 5 abort after", "the time is missing behind 'abort after'"),
        ("http.p95 < 5 abort after 10", "'10' is no time; wanted a number and ms, s, m or h"),
        ("http.p95 < 5 abort after -1s", "'-1s' is no time"),
        ("db.left_over == 0 abort", "db.left_over is known only when the run has ended"),
        ("http.requests > 9 abort after 10s", "http.requests grows until the end, so > is decided"),
    ],
)
def test_a_mistake_is_one_line(text, said):
    """It says what is wrong with which threshold, and what to write."""
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
    with pytest.raises(
        ConfigurationError, match=r"^threshold 'http.p95\\n<': the limit is missing"
    ):
        Threshold.parse("http.p95\n<")
