"""Locust with a host that is not this machine: refused at the command line and on its page."""

import urllib.request

import pytest
from loadtest.browser import chromium
from loadtest.conftest import PATIENT
from programs import needs_chromium

pytestmark = pytest.mark.process

# Reserved for documentation (RFC 5737): no machine has it.
ELSEWHERE = "https://192.0.2.1"


SILENT = """
from pathlib import Path
from locust import User, constant, task
from poolkit import loadtest

loadtest.register()


class Silent(User):
    wait_time = constant(0.1)

    @task
    def nothing_is_sent(self):
        Path("began").touch()
"""


@pytest.mark.slow
def test_a_worker_s_processes_load_what_their_master_loads(locust, tmp_path, free_port):
    """The host was agreed to where the master was started; workers need no option."""
    (tmp_path / "silent.py").write_text(SILENT + PATIENT)
    port, file = str(free_port()), ("-f", str(tmp_path / "silent.py"))
    run = locust(
        *(*file, "--headless", "--master", "--master-bind-port", port, "--run-time", "10m"),
        *("--host", ELSEWHERE, "--yes-load-this-host", "--expect-workers", "2"),
    )
    worker = locust(*file, "--host", "", "--worker", "--master-port", port, "--processes", "2")
    run.wait_until((tmp_path / "began").exists)
    assert run.stop() == 0, run.text
    worker.wait()


@pytest.fixture
def page_of(locust, free_port):
    """A function that starts Locust with its page; no test runs yet."""

    def start(*arguments):
        port = free_port()
        run = locust("--web-host", "127.0.0.1", "--web-port", str(port), *arguments)
        run.address = f"http://127.0.0.1:{port}"
        run.wait_for("Starting web interface")
        return run

    return start


def answers(run):
    try:
        with urllib.request.urlopen(run.address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_a_host_that_was_agreed_to_is_taken(page_of):
    """Nothing is sent before a test is started."""
    run = page_of("--host", ELSEWHERE, "--yes-load-this-host")
    run.wait_until(lambda: answers(run))


@pytest.mark.slow
@needs_chromium
def test_the_page_shows_why(page_of, tmp_path):
    """A person who types another host reads the line beside the form."""
    run = page_of("--host", "")
    run.wait_until(lambda: answers(run))
    with chromium() as page:
        page.open(run.address)
        page.wait_for("!!document.querySelector('input[name=host]')")
        page.evaluate("document.querySelector('input[name=host]').focus()")
        page.call("Input.insertText", text=ELSEWHERE)
        page.evaluate("document.querySelector('button[type=submit]').click()")
        page.wait_for("document.body.innerText.includes('192.0.2.1 is not this machine')")
        page.picture(tmp_path / "refused.png")
