"""JSON is read strictly, and checked against the very schemas that are published."""

import json
import re

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from articles.contract import ARTICLE_UPDATE_SCHEMA, NEW_ARTICLE_SCHEMA, NEW_DOCUMENT_SCHEMA
from articles.errors import InvalidInput, MalformedJson, TooLarge
from articles.validation import MAX_BODY_BYTES, MAX_ERRORS, errors_of, parse_json_object

SCHEMAS = [NEW_ARTICLE_SCHEMA, ARTICLE_UPDATE_SCHEMA, NEW_DOCUMENT_SCHEMA]


@pytest.mark.parametrize(
    ("raw", "detail"),
    [
        (b"", "not JSON: Expecting value at line 1, column 1"),
        (b'{"title": "a",}', "not JSON"),
        (b'{"title": "a"} x', "not JSON: Extra data at line 1, column 16"),
        (b'\xef\xbb\xbf{"title": "a"}', "not JSON"),
        (b'{"title": "\xff"}', "not UTF-8: invalid start byte at byte 11"),
        ('{"title": "ä"}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": NaN}', "NaN is not a JSON value"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON value"),
        (b'{"a": 1, "b": 2, "a": 3}', 'the name "a" occurs twice in one object'),
        (b'{"o": {"\\u0061": 1, "a": 3}}', 'the name "a" occurs twice in one object'),
        (b'{"a": ' + b"[" * 200_000, "nested too deep"),
        (b'{"a":' * 200_000, "nested too deep"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "a number has too many digits"),
        (b'{"a": "tab\there"}', "not JSON: Invalid control character at"),
    ],
)
def test_json_that_is_broken_or_ambiguous_is_malformed(raw, detail):
    """What two parsers could read differently is refused, with the place and the reason."""
    with pytest.raises(MalformedJson, match=re.escape(detail)) as caught:
        parse_json_object(raw)
    assert [error.pointer for error in caught.value.errors] == ["#"]


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        *((b"[]", "an array"), (b"null", "null"), (b"1.5", "a number")),
        *((b'"a"', "a string"), (b"true", "a boolean")),
    ],
)
def test_json_that_is_not_an_object_is_invalid(raw, found):
    """Well-formed JSON of another type is invalid input, not malformed JSON."""
    with pytest.raises(InvalidInput, match=f"must be an object, not {found}") as caught:
        parse_json_object(raw)
    assert not isinstance(caught.value, MalformedJson)


def test_a_body_of_the_limit_is_read_and_one_byte_more_is_too_large():
    """The limit counts bytes, and is checked before anything is parsed."""
    frame = len(b'{"a":""}')
    assert parse_json_object(b'{"a":"' + b"x" * (MAX_BODY_BYTES - frame) + b'"}')
    with pytest.raises(TooLarge, match="1048576 bytes"):
        parse_json_object(b"x" * (MAX_BODY_BYTES + 1))


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"title": None}, "#/title", "must be a string, not null"),
        ({"title": 1}, "#/title", "must be a string, not a number"),
        ({"title": ["a"]}, "#/title", "must be a string, not an array"),
        ({"title": ""}, "#/title", "must have 1 to 200 characters, not 0"),
        ({"title": " \t\u3000"}, "#/title", "must not be blank"),
        ({"title": "x" * 201}, "#/title", "must have 1 to 200 characters, not 201"),
        ({"body": "x" * 100_001}, "#/body", "must have 0 to 100000 characters, not 100001"),
        ({"body": "a\0b"}, "#/body", "must not contain the character NUL (U+0000)"),
        ({"body": "a\ud800b"}, "#/body", "must not contain a lone surrogate (U+D800 to U+DFFF)"),
        ({"author": "x"}, "#/author", "is not known; known are title, body"),
        ({"a/b~c ä": "x"}, "#/a~1b~0c%20%C3%A4", "is not known; known are title, body"),
    ],
)
def test_each_breach_is_named_with_its_place(changes, pointer, detail):
    """An error has a JSON Pointer to the member and says what it must be."""
    (error,) = errors_of({"title": "a", "body": "b", **changes}, NEW_ARTICLE_SCHEMA)
    assert (error.pointer, error.detail) == (pointer, detail)


@pytest.mark.parametrize(
    ("version", "detail"),
    [
        (True, "must be an integer, not a boolean"),
        (1.0, "must be an integer, not a number"),
        ("1", "must be an integer, not a string"),
        (0, "must be 1 to 2147483647"),
        (2**31, "must be 1 to 2147483647"),
    ],
)
def test_an_integer_is_an_integer_in_range(version, detail):
    """Neither a boolean nor a float nor a string passes for a version."""
    (error,) = errors_of({"version": version, "title": "a"}, ARTICLE_UPDATE_SCHEMA)
    assert (error.pointer, error.detail) == ("#/version", detail)


def test_an_update_must_change_something():
    """A version alone is no change."""
    (error,) = errors_of({"version": 1}, ARTICLE_UPDATE_SCHEMA)
    assert error.detail == "must have at least one of title, body"


def test_all_breaches_are_collected():
    """One answer names every member that is wrong or missing."""
    errors = errors_of({"title": "", "colour": 1}, NEW_ARTICLE_SCHEMA)
    assert [error.pointer for error in errors] == ["#/body", "#/title", "#/colour"]


def test_an_answer_does_not_grow_with_the_errors_sent():
    """Of very many or very long unknown names, few are listed and each is shortened."""
    errors = errors_of({"x" * 10_000 + str(n): 1 for n in range(1_000)}, NEW_ARTICLE_SCHEMA)
    assert len(errors) == MAX_ERRORS
    assert all(len(error.pointer) < 120 for error in errors)


MEMBERS = {
    "title": st.text(max_size=3) | st.sampled_from(["x" * 200, "x" * 201]) | st.integers(),
    "body": st.text(max_size=3) | st.none(),
    "version": st.integers(-1, 3) | st.sampled_from([2**31 - 1, 2**31, True]),
    "id": st.from_regex("[A-Za-z0-9._~/ -]{0,4}", fullmatch=True) | st.just("x" * 129),
    "text": st.text(max_size=3),
    "other": st.text(max_size=3),
}


@given(st.sampled_from(SCHEMAS), st.fixed_dictionaries({}, optional=MEMBERS))
def test_the_published_schema_and_the_check_agree(schema, value):
    """What a JSON Schema validator accepts, the check accepts, but for what cannot be stored."""
    storable = "\\u0000" not in json.dumps(value)
    published = jsonschema.Draft202012Validator(schema).is_valid(value)
    assert (not errors_of(value, schema)) == (published and storable)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_published_schema_is_a_json_schema(schema):
    """OpenAPI 3.1 takes schemas of this draft as they are."""
    jsonschema.Draft202012Validator.check_schema(schema)
