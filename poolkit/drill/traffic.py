"""The requests of a drill: those of the project's `[tool.poolkit.drill]`, or of the command line.

    [tool.poolkit.drill]
    write = "POST /articles"
    body = { title = "{key}", body = "A text." }
    read = "GET /articles/{id}"           # {id} is that of the answer to the write
    table = "articles"                    # where a written row is looked up
    column = "title"                      # its column with the key

`{key}` is unique for each write. By it every acknowledged write is looked up in the table.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.drill import bare
from poolkit.errors import ConfigurationError
from poolkit.project import is_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from poolkit.project import Project, Rule

_REQUEST = re.compile(r"(GET|HEAD|POST|PUT|PATCH|DELETE) (/[!-~]*)")
_NAME = re.compile(r"[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)?")


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_text, value))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


_RULES: Mapping[str, Rule] = {
    "targets": (_is_texts, "a list of strings"),
    "requests": (_is_texts, "a list of strings"),
    "write": (is_text, "a method and a path"),
    "body": (lambda value: isinstance(value, dict), "a table"),
    "read": (is_text, "a method and a path"),
    "table": (_is_name, "the name of a table"),
    "column": (_is_name, "the name of a column"),
}
_NEEDS = {"body": "write", "read": "write", "table": "column", "column": "table"}
"""A key that is of no use without the other."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A method and a path, which may have fields in braces."""

    method: str
    path: str

    @classmethod
    def parse(cls, text: str, where: str) -> Request:
        """Return the request of a text such as `GET /articles`.

        Raises:
            ConfigurationError: it is none; the message begins with `where`.
        """
        found = _REQUEST.fullmatch(text.strip())
        if found is None:
            raise ConfigurationError(
                f"{where}: {text!r} is no request; wanted a method and a path, such as 'GET /'"
            )
        return cls(method=found[1], path=found[2])


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The requests to one target, and the table in which its writes are found."""

    requests: tuple[Request, ...] = ()
    """Sent as they are."""
    write: Request | None = None
    body: Mapping[str, Any] = field(default_factory=dict)
    """Of the write, as JSON; `{key}` in a text stands for the key."""
    read: Request | None = None
    """Of a row that was written before; the fields in its path are those of the write's answer."""
    table: str = ""
    column: str = ""

    @property
    def is_checked(self) -> bool:
        """Whether acknowledged writes can be looked up."""
        return self.write is not None and bool(self.table and self.column)


BARE = Traffic(
    write=Request(method="POST", path="/notes"),
    body={"title": "{key}", "body": "A note that is as long as a short message. " * 8},
    read=Request(method="GET", path="/notes/{id}"),
    table=bare.TABLE,
    column="title",
)
"""The requests to the bare application."""


def traffic_of(project: Project) -> Traffic:
    """Return the requests of `[tool.poolkit.drill]`.

    Raises:
        ConfigurationError: the table is missing or wrong; the message names the key.
    """
    where = project.section("drill")
    table = project.table.get("drill")
    if not isinstance(table, dict) or not table:
        raise ConfigurationError(
            f"{where} is missing: it names the requests of a drill, such as "
            "write = 'POST /articles', or requests = ['GET /']"
        )
    for key, value in table.items():
        if key not in _RULES:
            close = difflib.get_close_matches(key, _RULES, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(_RULES)}"
            raise ConfigurationError(f"{where} has an unknown key {key}; {hint}")
        is_valid, wanted = _RULES[key]
        if not is_valid(value):
            raise ConfigurationError(f"{where} {key} must be {wanted}, not {value!r}")
    for key, needed in _NEEDS.items():
        if key in table and needed not in table:
            raise ConfigurationError(f"{where} {key} needs {needed}, which is missing")
    if "write" not in table and "requests" not in table:
        raise ConfigurationError(f"{where} needs write or requests")
    if "write" in table and "{key}" not in str(table.get("body")):
        raise ConfigurationError(
            f"{where} body needs {{key}} in one of its texts: by it a written row is found"
        )
    parsed = {
        key: Request.parse(table[key], f"{where} {key}")
        for key in ("write", "read")
        if key in table
    }
    return Traffic(
        requests=requests_of(table.get("requests", ()), f"{where} requests"),
        write=parsed.get("write"),
        body=table.get("body", {}),
        read=parsed.get("read"),
        table=table.get("table", ""),
        column=table.get("column", ""),
    )


def requests_of(texts: Sequence[str], where: str) -> tuple[Request, ...]:
    """Return requests that are sent as they are.

    Raises:
        ConfigurationError: one is no request; the message begins with `where`.
    """
    return tuple(Request.parse(text, where) for text in texts)
