"""What an expression of a template can come to when it is not plain text or a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Unknown:
    """Nobody can tell from the templates; `reason` says why and what would help."""

    reason: str


@dataclass(frozen=True)
class Reference:
    """What a resource will be called, or an attribute of it: known once it is deployed."""

    stack: str
    logical_id: str
    attribute: str = "Ref"

    @property
    def resource(self) -> tuple[str, str]:
        """The resource that it leads to, across all stacks."""
        return self.stack, self.logical_id


@dataclass(frozen=True)
class Joined:
    """Text with parts in it that are not text yet."""

    parts: tuple[Any, ...]


class _NoValue:
    """AWS::NoValue: the property is as good as not there."""

    def __repr__(self) -> str:
        return "NO_VALUE"


NO_VALUE: Final = _NoValue()


def joined(parts: list[Any], separator: str = "") -> Any:
    """Join texts; the result is text where all parts are."""
    flat: list[Any] = []
    for number, part in enumerate(parts):
        if number and separator:
            flat.append(separator)
        flat.append(as_text(part))
    if all(isinstance(part, str) for part in flat):
        return "".join(flat)
    return Joined(tuple(flat))


def as_text(value: Any) -> Any:
    """Return a scalar as CloudFormation writes it; anything else as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def references(value: Any) -> Iterator[Reference]:
    """Give every reference inside a value."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, Joined):
        for part in value.parts:
            yield from references(part)
    elif isinstance(value, dict):
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def why_unknown(value: Any) -> str:
    """Return the reason why a value is no plain one; empty if it is."""
    if isinstance(value, Unknown):
        return value.reason
    if isinstance(value, Reference):
        return f"it is {value.logical_id}.{value.attribute}, known once that is deployed"
    if isinstance(value, Joined):
        return next((why for part in value.parts if (why := why_unknown(part))), "")
    return ""
