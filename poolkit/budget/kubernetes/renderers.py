"""Rendered manifests: `kubectl kustomize` renders a kustomization, `helm template` a chart.

Both run without the network: no program is on their PATH, and proxies lead nowhere. Without them, or
if they refuse, the part stays unread. docs/decisions/0018-their-own-renderers.md has the reasons.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from poolkit.budget.kubernetes.objects import kind_of, name_of, objects, texts, type_of
from poolkit.budget.model import Unread
from poolkit.budget.read.documents import Document, parse_documents, read_documents
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit.budget.model import SourceLocation

KUSTOMIZATION_FILES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
CHART_FILE = "Chart.yaml"
_LONGEST_SECONDS = 30
_LONGEST_NAME = 1000
_OWN = ("HOME", "TMPDIR", "KUBECONFIG", "HELM_PLUGINS", "HELM_CACHE_HOME", "HELM_CONFIG_HOME")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_CLOSED = "http://127.0.0.1:1"
_CHARTS = ("helmCharts", "helmChartInflationGenerator")
_FOLDERS = ("resources", "bases", "components")
_NAMES_FILES = (
    *_FOLDERS,
    *("crds", "configurations", "generators", "transformers", "validators"),
    "patchesStrategicMerge",
)
_REMOTE = re.compile(r"://|^git@|^(github|gitlab|bitbucket)\.\w+[:/]|\?ref=")
_SOURCE = re.compile(r"^# Source: (.+)$", re.MULTILINE)
_REFUSAL = re.compile(r"^(?:[Ee]rror: |E\d{4} .*? err=)(.+)$", re.MULTILINE)


class _Tree(NamedTuple):
    """A kustomization and everything that it leads to, as far as it is on this disk."""

    root: Document
    folders: dict[Path, Document]
    files: set[Path]
    objects: list[Document]
    """The objects of its manifests and patches; those of a base come first."""
    missing: Unread | None


def rendered(
    documents: Sequence[Document], environment: str, named: Sequence[Path] = ()
) -> tuple[list[Document], list[Unread]]:
    """Return the manifests after Kustomize and Helm, and what could not be rendered.

    Args:
        documents: manifests, kustomizations and `Chart.yaml` files.
        environment: chooses among overlays, and a chart's values file.
        named: the paths on the command line. A kustomization in one of these folders wins over all
            others below it.

    Raises:
        TemplateError: Kustomize refuses a kustomization that was named.

    """
    paths = {each.path: each.path.resolve() for each in documents}
    named_folders = {(path if path.is_dir() else path.parent).resolve() for path in named}
    kustomizations = [each for each in documents if _is_kustomization(each)]
    charts = [each for each in documents if each.path.name == CHART_FILE]
    chart_folders = {paths[each.path].parent for each in charts}
    ruled = {paths[each.path].parent for each in kustomizations} & named_folders
    trees = [
        _tree(each) for each in kustomizations if not ruled & set(paths[each.path].parents[1:])
    ]
    inner = {folder for each in trees for folder in list(each.folders)[1:]} - ruled
    roots = [
        each
        for each in trees
        if each.root.path.parent.resolve() not in inner and kind_of(each.root) != "Component"
    ]
    found: list[Document] = []
    unread: list[Unread] = []
    for group in _variants(roots):
        chosen = [each for each in group if environment in each.root.path.parts] or group
        if len(chosen) > 1 and chosen == group:
            listed = ", ".join(sorted(str(each.root.path.parent) for each in group))
            reason = f"several overlays: {listed}; name one of these folders, or an --environment"
            unread.append(
                Unread(min(group, key=lambda each: str(each.root.path.parent)).root.where(), reason)
            )
            continue
        for tree in chosen:
            try:
                found += _kustomized(tree, unread)
            except TemplateError as error:
                if tree.root.path.parent.resolve() in named_folders:
                    raise
                unread.append(Unread(tree.root.where(), str(error)))
    for chart in charts:
        # A chart inside another one is rendered with it.
        if not chart_folders & set(paths[chart.path].parents[1:]):
            found += _templated(chart, environment, unread)
    covered = {path for each in trees for path in each.files}
    for document in documents:
        path = paths[document.path]
        is_input = _is_kustomization(document) or document.path.name == CHART_FILE
        is_inside = bool((ruled | chart_folders) & set(path.parents))
        if not (is_input or is_inside or path in covered):
            found.append(document)
    return found, unread


def _is_kustomization(document: Document) -> bool:
    """Return whether a document is Kustomize's own, and not Flux's."""
    is_flux = type_of(document) == "Kustomization.kustomize.toolkit.fluxcd.io"
    return document.path.name in KUSTOMIZATION_FILES and not is_flux


def _run(command: Sequence[str], where: SourceLocation) -> str:
    """Return the output of a renderer.

    Raises:
        TemplateError: it failed, or took too long.
    """
    name = Path(command[0]).name
    with (
        tempfile.TemporaryDirectory() as home,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=home,
            # Git is not found, no plugin is installed, and no configuration of the user's is read.
            env={**dict.fromkeys(_OWN, home), **dict.fromkeys(_PROXIES, _CLOSED), "PATH": ""},
            start_new_session=True,
        ) as process,
    ):
        try:
            output, errors = process.communicate(timeout=_LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            reason = f"{name} took more than {_LONGEST_SECONDS} seconds"
            raise TemplateError(f"{where}: {reason}") from None
        finally:
            # After Ctrl-C too, with everything that it started.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        message = errors.decode("utf-8", "replace").strip()
        match = _REFUSAL.search(message)
        first = match[1] if match else message.partition("\n")[0]
        raise TemplateError(f"{where}: {name}: {first.strip()}")
    return output.decode("utf-8", "replace")


# -- Kustomize ------------------------------------------------------------------------------


def _tree(root: Document) -> _Tree:
    folders: dict[Path, Document] = {}
    files: set[Path] = set()
    found: list[Document] = []
    missing = None
    waiting = [root]
    while waiting:
        document = waiting.pop()
        folder = document.path.parent
        if folder.resolve() in folders:
            continue
        folders[folder.resolve()] = document
        for key in _CHARTS:
            if document.data.get(key):
                reason = (
                    f"{key} is not rendered; name the output of `kustomize build --enable-helm`"
                )
                missing = missing or Unread(document.where(key), reason)
        own: list[Document] = []
        # A patch comes after the resources that it changes.
        for path, text in sorted(texts(document.data), key=lambda each: each[0][0] not in _FOLDERS):
            if not (path[0] in _NAMES_FILES or path[-1] == "path") or len(text) > _LONGEST_NAME:
                continue
            # Without .. in it, so that annotations name a file of the repository.
            target = Path(os.path.normpath(folder / text))
            if target.is_dir():
                waiting += _of_folder(target)
            elif target.is_file():
                files.add(target.resolve())
                own += _readable(target)
            elif _REMOTE.search(text):
                reason = f"{text} is not on this machine; name the output of `kubectl kustomize`"
                missing = missing or Unread(document.where(*path), reason)
        found = [*own, *found]
    return _Tree(root, folders, files, found, missing)


def _of_folder(folder: Path) -> list[Document]:
    """Return the kustomization of a folder, if it has one."""
    files = [folder / name for name in KUSTOMIZATION_FILES if (folder / name).is_file()]
    return [each for file in files for each in _readable(file)][:1]


def _readable(file: Path) -> list[Document]:
    """Return a file's objects; the renderer reports what is wrong with it."""
    try:
        found = [each for each in read_documents(file) if isinstance(each.data, dict)]
    except TemplateError:
        return []
    return [each for document in found for each in objects(document)]


def _shared(tree: _Tree) -> set[Path]:
    """Return the folders that make it a variant of each tree that has them too."""
    return {path for path, each in tree.folders.items() if kind_of(each) != "Component"}


def _variants(trees: Sequence[_Tree]) -> list[list[_Tree]]:
    """Group the kustomizations that share a base: only one of them is deployed to a cluster."""
    groups: list[list[_Tree]] = []
    for tree in trees:
        same = [group for group in groups if any(_shared(tree) & _shared(each) for each in group)]
        groups = [each for each in groups if each not in same]
        groups.append([*(each for group in same for each in group), tree])
    return groups


def _kustomized(tree: _Tree, unread: list[Unread]) -> list[Document]:
    """Return the output of Kustomize, each object with the lines that it comes from."""
    program = shutil.which("kubectl") or shutil.which("kustomize")
    where = tree.root.where()
    if tree.missing is not None:
        unread.append(tree.missing)
        return []
    if program is None:
        command = f"kubectl kustomize {tree.root.path.parent}"
        reason = f"kustomization found: install kubectl, or name the output of `{command}`"
        unread.append(Unread(where, reason))
        return []
    verb = "build" if Path(program).name.startswith("kustomize") else "kustomize"
    output = _run([program, verb, str(tree.root.path.parent.resolve())], where)
    made = []
    for each in parse_documents(output, tree.root.path):
        if isinstance(each.data, dict):
            # Its source has its kind and name, up to a prefix, suffix or hash. The last one is the
            # first that was read: a base comes after its overlay.
            same = [one for one in tree.objects if kind_of(one) == kind_of(each)]
            same = [one for one in same if name_of(one) in name_of(each)]
            source = max(same, key=lambda one: len(name_of(one)), default=tree.root)
            made.append(replace(source, data=each.data, lines=source.lines if same else None))
    return made


# -- Helm -----------------------------------------------------------------------------------


def _templated(chart: Document, environment: str, unread: list[Unread]) -> list[Document]:
    """Return the output of Helm, each object with the template that it comes from."""
    folder, program = chart.path.parent, shutil.which("helm")
    if chart.at("type") == "library":
        return []
    command = f"helm template {folder}"
    if program is None:
        reason = f"chart found: install helm, or name the output of `{command}`"
        unread.append(Unread(chart.where(), reason))
        return []
    forms = ("values-{}.yaml", "values.{}.yaml", "values/{}.yaml")
    files = [(folder / form.format(environment)).resolve() for form in forms if environment]
    values = [f"--values={file}" for file in files if file.is_file()]
    try:
        output = _run([program, "template", str(folder.resolve()), *values], chart.where())
        documents = parse_documents(output, chart.path)
    except TemplateError as error:
        # A chart may need values or dependencies that are elsewhere.
        unread.append(Unread(chart.where(), f"{error}; name the output of `{command}`"))
        return []
    marks = [(output.count("\n", 0, m.start()) + 1, m[1].strip()) for m in _SOURCE.finditer(output)]
    found: list[Document] = []
    for each in documents:
        if isinstance(each.data, dict):
            before = [name for line, name in marks if line <= (each.lines.line if each.lines else 0)]
            # The name begins with the chart's, not with the folder's.
            file = str(folder / before[-1].partition("/")[2]) if before else chart.file
            found += objects(replace(each, file=file, lines=None))
    return found
