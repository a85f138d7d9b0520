"""YAML and JSON files with the line of every value in them, and files of NAME=value lines."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml
from yaml.constructor import SafeConstructor

from poolkit.budget.model import SourceLocation
from poolkit.budget.read.values import get_path
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ValuePath: TypeAlias = tuple[str | int, ...]
"""The keys and indexes that lead to a value inside a document."""

_LARGEST_FILE = 10_000_000
# A file of a few lines can name itself over and over by aliases: stop before memory runs out.
_MOST_VALUES = 500_000
_TEXT_TAGS = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})
_NUMBER_TAGS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})
_PLAIN_TAG = {
    yaml.MappingNode: "tag:yaml.org,2002:map",
    yaml.SequenceNode: "tag:yaml.org,2002:seq",
    yaml.ScalarNode: "tag:yaml.org,2002:str",
}


@dataclass(frozen=True)
class Document:
    """One YAML document: plain dicts, lists and scalars, and the line of each."""

    path: Path
    file: str
    data: Any
    lines: Mapping[ValuePath, int] = field(repr=False)
    elsewhere: Mapping[ValuePath, SourceLocation] = field(default_factory=dict, repr=False)
    """The locations of values that come from another file."""

    def where(self, *path: str | int) -> SourceLocation:
        """Return the location of a value, or of the nearest value around it."""
        while path and path not in self.lines and path not in self.elsewhere:
            path = path[:-1]
        if path in self.elsewhere:
            return self.elsewhere[path]
        return SourceLocation(self.file, self.lines.get(path))

    def at(self, *path: str | int) -> Any:
        """Return a value, None if the path leads nowhere."""
        return get_path(self.data, *path)

    def mapping(self, *path: str | int) -> dict[str, Any]:
        """Return a mapping, an empty one if the path leads nowhere.

        Raises:
            TemplateError: the value is something else.
        """
        found = self.at(*path)
        if found is not None and not isinstance(found, dict):
            raise TemplateError(
                f"{self.where(*path)}: {path[-1]} must be a mapping, not {found!r:.40}"
            )
        return found or {}

    def items(self, *path: str | int) -> list[Any]:
        """Return a list, an empty one if the path leads nowhere.

        Raises:
            TemplateError: the value is something else.
        """
        found = self.at(*path)
        if found is not None and not isinstance(found, list):
            raise TemplateError(
                f"{self.where(*path)}: {path[-1]} must be a list, not {found!r:.40}"
            )
        return found or []

    def mappings(self, *path: str | int) -> list[dict[str, Any]]:
        """Return a list of mappings, an empty one if the path leads nowhere.

        Raises:
            TemplateError: the value is something else.
        """
        return [self.mapping(*path, number) for number in range(len(self.items(*path)))]


def read_documents(path: Path) -> list[Document]:
    """Return every document of a YAML or JSON file.

    CloudFormation's short forms are written out: `!Sub x` becomes `{"Fn::Sub": x}`.

    Raises:
        TemplateError: the file cannot be read, or is broken; the message names file and line.
    """
    return parse_documents(read_text(path), path)


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        TemplateError: it cannot be read, is no text in UTF-8 or UTF-16, or is larger than a template
            can be.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise TemplateError(f"{path}: larger than {_LARGEST_FILE:,} bytes; no template is")
        raw = path.read_bytes()
        # PowerShell writes UTF-16 for `helm template > all.yaml`.
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return raw.decode("utf-16" if is_utf16 else "utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise TemplateError(f"{path}: not a text in UTF-8") from None
    except OSError as error:
        raise TemplateError(f"{path}: cannot be read: {error.strerror}") from None


def parse_documents(text: str, path: Path) -> list[Document]:
    """Return every document of a text as if it stood in a file.

    Raises:
        TemplateError: it is broken; the message names file and line.
    """
    if path.suffix == ".json":
        text = text.replace("\t", " ")  # JSON may be indented with tabs, YAML may not
    loader = yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader
    try:
        found = []
        for node in yaml.compose_all(text, Loader=loader):
            lines: dict[ValuePath, int] = {}
            data = _DocumentReader(path, lines).value(node, ())
            found.append(Document(path, str(path), data, lines))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = SourceLocation(str(path), mark.line + 1 if mark else None)
        hint = "; run `helm template` on a Helm chart first" if "{{" in text else ""
        raise TemplateError(f"{where}: not valid YAML: {error.problem}{hint}") from None
    except yaml.YAMLError as error:
        raise TemplateError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise TemplateError(f"{path}: nested too deeply to be read") from None
    return found


def read_variables(text: str) -> dict[str, str]:
    """Return the variables of a file of NAME=value lines, as compose, Kustomize and Docker read it.

    Comments and lines without a value are left out.
    """
    found = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not line.lstrip().startswith("#"):
            found[name.strip().removeprefix("export ").strip()] = value.strip().strip("'\"")
    return found


@dataclass
class _DocumentReader:
    """The reader that turns the nodes of one document into plain values, and records their lines."""

    path: Path
    lines: dict[ValuePath, int]
    _scalars: SafeConstructor = field(default_factory=SafeConstructor)
    _open: set[int] = field(default_factory=set)
    _values: int = 0

    def value(self, node: yaml.Node, path: ValuePath) -> Any:
        self.lines.setdefault(path, node.start_mark.line + 1)
        self._values += 1
        if self._values > _MOST_VALUES:
            raise self._error(node, f"more than {_MOST_VALUES:,} values")
        if id(node) in self._open:
            raise self._error(node, "an alias (*) names a value that contains it")
        self._open.add(id(node))
        try:
            if not node.tag.startswith("!"):
                return self._plain(node, path)
            # !Sub x becomes {"Fn::Sub": x}.
            name = node.tag[1:]
            key = name if name in ("Ref", "Condition") else f"Fn::{name}"
            node.tag = _PLAIN_TAG[type(node)]
            value = self._plain(node, (*path, key))
            node.tag = f"!{name}"
            if key == "Fn::GetAtt" and isinstance(value, str):
                value = value.split(".", 1)
            return {key: value}
        finally:
            self._open.discard(id(node))

    def _plain(self, node: yaml.Node, path: ValuePath) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return [self.value(each, (*path, n)) for n, each in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            # Dates stay text, and 1:30 is not ninety.
            if node.tag in _TEXT_TAGS or (node.tag in _NUMBER_TAGS and ":" in node.value):
                return node.value
            try:
                return self._scalars.construct_object(node)
            except (yaml.YAMLError, ValueError):
                return node.value
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                # <<: of several mappings the first wins.
                is_list = isinstance(value_node, yaml.SequenceNode)
                for each in value_node.value if is_list else [value_node]:
                    value = self.value(each, path)
                    if not isinstance(value, dict):
                        raise self._error(each, "<< must be a mapping")
                    merged = value | merged
                continue
            key = str(self._plain(key_node, path))
            if key in found:
                raise self._error(key_node, f"the key {key} appears twice")
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            found[key] = self.value(value_node, (*path, key))
        return {**merged, **found}

    def _error(self, node: yaml.Node, what: str) -> TemplateError:
        return TemplateError(f"{SourceLocation(str(self.path), node.start_mark.line + 1)}: {what}")
