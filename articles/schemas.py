"""Input and output, as pydantic models: the web services and the worker use them.

The Lambda functions have the same schemas with msgspec, in `lambda_handler/schemas.py`, because
pydantic would make their cold start longer.
"""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

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

ArticleId = Annotated[int, Field(ge=1, le=MAX_ID)]
DocumentId = Annotated[str, Field(pattern=DOCUMENT_ID_PATTERN)]
Title = Annotated[str, Field(min_length=1, max_length=MAX_TITLE_CHARACTERS, pattern=TITLE_PATTERN)]
Body = Annotated[str, Field(max_length=MAX_BODY_CHARACTERS, pattern=TEXT_PATTERN)]
Limit = Annotated[int, Field(ge=1, le=100)]


class Input(BaseModel):
    """An input: a misspelt member is an error, and `"1"` is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewArticle(Input):
    """An article to be created."""

    title: Title
    body: Body


class ArticleUpdate(Input):
    """A change to the article's `version`; what is left out stays as it is."""

    version: int = Field(ge=1, le=MAX_VERSION)
    title: Title | None = None
    body: Body | None = None

    @model_validator(mode="after")
    def changes_something(self) -> "ArticleUpdate":
        """Refuse a change that changes nothing."""
        if self.title is None and self.body is None:
            raise ValueError("must have a title or a body")
        return self


class NewDocument(Input):
    """A document to be ingested, under the id that its sender chose."""

    id: DocumentId
    title: Title
    text: str = Field(min_length=1, max_length=MAX_TEXT_CHARACTERS, pattern=TEXT_PATTERN)


class Output(BaseModel):
    """An output, read from a model's attributes."""

    model_config = ConfigDict(from_attributes=True)


class ArticleSummary(Output):
    """An article without its body, so that a page of them stays small."""

    id: int
    title: str
    version: int
    created_at: datetime
    updated_at: datetime


class ArticleOut(ArticleSummary):
    """A whole article."""

    body: str


class Page(Output):
    """Articles, newest first; `next_before` is the `before` of the next page, if there is one."""

    items: list[ArticleSummary]
    next_before: int | None


class DocumentOut(Output):
    """A document without its chunks."""

    id: str
    title: str
    content_sha256: str
    chunk_count: int
    ingested_at: datetime


class ChunkOut(Output):
    """A part of a document's text."""

    position: int
    text: str


class DocumentWithChunks(DocumentOut):
    """A document and its chunks, in order."""

    chunks: list[ChunkOut]
