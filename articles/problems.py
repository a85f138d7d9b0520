"""Errors as problem documents (RFC 9457), the same from every HTTP deployable.

`type` is `about:blank` where the HTTP status describes the problem completely; the title is then
the status's own phrase, as section 4.2.1 asks. Where a client may react to one problem,
`type` is a path such as `/problems/stale-version`. The RFC prefers absolute URIs, but a
sample has no host name of its own; a full path is what section 3.1.1 asks for instead. It
is a name and need not lead anywhere.
"""

from __future__ import annotations

from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

from articles.contract import dump
from articles.errors import (
    InputError,
    InvalidInput,
    MalformedJson,
    NotFound,
    StaleVersion,
    TooLarge,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MEDIA_TYPE: Final = "application/problem+json"

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

PROBLEM_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "detail": {"type": "string"},
                    "pointer": {"type": "string"},
                    "parameter": {"type": "string"},
                },
            },
        },
        "current_version": {"type": "integer"},
    },
}


class Problem(NamedTuple):
    """A problem document, and the headers that go with its answer."""

    status: int
    title: str
    detail: str
    type: str = "about:blank"
    errors: tuple[InputError, ...] = ()
    extensions: Mapping[str, object] = _NOTHING
    headers: Mapping[str, str] = _NOTHING

    def body(self, instance: str | None = None) -> bytes:
        """Encode it; `instance` names this occurrence, such as `urn:uuid:` and a request id."""
        content: dict[str, object] = {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        if instance is not None:
            content["instance"] = instance
        if self.errors:
            content["errors"] = [error.as_json() for error in self.errors]
        return dump({**content, **self.extensions})


def plain_problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Problem:
    """Return a problem that the HTTP status describes completely."""
    return Problem(status, HTTPStatus(status).phrase, detail, headers=headers or {})


def no_such_path(path: str) -> Problem:
    """Return the answer to a path that no endpoint has."""
    return plain_problem(404, f"there is nothing at {path}")


def method_not_allowed(method: str, allowed: Iterable[str]) -> Problem:
    """Return the answer to a method that no endpoint at this path has (RFC 9110, 15.5.6)."""
    methods = ", ".join(sorted(allowed))
    return plain_problem(
        405, f"{method} is not possible here; possible: {methods}", {"Allow": methods}
    )


@runtime_checkable
class TemporaryFailure(Protocol):
    """A temporary failure, such as a full pool, with the facts that its answer needs.

    A protocol, so that the domain need not import the library that raises such errors.
    `poolkit.errors.TemporaryFailure` has both attributes.
    """

    retry_after: int
    """Seconds after which a new try makes sense."""
    public_detail: str
    """The text that a client may read; the error's own text may name hosts and roles."""


def problem_of(error: BaseException) -> Problem:
    """Return the answer to any error, the same from every HTTP deployable.

    An error of this domain says what the client must change. A temporary failure is a 503 with
    Retry-After (RFC 9110, 10.2.3). Anything else is a 500 without the error's text, which could
    hold a secret; the deployable logs it.
    """
    if isinstance(error, MalformedJson):
        return Problem(400, "Malformed JSON", str(error), "/problems/malformed-json", error.errors)
    if isinstance(error, InvalidInput):
        return Problem(422, "Invalid input", str(error), "/problems/invalid-input", error.errors)
    if isinstance(error, StaleVersion):
        current = {"current_version": error.current_version}
        return Problem(
            409, "Stale version", str(error), "/problems/stale-version", extensions=current
        )
    if isinstance(error, NotFound | TooLarge):
        return plain_problem(404 if isinstance(error, NotFound) else 413, str(error))
    if isinstance(error, TemporaryFailure):
        headers = {"Retry-After": str(error.retry_after)}
        return plain_problem(503, error.public_detail, headers)
    return plain_problem(500, "an unexpected error; it has been logged")
