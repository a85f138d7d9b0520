"""Thresholds about the requests of one name or tag: how they are written, and which requests count."""

from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.errors import ConfigurationError
from poolkit.loadtest.figures import MetricAccumulator, why_not_selected
from poolkit.thresholds import (
    Threshold,
    check,
    check_without_tags,
    github_annotations,
    junit,
    thresholds_of,
)
from poolkit.thresholds.selector import Selector

HOSTILE = 'GET /a"b\\c{x}: <abort> after 10s, 100%\tï'


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('http.p95{name="GET /articles"} < 200', "name", "GET /articles"),
        ("http.p95{name='GET /articles'}<200ms", "name", "GET /articles"),
        ('web: http.errors{ tag = "write" } < 1% abort after 10s', "tag", "write"),
        (r'http.p95 {name="a \"b\" \\c"} < 200', "name", r'a "b" \c'),
        ('http.p95{name="x: y < 3 abort after 1s"} < 200', "name", "x: y < 3 abort after 1s"),
        ('http.p95{name="two  spaces"} < 200', "name", "two  spaces"),
    ],
)
def test_a_name_or_tag_stands_in_quotes_behind_the_metric(text, key, value):
    """Every other sign of the grammar may be in a name."""
    found = Threshold.parse(text)
    assert found.selector == Selector(key, value)
    assert Threshold.parse(str(found)) == found


@given(name=st.text(min_size=1).filter(str.strip))
def test_any_name_can_be_written(name):
    """With the two escapes, whatever it has in it."""
    written = str(Selector("name", name))
    assert Threshold.parse(f"http.p95{written} < 200").selector == Selector("name", name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http.p95{name=GET /articles} < 200", "is not a name or tag; wanted as in"),
        ('http.p95{name="GET /articles} < 200', "is not a name or tag; wanted as in"),
        ('http.p95{name="a",tag="b"} < 200', "is not a name or tag; wanted as in"),
        ('http.p95{nmae="a"} < 200', "'nmae' selects no requests"),
        ('http.p95{name=" "} < 200', "the name is empty"),
        ('{name="a"} < 200', "must follow the metric"),
        ('http.p95 < 200 {name="a"}', "must follow the metric"),
        ('db.opened{name="a"} < 200', "db.opened is not known by the name of a request"),
        ('http.p96{tag="a"} < 200', "'http.p96' is not a metric"),
    ],
)
def test_a_mistake_is_one_line(text, said):
    """It names the mistake, and how it is written."""
    with pytest.raises(ConfigurationError, match=r"^threshold .*") as caught:
        Threshold.parse(text)
    assert said in str(caught.value)


def test_one_for_a_name_does_not_replace_the_general_one():
    """The command line replaces those of the same name alone."""
    table = {"thresholds": ["http.p95 < 200", 'http.p95{name="a"} < 100', 'http.p95{tag="a"} < 9']}
    found = thresholds_of(table, ['http.p95{name="a"} < 300'])
    assert sorted(each.limit for each in found) == [9, 200, 300]


def accumulated(rows, *selectors):
    """Return the figures of rows: method, name, latency in ms, outcome."""
    measured = MetricAccumulator(0.0, 10.0)
    measured.select(selectors)
    for method, name, ms, outcome in rows:
        measured.add(1.0, 1.0 + ms / 1000, ms, outcome, method=method, name=name)
    return measured.figures(10.0)


ROWS = [
    ("GET", "/a", 10.0, "answered"),
    ("POST", "/a", 20.0, "failed"),
    ("GET", "/b", 900.0, "answered"),
]


@pytest.mark.parametrize(
    ("name", "requests", "errors", "longest"),
    [("GET /a", 1, 0.0, 10), ("/a", 2, 0.5, 10), ("POST /a", 1, 1.0, None), ("/b", 1, 0.0, 900)],
)
def test_a_name_counts_with_its_method_or_for_all_methods(name, requests, errors, longest):
    """And the figures of all requests stay the same."""
    selector = Selector("name", name)
    figures = accumulated(ROWS, selector)
    assert figures[f"http.requests{selector}"] == requests
    assert figures[f"http.errors{selector}"] == errors
    assert figures[f"http.max{selector}"] == (longest and pytest.approx(longest, rel=0.002))
    assert figures["http.requests"] == 3


@pytest.mark.parametrize(
    ("limit", "waited_ms", "status"),
    [
        ("http.max{name='/a'} < 100", 5000.0, "unknown"),
        ("http.errors{name='/a'} < 10%", 5000.0, "unknown"),
        ("http.max{name='/a'} < 100", 500.0, "passed"),
        ("http.max{name='/a'} < 5", 5000.0, "failed"),
    ],
)
def test_a_request_without_an_answer_may_be_of_any_name(limit, waited_ms, status):
    """It has no name, so a limit that it would break is not held; one of the last moment breaks none."""
    threshold = Threshold.parse(limit)
    rows = [("GET", "/a", 10.0, "answered"), ("", "", waited_ms, "timed_out")]
    assert check(threshold, "", accumulated(rows, threshold.selector)).status == status


def test_an_unknown_name_is_not_known_and_the_message_has_those_that_exist():
    """Unknown is not zero: a misspelt name must not pass."""
    thresholds = [
        Threshold.parse(f"http.errors{{name='{name}'}} < 1%") for name in ("/artcles", "x")
    ]
    reasons = why_not_selected(thresholds, [("GET", "/articles"), ("", "")])
    near, far = (check(each, "", {}, reasons=reasons) for each in thresholds)
    assert (near.status, near.ok) == ("unknown", False)
    assert 'no request has the name "/artcles"; did you mean "GET /articles"?' in near.message
    assert 'no request has the name "x"; there are: "GET /articles"' in far.message


def test_thousands_of_names_are_cut_short():
    """The message has the first ten, and the number of the others."""
    threshold = Threshold.parse("http.p95{name='x'} < 1")
    names = [("GET", f"/{number:04}") for number in range(4000)]
    (reason,) = why_not_selected([threshold], names).values()
    assert reason.endswith("and 3,990 more")
    assert reason.count("GET") == 10


def test_outputs_escape_a_name():
    """JUnit's XML and GitHub's annotations have it, whatever its signs."""
    threshold = Threshold.parse(f"http.p95{Selector('name', HOSTILE)} < 200")
    verdict = check(threshold, "web", {threshold.key: 243.0})
    case = ET.fromstring(junit([verdict], "run")).find(".//testcase")
    assert case.get("name") == threshold.expression
    (annotation,) = github_annotations([verdict])
    assert annotation.startswith("::error title=Threshold failed%3A web%3A http.p95{name=")
    assert annotation.count("\n") == 0
    assert "100%25" in annotation


def test_a_tag_is_refused_where_it_is_not_recorded():
    """The message says what to write instead."""
    with pytest.raises(ConfigurationError, match="only a Locust run records the tags"):
        check_without_tags([Threshold.parse("http.p95{tag='write'} < 1")])
