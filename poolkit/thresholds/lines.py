"""Verdicts for a terminal: a tick or a cross a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.text import Text

    from poolkit.thresholds.verdict import Status, Verdict

_MARKS: dict[Status, tuple[str, str, str]] = {
    "passed": ("✓", "ok", "green"),
    "failed": ("✗", "FAILED", "red"),
    "unknown": ("✗", "UNKNOWN", "red"),
    "not applicable": ("-", "-", "dim"),
}


def takes_marks(encoding: str | None) -> bool:
    """Tell whether ticks and crosses can be written in an encoding; None is not known."""
    try:
        "✓✗".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def mark(verdict: Verdict, *, words: bool = False) -> str:
    """Return the tick, cross or dash of a verdict, or a word in their place."""
    sign, word, _ = _MARKS[verdict.status]
    return word if words else sign


def lines(verdicts: Iterable[Verdict], *, words: bool = False) -> list[Text]:
    """Return a line a verdict, for rich; `words` in place of ticks and crosses."""
    from rich.text import Text  # noqa: PLC0415  (only terminals need it)

    return [
        Text.assemble((mark(v, words=words), f"bold {_MARKS[v.status][2]}"), f" {v.words}")
        for v in verdicts
    ]


def plain_lines(verdicts: Iterable[Verdict], *, words: bool = False) -> list[str]:
    """Return the same for a log."""
    return [f"{mark(verdict, words=words)} {verdict.words}" for verdict in verdicts]
