"""What Locust's web UI has besides: `/connections`, `/connections.json`, a tab, a download."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flask import Response, jsonify, request

from poolkit.activity.by_target import STATES
from poolkit.loadtest.document import target_rows
from poolkit.loadtest.files import with_section
from poolkit.loadtest.live_document import LiveDocument
from poolkit.loadtest.page import live_page, source, tab_loader

if TYPE_CHECKING:
    from collections.abc import Callable

    from locust.web import WebUI

    from poolkit.loadtest.host_guard import HostGuard
    from poolkit.loadtest.recording import Recording
    from poolkit.loadtest.threshold_checks import ThresholdChecks

TAB = "connections"

_COLUMNS = {
    "name": "Target",
    "instances": "Instances",
    "connections": "Connections",
    **{state: state.replace("_", " ").capitalize() for state in STATES},
    "peak": "Peak",
}


class WebPages:
    """Adds the pages to a web UI that has not started yet.

    Args:
        web_ui: Locust's.
        recording: what they show.
        checks: what it is held to.
        guard: knows which host may be loaded.
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
        self._recording, self._guard = recording, guard
        self._base = base_path.rstrip("/")
        self._web_ui = web_ui
        self._live = LiveDocument(recording, checks)
        self._route("/connections", lambda: Response(live_page(), mimetype="text/html"))
        self._route("/connections.json", self._json)
        self._script("/connections/charts.js", "connections.js")
        self._script("/connections/tab.js", "tab.js")
        self._extend(web_ui)

    def _route(self, path: str, view: Callable[[], Response]) -> None:
        assert self._web_ui.app is not None  # noqa: S101  (made by its constructor)
        allowed = self._web_ui.auth_required_if_enabled(view)  # type: ignore[no-untyped-call]
        self._web_ui.app.add_url_rule(self._base + path, f"poolkit{path}", allowed)

    def _script(self, path: str, name: str) -> None:
        self._route(path, lambda: Response(source(name), mimetype="text/javascript"))

    def _json(self) -> Response:
        found = self._live.json()
        return Response(found, mimetype="application/json", headers={"Cache-Control": "no-store"})

    def _extend(self, web_ui: WebUI) -> None:
        web_ui.template_args |= {
            "extended_tabs": [{"title": "Connections", "key": TAB}],
            "extended_tables": [
                {
                    "key": TAB,
                    "structure": [{"key": k, "title": title} for k, title in _COLUMNS.items()],
                }
            ],
            "extended_csv_files": [
                {"href": "./connections", "title": "Connections, a page of their own"},
                {"href": "./connections.json", "title": "Connections JSON"},
            ],
        }
        assert web_ui.app is not None  # noqa: S101  (made by its constructor)
        web_ui.app.before_request(self._refuse)
        web_ui.app.after_request(self._add)

    def _refuse(self) -> Response | None:
        """Answer instead of Locust where a host is to be loaded that may not be."""
        if (request.method, request.path) != ("POST", f"{self._base}/swarm"):
            return None
        host = request.form.get("host", "")
        why = self._guard.refusal(host)
        return jsonify({"success": False, "message": why, "host": host}) if why else None

    def _add(self, response: Response) -> Response:
        """Add what Locust has no place for, to those of its answers that need it."""
        add = {
            f"{self._base}/": self._add_tab,
            f"{self._base}/stats/requests": self._add_rows,
            f"{self._base}/stats/report": self._add_section,
        }.get(request.path)
        if add is not None and response.status_code == 200:
            response.set_data(add(response.get_data(as_text=True)))
        return response

    def _add_tab(self, html: str) -> str:
        return html.replace("</body>", f"{tab_loader()}</body>")

    def _add_rows(self, stats: str) -> str:
        # Locust keeps its answer for two seconds and gives the same again: rows are replaced.
        found: dict[str, Any] = json.loads(stats)
        found["extended_stats"] = [{"key": TAB, "data": target_rows(self._recording)}]
        return json.dumps(found)

    def _add_section(self, html: str) -> str:
        return with_section(html, self._live.now())
