"""The arrival rate in the form of Locust's page, as its Start and Edit buttons send it."""

import json
import re
import urllib.parse
import urllib.request

import pytest

pytestmark = pytest.mark.process


@pytest.fixture
def page(locust, free_port):
    """A function that starts Locust with its page; it has `post` and `document`."""

    def start(*arguments):
        port = free_port()
        run = locust("--web-host", "127.0.0.1", "--web-port", str(port), *arguments)
        run.address = f"http://127.0.0.1:{port}"
        run.wait_for("Starting web interface")
        run.wait_until(lambda: _answers(run))
        return run

    return start


def _get(run, path=""):
    with urllib.request.urlopen(f"{run.address}/{path}", timeout=60) as answer:
        return answer.read().decode()


def _answers(run):
    try:
        return bool(_get(run))
    except OSError:
        return False


def swarm(run, rate, **more):
    """Send the form, and return the answer."""
    form = {"user_count": 2, "spawn_rate": 10, "poolkit_arrival_rate": rate, **more}
    data = urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(f"{run.address}/swarm", data, timeout=60) as answer:
        return json.loads(answer.read())


def load(run):
    return json.loads(_get(run, "connections.json"))["load"]


def offered(run):
    """Return the value of the field in the page's form; None without the field."""
    (args,) = re.findall(r"window.templateArgs = (\{.*?\})\s*(?:;|</script>)", _get(run), re.DOTALL)
    field = json.loads(args)["extra_options"].get("poolkit_arrival_rate")
    return field and field["default_value"]


def test_a_test_is_started_with_a_rate_and_changed_while_it_runs(page):
    """Locust was started without one; an edit of the users alone leaves the rate as it is."""
    # A busy machine may leave an arrival at the end that was never sent, which is status 1 otherwise.
    run = page("--exit-code-on-error", "0")
    assert swarm(run, "5")["success"] is True
    run.wait_until(lambda: load(run)["arrivals"] > 3)
    assert (load(run)["loop"], load(run)["rate"]) == ("open", 5)
    assert swarm(run, "40")["success"] is True
    run.wait_until(lambda: load(run)["rate"] == 40)
    before = load(run)["arrivals"]
    run.wait_until(lambda: load(run)["arrivals"] > before + 20)
    assert swarm(run, "40", user_count=3)["success"] is True
    assert load(run)["rate"] == 40
    refused = swarm(run, "fast")
    assert refused["success"] is False
    assert "--arrival-rate is 'fast'" in refused["message"]
    assert "closed loop" in swarm(run, "")["message"]
    assert load(run)["rate"] == 40
    assert run.stop() == 0, run.text
    assert "Traceback" not in run.text


def test_without_a_rate_the_loop_is_a_closed_one_for_good(page):
    """The user classes of a process are changed for an open loop, so the first test decides."""
    run = page()
    assert swarm(run, "")["success"] is True
    run.wait_until(lambda: load(run)["loop"] == "closed")
    run.wait_until(lambda: json.loads(_get(run, "connections.json"))["latency_ms"][-1]["requests"])
    refused = swarm(run, "20")
    assert refused["success"] is False
    assert "restart it" in refused["message"]
    run.stop()
    assert "Traceback" not in run.text


def test_the_form_offers_the_rate_of_the_command_line(page):
    """A ramp ends the test, and the page stays."""
    run = page("--arrival-rate", "20/1s")
    assert offered(run) == "20/1s"
    assert swarm(run, "20/1s")["success"] is True
    run.wait_until(
        lambda: load(run)["arrivals"] == 20 and '"stopped"' in _get(run, "stats/requests")
    )
    assert swarm(run, "30/1s")["success"] is True
    run.wait_until(lambda: load(run)["arrivals"] == 30)
    run.stop()
    assert "Traceback" not in run.text


def test_a_search_for_the_limit_can_be_started_again(page):
    """Each test has a search of its own, and the rate of the form has no part in it."""
    run = page(
        *("--find-limit", "--arrival-rate", "5..10", "--find-limit-step", "1s"),
        # Holds whatever the machine does meanwhile: this is not about the limit.
        *("--threshold", "http.errors <= 100%"),
    )

    def document():
        return json.loads(_get(run, "connections.json"))

    def is_found(before):
        found = document()
        stopped = '"stopped"' in _get(run, "stats/requests")
        return stopped and found["started"] > before and found["limit"]["found"]

    for _ in range(2):
        before = document()["started"]
        assert swarm(run, "5")["success"] is True
        run.wait_until(lambda before=before: is_found(before))
        steps = document()["limit"]["steps"]
        assert [(one["per_s"], one["outcome"]) for one in steps] == [(5, "held"), (10, "held")]
    run.stop()
    assert "Traceback" not in run.text


@pytest.mark.slow
def test_workers_follow_the_rate_of_the_form(page, master_port):
    """The first one, and another one while the test runs."""
    run = page("--processes", "2", *master_port)
    run.wait_until(lambda: json.loads(_get(run, "stats/requests"))["workers"])
    assert swarm(run, "10")["success"] is True
    run.wait_until(lambda: load(run)["arrivals"] > 10)
    assert swarm(run, "60")["success"] is True
    before = load(run)["arrivals"]
    run.wait_until(lambda: load(run)["arrivals"] > before + 100)
    assert load(run)["rate"] == 60
    run.stop()
    assert "Traceback" not in run.text
