"""Values that are more than text and numbers: unknown ones, references, and texts made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from poolkit.budget.model import ResourceKey, known, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.model import Quantity, SourceLocation

_WHOLE = re.compile(r"\+?\d{1,15}(\.0+)?")


@dataclass(frozen=True)
class Unknown:
    """A value that is not in the files; `reason` says why, and what would help."""

    reason: str
    about: tuple[Any, ...] = field(default=(), compare=False)
    """The values that it is made of, or one of which it is: their references still count."""


@dataclass(frozen=True)
class Reference:
    """The name or an attribute of a resource, which is known once the resource is deployed."""

    stack: str
    logical_id: str
    attribute: str = "Ref"

    @property
    def resource(self) -> ResourceKey:
        """The resource that it leads to."""
        return ResourceKey(self.stack, self.logical_id)


@dataclass(frozen=True)
class Joined:
    """A text with parts that are unknown or references."""

    parts: tuple[Any, ...]


class _NoValue:
    """AWS::NoValue: the property counts as not set."""

    def __repr__(self) -> str:
        return "NO_VALUE"


NO_VALUE: Final = _NoValue()


def joined(parts: list[Any], separator: str = "") -> Any:
    """Join texts; the result is a text if all parts are, and neighbouring texts become one."""
    flat: list[Any] = []
    for number, part in enumerate(parts):
        text = as_text(part)
        inner = text.parts if isinstance(text, Joined) else (text,)
        for each in (separator, *inner) if number else inner:
            if isinstance(each, str) and flat and isinstance(flat[-1], str):
                flat[-1] += each
            elif each != "":
                flat.append(each)
    if all(isinstance(part, str) for part in flat):
        return "".join(flat)
    return flat[0] if len(flat) == 1 else Joined(tuple(flat))


def identity(value: Any) -> str:
    """Return a text that is equal for equal values; unknown parts stand in angle brackets."""
    if isinstance(value, Joined):
        return "".join(map(identity, value.parts))
    if isinstance(value, Reference):
        value = Unknown(f"{value.stack}.{value.logical_id}.{value.attribute}")
    if isinstance(value, Unknown):
        return f"<{value.reason}>".replace("/", "|")
    return str(as_text(value))


def as_text(value: Any) -> Any:
    """Return a scalar as CloudFormation writes it, and any other value unchanged."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a value and all values inside it, each with the nearest key of a mapping above it.

    The texts of a `Joined` are no values of their own.
    """
    yield key, value
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from walk(inner, str(name))
        return
    inside: Any = value if isinstance(value, list | tuple) else ()
    if isinstance(value, Joined):
        inside = [part for part in value.parts if not isinstance(part, str)]
    for inner in value.about if isinstance(value, Unknown) else inside:
        yield from walk(inner, key)


def references(value: Any) -> Iterator[Reference]:
    """Return every reference inside a value."""
    return (each for _, each in walk(value) if isinstance(each, Reference))


def why_unknown(value: Any) -> str:
    """Return the reason why a value is unknown; empty if it is known."""
    if isinstance(value, Unknown):
        return value.reason
    if isinstance(value, Reference):
        return f"{value.logical_id}.{value.attribute} is known only after its deployment"
    if isinstance(value, Joined):
        return next((why for part in value.parts if (why := why_unknown(part))), "")
    return ""


def get_path(found: Any, *path: str | int) -> Any:
    """Return the value at a path into dicts and lists; None if there is none.

    An unknown value on the way is returned itself.
    """
    for key in path:
        if isinstance(found, Unknown):
            return found
        try:
            found = found[key]
        except (KeyError, IndexError, TypeError):
            return None
    return found


def whole_number(found: Any, name: str, origin: str, where: SourceLocation | None) -> Quantity:
    """Return a value as a whole number, or as unknown with the reason."""
    text = str(found).strip()
    if reason := why_unknown(found):
        return unknown(f"{name}: {reason}", where)
    if text.startswith("{{resolve:"):
        return unknown(f"{name} is resolved at deployment ({text.split(':', 2)[1]})", where)
    if isinstance(found, bool) or not _WHOLE.fullmatch(text):
        return unknown(f"{name} must be a whole number, not {found!r:.40}", where)
    return known(int(float(text)), origin, where)
