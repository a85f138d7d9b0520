"""Every exception of the sample domain.

ArticlesError
├── InvalidInput        also a ValueError: the input breaks the contract
│   └── MalformedJson   it is not even JSON
├── TooLarge            also a ValueError: more bytes than a request may have
├── NotFound            also a LookupError
└── StaleVersion        the article was changed meanwhile
"""

from __future__ import annotations

from typing import NamedTuple


class InputError(NamedTuple):
    """One error in the input, and its place: in the body or in a parameter.

    `pointer` is a JSON Pointer in URI fragment form (RFC 6901, section 6), as RFC 9457
    uses it; `parameter` names a path or query parameter. Exactly one of them is set.
    """

    detail: str
    pointer: str | None = None
    parameter: str | None = None

    def as_json(self) -> dict[str, str]:
        """Return the members that are set, as a problem document lists them."""
        if self.parameter is not None:
            return {"parameter": self.parameter, "detail": self.detail}
        return {"pointer": self.pointer or "#", "detail": self.detail}


class ArticlesError(Exception):
    """Any error this package raises on purpose.

    Each passes its own arguments on to `Exception`, so that it survives pickling: a worker's child
    process sends it to its parent.
    """


class InvalidInput(ArticlesError, ValueError):
    """The input breaks the contract; `errors` holds every error that was found."""

    def __init__(self, errors: tuple[InputError, ...]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "; ".join(f"{e.parameter or e.pointer or '#'}: {e.detail}" for e in self.errors)


class MalformedJson(InvalidInput):
    """The input is not JSON, or is JSON that two parsers may read differently."""


class TooLarge(ArticlesError, ValueError):
    """The request has more bytes than `limit`."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"a request body may have {self.limit} bytes at most; send less"


class NotFound(ArticlesError, LookupError):
    """There is no `kind` (an article, a document) with this `key`."""

    def __init__(self, kind: str, key: int | str) -> None:
        super().__init__(kind, key)
        self.kind = kind
        self.key = key

    def __str__(self) -> str:
        return f"there is no {self.kind} {self.key}"


class StaleVersion(ArticlesError):
    """The article has `current_version` by now; the caller had read `expected`."""

    def __init__(self, article_id: int, expected: int, current_version: int) -> None:
        super().__init__(article_id, expected, current_version)
        self.article_id = article_id
        self.expected = expected
        self.current_version = current_version

    def __str__(self) -> str:
        return (
            f"article {self.article_id} has version {self.current_version}, not {self.expected}: "
            "read it again, merge your change, and send it with that version"
        )
