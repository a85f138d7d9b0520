"""Progress of a run: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from poolkit.compare.results.wording import count

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType

LOG_EVERY_S = 5.0
GAP = 2
"""Columns between the parts of the live line."""
BARS = (6, 24)
"""The shortest and the longest bar, in columns."""


class Progress:
    """Writes a line when a stage begins or a target ends, and one every few seconds in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name = ""
        self._next = 0.0

    def stage(self, text: str) -> None:
        """Show what begins now."""
        self._write(f"{self._name}{text}")

    def target(self, name: str, number: int, of: int, brief: str) -> None:
        """Show the target that is measured now; `brief` is its name on the live line."""
        self._name = f"{name} ({number} of {of}): "
        self._next = time.monotonic() + LOG_EVERY_S
        self.stage("starting")

    def figures(self, done: float, per_s: float, p95_ms: float, connections: int | None) -> None:
        """Show the share of the target that is done (0 to 1), and its present figures.

        Connections that are not known are None.
        """
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LOG_EVERY_S
            self._write(
                f"{self._name}{done:.0%}, {per_s:.0f} requests/s, p95 {p95_ms:.1f} ms, "
                f"{'? connections' if connections is None else count(connections, 'connection')}"
            )

    def finished(self, name: str, text: str) -> None:
        """Show the result of a target."""
        self._write(f"{name}: {text}")

    def _write(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)


class _Figures(NamedTuple):
    per_s: float
    p95_ms: float
    connections: int | None


class LiveProgress(Progress):
    """Redraws one line in place; the results of finished targets stay above it."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._stage = "starting"
        self._done = 0.0
        self._figures: _Figures | None = None
        self.live = Live(console=console, refresh_per_second=8, transient=True)

    def stage(self, text: str) -> None:
        """Show the stage in place of the last figures."""
        self._stage, self._figures, self._done = text, None, 0.0
        self._draw()

    def target(self, name: str, number: int, of: int, brief: str) -> None:
        """Show the target's brief name and number."""
        # A long name, a level, a round and all figures must fit in 80 columns.
        self._name = f"{brief} ({number} of {of})"
        self.stage("starting")

    def figures(self, done: float, per_s: float, p95_ms: float, connections: int | None) -> None:
        """Show the bar and the present figures."""
        self._done, self._figures = done, _Figures(per_s, p95_ms, connections)
        self._draw()

    def finished(self, name: str, text: str) -> None:
        """Print the result above the live line."""
        line = Text.assemble("  ", (f"{name:<13}", "bold"), f" {text}", no_wrap=True)
        self.live.console.print(line, overflow="ellipsis")

    def _draw(self) -> None:
        self.live.update(self.line(self.live.console.width))

    def line(self, width: int) -> RenderableType:
        """Return one line that is never wider than the terminal: a wrapped one would flicker."""
        texts = [f"  {self._name}", f"{self._stage:<10}"] if self._name else [f"  {self._stage}"]
        parts: list[RenderableType] = [Text(texts[0], style="bold" if self._name else "")]
        parts += [Text(text) for text in texts[1:]]
        if self._figures is not None:
            room = width - 1 - sum(len(text) + GAP for text in texts)
            per_s, p95_ms, connections = self._figures
            held = "?" if connections is None else connections
            long = f"{per_s:4.0f} requests/s   p95 {p95_ms:6.0f} ms   {held:>4} connections"
            short = f"{per_s:3.0f}/s  p95 {p95_ms:4.0f} ms  {held:>3} open"
            for text in (long, short):
                bar = min(BARS[1], room - len(text) - 2 * GAP)
                if bar >= BARS[0]:
                    parts += [ProgressBar(total=1.0, completed=self._done, width=bar), Text(text)]
                    break
            else:
                # The figures are worth more than the bar.
                parts.append(Text(short))
        line = Table.grid(padding=(0, GAP, 0, 0))
        for _ in parts:
            line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(*parts)
        return line


@contextmanager
def progress_on(console: Console) -> Iterator[Progress]:
    """Show progress as the console can: a live line on a terminal, plain lines elsewhere."""
    if console.is_terminal and not console.is_dumb_terminal:
        progress = LiveProgress(console)
        with progress.live:
            yield progress
    else:
        yield Progress(console)
