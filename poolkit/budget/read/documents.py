"""YAML and JSON files with the line of every value in them, and files of NAME=value lines.

JSON is read by `json`, with comments and last commas, and a stream of documents too. Lines are
searched for when they are asked for.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
from bisect import bisect
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import yaml
from yaml.constructor import SafeConstructor

from poolkit.budget.model import SourceLocation
from poolkit.budget.read.values import get_path
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

ValuePath: TypeAlias = tuple[str | int, ...]
"""The keys and indexes that lead to a value inside a document."""

# The plan of a large Terraform project has tens of megabytes. JSON is read 15 times as fast.
_LARGEST_YAML, _LARGEST_JSON = 10_000_000, 50_000_000
# A file of a few lines can name itself over and over by aliases: stop before memory runs out.
_MOST_VALUES = 1_000_000
# The readers go down by recursion.
_DEEPEST = 150
_TEXT = ("!", "tag:yaml.org,2002:str")
_TEXT_TAGS = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCALARS = SafeConstructor()
_NO_SPACE = re.compile(r"\S|\Z")
_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_LAST_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[\]}])')


@dataclass
class Lines:
    """The line of a value, and those of the values in it."""

    line: int
    find: Callable[[], dict[str | int, Lines]]

    @cached_property
    def inner(self) -> dict[str | int, Lines]:
        """The lines of the keys of a mapping, or of the items of a list."""
        return self.find()


@dataclass(frozen=True)
class Document:
    """One YAML or JSON document: plain dicts, lists and scalars, and the line of each."""

    path: Path
    file: str
    data: Any
    lines: Lines | None = field(default=None, repr=False)
    elsewhere: Mapping[ValuePath, SourceLocation] = field(default_factory=dict, repr=False)
    """The locations of values that come from another file."""
    repeated: tuple[ValuePath, ...] = ()
    """The keys that occur twice with different values; the last one counts."""

    def where(self, *path: str | int) -> SourceLocation:
        """Return the location of a value, or of the nearest value around it."""
        lines, depth = self.lines, 0
        while lines and depth < len(path) and (inner := lines.inner.get(path[depth])):
            lines, depth = inner, depth + 1
        for length in range(len(path), depth - 1, -1):
            if path[:length] in self.elsewhere:
                return self.elsewhere[path[:length]]
        return SourceLocation(self.file, lines.line if lines else None)

    def inside(self, *path: str | int) -> Document:
        """Return the value at a path as a document of its own, with the same locations."""
        lines, length = self.lines, len(path)
        for key in path:
            lines = lines.inner.get(key) if lines else None
        moved = {at[length:]: it for at, it in self.elsewhere.items() if at[:length] == path}
        return dataclasses.replace(self, data=self.at(*path), lines=lines, elsewhere=moved)

    def locations(self, *path: str | int) -> dict[ValuePath, SourceLocation]:
        """Return the location of every value at or below a path, by the rest of its path."""
        part, found = self.inside(*path), dict[ValuePath, SourceLocation]()
        waiting: list[tuple[ValuePath, Lines]] = [((), part.lines)] if part.lines else []
        for below, lines in waiting:  # it grows during the loop
            found[below] = SourceLocation(self.file, lines.line)
            waiting += [((*below, key), each) for key, each in lines.inner.items()]
        return found | dict(part.elsewhere)

    def at(self, *path: str | int) -> Any:
        """Return a value, None if the path leads nowhere."""
        return get_path(self.data, *path)

    def mapping(self, *path: str | int) -> dict[str, Any]:
        """Return a mapping, an empty one if the path leads nowhere.

        Raises:
            TemplateError: the value is something else.
        """
        return dict(self._typed(dict, "mapping", path))

    def items(self, *path: str | int) -> list[Any]:
        """Return a list, an empty one if the path leads nowhere.

        Raises:
            TemplateError: the value is something else.
        """
        return list(self._typed(list, "list", path))

    def mappings(self, *path: str | int) -> list[dict[str, Any]]:
        """Return a list of mappings, an empty one if the path leads nowhere.

        Raises:
            TemplateError: the value is something else.
        """
        return [self.mapping(*path, number) for number in range(len(self.items(*path)))]

    def _typed(self, kind: Any, name: str, path: ValuePath) -> Any:
        found = self.at(*path)
        if found is None or isinstance(found, kind):
            return found or kind()
        where = self.where(*path)
        raise TemplateError(f"{path[-1]} must be a {name}, not {found!r:.40}", where)


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
    where = SourceLocation(str(path))
    try:
        most = _LARGEST_JSON if path.suffix == ".json" else _LARGEST_YAML
        if path.stat().st_size > most:
            raise TemplateError(f"larger than {most:,} bytes; no template is", where)
        raw = path.read_bytes()
        # PowerShell writes UTF-16 for `helm template > all.yaml`.
        is_utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return raw.decode("utf-16" if is_utf16 else "utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise TemplateError("not a text in UTF-8", where) from None
    except OSError as error:
        raise TemplateError(f"cannot be read: {error.strerror}", where) from None


def parse_documents(text: str, path: Path) -> list[Document]:
    """Return every document of a text as if it stood in a file.

    Raises:
        TemplateError: it is broken; the message names file and line.
    """
    try:
        return _json_documents(text, path) or [_yaml_document(path, each) for each in _nodes(text)]
    except yaml.YAMLError as error:
        # Only an error of the reader of characters has no mark.
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        hint = "; run the program that renders this template first" if "{{" in text else ""
        where = SourceLocation(str(path), mark.line + 1 if mark else None)
        raise TemplateError(f"not valid YAML: {problem}{hint}", where) from None


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


# -- JSON -----------------------------------------------------------------------------------


def _json_documents(text: str, path: Path) -> list[Document] | None:
    """Return the documents of a JSON text; None if it is something else."""
    found: list[Document] = []
    at = _after_space(text, 0)
    if text[at : at + 1] not in ("{", "[", "/"):
        return None
    ends = [each.start() for each in re.finditer("\n", text)]
    try:
        while at < len(text):
            data, end = _JSON.raw_decode(text, at)
            lines = Lines(bisect(ends, at) + 1, partial(_json_lines, text, ends, at))
            found.append(Document(path, str(path), data, lines))
            at = _after_space(text, end)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError:
        # Comments and last commas become spaces, so that every line stays where it is.
        plain = text
        for pattern in (_COMMENT, _LAST_COMMA):
            plain = pattern.sub(lambda match: match[1] or re.sub(r"\S", " ", match[0]), plain)
        return _json_documents(plain, path) if plain != text else None
    level: list[Any] = [document.data for document in found]
    for _ in range(_DEEPEST):
        parts = (each.values() if isinstance(each, dict) else each for each in level)
        level = [each for part in parts for each in part if isinstance(each, dict | list)]
    if level:
        raise yaml.YAMLError("nested too deeply")
    return found


def _json_lines(text: str, ends: list[int], value: int) -> dict[str | int, Lines]:
    """Return the lines of the keys or items of the JSON value that begins at a place.

    Args:
        text: the whole text.
        ends: the places where its lines end.
        value: the place of the value.
    """
    found: dict[str | int, Lines] = {}
    at = _after_space(text, value + 1)
    while text[value] in "{[" and text[at] not in "}]":
        line, key = bisect(ends, at) + 1, len(found)
        if text[value] == "{":
            key, at = json.decoder.scanstring(text, at + 1, False)  # type: ignore[attr-defined]
            at = _after_space(text, _after_space(text, at) + 1)
        found[key] = Lines(line, partial(_json_lines, text, ends, at))
        at = _after_space(text, _JSON.raw_decode(text, at)[1])
        at = _after_space(text, at + 1) if text[at] == "," else at
    return found


def _after_space(text: str, at: int) -> int:
    return next(_NO_SPACE.finditer(text, at)).start()


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse a repeated key, whose line only the reader of YAML knows."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_without_repeated, strict=False)


# -- YAML -----------------------------------------------------------------------------------


_MERGE: Final = object()
"""The key `<<`."""


class _Node(NamedTuple):
    """A value and its line. PyYAML's own nodes would take three times the memory and time."""

    line: int
    value: Any
    """Of a scalar; of a key, its text; else the type `dict` or `list`."""
    parts: Any = ()
    """The items of a list; the keys and values of a mapping in turn."""
    function: str = ""


def _nodes(text: str) -> Iterator[_Node]:
    """Yield the root of each document.

    PyYAML's own composer crashes on deep nesting, and refuses to name two anchors alike.
    """
    around: list[_Node] = []
    anchors: dict[str | None, _Node] = {}
    # Not by yaml.parse, which asks for each event twice.
    for event in iter(_LOADER(text).get_event, None):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.NodeEvent):
            is_alias = type(event) is yaml.AliasEvent
            node = anchors.get(event.anchor) if is_alias else _node(event, line, around[-1])
            if node is None:
                raise _error(line, f"the alias *{event.anchor} has no anchor")
            if event.anchor:
                anchors[event.anchor] = node
            around[-1].parts.append(node)
            if isinstance(event, yaml.CollectionStartEvent):
                around.append(node)
        elif isinstance(event, yaml.DocumentStartEvent):
            around, anchors = [_Node(line, list, [])], {}
        elif isinstance(event, yaml.CollectionEndEvent):
            around.pop()
        elif isinstance(event, yaml.DocumentEndEvent):
            yield around[0].parts[0]
        if len(around) > _DEEPEST:
            raise _error(line, "nested too deeply")


def _node(event: Any, line: int, parent: _Node) -> _Node:
    if type(event) is not yaml.ScalarEvent:
        kind = dict if type(event) is yaml.MappingStartEvent else list
        return _Node(line, kind, [], _function(event.tag))
    if parent.value is dict and len(parent.parts) % 2 == 0:
        is_merge = event.value == "<<" and not event.style
        return _Node(line, _MERGE if is_merge else event.value)
    return _Node(line, _scalar(event), (), _function(event.tag))


def _yaml_document(file: Path, root: _Node) -> Document:
    reader = _YamlReader()
    data, lines = reader.value(root, ()), Lines(root.line, partial(_lines, root))
    return Document(file, str(file), data, lines, {}, tuple(reader.repeated))


@dataclass
class _YamlReader:
    """The reader that turns the nodes of one document into plain values."""

    repeated: list[ValuePath] = field(default_factory=list)
    _values: int = 0

    def value(self, node: _Node, path: ValuePath) -> Any:
        """Return the value of a node at a path."""
        self._values += 1
        if self._values > _MOST_VALUES or len(path) > _DEEPEST:
            raise _error(node.line, "nested too deeply, or too large, by its aliases (*)")
        value: Any = node.value
        if node.function:
            path = (*path, node.function)
        if value is dict:
            value = self._mapping(node, path)
        elif value is list:
            value = [self.value(part, (*path, n)) for n, part in enumerate(node.parts)]
        if node.function == "Fn::GetAtt" and isinstance(value, str):
            value = value.split(".", 1)
        return {node.function: value} if node.function else value

    def _mapping(self, node: _Node, path: ValuePath) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, part in zip(node.parts[::2], node.parts[1::2], strict=True):
            if key_node.value is _MERGE:
                for each in _merged(part):
                    if each.value is not dict:
                        raise _error(each.line, "<< must be a mapping")
                    merged = self.value(each, (*path, "<<")) | merged
                continue
            if key_node.value in (dict, list):
                raise _error(key_node.line, "a key must be text")
            key = str(key_node.value)
            value = self.value(part, (*path, key))
            if found.setdefault(key, value) != value:
                self.repeated.append((*path, key))
                found[key] = value
        return merged | found


def _lines(node: _Node, *, is_inside: bool = False) -> dict[str | int, Lines]:
    """Return the lines of the values in a node, under the keys that the reader gives them."""
    if node.function and not is_inside:
        return {node.function: Lines(node.line, partial(_lines, node, is_inside=True))}
    if node.value is list:
        return {n: Lines(part.line, partial(_lines, part)) for n, part in enumerate(node.parts)}
    found: dict[str | int, Lines] = {}
    merged: dict[str | int, Lines] = {}
    for key, part in zip(node.parts[::2], node.parts[1::2], strict=True):
        if key.value is _MERGE:
            for each in _merged(part):
                merged = _lines(each) | merged
        else:
            found[str(key.value)] = Lines(key.line, partial(_lines, part))
    return merged | found


def _merged(part: _Node) -> Sequence[_Node]:
    """Return the mappings that `<<` adds; the first one wins."""
    return part.parts if part.value is list else [part]


def _error(line: int, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(
        problem=problem, problem_mark=yaml.Mark("", 0, line - 1, 0, None, 0)
    )


def _function(tag: str | None) -> str:
    """Return the function of CloudFormation's short form, or of compose's two tags; else nothing."""
    if tag is None:
        return ""
    name = tag.removeprefix("!")
    if name in ("Ref", "Condition"):
        return name
    return f"Fn::{name}" if name[:1].isupper() or name in ("override", "reset") else ""


def _scalar(event: yaml.ScalarEvent) -> Any:
    """Return the value of a scalar by YAML 1.1; but dates stay text, and 1:30 is not ninety."""
    text = event.value
    if event.style or (event.tag and (event.tag in _TEXT or event.tag[1:2].isupper())):
        return text
    for tag, pattern in yaml.SafeLoader.yaml_implicit_resolvers.get(text[:1], ()):
        if pattern.match(text) and tag not in _TEXT_TAGS and ":" not in text:
            try:
                return _SCALARS.construct_object(yaml.ScalarNode(tag, text))
            except (yaml.YAMLError, ValueError):
                return text
    return text
