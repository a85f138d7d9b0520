"""Kustomize, as far as it changes numbers: resources, patches, replicas, generated ConfigMaps.

Source: Kubernetes documentation, "Declarative Management of Kubernetes Objects Using Kustomize".
"""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.kubernetes.objects import objects
from poolkit.budget.model import Unread
from poolkit.budget.read.documents import (
    Document,
    parse_documents,
    read_documents,
    read_text,
    read_variables,
)
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.budget.model import SourceLocation
    from poolkit.budget.read.documents import ValuePath

KUSTOMIZATION_FILES = ("kustomization.yaml", "kustomization.yml")
_RESOURCES = ("resources", "bases", "components")
_NOT_FOLLOWED = (
    *("helmCharts", "helmChartInflationGenerator", "generators", "transformers", "replacements"),
    "vars",
)
_MAKERS = frozenset(
    {
        ("helm.toolkit.fluxcd.io", "HelmRelease"),
        ("kustomize.toolkit.fluxcd.io", "Kustomization"),
        ("helm.cattle.io", "HelmChart"),
        ("argoproj.io", "Application"),
        ("argoproj.io", "ApplicationSet"),
    }
)
"""Kinds of Flux, k3s and Argo CD that make other objects."""


def rendered(documents: Sequence[Document], environment: str) -> list[Document]:
    """Return the manifests as Kustomize would render them; without a kustomization, unchanged.

    Of several overlays, the one whose folder has the environment's name is taken.

    Raises:
        BudgetError: there are several overlays, and none has that name.
        TemplateError: a kustomization names a missing file.
    """
    root = _root(documents, environment)
    if root is None:
        return list(documents)
    folders = {
        each.path.parent.resolve() for each in documents if each.path.name in KUSTOMIZATION_FILES
    }
    alone = [each for each in documents if not folders & set(each.path.resolve().parents)]
    return [*alone, *_render(root, ())]


def unread_parts(documents: Sequence[Document], environment: str) -> Iterator[Unread]:
    """Return what makes or changes manifests in a way that is not followed here."""
    for document in documents:
        group, kind = str(document.at("apiVersion")).partition("/")[0], str(document.at("kind"))
        if (group, kind) in _MAKERS:
            reason = (
                f"the objects that a {kind} makes are not read; name the output of `helm template`"
            )
            yield Unread(document.where("kind"), reason)
    root = _root(documents, environment)
    for each in _tree(root) if root is not None else ():
        for key in _NOT_FOLLOWED:
            if each.data.get(key):
                reason = f"{key} is not followed; name the output of `kubectl kustomize`"
                yield Unread(each.where(key), reason)


def _root(documents: Sequence[Document], environment: str) -> Document | None:
    """Return the kustomization that no other one names, and that fits the environment."""
    kustomizations = [each for each in documents if each.path.name in KUSTOMIZATION_FILES]
    if not kustomizations:
        return None
    named = {
        (each.path.parent / str(resource)).resolve()
        for each in kustomizations
        for key in _RESOURCES
        for resource in each.data.get(key) or []
    }
    roots = [each for each in kustomizations if each.path.parent.resolve() not in named]
    chosen = [each for each in roots if each.path.parent.name == environment] or roots
    if len(chosen) > 1:
        listed = ", ".join(str(each.path.parent) for each in chosen)
        raise BudgetError(
            f"several kustomizations: {listed}; name one of these folders, or an --environment"
        )
    return chosen[0]


def _of_folder(folder: Path) -> Document | None:
    """Return the kustomization of a folder."""
    file = next((folder / name for name in KUSTOMIZATION_FILES if (folder / name).is_file()), None)
    return read_documents(file)[0] if file is not None else None


def _tree(kustomization: Document) -> Iterator[Document]:
    """Return a kustomization, and those that it leads to."""
    yield kustomization
    for key in _RESOURCES:
        for resource in kustomization.data.get(key) or []:
            inner = _of_folder(kustomization.path.parent / str(resource))
            if inner is not None:
                yield from _tree(inner)


def _render(kustomization: Document, within: tuple[Path, ...]) -> list[Document]:
    folder = kustomization.path.parent
    if folder.resolve() in within:
        raise TemplateError(f"{kustomization.file}: refers to itself")
    within = (*within, folder.resolve())
    found: list[Document] = []
    for key in _RESOURCES:
        for number, resource in enumerate(kustomization.data.get(key) or []):
            # Without .. in it, so that annotations name a file of the repository.
            path = Path(os.path.normpath(folder / str(resource)))
            inner = _of_folder(path) if path.is_dir() else None
            if inner is not None:
                found += _render(inner, within)
            elif "://" in str(path) or not path.is_file():
                raise TemplateError(f"{kustomization.where(key, number)}: {path} does not exist")
            else:
                read = (each for each in read_documents(path) if isinstance(each.data, dict))
                found += [each for document in read for each in objects(document)]
    found = _with_generated(found, kustomization)
    found = [_patched(document, kustomization) for document in found]
    for number, each in enumerate(kustomization.data.get("replicas") or []):
        patch, where = (
            {"spec": {"replicas": each.get("count")}},
            kustomization.where("replicas", number),
        )
        found = [
            _merged(document, patch, where, None)
            if document.at("metadata", "name") == each.get("name")
            and document.data.get("kind") in ("Deployment", "StatefulSet")
            else document
            for document in found
        ]
    return found


def _with_generated(found: list[Document], kustomization: Document) -> list[Document]:
    """Add the generated ConfigMaps, or put them over those of their names from the resources."""
    for number, generator in enumerate(kustomization.data.get("configMapGenerator") or []):
        path: ValuePath = ("configMapGenerator", number)
        data: dict[str, str] = {}
        elsewhere: dict[ValuePath, SourceLocation] = {}
        for named in [generator.get("env"), *(generator.get("envs") or [])]:
            if named is not None:
                data |= read_variables(_text(kustomization, path, str(named)))
        for index, literal in enumerate(generator.get("literals") or []):
            key, _, value = str(literal).partition("=")
            data[key] = value
            elsewhere["data", key] = kustomization.where(*path, "literals", index)
        for entry in generator.get("files") or []:
            key, separator, name = str(entry).partition("=")
            named = name if separator else key
            data[key if separator else Path(named).name] = _text(kustomization, path, named)
        name, behavior = generator.get("name"), str(generator.get("behavior") or "create")
        before = [
            each
            for each in found
            if each.data.get("kind") == "ConfigMap" and each.at("metadata", "name") == name
        ]
        if behavior == "merge" and before:
            kept = {
                key: text for key, text in before[-1].mapping("data").items() if key not in data
            }
            elsewhere |= {("data", key): before[-1].where("data", key) for key in kept}
            data = {**kept, **data}
        if behavior != "create":
            found = [each for each in found if each not in before]
        made = {"kind": "ConfigMap", "metadata": {"name": name}, "data": data}
        found = [*found, Document(kustomization.path, kustomization.file, made, {}, elsewhere)]
    return found


def _text(kustomization: Document, path: ValuePath, named: str) -> str:
    file = kustomization.path.parent / named
    if not file.is_file():
        raise TemplateError(f"{kustomization.where(*path)}: {file} does not exist")
    return read_text(file)


# -- patches --------------------------------------------------------------------------------


def _patched(document: Document, kustomization: Document) -> Document:
    """Apply every patch of a kustomization that is meant for a document."""
    for key in ("patches", "patchesStrategicMerge", "patchesJson6902"):
        for number, entry in enumerate(kustomization.data.get(key) or []):
            where = kustomization.where(key, number)
            written = entry if isinstance(entry, dict) else {"path": entry}
            target = written.get("target") or {}
            if "path" in written:
                file = kustomization.path.parent / str(written["path"])
                if not file.is_file():
                    raise TemplateError(f"{where}: {file} does not exist")
                patches = read_documents(file)
            else:
                text = str(written.get("patch") or "")
                # Lines inside the patch would not be lines of the kustomization.
                inline = parse_documents(text, kustomization.path)
                patches = [dataclasses.replace(patch, lines={}) for patch in inline]
            for patch in patches:
                own = patch.where() if patch.lines else where
                is_json = isinstance(patch.data, list)
                # Without a target, a patch is meant for the document of its kind and name.
                wanted = target if is_json or target else _identity(patch)
                if any(
                    wanted.get(key) not in (None, value)
                    for key, value in _identity(document).items()
                ):
                    continue
                if is_json:
                    document = _json_patched(document, patch, own)
                elif isinstance(patch.data, dict):
                    document = _merged(document, patch.data, own, patch)
    return document


def _identity(document: Document) -> dict[str, Any]:
    name = document.at("metadata", "name")
    return {"kind": document.data.get("kind") or "", "name": name or ""}


def _merged(
    document: Document, patch: Any, where: SourceLocation, source: Document | None
) -> Document:
    """Apply a strategic merge patch; `source` is the file that it stands in."""
    elsewhere = dict(document.elsewhere)

    def merge(old: Any, new: Any, path: ValuePath, in_patch: ValuePath) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            merged = dict(old)
            for key, value in new.items():
                if value is None:
                    merged.pop(key, None)
                else:
                    merged[key] = merge(old.get(key), value, (*path, key), (*in_patch, key))
            return merged
        is_list = isinstance(old, list) and isinstance(new, list)
        if is_list and all(isinstance(each, dict) and "name" in each for each in new):
            # Containers and variables are merged by their names.
            merged_list = list(old)
            names = [each.get("name") if isinstance(each, dict) else None for each in merged_list]
            for number, each in enumerate(new):
                place = names.index(each["name"]) if each["name"] in names else len(merged_list)
                before = merged_list[place] if place < len(merged_list) else None
                value = merge(before, each, (*path, place), (*in_patch, number))
                merged_list[place:] = [value, *merged_list[place + 1 :]]
            return merged_list
        elsewhere[path] = source.where(*in_patch) if source and source.lines else where
        return copy.deepcopy(new)

    data = merge(document.data, patch, (), ())
    return dataclasses.replace(document, data=data, elsewhere=elsewhere)


def _json_patched(document: Document, patch: Document, where: SourceLocation) -> Document:
    """Apply a JSON patch (RFC 6902): add, replace and remove."""
    data, elsewhere = copy.deepcopy(document.data), dict(document.elsewhere)
    for operation in patch.data:
        written = str(operation.get("path"))
        parts = [part.replace("~1", "/").replace("~0", "~") for part in written.split("/")[1:]]
        path = tuple(int(part) if part.isdecimal() else part for part in parts)
        parent: Any = data
        try:
            for key in path[:-1]:
                parent = parent[key]
            last, value = path[-1], operation.get("value")
            if operation.get("op") == "remove":
                del parent[last]
            elif isinstance(parent, list) and operation.get("op") == "add":
                parent.insert(len(parent) if last == "-" else int(last), value)
            else:
                parent[last] = value
        except (KeyError, IndexError, TypeError):
            raise TemplateError(f"{where}: {written} does not exist in {document.file}") from None
        elsewhere[path] = where
    return dataclasses.replace(document, data=data, elsewhere=elsewhere)
