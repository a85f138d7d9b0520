"""Small panels over time, one for each target, on the same scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import altair as alt

from poolkit.compare.charts.picture import data
from poolkit.compare.charts.style import FAINT, SOFT, WIDTH, colours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit.compare.charts.picture import Panel
    from poolkit.compare.results.results import Results
    from poolkit.compare.results.run_folder import RunFolder, TargetFolder, Window
    from poolkit.compare.results.target_result import TargetResult

_GAP = 24
_ROOM_FOR_NAME = 0.22
"""Share of a panel's width that the word warm-up needs in the narrowest one."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A target with its raw rows at hand."""

    target: TargetResult
    folder: TargetFolder
    window: Window
    colour: str
    application_name: str
    """What the target's connections are called on the server."""

    def x(self) -> alt.X:
        """Return the axis: seconds from the beginning of the measured time."""
        seconds = self.window.to - self.window.from_
        axis = alt.Axis(
            values=_ticks(seconds),
            labelOverlap=False,
            grid=False,
            title=None,
            labelFlush=False,
            labelExpr="datum.value + ' s'",
        )
        return alt.X("s:Q", scale=self._scale(), axis=axis)

    def _scale(self) -> alt.Scale:
        begin, end = self.window.warm_from, self.window.to
        return alt.Scale(domain=[begin - self.window.from_, end - self.window.from_], nice=False)

    def warm_up(self, name_at: int = 9) -> Panel:
        """Return the shade behind the warm-up, its name `name_at` pixels down if it has room."""
        begin = self.window.warm_from - self.window.from_
        share = -begin / (self.window.to - self.window.warm_from)
        shaded = alt.Chart(data([{"begin": begin, "end": 0}]))
        x = alt.X("begin:Q", scale=self._scale())
        rect = shaded.mark_rect(color=FAINT, opacity=0.7).encode(x, alt.X2("end:Q"))
        if share < _ROOM_FOR_NAME:
            return alt.layer(rect)
        name = shaded.mark_text(align="left", dx=5, fontSize=10.5, color=SOFT)
        return alt.layer(rect, name.encode(x, y=alt.value(name_at), text=alt.value("warm-up")))


def measured(run: RunFolder, results: Results) -> list[Measured]:
    """Return all targets of the results with what belongs to each."""
    shades = colours([t.name for t in results.targets])
    names = {planned.name: planned.preset for planned in results.plan.targets}
    found = []
    for target in results.targets:
        folder = run.step(results.plan, target.step)
        window = folder.window()
        if window is not None:
            found.append(
                Measured(
                    target=target,
                    folder=folder,
                    window=window,
                    colour=shades[target.name],
                    application_name=names[target.name],
                )
            )
    return found


def size(panels: int, *, labels: int) -> dict[str, int]:
    """Return width and height of one of so many panels, with so wide labels of its y axis."""
    columns = _columns(panels)
    width = (WIDTH - labels * columns - _GAP * (columns - 1)) // columns
    return {"width": width, "height": 120 if panels > 1 else 200}


def grid(panels: Sequence[Panel | alt.VConcatChart]) -> alt.VConcatChart:
    """Put panels into rows."""
    step = _columns(len(panels))
    rows = [alt.hconcat(*panels[i : i + step], spacing=_GAP) for i in range(0, len(panels), step)]
    return alt.vconcat(*rows, spacing=_GAP)


def _ticks(seconds: float) -> list[float]:
    """Return at most five round numbers of seconds, from 0 to the end."""
    step = next(m * 10**e for e in range(9) for m in (1, 2, 5) if seconds / (m * 10**e) <= 4.5)
    return [n * step for n in range(math.floor(seconds / step) + 1)]


def _columns(panels: int) -> int:
    return panels if panels < 4 else 2 if panels == 4 else 3
