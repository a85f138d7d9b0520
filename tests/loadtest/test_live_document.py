"""The document of an open page: what it costs the process that sends the load."""

import json
import math
from types import SimpleNamespace

import gevent
import pytest

from poolkit.loadtest.figures import MetricAccumulator
from poolkit.loadtest.latency.counters import Latencies, RunLatencies
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.loadtest.recording import Series
from poolkit.loadtest.web_pages import LiveDocument

NAMES = 8


class CountedLatencies(RunLatencies):
    """Counts the walks through the latencies of a name."""

    def __init__(self):
        super().__init__()
        self.looked = 0

    def ended(self, outcome, name=None):
        self.looked += outcome == "answered" and name is not None
        return super().ended(outcome, name)


@pytest.fixture
def recording():
    """A run of some names, a thousand requests each."""
    latencies = CountedLatencies()
    for number in range(NAMES):
        for ms in range(1000):
            latencies.record("GET", f"/{number}", ms + number)
    empty = {"note": None, "limits": None, "series": Series(), "lost": [], "loop": LoopReport}
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
    checks = SimpleNamespace(times=0)

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
    assert (recording.latencies.looked, checked.times) == (NAMES, 1)


def test_the_load_goes_on_while_it_is_made(recording, checked):
    """Between any two names others have their turn, and so they have before the whole is encoded."""
    live = LiveDocument(recording, checked)
    making = gevent.spawn(live.json)
    seen = []
    while not making.ready():
        seen.append(recording.latencies.looked)
        gevent.sleep(0)
    assert set(range(1, NAMES + 1)) <= set(seen)


def test_names_are_gone_through_less_often(recording, checked):
    """The rest is a second old at most."""
    live = LiveDocument(recording, checked)
    live.json()
    live._encoded_at = -math.inf  # as if a second had passed, which is not waited for
    recording.latencies.record("GET", "/0", 5.0)
    rows = json.loads(live.json())["latency_ms"]
    assert (rows[0]["requests"], rows[-1]["requests"]) == (1000, 1000 * NAMES + 1)
    assert recording.latencies.looked == NAMES


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
    run, added_up = RunLatencies(), Latencies()
    for second in range(5):
        one = Latencies()
        for number in range(100):
            outcome = "failed" if number % 7 == 0 else "answered"
            one.record("GET", f"/{number % 3}", second * number, outcome=outcome)
        run.add(one)
        added_up.add(one)
    run.record("POST", "/", 77.0)
    added_up.record("POST", "/", 77.0)
    for outcome in ("answered", "failed"):
        assert run.ended(outcome) == added_up.ended(outcome)
    for name in added_up.names():
        assert run.ended("answered", name) == added_up.ended("answered", name)
    run.ended("answered").record(1.0)
    assert run.ended("answered") == added_up.ended("answered"), "what is handed out is a copy"
