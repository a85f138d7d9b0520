"""Which of several thresholds apply to a target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolkit.errors import ConfigurationError
from poolkit.thresholds import Threshold, check_targets, thresholds_of


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
    """What it says of one target leaves the others as they are."""
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


TEXTS = st.lists(
    st.builds(
        "{}http.p95 < {}".format,
        st.sampled_from(["", "a: ", "b: ", "a,b: ", "b,c: "]),
        st.integers(1, 5),
    ),
    max_size=5,
)


@given(TEXTS, TEXTS, st.sampled_from(["", "a", "b", "c", "d"]))
def test_a_target_has_the_thresholds_of_the_first_place_that_has_any(table, given_here, target):
    """Command line by name, command line for all, table by name, table for all."""
    found = thresholds_of({"thresholds": table}, given_here)
    places = [
        {
            t.limit
            for t in map(Threshold.parse, texts)
            if bool(t.targets) is by_name and t.applies_to(target)
        }
        for texts in (given_here, table)
        for by_name in (True, False)
    ]
    wanted = next((place for place in places if place), set())
    assert set(limits(found, target)) == wanted


@pytest.mark.parametrize(
    ("table", "given_here", "said"),
    [
        ({"thresholds": "http.p95 < 2"}, [], "thresholds must be a list of texts such as"),
        ({"thresholds": {"http.p95": 2}}, [], "thresholds must be a list of texts such as"),
        ({"thresholds": ["http.p95 < 2", 7]}, [], "thresholds, number 2, must be a text"),
        (
            {"thresholds": ["http.p95 < 2", "http.p95"]},
            [],
            "pyproject.toml: [tool.poolkit] thresholds, number 2: threshold 'http.p95': an operator",
        ),
        ({}, ["http.p9 < 1"], "--threshold: threshold 'http.p9 < 1': 'http.p9' is no metric; did"),
    ],
)
def test_a_mistake_says_where_it_stands(table, given_here, said):
    """The line of the table, or the option."""
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
def test_what_they_say_of_themselves_is_the_same_set(table, given_here):
    """So a run's folder can keep them as texts, without knowing which replaced which."""
    found = thresholds_of({"thresholds": table}, given_here)
    again = thresholds_of({"thresholds": [str(threshold) for threshold in found]})
    for target in ("", "a", "b", "c", "d"):
        assert limits(again, target) == limits(found, target)
