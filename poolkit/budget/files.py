"""Which files there are, and what each of them is."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.budget.kubernetes.manifests import objects
from poolkit.budget.read.documents import Document, read_documents
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_ENDINGS = (".yaml", ".yml", ".json", ".template")
_COMPOSE = re.compile(r"(docker-)?compose\b.*\.ya?ml")
_SKIPPED = frozenset({"node_modules", "__pycache__", "environments", "tests"})


@dataclass(frozen=True, kw_only=True)
class Files:
    """The documents of all files, by what they are."""

    templates: list[Document] = field(default_factory=list)
    compose: list[Document] = field(default_factory=list)
    kubernetes: list[Document] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """True if none of them describes a deployment."""
        return not (self.templates or self.compose or self.kubernetes)


def read_files(paths: Iterable[Path]) -> Files:
    """Read the files, and those in the folders, that describe a deployment.

    Raises:
        BudgetError: a path is not there, or nothing in all of them describes a deployment.
        TemplateError: a file is broken.
    """
    paths = list(paths)
    files = Files()
    for path in _each(paths):
        for document in read_documents(path):
            _sort_in(files, document)
    if files.is_empty:
        raise BudgetError(
            f"{', '.join(map(str, paths))}: no CloudFormation or SAM template, Kubernetes "
            "manifest or compose file there"
        )
    return files


def _each(paths: Iterable[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise BudgetError(f"{path}: there is no such file or folder")
        for file in [path] if path.is_file() else sorted(_in_folder(path)):
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _in_folder(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if any(part.startswith(".") or part in _SKIPPED for part in inside[:-1]):
            continue
        if path.suffix in _ENDINGS and path.is_file() and not inside[-1].startswith("."):
            yield path


def _sort_in(files: Files, document: Document) -> None:
    kind = _kind(document)
    if kind == "kubernetes":
        files.kubernetes.extend(objects(document))
    elif kind is not None:
        getattr(files, kind).append(document)


def _kind(document: Document) -> str | None:
    data: Any = document.data
    if not isinstance(data, dict):
        return None
    if "apiVersion" in data and "kind" in data:
        return "kubernetes"
    if document.path.name in ("kustomization.yaml", "kustomization.yml"):
        return "kubernetes"
    if _is_template(data):
        return "templates"
    services = data.get("services")
    if not isinstance(services, dict):
        return None
    called_so = _COMPOSE.match(document.path.name)
    return "compose" if called_so or any(map(_is_service, services.values())) else None


def _is_template(data: dict[str, Any]) -> bool:
    if "AWSTemplateFormatVersion" in data:
        return True
    resources = data.get("Resources")
    return isinstance(resources, dict) and any(
        isinstance(each, dict) and "::" in str(each.get("Type")) for each in resources.values()
    )


def _is_service(found: Any) -> bool:
    return isinstance(found, dict) and bool({"image", "build", "command", "extends"} & found.keys())
