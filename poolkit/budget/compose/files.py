"""Compose files put together: `extends`, `include`, and the override file beside a main one.

Source: the Compose Specification, "Merge", "Extends" and "Include". Files that `--file` lays over
each other cannot be known; `docker compose config` prints their result.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.budget.model import SourceLocation
from poolkit.budget.read.documents import Document, read_documents
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from poolkit.budget.read.documents import ValuePath

_MAIN = re.compile(r"((?:docker-)?compose)\.ya?ml")
_OVERRIDE = re.compile(r"((?:docker-)?compose)\.override\.ya?ml")
# The later file's value replaces these; other lists are joined.
_REPLACED = frozenset({"command", "entrypoint"})


class _Service(NamedTuple):
    """A service's mapping, and the location of each value in it."""

    content: Any
    locations: dict[ValuePath, SourceLocation]

    def over(self, base: _Service) -> _Service:
        """Return this service laid over another one."""
        if not isinstance(base.content, dict) or not isinstance(self.content, dict):
            return self
        return _Service(_merged(base.content, self.content), base.locations | self.locations)


def put_together(documents: Sequence[Document]) -> list[Document]:
    """Return the files with everything that they include, extend or override in their services.

    Raises:
        TemplateError: a named file or service does not exist, or a service extends itself.
    """
    found = list(documents)
    for document in found:  # it grows during the loop
        for number, entry in enumerate(document.items("include")):
            named = entry.get("path") if isinstance(entry, dict) else entry
            for each in named if isinstance(named, list) else [named]:
                path = document.path.parent / str(each)
                included = _read(path, document.where("include", number))
                if path.resolve() not in {other.path.resolve() for other in found}:
                    found.append(included)
    overrides = {_key(_OVERRIDE, each): each for each in found}
    mains = {_key(_MAIN, each) for each in found} - {None}
    together = []
    for document in found:
        if _key(_OVERRIDE, document) in mains:
            continue
        override = overrides.get(_key(_MAIN, document) or ())
        layers = [each for each in (document, override) if each is not None]
        locations = dict(document.elsewhere)
        services: dict[str, Any] = {}
        for name in dict.fromkeys(name for each in layers for name in each.mapping("services")):
            service = _Service({}, {})
            for each in layers:
                if name in each.mapping("services"):
                    service = _service(each, name, ()).over(service)
            services[name] = service.content
            locations |= {
                ("services", name, *path): where for path, where in service.locations.items()
            }
        data = {**_merged(document.data, override.data if override else {}), "services": services}
        together.append(dataclasses.replace(document, data=data, elsewhere=locations))
    return together


def _key(pattern: re.Pattern[str], document: Document) -> tuple[object, ...] | None:
    match = pattern.fullmatch(document.path.name)
    return (document.path.resolve().parent, match[1]) if match else None


def _read(path: Path, where: SourceLocation) -> Document:
    if not path.is_file():
        raise TemplateError(f"{where}: {path} does not exist")
    document = next(iter(read_documents(path)), None)
    if document is None or not isinstance(document.at("services"), dict):
        raise TemplateError(f"{where}: {path} has no services")
    return document


def _service(document: Document, name: str, within: tuple[tuple[Path, str], ...]) -> _Service:
    """Return a service laid over the one that it extends."""
    where = document.where("services", name)
    here = (document.path.resolve(), name)
    if name not in document.mapping("services"):
        raise TemplateError(f"{where}: there is no service {name} to extend")
    if here in within:
        raise TemplateError(f"{where}: service {name} extends itself")
    content, start = document.mapping("services")[name], ("services", name)
    locations = {
        path[2:]: SourceLocation(document.file, line)
        for path, line in document.lines.items()
        if path[:2] == start
    }
    locations |= {
        path[2:]: where for path, where in document.elsewhere.items() if path[:2] == start
    }
    if isinstance(content, dict) and isinstance(content.get("environment"), list):
        # A list of NAME=value cannot be merged with another one by name.
        pairs = [str(each).partition("=") for each in content["environment"]]
        variables = {key: value if separator else None for key, separator, value in pairs}
        locations |= {
            ("environment", key): locations["environment", number]
            for number, (key, _, _) in enumerate(pairs)
            if ("environment", number) in locations
        }
        content = {**content, "environment": variables}
    found = _Service(content, locations)
    extends = found.content.get("extends") if isinstance(found.content, dict) else None
    if extends is None:
        return found
    base = extends if isinstance(extends, str) else None
    file = ""
    if isinstance(extends, dict) and isinstance(extends.get("service"), str):
        base, file = extends["service"], str(extends.get("file") or "")
    if base is None:
        raise TemplateError(f"{where}: extends must name a service, not {extends!r:.40}")
    if not file:
        return found.over(_service(document, base, (*within, here)))
    other = _read(document.path.parent / file, where)
    extended = _service(other, base, (*within, here))
    if isinstance(extended.content, dict) and "env_file" in extended.content:
        # The paths are relative to the other file's folder.
        folder = other.path.resolve().parent
        absolute = [
            {**each, "path": str(folder / str(each.get("path")))}
            if isinstance(each, dict)
            else str(folder / str(each))
            for each in _listed(extended.content["env_file"])
        ]
        extended = extended._replace(content={**extended.content, "env_file": absolute})
    return found.over(extended)


def _merged(base: Mapping[str, Any], service: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in service.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            merged[key] = _merged(before, value)
        elif key in _REPLACED or not (isinstance(before, list) or isinstance(value, list)):
            merged[key] = value
        else:
            merged[key] = [*_listed(before), *_listed(value)]
    return merged


def _listed(found: Any) -> list[Any]:
    if found is None:
        return []
    return found if isinstance(found, list) else [found]
