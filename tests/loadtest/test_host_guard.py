"""Locust with a host that is not this machine: refused at the command line and on its page."""

import json
import urllib.parse
import urllib.request

import pytest
from loadtest.browser import PROGRAM, chromium

pytestmark = pytest.mark.process

# Reserved for documentation (RFC 5737): nobody is there.
ELSEWHERE = "https://192.0.2.1"


@pytest.mark.parametrize("how", [(), ("--headless",), ("--headless", "--processes", "2")])
def test_a_host_elsewhere_is_refused_in_one_line(locust, free_port, how):
    """With status 2, before anything is sent, with a web page and without."""
    port = str(free_port())
    run = locust("--host", ELSEWHERE, "--master-bind-port", port, "--master-port", port, *how)
    assert run.wait() == 2, run.said
    assert_one_line(run, "--host: 192.0.2.1 is not this machine")


def test_a_host_that_does_not_resolve_is_refused_in_one_line(locust):
    """Also when it was agreed to."""
    run = locust("--host", "http://no-such-host.invalid", "--headless", "--yes-load-this-host")
    assert run.wait() == 2, run.said
    assert_one_line(run, "--host: no-such-host.invalid does not resolve")


@pytest.mark.parametrize("processes", [(), ("--processes", "2")])
def test_the_host_of_a_user_class_is_checked_too(locust, tmp_path, free_port, processes):
    """It counts where no --host is given; no process stays behind and waits for its master."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(f"\n    host = {ELSEWHERE!r}\n")
    port = str(free_port())
    ports = ("--master-bind-port", port, "--master-port", port)
    run = locust("--headless", "--host", "", *ports, *processes)
    assert run.wait() == 2, run.said
    run.wait_for_no_process(port)
    assert_one_line(run, "192.0.2.1 is not this machine")


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
def test_the_processes_of_a_worker_load_what_their_master_was_told_to(locust, tmp_path, free_port):
    """Who starts the master has agreed; nobody is asked again on every other machine."""
    (tmp_path / "silent.py").write_text(SILENT)
    port, file = str(free_port()), ("-f", str(tmp_path / "silent.py"))
    run = locust(
        *(*file, "--headless", "--master", "--master-bind-port", port, "--run-time", "10m"),
        *("--host", ELSEWHERE, "--yes-load-this-host", "--expect-workers", "2"),
    )
    worker = locust(*file, "--host", "", "--worker", "--master-port", port, "--processes", "2")
    run.wait_until((tmp_path / "began").exists)
    assert run.stop() == 0, run.said
    worker.wait()


def assert_one_line(run, words):
    lines = [line for line in run.said.splitlines() if "/INFO/" not in line]
    assert len(lines) == 1, run.said
    assert words in lines[0]


@pytest.fixture
def page_of(locust, free_port):
    """Give a function that opens Locust's page; no test runs yet."""

    def start(*arguments):
        port = free_port()
        run = locust("--web-host", "127.0.0.1", "--web-port", str(port), *arguments)
        run.address = f"http://127.0.0.1:{port}"
        run.wait_for("Starting web interface")
        return run

    return start


def swarm(run, host):
    form = {"user_count": 1, "spawn_rate": 1, "host": host, "yes_load_this_host": "true"}
    data = urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(f"{run.address}/swarm", data, timeout=60) as answer:
        return json.load(answer)


def test_a_host_from_the_form_is_checked(page_of, server):
    """Locust's page gets the reason; the form cannot agree; the next host may be a good one."""
    run = page_of()
    run.wait_until(lambda: answers(run))
    refused = swarm(run, ELSEWHERE)
    assert refused["success"] is False
    assert "192.0.2.1 is not this machine" in refused["message"]
    assert server.moments == []
    assert swarm(run, server.url)["success"] is True
    run.wait_until(lambda: server.moments)
    assert "Traceback" not in run.said


def answers(run):
    try:
        with urllib.request.urlopen(run.address, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_a_host_that_was_agreed_to_is_taken(page_of):
    """Nothing is sent before a test is started."""
    run = page_of("--host", ELSEWHERE, "--yes-load-this-host")
    run.wait_until(lambda: answers(run))


LATER = """
from locust import events


@events.init.add_listener
def change(environment, **_):
    environment.host = "https://192.0.2.1"
"""


def test_a_host_that_changed_meanwhile_is_refused_when_the_test_starts(locust, tmp_path, server):
    """Whoever changed it: nothing is sent."""
    with (tmp_path / "visitors.py").open("a") as file:
        file.write(LATER)
    run = locust("--headless", "--run-time", "10m")
    assert run.wait() == 2, run.said
    assert "192.0.2.1 is not this machine" in run.said
    assert "Traceback" not in run.said
    assert server.moments == []


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="chromium is not on PATH")
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
