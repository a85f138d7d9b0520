"""The charts of a run as a browser draws them from a document, without a server."""

import re

import pytest
from loadtest.browser import chromium
from programs import needs_chromium

from poolkit.activity.by_target import STATES
from poolkit.loadtest.output import section

pytestmark = [
    pytest.mark.process,
    needs_chromium,
]

STARTED, POINTS = 1_795_809_600.25, 120
SHADOW = "document.querySelector('poolkit-connections').shadowRoot"
SLIDER = f"{SHADOW}.querySelector('input')"
CHART = f"{SHADOW}.querySelector('svg[aria-label^=\"{{}}\"]')"
LEGENDS = f"[...{SHADOW}.querySelectorAll('.legend')].map(one => one.innerText).join(' ')"
# The colours of every visible text, and of what it is drawn on.
COLOURS = f"""[...{SHADOW}.querySelectorAll('.all *')]
  .filter(one => one.checkVisibility() && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
  .map(one => {{
    const style = getComputedStyle(one);
    let on = one;
    while (on && getComputedStyle(on).backgroundColor === 'rgba(0, 0, 0, 0)') on = on.parentElement ?? on.getRootNode().host?.parentElement;
    return [one.namespaceURI.endsWith('svg') ? style.fill : style.color, getComputedStyle(on ?? document.body).backgroundColor];
  }})"""


def document():
    """Return the document of a run of two minutes, in which every second has figures of its own."""
    seconds = range(1, POINTS + 1)
    verdicts = ("passed", "failed", "unknown", "not applicable")
    row = {"requests": 900, "failures": 1, "mean": 5.0, "max": 60.0, "p99.9": 50.0}
    row |= dict.fromkeys(("p50", "p90", "p95", "p99"), 10.0)
    return {
        "started": STARTED,
        "partial": True,
        "note": None,
        "server": {"version": "18.1", "max_connections": 100, "usable": 97},
        "now": {
            "connections": 9,
            "other_databases": 0,
            "targets": [
                {
                    "name": "web",
                    "instances": 1,
                    "connections": 9,
                    "peak": 9,
                    **dict.fromkeys(STATES, 1),
                }
            ],
        },
        "run": {"peak": 9, "server_peak": 9, "mean": 4.0, "opened": 40},
        "load": {
            "loop": "open",
            "rate": 240,
            "kind": "constant",
            "arrivals": 9,
            "late": 1,
            "unsent": 1,
            "unanswered": 1,
            "saturated_by": "every user was waiting",
        },
        "thresholds": [{"status": each, "words": f"this has {each}"} for each in verdicts],
        "limit": {
            "found": True,
            "words": "limit: 20 requests/s",
            "steps": [
                {"per_s": 20.0, "outcome": "held", "reason": ""},
                {"per_s": 40.0, "outcome": "failed", "reason": "http.p95 is 9 s"},
            ],
        },
        "latency_ms": [
            {"method": "GET", "name": "/a/very/long/path/of/an/article/[id]", **row},
            {"method": "", "name": "Aggregated", **row},
        ],
        "lost": [],
        "step_s": 1,
        "series": {
            "time": [STARTED + second for second in seconds],
            "targets": {"web": [2 * second for second in seconds]},
            "states": {state: [second % 5 for second in seconds] for state in STATES},
            "other_databases": [0 for _ in seconds],
            "users": [1000 + second for second in seconds],
            "arrivals_per_s": list(seconds),
            "wanted_per_s": [2 * second for second in seconds],
            "requests_per_s": [3 * second for second in seconds],
            "failures_per_s": [0 for _ in seconds],
            **{
                f"{name}_ms": [n * s for s in seconds]
                for n, name in enumerate(("p50", "p95", "p99"), 4)
            },
        },
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with the charts of `document`, 1,280 pixels wide at first."""
    file = tmp_path_factory.mktemp("charts") / "page.html"
    head = '<meta name="viewport" content="width=device-width"><style>:root { color-scheme: light dark; } body { margin: 0; background: light-dark(#ffffff, #0d1117); }</style>'
    # As the system is, not as the page.
    charts = section(document()).replace(' theme="page"', "")
    file.write_text(f"<!doctype html><html><head>{head}</head><body>{charts}</body></html>")
    with chromium() as page:
        page.file = f"file://{file}"
        yield page


@pytest.fixture(autouse=True)
def opened(page):
    """The page, opened again: wide and light."""
    page.call("Emulation.clearDeviceMetricsOverride")
    page.dark(dark=False)
    page.open(page.file)
    page.wait_for(f"{SHADOW}.querySelectorAll('path.line').length >= 8")


def press(page, key):
    for event in ("keyDown", "keyUp"):
        page.call(
            "Input.dispatchKeyEvent", type=event, key=key, code=key, windowsVirtualKeyCode=KEYS[key]
        )


KEYS = {"ArrowLeft": 37, "Home": 36, "End": 35}


def shown_at(second):
    """Return the values of all charts at a second, as the legends have them."""
    users = f"{1000 + second:,}"
    latencies = (
        rf"{name}\s*{n * second}(\.0+)?" for n, name in enumerate(("p50", "p95", "p99"), 4)
    )
    figures = (
        rf"web\s*{2 * second}",
        rf"requests\s*{3 * second}",
        *latencies,
        rf"users\s*{users}",
        rf"begun\s*{second}",
        rf"wanted\s*{2 * second}",
    )
    return [re.compile(rf"\b{figure}\b") for figure in figures]


def assert_shown(page, second):
    text = page.evaluate(LEGENDS)
    assert [one.pattern for one in shown_at(second) if not one.search(text)] == [], text
    spoken = page.evaluate(f"{SLIDER}.getAttribute('aria-valuetext')")
    clock = page.evaluate(f"new Date({(STARTED + second) * 1000}).toLocaleTimeString()")
    assert clock in spoken
    assert f"users {1000 + second:,}" in spoken


def test_a_keyboard_moves_the_cursor_of_all_charts(page):
    """Every chart shows its values at that time, which is written and spoken beside them."""
    assert_shown(page, POINTS)
    page.evaluate(f"{SLIDER}.focus()")
    for _ in range(3):
        press(page, "ArrowLeft")
    assert_shown(page, POINTS - 3)
    assert f"1:{57:02} after the start" in page.evaluate(
        f"{SHADOW}.querySelector('output').innerText"
    )
    press(page, "Home")
    assert_shown(page, 1)
    page.evaluate(f"{SHADOW}.querySelector('.time button').click()")
    assert_shown(page, POINTS)


def test_a_pointer_moves_the_cursor_and_a_press_keeps_it(page):
    """The time under the pointer is shown while it is over a chart, and after a press or a tap."""
    page.evaluate(f"{CHART.format('Users')}.scrollIntoView()")
    box = page.evaluate(
        f"(box => [box.x, box.y, box.width])({CHART.format('Users')}.getBoundingClientRect())"
    )
    # The plot begins 48 pixels from the left and ends 12 pixels from the right.
    x = box[0] + 48 + (box[2] - 60) * 30 / POINTS
    here = {"x": x, "y": box[1] + 60}
    page.call("Input.dispatchMouseEvent", type="mouseMoved", **here)
    assert_shown(page, 30)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert_shown(page, POINTS)
    for event in ("mouseMoved", "mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=event, button="left", clickCount=1, **here)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert_shown(page, 30)


def test_the_axis_has_clock_times_from_the_start_of_the_test(page):
    """They are written as Locust's own charts write them: in the browser's zone and format."""
    moments = page.evaluate(
        f"[...{CHART.format('Users')}.querySelectorAll('.moment')].map(one => one.textContent)"
    )
    wanted = f"[30, 60, 90].map(s => new Date(({int(STARTED)} + s) * 1000).toLocaleTimeString())"
    assert moments[:3] == page.evaluate(wanted)
    first_point = page.evaluate(
        f"{CHART.format('Users')}.querySelector('path.line').getAttribute('d')"
    )
    assert float(first_point[1:].split(",")[0]) > 48, (
        "the first second is not the start of the test"
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_is_wider_than_a_phone_and_all_text_can_be_read(page, dark):
    """At 390 pixels only tables scroll; a text has a contrast of 4.5 or more to what it is on."""
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=390,
        height=900,
        deviceScaleFactor=1,
        mobile=True,
    )
    page.dark(dark=dark)
    page.open(page.file)
    page.wait_for(f"{SHADOW}.querySelectorAll('path.line').length >= 8")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    colours = page.evaluate(COLOURS)
    assert len(colours) > 60
    low = {(ink, paper) for ink, paper in colours if contrast(ink, paper) < 4.5}
    assert low == set()


def test_a_search_for_the_limit_has_its_result_and_its_steps(page):
    """Below the thresholds of a run, with the same marks."""
    shown = page.evaluate(
        f"[...{SHADOW}.querySelectorAll('.verdicts li')].map(one => `${{one.className}}: ${{one.innerText}}`)"
    )
    assert shown[-3:] == [
        "passed: limit: 20 requests/s",
        "passed: 20 tasks/s: held",
        "failed: 40 tasks/s: failed, http.p95 is 9 s",
    ]


def test_series_differ_in_more_than_their_colour(page):
    """Lines have strokes of their own, in the chart and its legend; a layer has its name inside."""
    strokes = f"[...{CHART.format('Latency')}.querySelectorAll('path.line')].map(one => one.getAttribute('stroke-dasharray'))"
    assert len(set(page.evaluate(strokes))) == 3
    swatches = f"[...{CHART.format('Latency')}.parentNode.querySelectorAll('.legend i')].map(one => one.style.borderTopStyle)"
    assert len(set(page.evaluate(swatches))) == 3
    layers = f"[...{CHART.format('Connections by target')}.querySelectorAll('.layer')].map(one => one.textContent)"
    assert page.evaluate(layers) == ["web"]


def test_headings_are_explained_under_their_table(page):
    """The text is on the page, not behind a pointer."""
    keys = page.evaluate(
        f"[...{SHADOW}.querySelectorAll('.key')].map(one => one.innerText).join(' ')"
    )
    assert {"p95:", "Peak:", "Instances:"} <= set(keys.split())


def contrast(first, second):
    """Return the contrast of two opaque colours, as WCAG 2.2 defines it."""
    light, dark = sorted(map(luminance, (first, second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    red, green, blue = (int(number) / 255 for number in re.findall(r"\d+", colour)[:3])
    linear = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    )
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
