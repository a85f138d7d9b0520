"""What the behaviour suite sees of a deployable: requests go in, answers come out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Query: TypeAlias = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Answer:
    """A response; the names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Face(Protocol):
    """A deployable that runs; `body` is sent as it is, or as JSON if it is no bytes.

    A header that is None is left out, such as the content type that a body has by default.
    """

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: Any = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer: ...


def media_type(answer: Answer) -> str:
    return answer.headers.get("content-type", "").partition(";")[0]


def problem_of(answer: Answer, status: int) -> Any:
    """Check that an answer is a problem document (RFC 9457) with this status; return it."""
    assert answer.status == status, answer.body
    assert media_type(answer) == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    return problem


def encoded(body: Any) -> bytes | None:
    """Encode a body; lone surrogates become JSON escapes, which any bytes can carry."""
    return body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
