"""Input and output, as pydantic models: the web services and the worker use them.

The Lambda functions have the same schemas with msgspec, in `lambda_handler/schemas.py`, because
pydantic would make their cold start longer.
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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

# Many mistakes at once are one error: each costs time, and a body may have 100,000 of them.
MAX_UNKNOWN_MEMBERS = 20


def _canonical(value: Any) -> Any:
    """Refuse other spellings of a number in a URL, such as 240.0, 1_000 and 007."""
    if isinstance(value, str) and not (value.isdecimal() and value.isascii() and value[0] != "0"):
        raise ValueError("must be a positive whole number in decimal digits")
    return value


def _whole(value: Any) -> Any:
    """Return 240.0 as 240: to JSON Schema both are an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


ArticleId = Annotated[int, Field(ge=1, le=MAX_ID), BeforeValidator(_canonical)]
DocumentId = Annotated[str, Field(pattern=DOCUMENT_ID_PATTERN)]
Title = Annotated[str, Field(min_length=1, max_length=MAX_TITLE_CHARACTERS, pattern=TITLE_PATTERN)]
Body = Annotated[str, Field(max_length=MAX_BODY_CHARACTERS, pattern=TEXT_PATTERN)]
Limit = Annotated[int, Field(ge=1, le=100), BeforeValidator(_canonical)]


class Input(BaseModel):
    """An input: a misspelt member is an error, and `"1"` is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def has_few_members(cls, value: Any) -> Any:
        """Refuse an input with many unknown members as a whole."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + MAX_UNKNOWN_MEMBERS:
            raise ValueError(f"may have the members {', '.join(cls.model_fields)} only")
        return value


class NewArticle(Input):
    """An article to be created."""

    title: Title
    body: Body


class ArticleUpdate(Input):
    """A change to the article's `version`; what is left out stays as it is."""

    # What `changes_something` checks, for readers of the JSON Schema.
    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": [name], "properties": {name: {"type": "string"}}}
                for name in ("title", "body")
            ]
        }
    )

    version: Annotated[int, Field(ge=1, le=MAX_VERSION), BeforeValidator(_whole)]
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
