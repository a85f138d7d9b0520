"""The document of an open page: what it costs the process that sends the load."""

import json
import math
from types import SimpleNamespace

import gevent
import pytest

from poolkit.loadtest.figures import MetricAccumulator
from poolkit.loadtest.latency.connects import ClientConnects
from poolkit.loadtest.latency.counters import Latencies, Name
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.recording import Series
from poolkit.loadtest.web_pages import MOST_NAMES, LiveDocument

NAMES = 8


class CountedLatencies(Latencies):
    """Counts the walks through the names."""

    def __init__(self):
        super().__init__()
        self.looked = 0

    def names(self, *args, **kwargs):
        self.looked += 1
        return super().names(*args, **kwargs)


@pytest.fixture
def recording():
    """A run of some names, a thousand requests each."""
    latencies = CountedLatencies()
    for number in range(NAMES):
        for ms in range(1000):
            latencies.record("GET", f"/{number}", ms + number)
    empty = {"note": None, "limits": None, "series": Series(), "lost": [], "loop": LoopReport}
    empty |= {"client": ClientConnects, "limit": lambda: None}
    measured = MetricAccumulator()
    return SimpleNamespace(latencies=latencies, started=1.0, measured=measured, **empty)


@pytest.fixture(autouse=True)
def no_time_passes(monkeypatch):
    """Have nothing get old, however slow the machine is."""
    monkeypatch.setattr("poolkit.loadtest.web_pages.EVERY_S", 3600.0)
    monkeypatch.setattr("poolkit.loadtest.web_pages.NAMES_EVERY_S", 3600.0)


@pytest.fixture
def checked():
    """Thresholds that count how often a run was held to them."""
    checks = SimpleNamespace(times=0, target="")

    def so_far():
        checks.times += 1
        return ()

    checks.so_far = so_far
    return checks


def test_it_is_made_once_for_all_who_look(recording, checked):
    """Ten pages cost no more than one, and all show the same."""
    live = LiveDocument(recording, checked)
    asking = [gevent.spawn(live.json) for _ in range(10)]
    gevent.joinall(asking, timeout=60, raise_error=True)
    (found,) = {one.value for one in asking}
    requests = [row["requests"] for row in json.loads(found)["latency_ms"]]
    assert requests == [*[1000] * NAMES, 1000 * NAMES]
    assert (recording.latencies.looked, checked.times) == (1, 1)


def test_the_load_goes_on_while_it_is_made(recording, checked):
    """The rows of thousands of names are made in a thread, so other greenlets run meanwhile."""
    for number in range(4000):
        recording.latencies.record("GET", f"/item/{number}", 1.0)
    live = LiveDocument(recording, checked)
    making = gevent.spawn(live.json)
    turns = 0
    while not making.ready():
        turns += 1
        gevent.sleep(0)
    # Other parts pause four times: each further turn was taken while the thread computed.
    assert turns > 50
    found = json.loads(making.value)["latency_ms"]
    assert len(found) == MOST_NAMES + 1
    assert {"/0", "/7"} < {row["name"] for row in found}, "those with the most requests"


def test_names_are_gone_through_less_often(recording, checked):
    """The rest is a second old at most."""
    live = LiveDocument(recording, checked)
    live.json()
    live._encoded_at = -math.inf  # as if a second had passed, which is not waited for
    recording.latencies.record("GET", "/0", 5.0)
    rows = json.loads(live.json())["latency_ms"]
    assert (rows[0]["requests"], rows[-1]["requests"]) == (1000, 1000 * NAMES + 1)
    assert recording.latencies.looked == 1


def test_a_new_test_and_a_report_show_nothing_old(recording, checked):
    """The cache is of this test, and a downloaded report is of this moment."""
    live = LiveDocument(recording, checked)
    live.json()
    recording.latencies.record("GET", "/0", 5.0)
    assert live.now()["latency_ms"][0]["requests"] == 1001
    recording.started, recording.latencies = 2.0, CountedLatencies()
    (only,) = json.loads(live.json())["latency_ms"]
    assert (only["name"], only["requests"]) == ("Aggregated", 0)


def test_sums_that_are_kept_are_those_that_are_added_up():
    """A run adds second to second, and knows all names' latencies without going through them."""
    run, added_up = Latencies(), Latencies()
    for second in range(5):
        one = Latencies()
        for number in range(1000):
            outcome = "failed" if number % 7 == 0 else "answered"
            request = ("GET", f"/{number % 300}", second * number)
            one.record(*request, outcome=outcome)
            added_up.record(*request, outcome=outcome)
        # In parts, between which users run.
        assert sum(1 for _ in run.add_in_parts(one)) >= 1
    assert run == added_up
    assert run.total() == added_up.total()
    assert run.of(Name("GET", "/3")) == added_up.of(Name("GET", "/3"))
