"""Numbers that know where they come from, and that may be unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolkit.budget.read.documents import SourceLocation


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A whole number or, where `value` is None, the reason why it is not known."""

    value: int | None
    origin: str
    """Where it was read, or what it was derived from."""
    reason: str = ""
    """Why it is unknown, and what would make it known."""
    where: SourceLocation | None = None

    @property
    def is_known(self) -> bool:
        """True if there is a number."""
        return self.value is not None

    def __str__(self) -> str:
        return "?" if self.value is None else f"{self.value:,}"


def known(value: int, origin: str, where: SourceLocation | None = None) -> Quantity:
    """Return a number with its origin."""
    return Quantity(value=value, origin=origin, where=where)


def unknown(reason: str, where: SourceLocation | None = None) -> Quantity:
    """Return a number that is not known, with the reason."""
    return Quantity(value=None, origin=str(where or ""), reason=reason, where=where)


def product(*factors: int | None) -> int | None:
    """Multiply; one unknown factor makes the product unknown, whatever the others are."""
    result = 1
    for factor in factors:
        if factor is None:
            return None
        result *= factor
    return result


def total(*summands: int | None) -> int | None:
    """Add; one unknown summand makes the sum unknown."""
    present = [summand for summand in summands if summand is not None]
    return sum(present) if len(present) == len(summands) else None
