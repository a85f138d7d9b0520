"""The additions to Locust's web UI: `/connections`, `/connections.json`, `/metrics`, a tab, a download.

The charts are one custom element, `<poolkit-connections>`, on a page, in Locust's tab and in its
report. connections.js draws them and requests nothing but the page's own server.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import gevent
from flask import Response, jsonify, request
from gevent.lock import RLock

from poolkit.activity.by_target import STATES
from poolkit.errors import ConfigurationError
from poolkit.loadtest.event_loop import InThread, pause_thread
from poolkit.loadtest.latency.report import row, rows_in_parts
from poolkit.loadtest.output import document, script, target_rows, with_section
from poolkit.loadtest.telemetry.prometheus import CONTENT_TYPE, Scrapes, can_write

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.web import WebUI

    from poolkit.loadtest.latency.counters import Latencies
    from poolkit.loadtest.preflight import HostGuard
    from poolkit.loadtest.recording import Recording
    from poolkit.loadtest.threshold_checks import ThresholdChecks

TAB = "connections"
EVERY_S = 1.0
"""There is a new point every second."""
NAMES_EVERY_S = 5.0
"""The percentiles of each name need most of the work, and hardly move after a while."""
MOST_NAMES = 500
"""More rows would make the page slow to draw."""
PAUSE_S = 0.01
"""Between two parts of the work, each of some milliseconds at most."""
LIVE_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Connections: Locust</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0; background: light-dark(#ffffff, #0d1117); }
main { max-width: 76rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
a { font: 14px system-ui, sans-serif; color: light-dark(#0969da, #6cb6ff); }
</style></head><body><main>
<a href="./">Locust</a>
<poolkit-connections src="connections.json"></poolkit-connections>
</main><script src="connections/charts.js"></script></body></html>
"""
_TAB_SCRIPTS = (
    '<script src="connections/charts.js"></script><script src="connections/tab.js"></script>'
)
_COLUMNS = {
    "name": "Target",
    "instances": "Instances",
    "connections": "Connections",
    **{state: state.replace("_", " ").capitalize() for state in STATES},
    "peak": "Peak",
}
_EXTENSIONS: dict[str, list[dict[str, Any]]] = {
    "extended_tabs": [{"title": "Connections", "key": TAB}],
    "extended_tables": [
        {
            "key": TAB,
            "structure": [{"key": key, "title": title} for key, title in _COLUMNS.items()],
        }
    ],
    "extended_csv_files": [
        {"href": "./connections", "title": "Connections, on a page of their own"},
        {"href": "./connections.json", "title": "Connections JSON"},
    ],
}
"""Locust's arguments for tabs, tables and downloads, which a locustfile may extend too."""


class LiveDocument:
    """The document for open pages: at most `EVERY_S` old, its rows of names `NAMES_EVERY_S`.

    It is built by the process that sends the load, where nothing else runs meanwhile. So all pages
    share one, and it is built in small parts, the rows of names in a thread: a long pause would be
    measured as latency, caused by an open page. It has the `MOST_NAMES` names with the most
    requests, as Locust's own page has; the files have all.
    """

    def __init__(self, recording: Recording, checks: ThresholdChecks) -> None:
        self._recording, self._checks = recording, checks
        self._building = RLock()
        self._thread = InThread()
        self._encoded = self._encoded_rows = ""
        self._rows: list[dict[str, Any]] = []
        self._encoded_at = self._rows_at = -math.inf
        self._run: float | None = None

    def json(self) -> str:
        """Return the cached JSON. Concurrent callers share one rebuild."""
        with self._building:
            is_new_run = self._run != self._recording.started
            if is_new_run or time.monotonic() - self._encoded_at >= EVERY_S:
                found = self.now(NAMES_EVERY_S)
                gevent.sleep(PAUSE_S)
                # A series of two thousand points is encoded column by column.
                columns = []
                for name, column in found.pop("series").items():
                    columns.append(f"{json.dumps(name)}: {json.dumps(column)}")
                    gevent.sleep(0)
                *_, aggregated = found.pop("latency_ms")
                rows = ", ".join([*filter(None, [self._encoded_rows]), json.dumps(aggregated)])
                self._encoded = (
                    f'{json.dumps(found)[:-1]}, "latency_ms": [{rows}], '
                    f'"series": {{{", ".join(columns)}}}}}'
                )
                self._encoded_at = time.monotonic()
            return self._encoded

    def now(self, names_every_s: float = 0.0) -> dict[str, Any]:
        """Return the document with the latest figures only, but for rows of names of that age."""
        with self._building:
            # The rows of the test before are too old at any age.
            is_new_run = self._run != self._recording.started
            if is_new_run or time.monotonic() - self._rows_at >= names_every_s:
                latencies = self._recording.latencies
                self._rows, self._encoded_rows = self._thread.call(lambda: _named_rows(latencies))
                self._rows_at, self._run = time.monotonic(), self._recording.started
            aggregated = row(self._recording.latencies, None)
            gevent.sleep(PAUSE_S)
            verdicts = self._checks.so_far()
            gevent.sleep(PAUSE_S)
            return document(
                self._recording,
                verdicts,
                target=self._checks.target,
                latency_rows=[*self._rows, aggregated],
            )


def _named_rows(latencies: Latencies) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of names and their JSON without brackets; called in a thread."""
    rows, encoded = [], []
    for found in rows_in_parts(latencies, pause_thread, most=MOST_NAMES):
        rows.append(found)
        encoded.append(json.dumps(found))
    return rows[:-1], ", ".join(encoded[:-1])


class WebPages:
    """Adds the pages to a web UI that has not started yet.

    Args:
        web_ui: Locust's.
        recording: the measurements to show.
        checks: the thresholds.
        guard: decides which host may be loaded.
        base_path: of `--web-base-path`; empty without one.
    """

    def __init__(
        self,
        web_ui: WebUI,
        recording: Recording,
        checks: ThresholdChecks,
        guard: HostGuard,
        base_path: str,
    ) -> None:
        self.take_rate: Callable[..., None] = lambda *_, **__: None
        """Takes the arrival rate of the form: `RunLoop.take_form`."""
        self._recording, self._guard = recording, guard
        self._base = base_path.rstrip("/")
        self._live = LiveDocument(recording, checks)
        assert web_ui.app is not None  # noqa: S101  (made by its constructor)
        pages: dict[str, Callable[[], Response]] = {
            "/connections": lambda: Response(LIVE_PAGE, mimetype="text/html"),
            "/connections.json": lambda: Response(
                self._live.json(),
                mimetype="application/json",
                headers={"Cache-Control": "no-store"},
            ),
            "/connections/charts.js": lambda: Response(
                script("connections.js"), mimetype="text/javascript"
            ),
            "/connections/tab.js": lambda: Response(script("tab.js"), mimetype="text/javascript"),
        }
        for path, view in pages.items():
            allowed = web_ui.auth_required_if_enabled(view)  # type: ignore[no-untyped-call]
            web_ui.app.add_url_rule(self._base + path, f"poolkit{path}", allowed)

        def offer() -> None:
            # At every request: an init listener of the locustfile may set its own after this one.
            for name, ours in _EXTENSIONS.items():
                others = web_ui.template_args.get(name) or []
                web_ui.template_args[name] = [*others, *(one for one in ours if one not in others)]

        web_ui.app.before_request(offer)
        web_ui.app.before_request(self._refuse)
        scrapes = Scrapes(recording)

        def scraped() -> Response:
            if not can_write():
                return Response("prometheus-client is not installed\n", 501, mimetype="text/plain")
            return Response(scrapes.text(), content_type=CONTENT_TYPE)

        allowed_scrape = web_ui.auth_required_if_enabled(scraped)  # type: ignore[no-untyped-call]

        def metrics_unless_taken() -> Any:
            # Many locustfiles have a page of that name, which remains theirs: this one is no rule.
            is_free = request.path == f"{self._base}/metrics" and request.url_rule is None
            return allowed_scrape() if is_free else None

        web_ui.app.before_request(metrics_unless_taken)
        # Flask calls the first of them last, so the locustfile's own have extended the answer by then.
        web_ui.app.after_request_funcs.setdefault(None, []).insert(0, self._extend)

    def _refuse(self) -> Response | None:
        """Answer in Locust's place when the form has a host or an arrival rate that is refused.

        Locust starts the test in this request, and its form shows the message of a failure.
        """
        if (request.method, request.path) != ("POST", f"{self._base}/swarm"):
            return None
        host = request.form.get("host", "")
        reason = self._guard.refusal(host)
        rate = request.form.get("poolkit_arrival_rate")
        if not reason and rate is not None:
            try:
                self.take_rate(rate, has_run_time=bool(request.form.get("run_time")))
            except ConfigurationError as error:
                reason = str(error)
        return jsonify({"success": False, "message": reason, "host": host}) if reason else None

    def _extend(self, response: Response) -> Response:
        """Extend three of Locust's answers where it has no extension point."""
        if response.status_code != 200 or not request.path.startswith(self._base):
            return response
        path = request.path.removeprefix(self._base)
        if path == "/":
            html = response.get_data(as_text=True)
            response.set_data(html.replace("</body>", f"{_TAB_SCRIPTS}</body>"))
        elif path == "/stats/requests":
            # Locust caches this answer for two seconds: rows are replaced, not appended.
            text = response.get_data(as_text=True).rstrip()
            own = {"key": TAB, "data": target_rows(self._recording)}
            if '"extended_stats"' in text:
                stats: dict[str, Any] = json.loads(text)
                others = [one for one in stats.get("extended_stats") or () if one.get("key") != TAB]
                text = json.dumps(stats | {"extended_stats": [*others, own]})
            else:  # to parse five hundred rows takes several milliseconds
                text = f'{text.removesuffix("}")}, "extended_stats": [{json.dumps(own)}]}}'
            response.set_data(text)
        elif path == "/stats/report":
            html = response.get_data(as_text=True)
            response.set_data(with_section(html, self._live.now()))
        return response
