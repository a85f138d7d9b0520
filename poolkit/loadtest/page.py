"""The charts as HTML: a page of their own, or a section of somebody else's.

Both are one custom element, `<poolkit-connections>`, drawn by connections.js, which fetches
nothing from anywhere but the page's own server.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_PAGE = """<!doctype html>
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


def source(name: str) -> str:
    """Return one of the scripts beside this module."""
    return files("poolkit.loadtest").joinpath(name).read_text(encoding="utf-8")


def live_page() -> str:
    """Return the page that shows a run while it goes on."""
    return _PAGE


def section(found: Mapping[str, Any]) -> str:
    """Return a part for the body of a report: the data and what draws them, no request."""
    # "</script>" in an application_name must not end the script.
    data = json.dumps(found).replace("<", "\\u003c")
    return (
        '<section style="max-width:76rem;margin:0 auto;padding:0 1.5rem 3rem">'
        f'<poolkit-connections theme="page"><script type="application/json">{data}</script>'
        f"</poolkit-connections></section><script>{source('connections.js')}</script>\n"
    )


def tab_loader() -> str:
    """Return what is added to Locust's own page, so that its tab has the charts too."""
    return '<script src="connections/charts.js"></script><script src="connections/tab.js"></script>'
