"""Dataclasses to JSON and CSV and back, with errors that name the file, the key or the line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from poolkit.errors import RunFolderError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Data = TypeVar("Data")

# -- JSON -----------------------------------------------------------------------------------


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write an object with indentation, in a new folder if it does not exist; NaN is refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # The whole file or none: the disk may be full.
    partial = file.with_suffix(".partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        RunFolderError: the file is missing or broken.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_number)
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{file} is broken: {error}") from None
    if not isinstance(found, dict):
        raise RunFolderError(f"{file} is broken: wanted an object, found {found!r:.40}")
    return found


def to_json(value: Any) -> dict[str, Any]:
    """Return a dataclass as an object; a field named after a keyword loses its underscore."""
    return {name.rstrip("_"): found for name, found in dataclasses.asdict(value).items()}


def from_json(kind: type[Data], found: Mapping[str, Any], where: str) -> Data:
    """Return an object as a dataclass; unknown keys are ignored.

    Raises:
        RunFolderError: a key is missing or of another type; the message begins with `where`.
    """
    values: dict[str, Any] = {}
    types = get_type_hints(kind)
    for spec in dataclasses.fields(kind):  # type: ignore[arg-type]  # a dataclass, by contract
        key = spec.name.rstrip("_")
        if key in found:
            values[spec.name] = _converted(types[spec.name], found[key], f"{where}: {key}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise RunFolderError(f"{where}: {key} is missing")
    return kind(**values)


def _converted(wanted: Any, value: Any, where: str) -> Any:
    arguments = get_args(wanted)
    is_tuple = arguments[1:] == (...,)
    if isinstance(wanted, UnionType):
        return None if value is None else _converted(arguments[0], value, where)
    if dataclasses.is_dataclass(wanted) and isinstance(value, dict):
        return from_json(wanted, value, where)  # type: ignore[arg-type]  # from annotations: a type
    if is_tuple and isinstance(value, list):
        return tuple(_converted(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if arguments and not is_tuple and isinstance(value, dict):
        return {key: _converted(arguments[1], v, f"{where}.{key}") for key, v in value.items()}
    if get_origin(wanted) is Literal and value in arguments:
        return value
    if wanted is Any or type(value) is wanted or (wanted is float and type(value) is int):
        return value
    name = "list" if is_tuple else getattr(wanted, "__name__", "object")
    raise RunFolderError(f"{where} must be of type {name}, not {value!r:.60}")


# -- CSV ------------------------------------------------------------------------------------


def as_text(value: Any) -> Any:
    """Return a value as a CSV file has it: six decimals are enough, None is empty."""
    if isinstance(value, float):
        return f"{value:.6f}"
    return "" if value is None else value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    return value


_PARSERS: dict[Any, Any] = {
    "str": str,
    "int": int,
    "float": _number,
    "bool": lambda text: {"True": True, "False": False}[text],
    "int | None": lambda text: int(text) if text else None,
    "float | None": lambda text: _number(text) if text else None,
    "bool | None": lambda text: {"True": True, "False": False, "": None}[text],
}
"""By annotation, which `from __future__ import annotations` keeps as text."""


def read_rows(file: Path, kind: type[Data]) -> tuple[tuple[Data, ...], tuple[str, ...]]:
    """Return the rows of a CSV file, and warnings: it is missing, or its last line is incomplete.

    Raises:
        RunFolderError: it cannot be read, or a row is broken; the message names the line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return (), (f"{file.name} is missing",)
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{file} cannot be read: {error}") from None
    # The writing process was killed in the middle of a line.
    whole, newline, cut = text.rpartition("\n")
    warnings = (f"the last line of {file.name} was cut short",) if cut else ()
    if not whole:
        return (), warnings
    reader = csv.reader(io.StringIO(whole + newline), strict=True)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # a dataclass, by contract
    rows: list[Data] = []
    try:
        header = next(reader)
        needed = {each.name for each in fields if each.default is dataclasses.MISSING}
        if missing := needed - set(header):
            raise RunFolderError(f"{file} has no column {', '.join(sorted(missing))}")
        # By position: reading by name takes twice as long.
        columns = [
            (each.name, header.index(each.name), _PARSERS[each.type])
            for each in fields
            # A run of an older version has fewer columns.
            if each.name in header
        ]
        # A blank line is no row: a hand-edited file may end with one.
        rows += (
            kind(**{n: parse(values[at]) for n, at, parse in columns})
            for values in reader
            if values
        )
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise RunFolderError(f"{file}, line {reader.line_num} is broken: {error}") from None
    except IndexError:
        raise RunFolderError(
            f"{file}, line {reader.line_num} is broken: it has too few columns"
        ) from None
    return tuple(rows), warnings
