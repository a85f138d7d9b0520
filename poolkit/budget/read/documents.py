"""YAML and JSON files with the line of every value in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml
from yaml.constructor import SafeConstructor

from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ValuePath: TypeAlias = tuple[str | int, ...]

_LARGEST_FILE = 10_000_000
# A file of a few lines can name itself over and over by aliases: stop before memory does.
_MOST_VALUES = 500_000
_TEXT_TAGS = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})
_NUMBER_TAGS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})


@dataclass(frozen=True)
class SourceLocation:
    """A place in a file; lines count from 1."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Document:
    """One YAML document: plain dicts, lists and scalars, and the line of each."""

    path: Path
    file: str
    data: Any
    lines: Mapping[ValuePath, int] = field(repr=False)
    elsewhere: Mapping[ValuePath, SourceLocation] = field(default_factory=dict, repr=False)
    """Values that another file put there, and its lines."""

    def where(self, *steps: str | int) -> SourceLocation:
        """Return the place of a value, or of the nearest one around it."""
        while steps and steps not in self.lines and steps not in self.elsewhere:
            steps = steps[:-1]
        if steps in self.elsewhere:
            return self.elsewhere[steps]
        return SourceLocation(self.file, self.lines.get(steps))

    def at(self, *steps: str | int) -> Any:
        """Return a value, None if the steps lead nowhere."""
        found = self.data
        for step in steps:
            try:
                found = found[step]
            except (KeyError, IndexError, TypeError):
                return None
        return found

    def mapping(self, *steps: str | int) -> dict[str, Any]:
        """Return a mapping, an empty one if there is none.

        Raises:
            TemplateError: something else is there.
        """
        found = self.at(*steps)
        if found is not None and not isinstance(found, dict):
            raise TemplateError(
                f"{self.where(*steps)}: {steps[-1]} must be a mapping, not {found!r:.40}"
            )
        return found or {}

    def items(self, *steps: str | int) -> list[Any]:
        """Return a list, an empty one if there is none.

        Raises:
            TemplateError: something else is there.
        """
        found = self.at(*steps)
        if found is not None and not isinstance(found, list):
            raise TemplateError(
                f"{self.where(*steps)}: {steps[-1]} must be a list, not {found!r:.40}"
            )
        return found or []

    def mappings(self, *steps: str | int) -> list[dict[str, Any]]:
        """Return a list of mappings, an empty one if there is none.

        Raises:
            TemplateError: something else is there.
        """
        return [self.mapping(*steps, number) for number in range(len(self.items(*steps)))]


def read_documents(path: Path) -> list[Document]:
    """Read every document of a YAML or JSON file; CloudFormation's short forms are written out.

    Raises:
        TemplateError: it cannot be read, or is broken; the message names file and line.
    """
    return parse_documents(_text(path), path)


def parse_documents(text: str, path: Path) -> list[Document]:
    """Read every document of a text as if it stood in a file.

    Raises:
        TemplateError: it is broken; the message names file and line.
    """
    file = str(path)
    if path.suffix == ".json":
        text = text.replace("\t", " ")  # JSON may be indented with tabs, YAML may not
    loader = yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader
    try:
        return [
            _Reading(file).document(node, path) for node in yaml.compose_all(text, Loader=loader)
        ]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = SourceLocation(file, mark.line + 1 if mark else None)
        raise TemplateError(f"{where}: not valid YAML: {error.problem}{_hint(text)}") from None
    except yaml.YAMLError as error:
        raise TemplateError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise TemplateError(f"{file}: nested too deeply to be read") from None


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise TemplateError(f"{path}: larger than {_LARGEST_FILE:,} bytes; no template is")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TemplateError(f"{path}: not a text in UTF-8") from None
    except OSError as error:
        raise TemplateError(f"{path}: cannot be read: {error.strerror}") from None


def _hint(text: str) -> str:
    return "; a Helm chart is read after `helm template`" if "{{" in text else ""


class _Reading:
    """Turns the nodes of one document into plain values."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._scalars = SafeConstructor()
        self._lines: dict[ValuePath, int] = {}
        self._open: set[int] = set()
        self._values = 0

    def document(self, node: yaml.Node, path: Path) -> Document:
        data = self._value(node, ())
        return Document(path, self._file, data, self._lines)

    def _value(self, node: yaml.Node, steps: ValuePath) -> Any:
        self._lines.setdefault(steps, node.start_mark.line + 1)
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self._error(node, f"more than {_MOST_VALUES:,} values")
        if id(node) in self._open:
            raise self._error(node, "an alias (*) names what it stands in")
        self._open.add(id(node))
        try:
            return (
                self._tagged(node, steps) if node.tag.startswith("!") else self._plain(node, steps)
            )
        finally:
            self._open.discard(id(node))

    def _tagged(self, node: yaml.Node, steps: ValuePath) -> dict[str, Any]:
        """Write `!Sub x` out as {"Fn::Sub": x}."""
        name = node.tag[1:]
        key = name if name in ("Ref", "Condition") else f"Fn::{name}"
        node.tag = _PLAIN_TAG[type(node)]
        value = self._plain(node, (*steps, key))
        node.tag = f"!{name}"
        if key == "Fn::GetAtt" and isinstance(value, str):
            value = value.split(".", 1)
        return {key: value}

    def _plain(self, node: yaml.Node, steps: ValuePath) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, steps)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(each, (*steps, n)) for n, each in enumerate(node.value)]
        # Dates stay text, and 1:30 is not ninety.
        if node.tag in _TEXT_TAGS or (node.tag in _NUMBER_TAGS and ":" in node.value):
            return node.value
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError):
            return node.value

    def _mapping(self, node: yaml.MappingNode, steps: ValuePath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged = self._merged(value_node, steps) | merged
                continue
            key = str(self._plain(key_node, steps))
            if key in found:
                raise self._error(key_node, f"{key} is there twice")
            self._lines[(*steps, key)] = key_node.start_mark.line + 1
            found[key] = self._value(value_node, (*steps, key))
        return {**merged, **found}

    def _merged(self, node: yaml.Node, steps: ValuePath) -> dict[str, Any]:
        """Resolve `<<`; of several mappings the first wins."""
        several = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for each in several:
            value = self._value(each, steps)
            if not isinstance(value, dict):
                raise self._error(each, "<< wants a mapping")
            merged = value | merged
        return merged

    def _error(self, node: yaml.Node, what: str) -> TemplateError:
        return TemplateError(f"{SourceLocation(self._file, node.start_mark.line + 1)}: {what}")


_PLAIN_TAG = {
    yaml.MappingNode: "tag:yaml.org,2002:map",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
    yaml.ScalarNode: "tag:yaml.org,2002:str",
}
