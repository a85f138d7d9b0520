"""Strict JSON, and its check against the small part of JSON Schema that the API uses.

The schemas that the API publishes are the very tables that `errors_of` reads, so the
documentation and the check cannot differ. It supports these parts of JSON Schema: objects with
`properties`, `required`, `minProperties` and no additional properties; strings with `minLength`,
`maxLength` and `pattern`; integers with `minimum` and `maximum`.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import quote

from articles.errors import InputError, InvalidInput, MalformedJson, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_BODY_BYTES: Final = 1_048_576
"""The most bytes a request or message may have: 1 MiB, what SQS and an ALB carry at most."""

MAX_ERRORS: Final = 20
"""The most errors that one answer lists: enough to learn from, and no amplifier."""

_TYPES: Final[Mapping[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}
_TAKEN: Final = object()
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_json_object(raw: bytes) -> dict[str, Any]:
    """Read a JSON object in UTF-8 (RFC 8259) that has only one reading.

    Beyond the RFC it refuses names that occur twice in one object, as RFC 7493 (I-JSON) does, and
    NaN and infinities, which Python alone accepts.

    Raises:
        TooLarge: there are more than MAX_BODY_BYTES.
        MalformedJson: it is not such JSON; the message says where.
        InvalidInput: it is JSON but not an object.
    """
    if len(raw) > MAX_BODY_BYTES:
        raise TooLarge(MAX_BODY_BYTES)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_distinct,
            parse_constant=lambda constant: _refuse(f"{constant} is not a JSON value"),
        )
    except UnicodeDecodeError as error:
        _refuse(f"not UTF-8: {error.reason} at byte {error.start}")
    except json.JSONDecodeError as error:
        _refuse(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}")
    except RecursionError:
        _refuse("arrays and objects are nested too deep")
    except MalformedJson:
        raise
    except ValueError:
        # The only other error of json: int() refuses more than 4,300 digits.
        _refuse("a number has too many digits")
    if not isinstance(value, dict):
        raise InvalidInput((InputError(f"must be an object, not {_type_of(value)}", pointer="#"),))
    return value


def errors_of(value: object, schema: Mapping[str, Any]) -> tuple[InputError, ...]:
    """Return the first MAX_ERRORS errors of `value` against `schema`; none if it is valid.

    Any string must also be one that PostgreSQL can store: without NUL and without
    surrogates, of which JSON escapes can make lone ones.
    """
    return tuple(islice(_errors(value, schema, "#"), MAX_ERRORS))


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        # Each name is removed once, so a name that is gone already occurs twice.
        twice = next(name for name, _ in pairs if members.pop(name, _TAKEN) is _TAKEN)
        _refuse(f"the name {json.dumps(_shortened(twice))} occurs twice in one object")
    return members


def _refuse(detail: str) -> NoReturn:
    raise MalformedJson((InputError(detail, pointer="#"),)) from None


def _errors(value: object, schema: Mapping[str, Any], pointer: str) -> Iterator[InputError]:
    check = {"object": _object_errors, "string": _string_errors, "integer": _integer_errors}
    return check[schema["type"]](value, schema, pointer)


def _object_errors(value: object, schema: Mapping[str, Any], pointer: str) -> Iterator[InputError]:
    if not isinstance(value, dict):
        yield InputError(f"must be an object, not {_type_of(value)}", pointer)
        return
    properties = schema["properties"]
    for name in schema["required"]:
        if name not in value:
            yield InputError("is required", f"{pointer}/{_escaped(name)}")
    for name, member in value.items():
        # A decoder other than JSON's may accept keys that are not strings.
        where = f"{pointer}/{_escaped(str(name))}"
        if name in properties:
            yield from _errors(member, properties[name], where)
        else:
            yield InputError(f"is not known; known are {', '.join(properties)}", where)
    if len(value) < schema.get("minProperties", 0):
        wanted = ", ".join(name for name in properties if name not in schema["required"])
        yield InputError(f"must have at least one of {wanted}", pointer)


def _string_errors(value: object, schema: Mapping[str, Any], pointer: str) -> Iterator[InputError]:
    if not isinstance(value, str):
        yield InputError(f"must be a string, not {_type_of(value)}", pointer)
        return
    shortest, longest = schema.get("minLength", 0), schema["maxLength"]
    if not shortest <= len(value) <= longest:
        yield InputError(f"must have {shortest} to {longest} characters, not {len(value)}", pointer)
    # A final $ is the end in JSON Schema; in Python it also stands before a last newline.
    elif "pattern" in schema and not re.search(schema["pattern"].replace("$", r"\Z"), value):
        yield InputError(schema["description"], pointer)
    if "\0" in value:
        yield InputError("must not contain the character NUL (U+0000)", pointer)
    if _SURROGATE.search(value):
        yield InputError("must not contain a lone surrogate (U+D800 to U+DFFF)", pointer)


def _integer_errors(value: object, schema: Mapping[str, Any], pointer: str) -> Iterator[InputError]:
    lowest, highest = schema["minimum"], schema["maximum"]
    # True is an int in Python, but not in JSON.
    if not isinstance(value, int) or isinstance(value, bool):
        yield InputError(f"must be an integer, not {_type_of(value)}", pointer)
    elif not lowest <= value <= highest:
        yield InputError(f"must be {lowest} to {highest}", pointer)


def _type_of(value: object) -> str:
    return _TYPES.get(type(value), type(value).__name__)


def _escaped(name: str) -> str:
    """Escape a member's name for a JSON Pointer in a URI fragment (RFC 6901, sections 3, 6)."""
    escaped = _shortened(name).replace("~", "~0").replace("/", "~1")
    return quote(escaped, safe="~", errors="backslashreplace")


def _shortened(name: str) -> str:
    # The sender of a long name must not decide how long the answer is.
    return name if len(name) <= 100 else f"{name[:99]}…"
