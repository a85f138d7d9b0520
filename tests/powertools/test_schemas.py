"""Input that msgspec checks: where an error is, and which status it has."""

from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from poolkit.errors import InvalidInput
from poolkit.powertools.schemas import parse_body, parse_parameter, to_json


class Chapter(msgspec.Struct):
    title: Annotated[str, Meta(max_length=5)]


class Book(msgspec.Struct, forbid_unknown_fields=True):
    title: str
    pages: Annotated[int, Meta(ge=1)] = 1
    chapters: list[Chapter] = []
    notes: dict[str, int] = {}


def problem_of(parse, *arguments):
    with pytest.raises(InvalidInput) as refused:
        parse(*arguments)
    assert str(refused.value) == refused.value.problem.detail
    return refused.value.problem


def test_what_fits_is_a_struct():
    """And an output is JSON again."""
    book = parse_body('{"title":"ü","pages":3}'.encode(), Book)
    assert book == Book(title="ü", pages=3)
    assert to_json(book) == '{"title":"ü","pages":3,"chapters":[],"notes":{}}'


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"title":"\xff"}', b'{"title":NaN}', b'{"title":"\\ud800"}', b"\xef\xbb\xbf{}"],
)
def test_what_is_not_json_is_malformed(body):
    """400, whatever is wrong with it."""
    problem = problem_of(parse_body, body, Book)
    assert (problem.status, problem.type) == (400, "/problems/malformed-json")


def test_what_is_nested_too_deep_is_malformed():
    """It must not end the process."""
    assert problem_of(parse_body, b'{"x":' + b"[" * 100_000, Chapter).status in (400, 422)


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ("[]", "#"),
        ("{}", "#/title"),
        ('{"title":null}', "#/title"),
        ('{"title":"t","pages":0}', "#/pages"),
        ('{"title":"t","color":1}', "#/color"),
        ('{"title":"t","chapters":[{"title":"t"},{"title":"too long"}]}', "#/chapters/.../title"),
        ('{"title":"t","chapters":[{}]}', "#/chapters/.../title"),
        ('{"title":"t","notes":{"a":"b"}}', "#/notes/..."),
    ],
)
def test_json_that_breaks_the_schema_points_to_the_member(body, pointer):
    """422, as precisely as msgspec tells it: it names items by their container."""
    problem = problem_of(parse_body, body.encode(), Book)
    assert (problem.status, problem.type) == (422, "/problems/invalid-input")
    (error,) = problem.errors
    assert error.pointer.replace("/0/", "/.../").replace("/1/", "/.../") == pointer
    assert "`$" not in error.detail


def test_a_parameter_is_read_from_text():
    """A number is written in digits, and an error names the parameter."""
    number = Annotated[int, Meta(ge=1)]
    assert parse_parameter("limit", "7", number) == 7
    for text in ("0", "x", ""):
        problem = problem_of(parse_parameter, "limit", text, number)
        assert problem.status == 422
        assert problem.errors[0].parameter == "limit"
