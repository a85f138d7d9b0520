"""Progress of a run: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, Self

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from poolkit.compare.results.wording import count

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType

LOG_EVERY_S = 5.0
GAP = 2
"""Columns between the parts of the live line."""
BARS = (6, 24)
"""The shortest and the longest bar, in columns."""


class Progress(Protocol):
    """What a run tells while it runs."""

    def stage(self, words: str) -> None:
        """Say what begins now."""

    def target(self, name: str, number: int, of: int) -> None:
        """Say which target it is."""

    def figures(self, done: float, per_s: float, p95_ms: float, connections: int) -> None:
        """Show how far the target is (0 to 1), and what it does right now."""

    def finished(self, name: str, words: str) -> None:
        """Say what came out of a target."""


class LiveProgress:
    """Redraws a few lines in place; what is finished stays above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage = "starting"
        self._done = 0.0
        self._figures: tuple[float, float, int] | None = None
        self._name = ""
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def stage(self, words: str) -> None:
        """Show the stage in place of the last one's figures."""
        self._stage, self._figures, self._done = words, None, 0.0
        self._draw()

    def target(self, name: str, number: int, of: int) -> None:
        """Show the target's name and number."""
        # 80 columns have to do for a long name, a level, a round and all figures.
        self._name = f"{name.replace(', round ', ' #')} ({number} of {of})"
        self.stage("starting")

    def figures(self, done: float, per_s: float, p95_ms: float, connections: int) -> None:
        """Show the bar and the figures of this moment."""
        self._done, self._figures = done, (per_s, p95_ms, connections)
        self._draw()

    def finished(self, name: str, words: str) -> None:
        """Leave a line above."""
        line = Text.assemble("  ", (f"{name:<13}", "bold"), f" {words}", no_wrap=True)
        self._live.console.print(line, overflow="ellipsis")

    def _draw(self) -> None:
        self._live.update(self._line(self._live.console.width))

    def _line(self, width: int) -> RenderableType:
        """Return one line that is never wider than the terminal: a wrapped one would flicker."""
        words = [f"  {self._name}", f"{self._stage:<10}"] if self._name else [f"  {self._stage}"]
        parts: list[RenderableType] = [Text(words[0], style="bold" if self._name else "")]
        parts += [Text(word) for word in words[1:]]
        if self._figures is not None:
            used = sum(len(word) + GAP for word in words)
            parts += self._bar_and_figures(self._figures, width - 1 - used)
        line = Table.grid(padding=(0, GAP, 0, 0))
        for _ in parts:
            line.add_column(no_wrap=True, overflow="ellipsis")
        line.add_row(*parts)
        return line

    def _bar_and_figures(
        self, figures: tuple[float, float, int], room: int
    ) -> list[RenderableType]:
        per_s, p95_ms, connections = figures
        long = f"{per_s:4.0f} requests/s   p95 {p95_ms:6.0f} ms   {connections:4d} connections"
        short = f"{per_s:3.0f}/s  p95 {p95_ms:4.0f} ms  {connections:3d} open"
        for words in (long, short):
            bar = min(BARS[1], room - len(words) - 2 * GAP)
            if bar >= BARS[0]:
                return [ProgressBar(total=1.0, completed=self._done, width=bar), Text(words)]
        # The figures tell more than the bar.
        return [Text(short)]


class LoggedProgress:
    """Writes a line when something begins or ends, and one every few seconds in between."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._name = ""
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def stage(self, words: str) -> None:
        """Write the stage."""
        self._write(f"{self._name}{words}")

    def target(self, name: str, number: int, of: int) -> None:
        """Remember the target for the lines that follow."""
        self._name = f"{name} ({number} of {of}): "
        self._next = time.monotonic() + LOG_EVERY_S
        self.stage("starting")

    def figures(self, done: float, per_s: float, p95_ms: float, connections: int) -> None:
        """Write the figures, when it is time again."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + LOG_EVERY_S
            self._write(
                f"{self._name}{done:.0%}, {per_s:.0f} requests/s, p95 {p95_ms:.1f} ms, "
                f"{count(connections, 'connection')}"
            )

    def finished(self, name: str, words: str) -> None:
        """Write what came out."""
        self._write(f"{name}: {words}")

    def _write(self, words: str) -> None:
        self._console.print(words, highlight=False, soft_wrap=True)


def progress_on(console: Console) -> LiveProgress | LoggedProgress:
    """Return the progress that suits the console: live on a terminal, lines elsewhere."""
    live = console.is_terminal and not console.is_dumb_terminal
    return LiveProgress(console) if live else LoggedProgress(console)
