"""What an experiment works with, and what it leaves behind."""

import resource
import socket
import time
from threading import get_ident
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


def test_a_rate_counts_the_calls_of_all_threads(lab):
    """Four threads call at the same time, and the calls are divided by the time they took."""
    running, most, calls = set(), [0], []

    def call():
        running.add(get_ident())
        most[0] = max(most[0], len(running))
        time.sleep(0.02)
        running.discard(get_ident())
        calls.append(1)

    rate = lab.rate(call, threads=4, seconds=0.3)
    assert most == [4]
    assert 0 < rate <= len(calls) / 0.3


def test_a_call_that_fails_ends_the_rate(lab):
    """The error of a thread is not lost."""
    with pytest.raises(ZeroDivisionError):
        lab.rate(lambda: 1 / 0, threads=2, seconds=0.1)


def test_more_open_files_are_allowed_until_the_end(ground, servers_folder):
    """The limit of this process is as before when the experiment has ended."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        with (
            ground.place("lab") as place,
            Lab(place, folder=servers_folder, distance=Distance(), say=print) as lab,
        ):
            lab.allow_open_files(300)
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
            lab.allow_open_files(100)
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
