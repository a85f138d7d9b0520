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
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from poolkit.budget.kubernetes.objects import Manifest, objects, texts
from poolkit.budget.model import Unread
from poolkit.budget.read.documents import Document, parse_documents, read_documents
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from poolkit.budget.read.documents import ValuePath

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
_REFUSAL = re.compile(r"^(?:[Ee]rror: |E\d{4} .*? err=(?:<\s*(?:error: )?)?)(.+)$", re.MULTILINE)


class _Tree(NamedTuple):
    """A kustomization and everything that it leads to, as far as it is on this disk."""

    root: Manifest
    folders: dict[Path, Manifest]
    files: dict[Path, list[Manifest]]
    """Its manifests and patches; those of a base come first."""

    @property
    def folder(self) -> Path:
        return self.root.path.parent

    def is_variant_of(self, other: _Tree) -> bool:
        """Return whether two trees share a base, so that a cluster has only one of them."""
        shared = self.folders.keys() & other.folders.keys()
        return any(self.folders[each].kind != "Component" for each in shared)


class _RefusedError(TemplateError):
    """A renderer failed, or took too long."""


def rendered(
    documents: Sequence[Document], environment: str, named: Sequence[Path] = ()
) -> tuple[list[Manifest], list[Unread]]:
    """Return the manifests after Kustomize and Helm, and what could not be rendered.

    Args:
        documents: manifests, kustomizations and `Chart.yaml` files.
        environment: chooses among overlays, and a chart's values file.
        named: the paths on the command line. A kustomization in one of these folders wins over all
            others below it.

    Raises:
        BudgetError: Kustomize refuses a kustomization that was named.

    """
    read: dict[Path, list[Manifest]] = {}
    for document in documents:
        read.setdefault(document.path.resolve(), []).extend(objects(document))
    named_folders = {(path if path.is_dir() else path.parent).resolve() for path in named}
    is_flux = "Kustomization.kustomize.toolkit.fluxcd.io"
    kustomizations = {
        path.parent: found[0]
        for path, found in read.items()
        if path.name in KUSTOMIZATION_FILES and found and found[0].type != is_flux
    }
    charts = {
        path.parent: found[0] for path, found in read.items() if path.name == CHART_FILE and found
    }
    ruled = kustomizations.keys() & named_folders
    trees = [
        _tree(each, read)
        for folder, each in kustomizations.items()
        if not ruled & set(folder.parents)
    ]
    inner = {folder for each in trees for folder in list(each.folders)[1:]} - ruled
    roots = [
        each
        for each in trees
        if each.folder.resolve() not in inner and each.root.kind != "Component"
    ]
    covered = {path for each in trees for path in each.files}
    found: list[Manifest] = []
    unread: list[Unread] = []
    # A chart inside another one is rendered with it.
    outer = [each for folder, each in charts.items() if not charts.keys() & set(folder.parents)]
    parts = [
        (partial(_kustomized, each), each.root)
        for each in _chosen(roots, environment, ruled, unread)
    ]
    parts += [(partial(_templated, each, environment), each) for each in outer]
    for render, source in parts:
        try:
            found += render()
        except TemplateError as error:
            where = error.where or source.where()
            is_named = source.path.parent.resolve() in ruled
            if is_named and isinstance(error, _RefusedError) and source not in outer:
                raise BudgetError(f"{where}: {error.problem}") from None
            unread.append(Unread(where, error.problem))
    inputs = {*kustomizations, *charts}
    for path, own in read.items():
        is_input = path.parent in inputs and path.name in (*KUSTOMIZATION_FILES, CHART_FILE)
        is_inside = bool((ruled | charts.keys()) & set(path.parents))
        found += [] if is_input or is_inside or path in covered else own
    return found, unread


def _run(*command: str) -> str:
    """Return the output of a renderer.

    Raises:
        _RefusedError: it failed, or took too long.
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
            raise _RefusedError(f"{name} took more than {_LONGEST_SECONDS} seconds") from None
        finally:
            # After Ctrl-C too, with everything that it started.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        message = errors.decode("utf-8", "replace").strip()
        match = _REFUSAL.search(message)
        raise _RefusedError(f"{name}: {match[1] if match else message.partition(chr(10))[0]}")
    return output.decode("utf-8", "replace")


def _objects(documents: Iterable[Document]) -> list[Manifest]:
    return [each for one in documents if isinstance(one.data, dict) for each in objects(one)]


# -- Kustomize ------------------------------------------------------------------------------


def _tree(root: Manifest, read: dict[Path, list[Manifest]]) -> _Tree:
    """Return a kustomization with all that it leads to; other files are added to `read`."""
    folders: dict[Path, Manifest] = {}
    files: dict[Path, list[Manifest]] = {}
    waiting = [root]
    while waiting:
        document = waiting.pop()
        folder = document.path.parent
        if folder.resolve() in folders:
            continue
        folders[folder.resolve()] = document
        own: dict[Path, list[Manifest]] = {}
        for _, text in _names(document):
            # Without .. in it, so that annotations name a file of the repository.
            target = Path(os.path.normpath(folder / text))
            named = [target / name for name in KUSTOMIZATION_FILES] if target.is_dir() else [target]
            for file in (each for each in named if each.is_file()):
                path = file.resolve()
                read[path] = own[path] = read[path] if path in read else _readable(file)
                waiting += own.pop(path)[:1] if target.is_dir() else []
        files = {**own, **files}
    return _Tree(root, folders, files)


def _names(kustomization: Document) -> list[tuple[ValuePath, str]]:
    """Return the files and folders that a kustomization names; patches come last."""
    found = [
        (path, text)
        for path, text in texts(kustomization.data)
        if (path[0] in _NAMES_FILES or path[-1] == "path") and len(text) < _LONGEST_NAME
    ]
    return sorted(found, key=lambda each: each[0][0] not in _FOLDERS)


def _readable(file: Path) -> list[Manifest]:
    """Return a file's objects; the renderer reports what is wrong with it."""
    try:
        return _objects(read_documents(file))
    except TemplateError:
        return []


def _chosen(
    trees: list[_Tree], environment: str, named: set[Path], unread: list[Unread]
) -> list[_Tree]:
    """Return the kustomizations to render: of those with one base, the named or environment's."""
    groups: list[list[_Tree]] = []
    for tree in trees:
        same = [group for group in groups if any(map(tree.is_variant_of, group))]
        groups = [each for each in groups if each not in same]
        groups.append([*(each for group in same for each in group), tree])
    found: list[_Tree] = []
    for group in groups:
        own = [each for each in group if each.folder.resolve() in named]
        matching = [each for each in group if environment in each.folder.parts]
        if own or len(group) == 1:
            found += own or group
        elif 0 < len(matching) < len(group):
            found += matching
        else:
            first, *_ = ordered = sorted(group, key=lambda each: each.folder)
            listed = ", ".join(str(each.folder) for each in ordered)
            reason = f"several overlays: {listed}; name one of these folders, or an --environment"
            unread.append(Unread(first.root.where(), reason))
    return found


def _kustomized(tree: _Tree) -> list[Manifest]:
    """Return the output of Kustomize, each object with the lines of the object of its name."""
    hint = f"name the output of `kubectl kustomize {tree.folder}`"
    for document in tree.folders.values():
        for path, text in _names(document):
            if _REMOTE.search(text):
                raise TemplateError(f"{text} is elsewhere; {hint}", document.where(*path))
        for key in _CHARTS:
            if document.at(key):
                raise TemplateError(f"{key} is not rendered; {hint}", document.where(key))
    program = shutil.which("kubectl") or shutil.which("kustomize")
    if program is None:
        raise TemplateError(f"kustomization found: install kubectl, or {hint}")
    verb = "build" if Path(program).name.startswith("kustomize") else "kustomize"
    output = _run(program, verb, str(tree.folder.resolve()))
    sources: dict[str, list[Manifest]] = defaultdict(list)
    for found in tree.files.values():
        for each in found:
            sources[each.kind].append(each)
    made: list[Manifest] = []
    for each in _objects(parse_documents(output, tree.root.path)):
        # Kustomize adds a prefix, suffix or hash to the name.
        same = [one for one in sources[each.kind] if one.name in each.name]
        source = max(same, key=lambda one: len(one.name), default=each)
        lines = source.lines if same else None
        made.append(replace(each, path=source.path, file=source.file, lines=lines))
    return made


# -- Helm -----------------------------------------------------------------------------------


def _templated(chart: Manifest, environment: str) -> list[Manifest]:
    """Return the output of Helm, each object with the template that it comes from."""
    folder, program = chart.path.parent, shutil.which("helm")
    hint = f"name the output of `helm template {folder}`"
    if chart.at("type") == "library":
        return []
    if program is None:
        raise TemplateError(f"chart found: install helm, or {hint}")
    forms = ("values-{}.yaml", "values.{}.yaml", "values/{}.yaml")
    files = [(folder / form.format(environment)).resolve() for form in forms if environment]
    values = [f"--values={file}" for file in files if file.is_file()]
    try:
        output = _run(program, "template", str(folder.resolve()), *values)
    except _RefusedError as error:
        # A chart may need values or dependencies that are elsewhere.
        raise TemplateError(f"{error}; {hint}") from None
    marks = [(output.count("\n", 0, m.start()) + 1, m[1].strip()) for m in _SOURCE.finditer(output)]
    made = []
    for each in _objects(parse_documents(output, chart.path)):
        before = [name for line, name in marks if each.lines and line <= each.lines.line]
        # The name begins with the chart's, not with the folder's.
        file = folder / before[-1].partition("/")[2] if before else chart.path
        made.append(replace(each, path=file, file=str(file), lines=None))
    return made
