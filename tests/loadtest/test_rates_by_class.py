"""A rate of its own for each user class: parsed, refused where it cannot be, and sent."""

import pytest
from loadtest.conftest import PATIENT

from poolkit.errors import ConfigurationError
from poolkit.loadtest.open_loop.arrivals import ArrivalRate

CLASSES = """
from locust import FastHttpUser, task
from poolkit import loadtest

loadtest.register()

class Reader(FastHttpUser):
    @task
    def read(self):
        self.client.get("/", name="read")

class Writer(FastHttpUser):
    weight = 3

    @task
    def write(self):
        self.client.get("/", name="write")

class Admin(FastHttpUser):
    fixed_count = 1

    @task
    def look(self):
        self.client.get("/", name="look")
        self.wait()

    def wait_time(self):
        return 0.1
"""


def test_the_rate_of_all_classes_is_their_sum():
    """What is sent to a worker, and shown, has the rate of each."""
    rate = ArrivalRate.parse("Reader=50, Writer=2.5", "poisson")
    assert rate.at(0) == 52.5
    assert (rate.kind, rate.is_plain) == ("poisson", False)
    assert str(rate) == "Reader=50,Writer=2.5"
    assert ArrivalRate.from_message(rate.to_message()) == rate
    assert ArrivalRate.parse("50").is_plain


@pytest.mark.parametrize(
    "text",
    [
        "Reader=",
        "Reader=0",
        "Reader=-1",
        "Reader=fast",
        "=5",
        "Reader=5,5",
        "Reader=1,Reader=2",
        "Reader=1..5/1m",
        "Reader=nan",
        "Reader=inf",
    ],
)
def test_what_is_no_rate_of_a_class_is_refused(text):
    """With the part that is wrong, and an example."""
    with pytest.raises(ConfigurationError, match=r"is no rate of a user class.*Reader=50,Writer=5"):
        ArrivalRate.parse(text)


@pytest.fixture
def load(locust, tmp_path):
    """A function that starts a test with a rate for each class."""
    file = tmp_path / "classes.py"
    file.write_text(CLASSES + PATIENT)

    def start(rates, *arguments):
        at = ("--arrival-rate", rates, "--users", "4", "--run-time", "10m")
        out = ("--json-file", "result", "--stop-timeout", "60")
        return locust("-f", str(file), "--headless", *at, *out, *arguments)

    return start


@pytest.mark.process
@pytest.mark.parametrize(
    ("rates", "reason"),
    [
        ("Reader=5", "has no rate for Writer"),
        pytest.param(
            "Reader=5,Writer=5,Clerk=1",
            "has a rate for Clerk, which is no user class",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "Reader=5,Writer=5,Admin=1",
            "has a rate for Admin, but its fixed_count",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rate_for_other_classes_than_the_test_has_is_refused(load, rates, reason):
    """Before the load, in one line and with exit status 2."""
    run = load(rates)
    assert run.wait() == 2, run.text
    assert reason in run.text
    assert "Traceback" not in run.text


@pytest.mark.process
@pytest.mark.parametrize(
    "processes", [(), pytest.param(("--processes", "2"), marks=pytest.mark.slow)]
)
def test_each_class_has_its_rate_whatever_its_weight(load, server, master_port, processes):
    """Four of five arrivals are the reader's, though the writer has more users."""
    run = load("Reader=32,Writer=8", *processes, *(master_port if processes else ()))
    run.wait_until(lambda: len(server.moments) > 120)
    assert run.stop() in (0, 1), run.text
    document = run.document()
    requests = {row["name"]: row["requests"] for row in document["latency_ms"]}
    counts = document["load"]
    assert requests["read"] == pytest.approx(4 * requests["write"], abs=8 + 4 * counts["unsent"])
    assert requests["look"] > 0
    assert "Open loop, Reader=32,Writer=8 constant: " in run.text
