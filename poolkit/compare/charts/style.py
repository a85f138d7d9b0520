"""How charts look: colours, type, sizes; the same for the PNG files and the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH = 800
"""Pixels inside a picture: GitHub shows a README about 830 wide."""
FONT = "Arial, Helvetica, sans-serif"

INK, SOFT, FAINT, PAPER = "#1f2328", "#59636e", "#e4e7eb", "#ffffff"
"""Text, lesser text, lines, background; the report gives these four others in the dark."""

# Distinct to the colour-blind (after Okabe and Ito), and dark enough on white as well as
# light enough on black: at least 3:1 on either (WCAG 2.2, 1.4.11).
COLOURS = {
    "lambda": "#d1552b",
    "lambda_warm": "#b58900",
    "lambda_proxy": "#b4609f",
    "web": "#2f7ac0",
    "web_async": "#2a9db5",
    "worker": "#3b9460",
}
_SPARE = ("#8768c8", "#7d7a40", "#c2506b", "#6b7f94")


def colours(names: Sequence[str]) -> Mapping[str, str]:
    """Return a colour for each target: the well-known keep theirs, others take what is left."""
    others = [name for name in names if name not in COLOURS]
    spare = {name: _SPARE[i % len(_SPARE)] for i, name in enumerate(others)}
    return {name: COLOURS.get(name) or spare[name] for name in names}


def configuration(*, background: str | None) -> dict[str, Any]:
    """Return the Vega-Lite configuration; no background lets the page's own show through."""
    type_of = {"Font": FONT, "FontSize": 11, "Color": SOFT}
    return {
        "background": background or "transparent",
        "padding": 20 if background else 4,
        "font": FONT,
        # The words for those who cannot see it are the picture's, not every mark's.
        "aria": False,
        "view": {"stroke": None},
        "title": {
            "anchor": "start",
            "frame": "group",
            "offset": 10,
            "color": INK,
            "fontSize": 13,
            "subtitleColor": SOFT,
            "subtitleFontSize": 12,
        },
        "axis": {
            **{f"label{name}": value for name, value in type_of.items()},
            "gridColor": FAINT,
            "domain": False,
            "ticks": False,
            "labelPadding": 6,
        },
        "text": {"font": FONT, "fontSize": 12, "color": INK},
    }
