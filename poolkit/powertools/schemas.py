"""Input that is checked with msgspec, and answered with the same problem documents as elsewhere.

Powertools validates with pydantic, whose import makes a cold start a quarter longer; msgspec's costs
3 %. Import this module by its name, since poolkit does not require msgspec:

    from poolkit.powertools.schemas import parse_body, parse_parameter, to_json

    app = Resolver(serializer=to_json)

    @app.post("/articles")
    def create_article():
        new = parse_body(app.json_body, NewArticle)
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from poolkit.errors import InvalidInput
from poolkit.problems import InputError, invalid_input, malformed_json, pointer_to

__all__ = ("parse_body", "parse_parameter", "to_json")

T = TypeVar("T")

# msgspec names the place of an error in its message alone: "... - at `$.title`", and for a member
# that is missing or unknown, "Object missing required field `title`".
_STEP = re.compile(r"\.(?P<member>\w+)|\[(?P<item>[^\]]*)\]")
_MEMBER = re.compile(r"(?:required|unknown) field `(?P<member>.*)`", re.DOTALL)


def parse_body(raw: bytes, schema: type[T]) -> T:
    """Read a request's body or a queue's message, and check it.

    Args:
        raw: JSON in UTF-8.
        schema: a type that msgspec knows, such as a Struct.

    Raises:
        InvalidInput: it is not JSON (the problem is a 400), or it breaks the schema (a 422 whose
            error points to the member).
    """
    try:
        try:
            return msgspec.json.decode(raw, type=schema)
        except msgspec.ValidationError:
            # To JSON Schema 240.0 is an integer, to msgspec it is none.
            return msgspec.convert(_whole_numbers.decode(raw), schema)
    except msgspec.ValidationError as error:
        message, place = _place_of(error)
        found = InputError(message, pointer=pointer_to(place))
        raise InvalidInput(invalid_input([found])) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(malformed_json(str(error))) from None


def parse_parameter(name: str, text: str, schema: type[T]) -> T:
    """Read a parameter of the path or the query, and check it; `"7"` is a number.

    Other spellings of an integer, such as `7.0` and `7e0`, are refused, so that one thing has one URL.

    Raises:
        InvalidInput: it breaks the schema; the problem is a 422 that names the parameter.
    """
    try:
        found = msgspec.convert(text, schema, strict=False)
    except msgspec.ValidationError as error:
        problem = invalid_input([InputError(str(error), parameter=name)])
        raise InvalidInput(problem) from None
    if type(found) is int and str(found) != text:
        wrong = InputError("Expected `int` in decimal digits", parameter=name)
        raise InvalidInput(invalid_input([wrong]))
    return found


def to_json(value: object) -> str:
    """Encode an output, for the `serializer` of a resolver."""
    return msgspec.json.encode(value).decode()


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


_whole_numbers = msgspec.json.Decoder(float_hook=_number)


def _place_of(error: msgspec.ValidationError) -> tuple[str, list[str]]:
    """Return the message without the place, and the members that lead to the place."""
    # Not by a pattern: a client's name of a megabyte would cost it half a second.
    message, found, path = str(error).rpartition(" - at `$")
    if not found:
        message, path = path, ""
    place = [step["member"] or step["item"] for step in _STEP.finditer(path)]
    named = _MEMBER.search(message)
    return message, [*place, named["member"]] if named else place
