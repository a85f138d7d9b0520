"""Figures as text for sentences and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence


NOTHING = "–"  # noqa: RUF001  (a dash in a table, not a minus)


class Spread(NamedTuple):
    """The lowest, the median and the highest value of several measurements."""

    low: float
    median: float
    high: float


def figure(value: float) -> str:
    """Return a number with two significant digits, or all before the point: 0.42, 4.2, 42, 4,200."""
    size = abs(value)
    if size >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 0.995 else f"{value:.2g}"


def milliseconds(value: float | None) -> str:
    """Return a duration given in ms as text, in seconds from 1,000 ms; a dash where unknown."""
    if value is None:
        return NOTHING
    return f"{figure(value / 1000)} s" if value >= 1000 else f"{figure(value)} ms"


def with_range(spread: Spread | None, between: str = " ", unit: str = "ms") -> str:
    """Return median, lowest and highest in ms, as "12 ms (11–14)"; a dash where unknown."""  # noqa: RUF002
    if spread is None:
        return NOTHING
    text, scale = figure(spread.median), 1
    if unit:
        text, scale = milliseconds(spread.median), 1000 if spread.median >= 1000 else 1
    lowest, highest = figure(spread.low / scale), figure(spread.high / scale)
    return text if lowest == highest else f"{text}{between}({lowest}{NOTHING}{highest})"


def figure_with_range(spread: Spread | None, between: str = " ") -> str:
    """Return the same of a figure without a unit."""
    return with_range(spread, between, unit="")


def of_ceiling(peak: float | None, ceiling: int | None) -> str:
    """Return the peak of connections and their ceiling as "5/20", or the peak alone."""
    return optional(peak, 0) + (f"/{ceiling:,}" if ceiling else "")


def percent(share: float) -> str:
    """Return a share as a percentage; only 0 itself is shown as 0 %."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{share * 100:.0f} %" if share >= 0.0995 or share == 0 else f"{share * 100:.1f} %"


def count(number: int, thing: str) -> str:
    """Return a number with its noun, in the singular or plural."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def join(parts: Sequence[str], separator: str = ",") -> str:
    """Return a, b and c."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{f'{separator} '.join(parts[:-1])} and {parts[-1]}"


def optional(value: float | None, decimals: int | None = None) -> str:
    """Return a figure for a table; a dash where it is not known."""
    if value is None:
        return NOTHING
    return figure(value) if decimals is None else f"{value:,.{decimals}f}"


def origin(url: str) -> str:
    """Return scheme, host and port of a URL, without its credentials and path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
