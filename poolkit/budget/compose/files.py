"""Compose files put together: `extends`, `include`, and the override file beside a main one.

Source: the Compose Specification, "Merge" (`!override` and `!reset` too), "Extends" and "Include".
Files that `--file` lays over each other cannot be known; `docker compose config` prints their result.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from poolkit.budget.model import Unread
from poolkit.budget.read.documents import Document, read_documents
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from poolkit.budget.model import SourceLocation
    from poolkit.budget.read.documents import ValuePath

_FILE = re.compile(r"((?:docker-)?compose)(\.override)?\.ya?ml")
# The later file's value replaces these; other lists are joined.
_REPLACED = frozenset({"command", "entrypoint", "test"})
_Locations: TypeAlias = "dict[ValuePath, SourceLocation]"
_TAGS = ("Fn::override", "Fn::reset")
# `source:target`; a source such as ${DIR:-./data} has a colon of its own.
_SHORT = re.compile(r"((?:\$\{[^}]*\}|[^:])*):?([^:]*)")


@dataclass
class _Project:
    """The services and other parts of all files of one project, and the locations of their values."""

    data: dict[str, Any] = field(default_factory=dict)
    locations: _Locations = field(default_factory=dict)
    unread: list[Unread] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    """The files that are included."""

    def add(self, document: Document, folder: Path) -> None:
        """Lay a document over the others, with what it includes; paths are relative to the folder."""
        included = document.at("include")
        for number, entry in enumerate(included if isinstance(included, list) else ()):
            named = entry if isinstance(entry, dict) else {"path": entry}
            paths, base = named.get("path"), named.get("project_directory")
            folder_of = document.path.parent / base if isinstance(base, str) else None
            for each in paths if isinstance(paths, list) else [paths]:
                other = self._read(document, str(each), document.where("include", number))
                if other and other.path.resolve() not in self.files:
                    self.files.add(other.path.resolve())
                    folder_of = folder_of or other.path.parent
                    self.add(other, folder_of)
        parts = {key: value for key, value in document.data.items() if key != "services"}
        for kind in ("configs", "secrets"):
            for name, each in document.mapping(kind).items():
                if isinstance(each, dict) and isinstance(each.get("file"), str):
                    file = {**each, "file": str(folder / each["file"])}
                    parts[kind] = {**parts[kind], name: file}
        self.data = _merged(self.data, parts)
        known = self.data.setdefault("services", {})
        for name, each in document.mapping("services").items():
            if _tag(each) == "Fn::reset":
                known.pop(name, None)
                continue
            content, where = self._service(document, name, folder, ())
            is_new = not isinstance(content, dict)
            known[name] = content if is_new else _merged(known.get(name) or {}, content)
            self.locations |= {("services", name, *path): at for path, at in where.items()}

    def _read(self, document: Document, name: str, where: SourceLocation) -> Document | None:
        """Return another compose file; None if it is remote or its name is unknown."""
        if "://" in name or "$" in name or name.startswith("git@"):
            self.unread.append(Unread(where, f"{name} is not a local file"))
            return None
        path = document.path.parent / name
        if not path.is_file():
            raise TemplateError(f"{path} does not exist", where)
        found = next(iter(read_documents(path)), None)
        if found is None or not isinstance(found.data, dict):
            raise TemplateError(f"{path} is not a compose file", where)
        return found

    def _service(
        self, document: Document, name: str, folder: Path, within: tuple[tuple[Path, str], ...]
    ) -> tuple[Any, _Locations]:
        """Return a service laid over the one that it extends, and the locations of its values."""
        where = document.where("services", name)
        here = (document.path.resolve(), name)
        if name not in document.mapping("services"):
            raise TemplateError(f"there is no service {name} to extend", where)
        if here in within:
            raise TemplateError(f"service {name} extends itself", where)
        content = document.mapping("services")[name]
        if not isinstance(content, dict):
            return content, {(): where}
        locations = _locations(document, name)
        found: dict[str, Any] = {}
        for key, value in content.items():
            tag = _tag(value)
            inner = _long_form(key, value[tag] if tag else value, folder)
            found[key] = {tag: inner} if tag else inner
        extends = found.get("extends")
        if extends is None:
            return found, locations
        base = extends.get("service") if isinstance(extends, dict) else extends
        if not isinstance(base, str):
            raise TemplateError(f"extends must name a service, not {extends!r:.40}", where)
        other: Document | None = document
        if isinstance(extends, dict) and extends.get("file"):
            other = self._read(document, str(extends["file"]), where)
            folder = other.path.parent if other else folder
        if other is None:
            return found, locations
        below, beneath = self._service(other, base, folder, (*within, here))
        return _merged(below or {}, found), beneath | locations


def _locations(document: Document, name: str) -> _Locations:
    """Return the location of each value of a service; a variable's also in a list of NAME=value."""
    locations: _Locations = {}
    variables = document.at("services", name, "environment")
    for path, where in document.locations("services", name).items():
        at = tuple(key for key in path if key not in _TAGS)
        if len(at) == 2 and at[0] == "environment" and isinstance(variables, list):
            at = (at[0], str(variables[int(at[1])]).partition("=")[0])
        locations[at] = where
    return locations


def put_together(documents: Sequence[Document]) -> tuple[list[Document], list[Unread]]:
    """Return a document for each project: with what its files include, extend or override.

    Raises:
        TemplateError: a named file or service does not exist, or a service extends itself.
    """
    # (folder, name) -> the documents of the file with that name, and then of its override file
    layers: dict[tuple[Path, str], list[Document]] = {}
    for document in sorted(documents, key=lambda each: ".override." in each.path.name):
        match = _FILE.fullmatch(document.path.name)
        key = document.path.parent.resolve(), match[1] if match else document.path.name
        layers.setdefault(key, []).append(document)
    projects: list[tuple[Document, _Project]] = []
    for own in layers.values():
        project = _Project()
        for document in own:
            project.add(document, document.path.parent)
        projects.append((own[0], project))
    included = {file for _, project in projects for file in project.files}
    together = [
        dataclasses.replace(document, data=project.data, elsewhere=project.locations)
        for document, project in projects
        if document.path.resolve() not in included
    ]
    return together, [each for _, project in projects for each in project.unread]


def _tag(value: Any) -> str:
    is_tagged = isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _TAGS
    return next(iter(value)) if is_tagged else ""


def _long_form(key: str, value: Any, folder: Path) -> Any:
    """Return the mapping for what may be a list or a text, with absolute paths."""
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if key == "environment" and isinstance(value, list):
        pairs = [str(each).partition("=") for each in listed]
        return {name: text if separator else None for name, separator, text in pairs}
    if key in ("depends_on", "networks") and isinstance(value, list):
        return {str(each): None for each in value}
    if key == "env_file":
        names = [each.get("path") if isinstance(each, dict) else each for each in listed]
        return [str(folder / str(each)) for each in names]
    if key == "build" and value is not None:
        build = value if isinstance(value, dict) else {"context": value}
        context = str(build.get("context") or ".")
        is_remote = "://" in context or context.startswith("git@")
        return {**build, "context": context if is_remote else str(folder / context)}
    if key in ("volumes", "configs", "secrets") and isinstance(value, list):
        found = {}
        for each in listed:
            match = _SHORT.match(str(each))
            source, target = (match[1], match[2]) if match else ("", "")
            if isinstance(each, dict):
                source, target = str(each.get("source")), str(each.get("target") or "")
            is_path = key == "volumes" and source.startswith(".")
            found[target or source] = str(folder / source) if is_path else source
        return found
    return value


def _merged(base: Mapping[str, Any], service: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in service.items():
        tag = _tag(value)
        if tag == "Fn::reset":
            merged.pop(key, None)
            continue
        before, new = (None, value[tag]) if tag else (merged.get(key), value)
        if isinstance(new, dict):
            merged[key] = _merged(before if isinstance(before, dict) else {}, new)
        elif isinstance(before, list) and isinstance(new, list) and key not in _REPLACED:
            merged[key] = [*before, *new]
        else:
            merged[key] = new
    return merged
