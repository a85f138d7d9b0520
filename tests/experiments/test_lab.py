"""What an experiment works with, and what it leaves behind."""

import socket
import time
from urllib.request import urlopen

import psycopg2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from poolkit.experiment.experiment import find_experiments
from poolkit.experiment.lab import Lab
from poolkit.experiment.outcome import Status
from poolkit.experiment.run import Options, run_one
from poolkit.local.distance import Distance

pytestmark = pytest.mark.process

TEXT = '''"""An experiment that notes its end."""
from pathlib import Path
from poolkit.experiment import experiment

@experiment(question="Does it end?", rows=(), seconds=1)
def run(lab, *, file: str = "", fails: str = "") -> None:
    lab.at_end(Path(file).write_text, "ended")
    if fails:
        raise ValueError(fails)
'''


@pytest.fixture
def lab(ground, servers_folder):
    with (
        ground.place("lab") as place,
        Lab(place, folder=servers_folder, distance=Distance(), say=print) as made,
    ):
        yield made


@pytest.mark.parametrize(("fails", "status"), [("", Status.DONE), ("so", Status.FAILED)])
def test_what_an_experiment_opened_is_closed_at_its_end(
    ground, servers_folder, tmp_path, fails, status
):
    """Whether it raised or not."""
    (tmp_path / "chapter").mkdir()
    (tmp_path / "chapter" / "ends.py").write_text(TEXT)
    (made,) = find_experiments(tmp_path).values()
    changes = {"file": str(tmp_path / "end"), "fails": fails}
    options = Options(command="", changes=changes)
    outcome = run_one(made, ground, servers_folder, options, say=print)
    assert outcome.status is status
    assert (tmp_path / "end").read_text() == "ended"


def test_an_application_is_served_over_http_while_its_block_lasts(lab):
    """By a real server in this process, which has ended afterwards."""

    async def hello(request):
        return PlainTextResponse("hello")

    with (
        lab.serve(Starlette(routes=[Route("/", hello)])) as port,
        urlopen(f"http://127.0.0.1:{port}/", timeout=20) as response,
    ):
        assert response.read() == b"hello"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=20)


def test_backends_are_counted_when_their_ends_are_over(lab):
    """A close is counted, whether the server process is gone at once or not."""
    connection = psycopg2.connect(lab.dsn())
    assert lab.count_backends(1) == 1
    connection.close()
    assert lab.count_backends(0) == 0
    assert lab.count_backends(1, within_s=0.1) == 0


def test_a_rate_is_what_all_threads_do_in_a_second(lab):
    """Four clients with calls of 20 ms make up to 200 calls per second, one makes up to 50."""
    one = lab.rate(lambda: time.sleep(0.02), threads=1, seconds=0.3)
    four = lab.rate(lambda: time.sleep(0.02), threads=4, seconds=0.3)
    assert one <= 50
    assert 1.5 * one < four <= 200


def test_a_call_that_fails_ends_the_rate(lab):
    """The error of a thread is not lost."""
    with pytest.raises(ZeroDivisionError):
        lab.rate(lambda: 1 / 0, threads=2, seconds=0.1)
