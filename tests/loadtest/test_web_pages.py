"""The page, the tab and the report, as a person sees them: in Chromium."""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from urllib.parse import urlsplit

import pytest
from loadtest.browser import chromium
from loadtest.conftest import LOCUSTFILE
from programs import needs_chromium
from prometheus_client.parser import text_string_to_metric_families

CHARTS = "document.querySelector('poolkit-connections')"
SHADOW = f"{CHARTS}.shadowRoot"
WEB_LINE = f"{SHADOW}.querySelector('path[data-series=web]').getAttribute('d')"
CONNECTIONS = f"{SHADOW}.querySelector('[aria-label=\"Connections by target\"]')"
REQUESTS_LINE = f"{SHADOW}.querySelector('path[data-series=requests]').getAttribute('d')"
VERDICT = (
    f"[...{SHADOW}.querySelectorAll('li')].map(v => `${{v.className}}: ${{v.innerText}}`).join()"
)


@pytest.fixture
def web_ui(locust, free_port):
    """A function that starts Locust with its web UI, and a test."""

    def start(*arguments, autostart=True, **variables):
        port = free_port()
        run = locust(
            *("--web-host", "127.0.0.1", "--web-port", str(port)),
            *(("--autostart",) if autostart else ()),
            *("--users", "2", "--spawn-rate", "10", *arguments),
            **variables,
        )
        run.address = f"http://127.0.0.1:{port}"
        run.wait_for("All users spawned" if autostart else "Starting web interface")
        run.wait_until(lambda: answers(run))
        return run

    return start


@pytest.fixture(scope="module")
def browser():
    """One Chromium for the tests of this file."""
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser):
    """The tab, light at first."""
    browser.dark(dark=False)
    yield browser
    browser.open("about:blank")


def get(address):
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode()


def answers(run):
    try:
        with urllib.request.urlopen(run.address, timeout=60):
            return True
    except urllib.error.HTTPError:
        return True  # nothing stands above a --web-base-path
    except OSError:
        return False


def rows_of_tab(run):
    """Return the rows by target; none for a second in which the database did not answer."""
    (table,) = json.loads(get(f"{run.address}/stats/requests"))["extended_stats"]
    return {row["name"]: row for row in table["data"]}


def json_of_page(run):
    """Return the document if the database answered in its last second, or nothing."""
    found = json.loads(get(f"{run.address}/connections.json"))
    return found if found["now"] else None


def swarm(run, host):
    """Start a test as the page's form does, and return Locust's answer."""
    form = {"user_count": 1, "spawn_rate": 1, "host": host, "yes_load_this_host": "true"}
    data = urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(f"{run.address}/swarm", data, timeout=60) as answer:
        return json.load(answer)


def test_the_pages_of_a_run(web_ui, server, database, held):
    """They are under --web-base-path; tab and JSON have the same targets; a host is checked."""
    held("web:1", 3)
    run = web_ui("--web-base-path", "/load", autostart=False, url=database.monitor_url(""))
    run.address += "/load"
    refused = swarm(run, "https://192.0.2.1")
    assert refused["success"] is False
    assert "192.0.2.1 is not this machine" in refused["message"]
    assert server.moments == []
    assert swarm(run, server.url)["success"] is True
    run.wait_until(lambda: server.moments)
    assert "poolkit-connections" in get(f"{run.address}/connections")
    assert "charts.js" in get(f"{run.address}/")
    rows = run.wait_until(lambda: rows_of_tab(run))
    assert rows["web"]["connections"] == 3
    assert rows["Aggregated"]["connections"] == 3
    found = run.wait_until(lambda: json_of_page(run))
    (web,) = found["now"]["targets"]
    assert (web["name"], web["connections"], web["instances"], web["idle"]) == ("web", 3, 1, 3)
    assert found["series"]["targets"]["web"][-1] == 3
    assert "poolkit-connections" in get(f"{run.address}/stats/report")
    scraped = list(text_string_to_metric_families(get(f"{run.address}/metrics")))
    (users,) = (one for one in scraped if one.name == "poolkit_load_users")
    assert [sample.value for sample in users.samples] == [1.0]
    assert "Traceback" not in run.text


OWN_METRICS = (
    LOCUSTFILE
    + """
from locust import events

@events.init.add_listener
def add_page(web_ui, **_):
    web_ui.app.route("/metrics")(lambda: "of the locustfile")
"""
)


@pytest.mark.process
def test_a_page_of_the_locustfile_named_metrics_remains_its_own(web_ui, tmp_path):
    """Many locustfiles have an exporter there; poolkit's is then on a port of its own."""
    file = tmp_path / "own.py"
    file.write_text(OWN_METRICS)
    run = web_ui("-f", str(file), autostart=False)
    assert get(f"{run.address}/metrics") == "of the locustfile"


def in_chromium(test):
    """Mark a test of what only a browser can tell."""
    missing = needs_chromium
    return pytest.mark.slow(missing(test))


@in_chromium
def test_the_chart_moves_with_the_connections(web_ui, database, held, page):
    """One more connection is in the figures, the legend and the line within seconds."""
    held("web:1", 3)
    run = web_ui("--threshold", "db.connections.max < 4", url=database.monitor_url(""))
    page.open(f"{run.address}/connections")
    # A figure is unknown after more than two seconds of a run without a sample.
    page.wait_for(f"/^(passed: db.connections.max is 3|unknown: .*), wanted < 4$/.test({VERDICT})")
    page.wait_for(f"{CONNECTIONS}.querySelector('tbody')?.innerText.includes('web')")
    _, before, requests = page.wait_for(shown_with(3))
    held("web:2")  # one: of two, the first could end one second and the second begin the next
    label, after, later = page.wait_for(shown_with(4))
    page.wait_for(f"{VERDICT} === 'failed: db.connections.max is 4, wanted < 4'")
    # The tests' own connection is to another database of this server.
    assert re.fullmatch(r"Connections by target: web 4, other databases [1-9]\d*", label)
    assert heights(before) == {heights(before).pop()}, "level as long as nothing happens"
    assert len(heights(after)) == 2, "and a step up"
    assert later != requests
    assert {urlsplit(asked).netloc for asked in page.requested} == {urlsplit(run.address).netloc}, (
        "nothing came from elsewhere"
    )


def shown_with(connections):
    """Return an expression for what is shown at once: the chart's label, and two of the lines."""
    label = f"{SHADOW}.querySelector('svg').getAttribute('aria-label')"
    figure = f"parseInt({SHADOW}.querySelector('dd').innerText)"
    others = f"parseInt({SHADOW}.querySelector('.others')?.innerText)"
    shown = f"{figure} - {others} === {connections}"
    return f"{shown} && [{label}, {WEB_LINE}, {REQUESTS_LINE}]"


@in_chromium
def test_the_page_is_light_or_dark_as_the_system_is(web_ui, database, page):
    """Text and paper change together."""
    run = web_ui(url=database.monitor_url(""))
    page.open(f"{run.address}/connections")
    page.wait_for(f"Number({CHARTS}.dataset.points) > 0")
    paper = "getComputedStyle(document.body).backgroundColor"
    ink = f"getComputedStyle({SHADOW}.querySelector('.all')).color"
    page.wait_for(f"{paper} === 'rgb(255, 255, 255)' && {ink} === 'rgb(31, 35, 40)'")
    page.dark(dark=True)
    page.wait_for(f"{paper} === 'rgb(13, 17, 23)' && {ink} === 'rgb(230, 237, 243)'")


@in_chromium
def test_locusts_own_page_has_a_tab_with_table_and_charts(web_ui, database, held, page):
    """They come and go with the tab, and follow Locust's own switch between light and dark."""
    held("web:1", 3)
    run = web_ui(url=database.monitor_url(""))
    page.open(f"{run.address}/?tab=stats")
    tab = "[...document.querySelectorAll('[role=tab]')].find(t => t.innerText.match(/{}/i))"
    page.wait_for(f"!!{tab.format('connections')}")
    assert page.evaluate(f"{CHARTS} === null") is True
    page.evaluate(f"{tab.format('connections')}.click()")
    page.wait_for("document.querySelector('table tbody')?.innerText.includes('web')")
    page.wait_for(f"{SHADOW}.querySelectorAll('path.line').length >= 4")
    assert page.evaluate(f"{CHARTS}.dataset.shade") == "light"
    page.evaluate("[...document.querySelectorAll('header button')].at(-1).click()")
    page.wait_for(f"{CHARTS}.dataset.shade === 'dark'")
    page.evaluate(f"{tab.format('statistics')}.click()")
    page.wait_for(f"{CHARTS} === null")


@in_chromium
def test_the_report_draws_its_charts_from_the_file_alone(locust, database, held, page):
    """Locust's report and the connections are one file that asks for nothing."""
    held("web:1", 3)
    words = ("--headless", "--users", "2", "--run-time", "10m", "--html", "report.html")
    run = locust(*words, "--csv", "run", url=database.monitor_url(""))
    run.wait_until(lambda: len(run.rows_of("web")) > 1)
    assert run.stop() == 0, run.text
    page.dark(dark=True)
    page.open(f"file://{run.folder}/report.html")
    page.wait_for(f"{SHADOW}.querySelectorAll('path.line').length >= 4")
    assert re.fullmatch(r"\d+ of 97", page.evaluate(f"{SHADOW}.querySelector('dd').innerText"))
    here = page.evaluate(f"{SHADOW}.querySelector('.others').innerText")
    assert here == "in this database 3"
    assert page.evaluate(f"{CHARTS}.dataset.shade") == "light", "as Locust's report, on white"
    assert page.evaluate(f"{CONNECTIONS}.querySelector('caption').innerText") == "At the end"
    assert [asked for asked in page.requested if not asked.startswith(("file:", "data:"))] == []


def heights(path):
    """Return the different heights of a line, which has a gap where nothing is known."""
    return set(re.findall(r"[ML][^,]*,([\d.]+)", path))


EXTENDED = """
import json
from flask import request
from locust import FastHttpUser, constant, events, task
from poolkit import loadtest

def extended(key):
    def extend(environment, web_ui, **_):
        tabs = web_ui.template_args.get("extended_tabs", [])
        web_ui.template_args["extended_tabs"] = [*tabs, {"title": key, "key": key}]

        @web_ui.app.after_request
        def extend_stats(response):
            if request.path == "/stats/requests":
                own = {"extended_stats": [{"key": key, "data": []}]}
                response.set_data(json.dumps({**response.json, **own}))
            return response

    return extend

events.init.add_listener(extended("before"))
loadtest.register()
"""
AFTER = """
def replace_tabs(web_ui, **_):
    web_ui.template_args["extended_tabs"] = [{"title": "after", "key": "after"}]

events.init.add_listener(replace_tabs)

class Visitor(FastHttpUser):
    wait_time = constant(0.05)

    @task
    def visit(self):
        self.client.get("/")
"""


@pytest.mark.process
def test_a_locustfile_extends_the_web_ui_as_without_poolkit(web_ui, tmp_path):
    """As Locust's own example does it, before and after poolkit: its tabs and rows stay."""
    (tmp_path / "extended.py").write_text(EXTENDED + AFTER)
    run = web_ui("-f", "extended.py")
    stats = json.loads(get(f"{run.address}/stats/requests"))["extended_stats"]
    assert [one["key"] for one in stats] == ["before", "connections"]
    (args,) = re.findall(r"window\.templateArgs = (.*?)\n", get(f"{run.address}/"))
    assert [f'"title": "{title}"' in args for title in ("after", "Connections")] == [True, True]
