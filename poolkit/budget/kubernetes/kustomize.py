"""Kustomize, as far as it changes numbers: resources, patches, replicas, generated ConfigMaps.

Source: Kubernetes documentation, "Declarative Management of Kubernetes Objects Using Kustomize".
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.templates import Unread
from poolkit.budget.kubernetes.manifests import objects
from poolkit.budget.read.documents import Document, SourceLocation, parse_documents, read_documents
from poolkit.budget.read.env_files import read_variables
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.budget.read.documents import ValuePath

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
_NAMES = ("kustomization.yaml", "kustomization.yml")


def rendered(documents: Sequence[Document], environment: str) -> list[Document]:
    """Return the manifests that Kustomize would make of them; without it, the same.

    Of several overlays, the one whose folder is called as the environment is taken.

    Raises:
        BudgetError: there are several overlays, and none has that name.
        TemplateError: a kustomization names what is not there.
    """
    kustomizations = [each for each in documents if each.path.name in _NAMES]
    if not kustomizations:
        return list(documents)
    folders = {each.path.parent.resolve() for each in kustomizations}
    alone = [d for d in documents if not folders & set(d.path.resolve().parents)]
    return [*alone, *_render(_root(kustomizations, environment), ())]


def unread_parts(documents: Sequence[Document], environment: str) -> Iterator[Unread]:
    """Give what makes or changes manifests in a way that is not followed here."""
    for document in documents:
        group = str(document.at("apiVersion")).partition("/")[0]
        if (group, str(document.at("kind"))) in _MAKERS:
            reason = f"{document.at('kind')} makes objects that are not read"
            yield Unread(document.where("kind"), f"{reason}; name those, as `helm template` prints")
    kustomizations = [each for each in documents if each.path.name in _NAMES]
    for each in _tree(_root(kustomizations, environment)) if kustomizations else ():
        for key in _NOT_FOLLOWED:
            if each.data.get(key):
                reason = f"{key} is not followed; name what `kubectl kustomize` prints"
                yield Unread(each.where(key), reason)


def _tree(kustomization: Document) -> Iterator[Document]:
    """Give a kustomization, and those that it leads to."""
    yield kustomization
    for key in ("resources", "bases", "components"):
        for resource in kustomization.data.get(key) or []:
            folder = kustomization.path.parent / str(resource)
            inner = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
            if inner is not None:
                yield from _tree(read_documents(inner)[0])


def _root(kustomizations: Sequence[Document], environment: str) -> Document:
    roots = _roots(kustomizations)
    chosen = [each for each in roots if each.path.parent.name == environment] or roots
    if len(chosen) > 1:
        listed = ", ".join(str(each.path.parent) for each in chosen)
        raise BudgetError(
            f"several kustomizations: {listed}; name one of these folders, or an --environment"
        )
    return chosen[0]


def _roots(kustomizations: Sequence[Document]) -> list[Document]:
    named = {
        (each.path.parent / str(resource)).resolve()
        for each in kustomizations
        for key in ("resources", "bases", "components")
        for resource in each.data.get(key) or []
    }
    return [each for each in kustomizations if each.path.parent.resolve() not in named]


def _render(kustomization: Document, within: tuple[Path, ...]) -> list[Document]:
    folder = kustomization.path.parent
    if folder.resolve() in within:
        raise TemplateError(f"{kustomization.file}: leads back to itself")
    found: list[Document] = []
    for key in ("resources", "bases", "components"):
        for number, resource in enumerate(kustomization.data.get(key) or []):
            where = kustomization.where(key, number)
            found += _resource(folder / str(resource), where, (*within, folder.resolve()))
    for made, behavior in _generated(kustomization):
        found = _with_generated(found, made, behavior)
    found = [_patched_by_all(document, kustomization) for document in found]
    return [_scaled(document, kustomization) for document in found]


def _resource(path: Path, where: SourceLocation, within: tuple[Path, ...]) -> list[Document]:
    if path.is_dir():
        inner = next((path / name for name in _NAMES if (path / name).is_file()), None)
        if inner is not None:
            return _render(read_documents(inner)[0], within)
    if "://" in str(path) or not path.is_file():
        raise TemplateError(f"{where}: {path} is not there")
    found = [each for each in read_documents(path) if isinstance(each.data, dict)]
    return [each for document in found for each in objects(document)]


def _with_generated(found: list[Document], made: Document, behavior: str) -> list[Document]:
    """Add a generated ConfigMap, or put it over the one of its name from the resources."""
    before = [
        each
        for each in found
        if each.data.get("kind") == "ConfigMap"
        and each.at("metadata", "name") == made.at("metadata", "name")
    ]
    if behavior == "create" or not before:
        return [*found, made]
    if behavior == "merge":
        data = {**before[-1].mapping("data"), **made.mapping("data")}
        elsewhere: dict[ValuePath, SourceLocation] = {
            ("data", key): (made if key in made.mapping("data") else before[-1]).where("data", key)
            for key in data
        }
        made = dataclasses.replace(made, data={**made.data, "data": data}, elsewhere=elsewhere)
    return [*(each for each in found if each not in before), made]


def _generated(kustomization: Document) -> Iterator[tuple[Document, str]]:
    """Give the ConfigMaps that are generated, each with its `behavior`."""
    for number, generator in enumerate(kustomization.data.get("configMapGenerator") or []):
        steps: ValuePath = ("configMapGenerator", number)
        data: dict[str, str] = {}
        elsewhere: dict[ValuePath, SourceLocation] = {}
        for named in [generator.get("env"), *(generator.get("envs") or [])]:
            if named is not None:
                data |= read_variables(_text(kustomization, steps, str(named)))
        for index, literal in enumerate(generator.get("literals") or []):
            key, _, value = str(literal).partition("=")
            data[key] = value
            elsewhere["data", key] = kustomization.where(*steps, "literals", index)
        for entry in generator.get("files") or []:
            key, separator, name = str(entry).partition("=")
            named = name if separator else key
            data[key if separator else Path(named).name] = _text(kustomization, steps, named)
        made = {"kind": "ConfigMap", "metadata": {"name": generator.get("name")}, "data": data}
        document = Document(kustomization.path, kustomization.file, made, {}, elsewhere)
        yield document, str(generator.get("behavior") or "create")


def _text(kustomization: Document, steps: ValuePath, named: str) -> str:
    file = kustomization.path.parent / named
    if not file.is_file():
        raise TemplateError(f"{kustomization.where(*steps)}: {file} is not there")
    return file.read_text(encoding="utf-8")


def _scaled(document: Document, kustomization: Document) -> Document:
    for number, each in enumerate(kustomization.data.get("replicas") or []):
        named = document.data.get("metadata", {}).get("name")
        if each.get("name") == named and document.data.get("kind") in ("Deployment", "StatefulSet"):
            patch = {"spec": {"replicas": each.get("count")}}
            return _merged(document, patch, kustomization.where("replicas", number), None)
    return document


# -- patches --------------------------------------------------------------------------------


def _patched_by_all(document: Document, kustomization: Document) -> Document:
    for patch, target, where in _patches(kustomization):
        if isinstance(patch.data, list):
            if _selects(target, document):
                document = _replaced(document, patch, where)
        elif isinstance(patch.data, dict) and _is_of(patch, target, document):
            document = _merged(document, patch.data, where, patch)
    return document


def _patches(kustomization: Document) -> Iterator[tuple[Document, dict[str, Any], SourceLocation]]:
    """Give every patch with its target; `where` is of the kustomization's own line."""
    folder = kustomization.path.parent
    for key in ("patches", "patchesStrategicMerge", "patchesJson6902"):
        for number, entry in enumerate(kustomization.data.get(key) or []):
            where = kustomization.where(key, number)
            written = entry if isinstance(entry, dict) else {"path": entry}
            target = written.get("target") or {}
            if "path" in written:
                file = folder / str(written["path"])
                if not file.is_file():
                    raise TemplateError(f"{where}: {file} is not there")
                for document in read_documents(file):
                    yield document, target, document.where()
            else:
                text = str(written.get("patch") or "")
                for document in parse_documents(text, kustomization.path):
                    yield dataclasses.replace(document, lines={}), target, where


def _is_of(patch: Document, target: dict[str, Any], document: Document) -> bool:
    if target:
        return _selects(target, document)
    same_kind = patch.data.get("kind") == document.data.get("kind")
    name = (patch.data.get("metadata") or {}).get("name")
    return same_kind and name == (document.data.get("metadata") or {}).get("name")


def _selects(target: dict[str, Any], document: Document) -> bool:
    kind, name = target.get("kind"), target.get("name")
    metadata = document.data.get("metadata") or {}
    return kind in (None, document.data.get("kind")) and name in (None, metadata.get("name"))


def _merged(
    document: Document, patch: Any, where: SourceLocation, source: Document | None
) -> Document:
    elsewhere = dict(document.elsewhere)

    def merge(old: Any, new: Any, steps: ValuePath, in_patch: ValuePath) -> Any:
        if isinstance(old, dict) and isinstance(new, dict):
            merged = dict(old)
            for key, value in new.items():
                if value is None:
                    merged.pop(key, None)
                else:
                    merged[key] = merge(old.get(key), value, (*steps, key), (*in_patch, key))
            return merged
        if isinstance(old, list) and _named(new):
            return merge_list(old, new, steps, in_patch)
        elsewhere[steps] = source.where(*in_patch) if source and source.lines else where
        return copy.deepcopy(new)

    def merge_list(
        old: list[Any], new: list[Any], steps: ValuePath, in_patch: ValuePath
    ) -> list[Any]:
        """Containers and variables are merged by their names."""
        merged = list(old)
        names = [each.get("name") if isinstance(each, dict) else None for each in merged]
        for number, each in enumerate(new):
            place = names.index(each["name"]) if each["name"] in names else len(merged)
            before = merged[place] if place < len(merged) else None
            value = merge(before, each, (*steps, place), (*in_patch, number))
            merged[place:] = [value, *merged[place + 1 :]]
        return merged

    data = merge(document.data, patch, (), ())
    return dataclasses.replace(document, data=data, elsewhere=elsewhere)


def _named(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(each, dict) and "name" in each for each in found
    )


def _replaced(document: Document, patch: Document, where: SourceLocation) -> Document:
    """Apply a JSON patch (RFC 6902): add, replace and remove."""
    data, elsewhere = copy.deepcopy(document.data), dict(document.elsewhere)
    for operation in patch.data:
        path = [
            part.replace("~1", "/").replace("~0", "~")
            for part in str(operation.get("path")).split("/")[1:]
        ]
        steps = tuple(int(part) if part.isdecimal() else part for part in path)
        parent: Any = data
        try:
            for step in steps[:-1]:
                parent = parent[step]
            _operate(parent, steps[-1], operation)
        except (KeyError, IndexError, TypeError):
            raise TemplateError(
                f"{where}: {operation.get('path')} is not in {document.file}"
            ) from None
        elsewhere[steps] = where
    return dataclasses.replace(document, data=data, elsewhere=elsewhere)


def _operate(parent: Any, last: str | int, operation: dict[str, Any]) -> None:
    if operation.get("op") == "remove":
        del parent[last]
    elif isinstance(parent, list) and operation.get("op") == "add":
        parent.insert(len(parent) if last == "-" else int(last), operation.get("value"))
    else:
        parent[last] = operation.get("value")
