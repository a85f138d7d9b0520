"""Compose files put together: `extends`, `include`, and the override file beside a main one.

Source: the Compose Specification, "Merge", "Extends" and "Include". Other files laid over each
other with `--file` cannot be known; `docker compose config` prints what they come to.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from poolkit.budget.read.documents import Document, SourceLocation, read_documents
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from poolkit.budget.read.documents import ValuePath

_MAIN = re.compile(r"((?:docker-)?compose)\.ya?ml")
_OVERRIDE = re.compile(r"((?:docker-)?compose)\.override\.ya?ml")
# Of two files the later one's hold alone; other lists are joined.
_REPLACED = frozenset({"command", "entrypoint"})

_Service: TypeAlias = "tuple[Any, dict[ValuePath, SourceLocation]]"
"""What a service is given, and the places of it."""


def put_together(documents: Sequence[Document]) -> list[Document]:
    """Return the files with all that they name in their services.

    Raises:
        TemplateError: a file or service that is named is not there, or leads back to itself.
    """
    found = _with_included(documents)
    overrides = {_key(_OVERRIDE, each): each for each in found}
    mains = {_key(_MAIN, each) for each in found} - {None}
    return [
        _resolved(each, overrides.get(_key(_MAIN, each) or ()))
        for each in found
        if _key(_OVERRIDE, each) not in mains
    ]


def _key(pattern: re.Pattern[str], document: Document) -> tuple[object, ...] | None:
    match = pattern.fullmatch(document.path.name)
    return (document.path.resolve().parent, match[1]) if match else None


def _with_included(documents: Iterable[Document]) -> list[Document]:
    found = list(documents)
    for document in found:  # which grows while it is gone through
        for number, entry in enumerate(document.items("include")):
            named = entry.get("path") if isinstance(entry, dict) else entry
            for each in named if isinstance(named, list) else [named]:
                path = document.path.parent / str(each)
                included = _read(path, document.where("include", number))
                if path.resolve() not in {other.path.resolve() for other in found}:
                    found.append(included)
    return found


def _read(path: Path, where: SourceLocation) -> Document:
    if not path.is_file():
        raise TemplateError(f"{where}: {path} is not there")
    document = next(iter(read_documents(path)), None)
    if document is None or not isinstance(document.at("services"), dict):
        raise TemplateError(f"{where}: {path} has no services")
    return document


def _resolved(document: Document, override: Document | None) -> Document:
    places = dict(document.elsewhere)
    services: dict[str, Any] = {}
    for name in {**document.data["services"], **(override.mapping("services") if override else {})}:
        found: _Service = ({}, {})
        for each in (document, override):
            if each is not None and name in each.mapping("services"):
                found = _over(found, _service(each, name, ()))
        services[name] = found[0]
        places |= {("services", name, *steps): where for steps, where in found[1].items()}
    data = {**_merged(document.data, override.data if override else {}), "services": services}
    return dataclasses.replace(document, data=data, elsewhere=places)


def _service(document: Document, name: str, within: tuple[tuple[Path, str], ...]) -> _Service:
    """Return a service laid over the one that it extends."""
    where = document.where("services", name)
    own = document.mapping("services").get(name)
    here = (document.path.resolve(), name)
    if own is None:
        raise TemplateError(f"{where}: there is no service {name} to extend")
    if here in within:
        raise TemplateError(f"{where}: service {name} extends itself")
    found = _as_mapping((own, _places(document, name)))
    if not isinstance(own, dict) or own.get("extends") is None:
        return found
    base, file = _named(own["extends"], where)
    if not file:
        return _over(_service(document, base, (*within, here)), found)
    other = _read(document.path.parent / file, where)
    content, places = _service(other, base, (*within, here))
    return _over((_with_absolute_files(content, other.path.resolve().parent), places), found)


def _named(extends: Any, where: SourceLocation) -> tuple[str, str]:
    if isinstance(extends, str):
        return extends, ""
    if isinstance(extends, dict) and isinstance(extends.get("service"), str):
        return extends["service"], str(extends.get("file") or "")
    raise TemplateError(f"{where}: extends must name a service, not {extends!r:.40}")


def _places(document: Document, name: str) -> dict[ValuePath, SourceLocation]:
    start = ("services", name)
    lines = {
        steps[2:]: SourceLocation(document.file, line)
        for steps, line in document.lines.items()
        if steps[:2] == start
    }
    more = {steps[2:]: where for steps, where in document.elsewhere.items() if steps[:2] == start}
    return lines | more


def _as_mapping(service: _Service) -> _Service:
    """Write variables given as a list of NAME=value as a mapping, so that they can be merged."""
    content, places = service
    if not isinstance(content, dict) or not isinstance(content.get("environment"), list):
        return service
    variables: dict[str, str | None] = {}
    for number, each in enumerate(content["environment"]):
        key, separator, value = str(each).partition("=")
        variables[key] = value if separator else None
        if ("environment", number) in places:
            places["environment", key] = places["environment", number]
    return {**content, "environment": variables}, places


def _with_absolute_files(content: Any, folder: Path) -> Any:
    """Files are named from where the file that names them is."""
    if not isinstance(content, dict) or "env_file" not in content:
        return content
    files = content["env_file"]
    listed = files if isinstance(files, list) else [files]
    absolute = [
        {**each, "path": str(folder / str(each.get("path")))}
        if isinstance(each, dict)
        else str(folder / str(each))
        for each in listed
    ]
    return {**content, "env_file": absolute}


def _over(base: _Service, service: _Service) -> _Service:
    if not isinstance(base[0], dict) or not isinstance(service[0], dict):
        return service
    return _merged(base[0], service[0]), base[1] | service[1]


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
