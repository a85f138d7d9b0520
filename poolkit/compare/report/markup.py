"""The frame of a report's page: the document, a picture in it, a cell of a table.

Whatever comes from the run folder goes through `html.escape`; the pictures are SVG that
vl-convert made, which escapes its texts itself.
"""

from __future__ import annotations

import re
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.compare.charts.picture import Picture

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, body: Iterable[str]) -> str:
    """Return a whole page around a body that is HTML already."""
    css = files("poolkit.compare").joinpath("report.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Nothing is fetched and nothing runs, whatever a run folder holds.
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            f"<title>{escape(title)}</title><style>\n{css}</style></head><body><main>",
            *body,
            "</main></body></html>\n",
        ]
    )


def prose(text: str) -> str:
    """Escape a text, and keep a number with its unit and its sign on one line."""
    return re.sub(r"(?<=\d) (?=(ms|s|%)\b|%)|(?<=&[lg]t;) (?=\d)", "&nbsp;", escape(text))


def cell(text: str, *, bad: bool = False) -> str:
    """Return a cell of a table; a bad one is a reason for care."""
    return f'<td class="bad">{escape(text)}</td>' if bad else f"<td>{escape(text)}</td>"


def embedded(picture: Picture, title: str) -> str:
    """Return a picture as HTML, with its words for those who cannot see it."""
    alt = escape(f"{title}. {picture.description}", quote=True)
    # Identifiers must be unique in a page, and every picture counts its own from 0.
    svg = picture.svg().replace('id="clip', f'id="{picture.name}-clip')
    svg = svg.replace("url(#clip", f"url(#{picture.name}-clip")
    drawing = svg.replace("<svg ", f'<svg role="img" aria-label="{alt}" ', 1)
    return (
        f'<figure><h3>{escape(title)}</h3><div class="scroll" tabindex="0">{drawing}</div></figure>'
    )
