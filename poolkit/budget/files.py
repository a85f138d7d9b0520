"""The files of a deployment: their kinds, and the ones that an environment deploys.

An environment's file has a table for each template that it deploys. A compose file or manifests in
the same folder are the same services, deployed in another way, so they do not count again. Files
that are left out for that reason are listed, so that a user can see what is not in the sum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.templates import named_by_others
from poolkit.budget.kubernetes.objects import has_pods, objects
from poolkit.budget.kubernetes.renderers import CHART_FILE, KUSTOMIZATION_FILES
from poolkit.budget.model import NotCounted
from poolkit.budget.read.documents import Document, read_documents
from poolkit.budget.read.values import get_path
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from poolkit.budget.read.parameters import Environment

_ENDINGS = (".yaml", ".yml", ".json", ".template")
_COMPOSE = re.compile(r"(docker-)?compose\b.*\.ya?ml")
_SERVICE_KEYS = {"image", "build", "command", "extends"}
_SKIPPED = frozenset({"node_modules", "__pycache__", "environments", "tests"})
_DEPLOYS = re.compile(
    rb"""(^|[\s{,])["']?(AWSTemplateFormatVersion|Resources|apiVersion|services)["']?\s*:""",
    re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """The documents of all files, by what they are."""

    templates: list[Document] = field(default_factory=list)
    compose: list[Document] = field(default_factory=list)
    kubernetes: list[Document] = field(default_factory=list)
    not_read: list[NotCounted] = field(default_factory=list)
    """Files of folders that cannot be read and do not look like a deployment."""


def read_files(paths: Iterable[Path], *, may_be_none: bool = False) -> Files:
    """Read the files that describe a deployment, including those in folders.

    Args:
        paths: files and folders.
        may_be_none: accept that no file describes a deployment.

    Raises:
        BudgetError: a path does not exist, or no file describes a deployment.
        TemplateError: a file is broken that was named, or that looks like a deployment.
    """
    paths = list(paths)
    documents, not_read = _documents_at(paths)
    files = Files(not_read=not_read)
    for document in documents:
        data: dict[Any, Any] = document.data
        resources, services = data.get("Resources"), data.get("services")
        parts = resources.values() if isinstance(resources, dict) else ()
        has_resources = any("::" in str(get_path(each, "Type")) for each in parts)
        parts = services.values() if isinstance(services, dict) else ()
        has_services = any(isinstance(each, dict) and _SERVICE_KEYS & each.keys() for each in parts)
        is_kustomization = document.path.name in (*KUSTOMIZATION_FILES, CHART_FILE)
        if is_kustomization or ("apiVersion" in data and "kind" in data):
            files.kubernetes.extend(objects(document))
        elif has_resources or "AWSTemplateFormatVersion" in data:
            files.templates.append(document)
        elif has_services or (
            isinstance(services, dict) and _COMPOSE.match(document.path.name) is not None
        ):
            files.compose.append(document)
    if not (files.templates or files.compose or files.kubernetes or may_be_none):
        raise BudgetError(
            f"{', '.join(map(str, paths))}: no CloudFormation or SAM template, Kubernetes "
            "manifest or compose file there; without files, declare each service: "
            "--service web=POOL+OVERFLOWxPROCESSES@INSTANCES --max-connections N"
        )
    return files


def _documents_at(paths: Iterable[Path]) -> tuple[list[Document], list[NotCounted]]:
    """Return the documents of files and folders, and the folders' files that are not readable."""
    documents: list[Document] = []
    not_read: list[NotCounted] = []
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise BudgetError(f"{path}: there is no such file or folder")
        for file in _files_at(path):
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            try:
                found = read_documents(file)
            except TemplateError as error:
                # A folder has other files with these endings too, such as a tsconfig.json.
                if file == path or _DEPLOYS.search(file.read_bytes()) is not None:
                    raise
                reason = f"it cannot be read, and does not look like a deployment: {error}"
                left_out = NotCounted(name=str(file), platform="file", where="", reason=reason)
                not_read.append(left_out)
            else:
                documents += [each for each in found if isinstance(each.data, dict)]
    return documents, not_read


def _files_at(path: Path) -> Iterator[Path]:
    """Yield a file that was named, or those of a folder whose names may be a deployment's."""
    if path.is_file():
        yield path
        return
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path).parts
        is_hidden = any(part.startswith(".") for part in inside)
        is_skipped = bool(_SKIPPED & set(inside[:-1]))
        if file.suffix in _ENDINGS and file.is_file() and not (is_hidden or is_skipped):
            yield file


def of_environment(
    files: Files, environment: Environment, paths: Iterable[Path]
) -> tuple[Files, tuple[NotCounted, ...]]:
    """Return the files that an environment deploys, and those that it does not.

    A file in `paths` belongs to it, and so does every file of a folder in `paths` that has none
    of the environment's templates.
    """
    if not environment.file:
        return files, ()
    by_name: dict[str, Path] = {}
    for document in files.templates:
        by_name.setdefault(document.path.name.split(".")[0], document.path.resolve())
    deployed = {path for name, path in by_name.items() if name in environment.tables}
    deployed |= named_by_others(files.templates)
    named = {path.resolve() for path in paths}
    named -= {folder for template in deployed for folder in template.parents}

    def belongs(document: Document) -> bool:
        own = document.path.resolve()
        return own in deployed or own in named or bool(named & set(own.parents))

    chosen = Files(
        templates=[each for each in files.templates if belongs(each)],
        compose=[each for each in files.compose if belongs(each)],
        kubernetes=[each for each in files.kubernetes if belongs(each)],
    )
    name = environment.name
    no_table = f"environment {name} has no table for it"
    other_way = f"environment {name} deploys templates"
    pods = [document for document in files.kubernetes if has_pods(document)]
    left_out = []
    for platform, found, kept, why in (
        ("template", files.templates, chosen.templates, no_table),
        ("compose file", files.compose, chosen.compose, other_way),
        ("Kubernetes manifest", pods, chosen.kubernetes, other_way),
    ):
        counted = {document.file for document in kept}
        for file in dict.fromkeys(each.file for each in found if each.file not in counted):
            reason = f"{why}; to count it as well, name it"
            left_out.append(
                NotCounted(name=file, platform=platform, where=environment.file, reason=reason)
            )
    return chosen, tuple(left_out)
