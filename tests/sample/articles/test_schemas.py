"""The schemas refuse what the database or the API cannot take."""

import pytest
from pydantic import BaseModel, ValidationError

from articles.models import MAX_ID, MAX_TITLE_CHARACTERS
from articles.schemas import ArticleUpdate, NewArticle, NewDocument

ARTICLE = {"title": "Title", "body": "Body"}
DOCUMENT = {"id": "report-1", "title": "Report", "text": "Text"}

REFUSED: list[tuple[type[BaseModel], dict[str, object], str]] = [
    (NewArticle, ARTICLE | {"title": ""}, "title"),
    (NewArticle, ARTICLE | {"title": " \n"}, "title"),
    (NewArticle, ARTICLE | {"title": "x" * (MAX_TITLE_CHARACTERS + 1)}, "title"),
    (NewArticle, ARTICLE | {"title": "a\0"}, "title"),
    (NewArticle, ARTICLE | {"title": "\ud800"}, "title"),
    (NewArticle, ARTICLE | {"title": 1}, "title"),
    (NewArticle, ARTICLE | {"body": "\0"}, "body"),
    (NewArticle, ARTICLE | {"more": 1}, "more"),
    (NewArticle, {"title": "Title"}, "body"),
    (ArticleUpdate, {"version": 1}, ""),
    (ArticleUpdate, {"title": "Title"}, "version"),
    (ArticleUpdate, {"version": 0, "title": "Title"}, "version"),
    (ArticleUpdate, {"version": MAX_ID, "title": "Title"}, "version"),
    (ArticleUpdate, {"version": "1", "title": "Title"}, "version"),
    (ArticleUpdate, {"version": True, "title": "Title"}, "version"),
    (NewDocument, DOCUMENT | {"id": "-"}, "id"),
    (NewDocument, DOCUMENT | {"id": "a/b"}, "id"),
    (NewDocument, DOCUMENT | {"id": "a\n"}, "id"),
    (NewDocument, DOCUMENT | {"id": "x" * 129}, "id"),
    (NewDocument, DOCUMENT | {"text": ""}, "text"),
]


@pytest.mark.parametrize(("schema", "value", "place"), REFUSED)
def test_wrong_input_is_refused_at_its_place(schema, value, place):
    """The error names the member that is wrong, or the whole input."""
    with pytest.raises(ValidationError) as refused:
        schema.model_validate(value)
    assert [".".join(map(str, error["loc"])) for error in refused.value.errors()] == [place]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (NewArticle, {"title": "x" * MAX_TITLE_CHARACTERS, "body": ""}),
        (NewArticle, {"title": " Zürich\n🚋", "body": "a\tb\n"}),
        (ArticleUpdate, {"version": 1, "body": ""}),
        (NewDocument, DOCUMENT | {"id": "A.b_c~d-" * 16}),
    ],
)
def test_good_input_is_taken_unchanged(schema, value):
    """No value is trimmed or converted."""
    assert schema.model_validate(value).model_dump(exclude_unset=True) == value
