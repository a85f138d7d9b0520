"""Errors as problem documents (RFC 9457), the same from every web framework.

    problem = problem_of(error)  # a full pool: 503 with Retry-After; a bug: 500 without its text
    problem.status, problem.headers, problem.body()

No document repeats what the client sent, apart from the names of members that are wrong: their
place is the point of the message. A document never contains the text of an error of the driver,
which names hosts and roles.

`type` is `about:blank` where the HTTP status describes the problem completely; the title is then
the status's own phrase, as section 4.2.1 asks. Where a client may react to one problem, `type` is a
path such as `/problems/invalid-input`. The RFC prefers absolute URIs, but a library does not know
the application's host; a full path is what section 3.1.1 asks for instead. It is a name and need not
lead anywhere.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

from poolkit.errors import TemporaryFailure

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = (
    "MAX_ERRORS",
    "MEDIA_TYPE",
    "PROBLEM_SCHEMA",
    "InputError",
    "Problem",
    "input_error_of",
    "invalid_input",
    "malformed_json",
    "method_not_allowed",
    "no_such_path",
    "not_json",
    "pointer_to",
    "problem_of",
    "status_problem",
    "too_large",
)

MEDIA_TYPE: Final = "application/problem+json"

MAX_ERRORS: Final = 20
"""The most errors that one document lists: enough to learn from, and no amplifier."""

MAX_TEXT: Final = 200
"""The most characters of a text in a document that may have come from the client."""

# Pydantic's messages for these repeat a part of the input.
_WITHOUT_INPUT: Final[Mapping[str, str]] = {
    "union_tag_invalid": "Input should have one of the expected tags",
    "uuid_parsing": "Input should be a valid UUID",
}

_ELLIPSIS: Final = "%E2%80%A6"

# A mapping that nothing can change, so that it can be a default.
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

PROBLEM_SCHEMA: Final[Mapping[str, Any]] = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri-reference"},
        "errors": {
            "type": "array",
            "maxItems": MAX_ERRORS,
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "detail": {"type": "string"},
                    "pointer": {"type": "string"},
                    "parameter": {"type": "string"},
                    "header": {"type": "string"},
                },
            },
        },
    },
}
"""The JSON Schema of a problem document, for OpenAPI."""


class InputError(NamedTuple):
    """One error in the input, and its place: in the body, in a parameter or in a header.

    `pointer` is a JSON Pointer in URI fragment form (RFC 6901, section 6), as RFC 9457 uses it;
    `parameter` names a path or query parameter. Exactly one of the three is set.
    """

    detail: str
    pointer: str | None = None
    parameter: str | None = None
    header: str | None = None

    def as_json(self) -> dict[str, str]:
        """Return the members that are set, as a problem document lists them."""
        return {name: text for name, text in self._asdict().items() if text is not None}


class Problem(NamedTuple):
    """A problem document, and the headers that go with its answer.

    Problem(409, "Stale version", "read it again", "/problems/stale-version",
            extensions={"current_version": 7}).body()
    """

    status: int
    title: str
    detail: str
    type: str = "about:blank"
    errors: tuple[InputError, ...] = ()
    extensions: Mapping[str, object] = _NOTHING
    headers: Mapping[str, str] = _NOTHING

    def as_json(self, instance: str | None = None) -> dict[str, object]:
        """Return the document before it is encoded; see `body`."""
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
        return {**content, **self.extensions}

    def body(self, instance: str | None = None) -> bytes:
        """Encode the document.

        Args:
            instance: the name of this occurrence, such as `urn:uuid:` and a request id.
        """
        # A lone surrogate, which a client can send as a JSON escape, is an escape again.
        text = json.dumps(self.as_json(instance), ensure_ascii=False, separators=(",", ":"))
        return text.encode("utf-8", "backslashreplace")


def problem_of(error: BaseException) -> Problem:
    """Return the answer to an error that no handler of the application's own has answered.

    A temporary failure of the database or the pool is a 503 with Retry-After (RFC 9110, 10.2.3):
    poolkit's own errors, and SQLAlchemy's and the driver's as `unit_of_work` would translate
    them. Anything else is a 500 without the error's text, which could hold a secret; log it.
    """
    known: BaseException | None = error
    if not isinstance(error, TemporaryFailure):
        # Not at the top: a function that uses `Problem` alone need not import SQLAlchemy.
        from poolkit.config.session import translate  # noqa: PLC0415

        known = translate(error)
    if isinstance(known, TemporaryFailure):
        return status_problem(503, known.public_detail, {"Retry-After": str(known.retry_after)})
    return status_problem(500, "an unexpected error; it has been logged")


def status_problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Problem:
    """Return a problem that the HTTP status describes completely.

    Args:
        status: such as 404; one that HTTP does not define has the title "Error".
        detail: the text for the client, in the language of the API.
        headers: for the answer, such as Retry-After.
    """
    known = status in HTTPStatus.__members__.values()
    title = HTTPStatus(status).phrase if known else "Error"
    return Problem(status, title, detail, headers=headers or _NOTHING)


def no_such_path() -> Problem:
    """Return the answer to a path that no endpoint has."""
    return status_problem(404, "there is nothing at this path")


def method_not_allowed(allowed: Iterable[str]) -> Problem:
    """Return the answer to a method that no endpoint at this path has (RFC 9110, 15.5.6)."""
    methods = ", ".join(sorted(set(allowed)))
    return status_problem(405, f"possible methods here: {methods}", {"Allow": methods})


def too_large(limit: int) -> Problem:
    """Return the answer to a body of more than `limit` bytes."""
    detail = f"a request body may have {limit} bytes at most; send less"
    return status_problem(413, detail)


def not_json() -> Problem:
    """Return the answer to a body whose content type is missing or not JSON (RFC 9110, 15.5.16).

    A web page may send a form, a plain text or a body without a type to any host, with the user's
    cookies and without asking first. For `application/json` a browser asks (CORS).
    """
    return status_problem(415, "the body must be JSON, with the content type application/json")


def malformed_json(detail: str) -> Problem:
    """Return the answer to a body that is not JSON; `detail` says where it ends to be."""
    detail = _shortened(detail)
    errors = (InputError(detail, pointer="#"),)
    return Problem(400, "Malformed JSON", f"#: {detail}", "/problems/malformed-json", errors)


def invalid_input(errors: Iterable[InputError]) -> Problem:
    """Return the answer to JSON or parameters that break the schema; it lists MAX_ERRORS."""
    # The names of parameters and unknown members are the client's: a long one, or many, must not
    # make the answer longer than the request.
    listed = tuple(
        error._replace(
            detail=_shortened(error.detail),
            parameter=error.parameter and _shortened(error.parameter),
            header=error.header and _shortened(error.header),
        )
        for error in islice(errors, MAX_ERRORS)
    )
    detail = "; ".join(
        f"{error.parameter or error.header or error.pointer or '#'}: {error.detail}"
        for error in listed
    )
    return Problem(422, "Invalid input", detail, "/problems/invalid-input", listed)


def input_error_of(error: Mapping[str, Any]) -> InputError:
    """Return one of pydantic's errors, whose place begins as FastAPI and Powertools write it.

    `input_error_of({"loc": ("query", "limit"), "type": "int_parsing", "msg": "..."})` names the
    parameter `limit`.
    """
    place, *rest = error["loc"]
    # Never error["input"] or error["ctx"]: what a client sent is not for the answer.
    detail = _WITHOUT_INPUT.get(error["type"], error["msg"])
    if place == "body":
        return InputError(detail, pointer=pointer_to(rest))
    name = ".".join(map(str, rest))
    if place == "header":
        return InputError(detail, header=name)
    return InputError(detail, parameter=name)


def pointer_to(place: Iterable[str | int]) -> str:
    """Return a JSON Pointer in URI fragment form (RFC 6901, sections 3 and 6).

    `pointer_to(["chunks", 0, "a/b"])` is `#/chunks/0/a~1b`.
    """
    pointer = "#"
    for part in place:
        if len(pointer) > MAX_TEXT:
            return f"{pointer}/{_ELLIPSIS}"
        pointer += f"/{_escaped(str(part))}"
    return pointer


def _escaped(name: str) -> str:
    escaped = name[: MAX_TEXT + 1].replace("~", "~0").replace("/", "~1")
    escaped = quote(escaped, safe="~", errors="backslashreplace")
    if len(escaped) <= MAX_TEXT:
        return escaped
    # Not in the middle of an escape.
    return re.sub("(%.?|~)$", "", escaped[: MAX_TEXT - len(_ELLIPSIS)]) + _ELLIPSIS


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
