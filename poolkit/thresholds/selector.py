"""The requests that a threshold is about: all, those of one name, or those of one tag."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

Key: TypeAlias = Literal["name", "tag"]

WANTED = 'wanted as in {name="GET /articles"} or {tag="write"}'
_SELECTOR = re.compile(
    r"""\{\s*(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*\}""", re.DOTALL
)
_MOST_NAMES = 10
_FEW = 200
"""A nearest name among thousands would take longer to find than a request may wait."""


@dataclass(frozen=True, slots=True)
class Selector:
    """The part of the requests that have a name or a tag.

    A name is that of a row in Locust's tables. It is written with its method, "GET /articles", or
    without one, and is then that of every method. A tag is one of Locust's `@tag` at the task that
    sent the request.
    """

    key: Key
    value: str

    def selects(self, method: str, name: str) -> bool:
        """Return whether it is about the requests of a method and name."""
        return self.key == "name" and self.value in (name, f"{method} {name}")

    def why_unknown(self, known: Iterable[str]) -> str:
        """Return a text that no request has this name or tag, with those that requests have."""
        names = list(dict.fromkeys(known))
        close = difflib.get_close_matches(self.value, names, n=1) if len(names) <= _FEW else []
        if close:
            hint = f"did you mean {_quoted(close[0])}?"
        else:
            more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
            hint = f"there are: {', '.join(map(_quoted, names[:_MOST_NAMES])) or 'none'}{more}"
        return f"no request has the {self.key} {_quoted(self.value)}; {hint}"

    def __str__(self) -> str:
        """Return it as it is written, in double quotes."""
        return f"{{{self.key}={_quoted(self.value)}}}"


def figure_key(metric: str, selector: Selector | None) -> str:
    """Return the name of a figure: that of its metric, and which requests it is about."""
    return metric if selector is None else f"{metric}{selector}"


def doubt_key(metric: str, selector: Selector) -> str:
    """Return the name of the same figure with every request whose name is not known.

    A request without an answer has no name: Locust learns it with the answer. It may be one of
    these, so a figure that would be on the other side of a limit with it is not known.
    """
    return f"{metric}{selector} and requests without a name"


def split_selector(text: str) -> tuple[str, Selector | None, str]:
    """Return the text before a selector, the selector, and the text behind it.

    The name stands in quotes, double or single; a backslash takes the next character as it is. So
    it may have every character that a threshold gives a meaning to.

    Raises:
        ConfigurationError: there is a brace, and what follows is no selector.
    """
    before, brace, _ = text.partition("{")
    if not brace:
        return text, None, ""
    found = _SELECTOR.match(text, len(before))
    if found is None:
        raise ConfigurationError(f"{text[len(before) :]!r} is not a name or tag; {WANTED}")
    key, value = found[1], re.sub(r"\\(.)", r"\1", found[2][1:-1], flags=re.DOTALL)
    if key not in get_args(Key):
        raise ConfigurationError(f"{key!r} selects no requests; {WANTED}")
    if not value.strip():
        raise ConfigurationError(f"the {key} is empty; {WANTED}")
    return before, Selector(cast("Key", key), value), text[found.end() :]


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
