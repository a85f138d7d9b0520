"""Input and output, as msgspec structs: the same schemas as in `articles/schemas.py`.

With msgspec instead of pydantic, because a cold start pays for every import
(docs/decisions/0016-msgspec-in-the-function.md). A test compares the JSON Schemas of both.
"""

from datetime import datetime
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct

from articles.models import (
    DOCUMENT_ID_PATTERN,
    MAX_BODY_CHARACTERS,
    MAX_ID,
    MAX_TEXT_CHARACTERS,
    MAX_TITLE_CHARACTERS,
    MAX_VERSION,
    TEXT_PATTERN,
    TITLE_PATTERN,
)

ArticleId = Annotated[int, Meta(ge=1, le=MAX_ID)]
# Python's $ also matches before a line break at the end, \Z does not.
DocumentId = Annotated[str, Meta(pattern=DOCUMENT_ID_PATTERN.replace("$", r"\Z"))]
Title = Annotated[str, Meta(min_length=1, max_length=MAX_TITLE_CHARACTERS, pattern=TITLE_PATTERN)]
Body = Annotated[str, Meta(max_length=MAX_BODY_CHARACTERS, pattern=TEXT_PATTERN)]
Limit = Annotated[int, Meta(ge=1, le=100)]
Moment = Annotated[datetime, Meta(tz=True)]


class NewArticle(Struct, forbid_unknown_fields=True):
    """An article to be created."""

    title: Title
    body: Body


class ArticleUpdate(Struct, forbid_unknown_fields=True):
    """A change to the article's `version`; what is left out stays as it is."""

    version: Annotated[int, Meta(ge=1, le=MAX_VERSION)]
    title: Title | None = None
    body: Body | None = None

    def __post_init__(self) -> None:
        if self.title is None and self.body is None:
            raise ValueError("must have a title or a body")


class NewDocument(Struct, forbid_unknown_fields=True):
    """A document to be ingested, under the id that its sender chose."""

    id: DocumentId
    title: Title
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT_CHARACTERS, pattern=TEXT_PATTERN)]


class ArticleSummary(Struct):
    """An article without its body, so that a page of them stays small."""

    id: int
    title: str
    version: int
    created_at: Moment
    updated_at: Moment


class ArticleOut(ArticleSummary):
    """A whole article."""

    body: str


class Page(Struct):
    """Articles, newest first; `next_before` is the `before` of the next page, if there is one."""

    items: list[ArticleSummary]
    next_before: int | None


class DocumentOut(Struct):
    """A document without its chunks."""

    id: str
    title: str
    content_sha256: str
    chunk_count: int
    ingested_at: Moment


class ChunkOut(Struct):
    """A part of a document's text."""

    position: int
    text: str


class DocumentWithChunks(DocumentOut):
    """A document and its chunks, in order."""

    chunks: list[ChunkOut]


T = TypeVar("T")


def output(model: object, schema: type[T]) -> T:
    """Return a model's attributes as an output."""
    return msgspec.convert(model, schema, from_attributes=True)
