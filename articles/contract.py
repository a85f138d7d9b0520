"""The input and the output, the same over HTTP and through a queue.

Each input is a named tuple with its JSON Schema beside it; each output is a function from a
record to a dict. Names, limits and errors are therefore the same in every deployable.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from articles.errors import InputError, InvalidInput
from articles.models import (
    DOCUMENT_ID_PATTERN,
    MAX_BODY_CHARACTERS,
    MAX_ID,
    MAX_TEXT_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    MAX_VERSION,
)
from articles.validation import MAX_ERRORS, errors_of, parse_json_object

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from articles.models import Article, ArticleSummary, Document

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 100

_TITLE: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_TITLE_CHARACTERS,
    "pattern": r"\S",
    "description": "must not be blank",
}
_BODY: Final = {"type": "string", "maxLength": MAX_BODY_CHARACTERS}
_VERSION: Final = {"type": "integer", "minimum": 1, "maximum": MAX_VERSION}
_DOCUMENT_ID: Final = {
    "type": "string",
    "minLength": 1,
    "maxLength": 128,
    "pattern": DOCUMENT_ID_PATTERN,
    "description": "must be letters, digits, '.', '_', '~' and '-', beginning with a letter or "
    "digit (what a URL carries unescaped: RFC 3986, section 2.3)",
}
_ID: Final = {"type": "integer", "minimum": 1, "maximum": MAX_ID}
_MOMENT: Final = {"type": "string", "format": "date-time"}
_COUNT: Final = {"type": "integer", "minimum": 0}


def _object(properties: dict[str, Any], **more: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


NEW_ARTICLE_SCHEMA: Final[Mapping[str, Any]] = _object({"title": _TITLE, "body": _BODY})
ARTICLE_UPDATE_SCHEMA: Final[Mapping[str, Any]] = _object(
    {"version": _VERSION, "title": _TITLE, "body": _BODY},
    required=["version"],
    minProperties=2,
)
NEW_DOCUMENT_SCHEMA: Final[Mapping[str, Any]] = _object(
    {
        "id": _DOCUMENT_ID,
        "title": _TITLE,
        "text": {"type": "string", "minLength": 1, "maxLength": MAX_TEXT_CHARACTERS},
    }
)
PAGE_PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
    "page_token": {"type": "string", "pattern": "^[A-Za-z0-9_-]{16}$"},
}


class NewArticle(NamedTuple):
    """An article to be created."""

    title: str
    body: str

    @classmethod
    def from_json(cls, raw: bytes) -> NewArticle:
        """Read and check a request body.

        Raises:
            TooLarge, MalformedJson, InvalidInput: see `parse_json_object`.
        """
        return cls(**_checked(parse_json_object(raw), NEW_ARTICLE_SCHEMA))


class ArticleUpdate(NamedTuple):
    """A change to the article's `version`; None leaves the title or the body as it is."""

    version: int
    title: str | None = None
    body: str | None = None

    @classmethod
    def from_json(cls, raw: bytes) -> ArticleUpdate:
        """Read and check a request body.

        Raises:
            TooLarge, MalformedJson, InvalidInput: see `parse_json_object`.
        """
        return cls(**_checked(parse_json_object(raw), ARTICLE_UPDATE_SCHEMA))


class NewDocument(NamedTuple):
    """A document to be ingested, under the id that its sender chose."""

    id: str
    title: str
    text: str

    @classmethod
    def from_json(cls, raw: bytes) -> NewDocument:
        """Read and check a request body or a queue's message.

        Raises:
            TooLarge, MalformedJson, InvalidInput: see `parse_json_object`.
        """
        return cls.from_object(parse_json_object(raw))

    @classmethod
    def from_object(cls, value: object) -> NewDocument:
        """Check an object that a queue's own decoder has read already.

        Raises:
            InvalidInput: it breaks the schema.
        """
        return cls(**_checked(value, NEW_DOCUMENT_SCHEMA))

    @property
    def content_sha256(self) -> str:
        """The SHA-256 of the text's UTF-8 bytes, in hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class PageRequest(NamedTuple):
    """At most `limit` articles, of those whose id is `newest` or lower."""

    limit: int = DEFAULT_LIMIT
    newest: int = MAX_ID

    @classmethod
    def from_query(cls, query: Mapping[str, Sequence[str]]) -> PageRequest:
        """Read and check the query's parameters, each with all values it was given.

        Raises:
            InvalidInput: a parameter is unknown, given twice, out of range or damaged.
        """
        errors = [
            InputError(f"is not known; known are {', '.join(PAGE_PARAMETERS)}", parameter=name)
            for name in query
            if name not in PAGE_PARAMETERS
        ]
        limit, newest = DEFAULT_LIMIT, MAX_ID
        if values := query.get("limit", ()):
            limit = int(values[0]) if re.fullmatch("[0-9]{1,9}", values[0]) else 0
            if len(values) > 1 or not 1 <= limit <= MAX_LIMIT:
                detail = f"must be given once, as a whole number from 1 to {MAX_LIMIT}"
                errors.append(InputError(detail, parameter="limit"))
        if values := query.get("page_token", ()):
            token = values[0] if re.fullmatch("[A-Za-z0-9_-]{16}", values[0]) else ""
            place = base64.urlsafe_b64decode(token)[:8]
            newest = int.from_bytes(place, "big")
            # A token that was damaged has another digest, and so another token.
            if len(values) > 1 or newest > MAX_ID or token != cls(newest=newest).token:
                detail = (
                    "must be given once, as next_page_token gave it; to start again, leave it out"
                )
                errors.append(InputError(detail, parameter="page_token"))
        if errors:
            raise InvalidInput(tuple(errors[:MAX_ERRORS]))
        return cls(limit, newest)

    @property
    def token(self) -> str:
        """This place in the list as an opaque, URL-safe token of 16 characters.

        Its digest detects a damaged token. It is no signature, since it has no key: a forged
        token leads to another page of a list that is public anyway.
        """
        place = self.newest.to_bytes(8, "big")
        digest = hashlib.blake2b(place, digest_size=4, person=b"articles.page").digest()
        return base64.urlsafe_b64encode(place + digest).decode()


class Page(NamedTuple):
    """A part of the list, newest first, and the request for the next part, if there is one."""

    items: tuple[ArticleSummary, ...]
    next: PageRequest | None


def article_id_from(text: str) -> int:
    """Read an article's id from a path.

    Raises:
        InvalidInput: it is not a whole number from 1 to MAX_ID.
    """
    number = int(text) if re.fullmatch("[1-9][0-9]{0,18}", text) else 0
    if not 1 <= number <= MAX_ID:
        detail = f"must be a whole number from 1 to {MAX_ID}"
        raise InvalidInput((InputError(detail, parameter="article_id"),))
    return number


def document_id_from(text: str) -> str:
    """Read a document's id from a path.

    Raises:
        InvalidInput: no document can have such an id.
    """
    errors = errors_of(text, _DOCUMENT_ID)
    if errors:
        raise InvalidInput(tuple(InputError(e.detail, parameter="document_id") for e in errors))
    return text


_ARTICLE_PROPERTIES: Final = {
    "id": _ID,
    "title": {"type": "string"},
    "body": {"type": "string"},
    "version": _VERSION,
    "created_at": _MOMENT,
    "updated_at": _MOMENT,
}
ARTICLE_SCHEMA: Final[Mapping[str, Any]] = _object(_ARTICLE_PROPERTIES)
ARTICLE_SUMMARY_SCHEMA: Final[Mapping[str, Any]] = _object(
    {name: schema for name, schema in _ARTICLE_PROPERTIES.items() if name != "body"}
)
PAGE_SCHEMA: Final[Mapping[str, Any]] = _object(
    {
        "items": {"type": "array", "items": ARTICLE_SUMMARY_SCHEMA},
        "next_page_token": {"type": ["string", "null"]},
    }
)
DOCUMENT_SCHEMA: Final[Mapping[str, Any]] = _object(
    {
        "id": {"type": "string"},
        "title": {"type": "string"},
        "content_sha256": {"type": "string"},
        "chunk_count": _COUNT,
        "ingested_at": _MOMENT,
    }
)
DOCUMENT_WITH_CHUNKS_SCHEMA: Final[Mapping[str, Any]] = _object(
    {
        **DOCUMENT_SCHEMA["properties"],
        "chunks": {"type": "array", "items": {"type": "string"}},
    }
)


def article_json(article: Article | ArticleSummary) -> dict[str, Any]:
    """Return an article as ARTICLE_SCHEMA describes it, or ARTICLE_SUMMARY_SCHEMA without body."""
    return _members(article)


def page_json(page: Page) -> dict[str, Any]:
    """Return a page as PAGE_SCHEMA describes it."""
    return {
        "items": [article_json(article) for article in page.items],
        "next_page_token": page.next.token if page.next else None,
    }


def document_json(document: Document, chunks: Sequence[str] | None = None) -> dict[str, Any]:
    """Return a document as DOCUMENT_SCHEMA describes it, or with the texts of its chunks."""
    content = _members(document)
    return content if chunks is None else {**content, "chunks": list(chunks)}


def _members(record: Article | ArticleSummary | Document) -> dict[str, Any]:
    """Return a record's fields as JSON members: they have the same names, by the schemas above."""
    return {
        # RFC 3339. psycopg2 gives the offset of the session's time zone, asyncpg always UTC.
        name: value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        if isinstance(value, datetime)
        else value
        for name, value in zip(record._fields, record, strict=True)
    }


def dump(content: object) -> bytes:
    """Encode as compact JSON in UTF-8; a lone surrogate becomes its JSON escape."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "backslashreplace"
    )


def _checked(value: object, schema: Mapping[str, Any]) -> dict[str, Any]:
    errors = errors_of(value, schema)
    if errors:
        raise InvalidInput(errors)
    return cast("dict[str, Any]", value)
