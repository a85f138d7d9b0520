"""How charts look: colours, fonts, sizes, logarithmic axes, labels; the same in PNG files and the report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH = 800
"""Pixels inside a picture: GitHub shows a README about 830 wide."""
FONT = "Arial, Helvetica, sans-serif"

INK, SOFT, FAINT, PAPER = "#1f2328", "#59636e", "#e4e7eb", "#ffffff"
"""Text, lesser text, lines, background; the report replaces these four on a dark screen."""

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
    """Return a colour for each target: presets have their own, other targets get the spare ones."""
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
        # The picture has a description for screen readers; its marks need none.
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


# -- axes of durations, and labels -----------------------------------------------------------

AS_DURATION = "datum.value >= 1000 ? format(datum.value / 1000, '~g') + ' s' : format(datum.value, '~g') + ' ms'"
"""How Vega writes a tick: ms, from a second on s."""


def log_domain(values: Sequence[float]) -> list[float]:
    """Return the ends of an axis that holds the values, with room on either side."""
    low, high = min(values, default=1.0), max(values, default=10.0)
    return [max(low, 0.001) / 1.3, max(high * 1.3, low * 2)]


def decades(domain: Sequence[float]) -> list[float]:
    """Return 1, 2 and 5 of each decade, or fewer if these are too many."""
    first, last = math.floor(math.log10(domain[0])), math.ceil(math.log10(domain[1]))
    span = math.log10(domain[1] / domain[0])
    steps = (1, 2, 5) if span <= 1.5 else (1, 3) if span <= 3.5 else (1,)
    ticks = [round(m * 10**e, 9) for e in range(first, last + 1) for m in steps]
    return [tick for tick in ticks if domain[0] <= tick <= domain[1]]


def round_ticks(top: float, most: float) -> list[int]:
    """Return multiples of 1, 2 or 5 times a power of ten from 0 to `top`, at most `most` after 0."""
    step = next(m * 10**e for e in range(9) for m in (1, 2, 5) if top / (m * 10**e) <= most)
    return list(range(0, math.floor(top) + 1, step))


def tick_names(names: Mapping[float, str]) -> str:
    """Return the Vega expression that writes a name at each of these ticks, and nothing elsewhere."""
    # Vega compares the tick's value as drawn; the name is found by the nearest one.
    found = (
        f"abs(datum.value - {at!r}) < {at * 1e-6!r} ? '{name}' : " for at, name in names.items()
    )
    return f"{''.join(found)}''"


def apart(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Return positions at least `gap` apart, near the wanted ones and in their order.

    Positions that touch are joined into a block, which is centred on its members' wanted positions;
    blocks that touch are joined again. The result stays between `low` and `high` as long as there
    is room for all.
    """

    def start(block: Sequence[int]) -> float:
        length = (len(block) - 1) * gap
        centre = sum(wanted[i] for i in block) / len(block)
        return max(low, min(centre - length / 2, high - length))

    blocks: list[list[int]] = []
    for index in sorted(range(len(wanted)), key=lambda i: wanted[i]):
        blocks.append([index])
        while len(blocks) > 1 and start(blocks[-1]) < start(blocks[-2]) + len(blocks[-2]) * gap:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    placed = {i: start(block) + n * gap for block in blocks for n, i in enumerate(block)}
    return [placed[i] for i in range(len(wanted))]
