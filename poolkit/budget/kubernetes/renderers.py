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

from poolkit.budget.kubernetes.objects import Manifest, objects, texts
from poolkit.budget.model import Unread
from poolkit.budget.read.documents import Document, parse_documents, read_documents
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from poolkit.budget.read.documents import ValuePath

KUSTOMIZATION_FILES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
CHART_FILE = "Chart.yaml"
_VERBS = {"kubectl": "kustomize", "kustomize": "build", "helm": "template"}
_LONGEST_SECONDS = 30
_LONGEST_NAME = 255
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_CLOSED = "http://127.0.0.1:1"
_CHARTS = ("helmCharts", "helmChartInflationGenerator")
_MANIFESTS = ("resources", "bases", "components")
_OTHER_FILES = ("crds", "configurations", "generators", "transformers", "validators")
_NAMES_FILES = (*_MANIFESTS, *_OTHER_FILES, "patchesStrategicMerge")
_REMOTE = re.compile(r"://|^git@|^(github|gitlab|bitbucket)\.\w+[:/]|\?ref=")
_SOURCE = re.compile(r"^# Source: (.+)$", re.MULTILINE)
_REFUSAL = re.compile(r"^([Ee]rror: |E\d{4} .*? err=)")


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
    first = {path: found[0] for path, found in read.items() if found}
    charts = {path.parent: each for path, each in first.items() if path.name == CHART_FILE}
    kustomizations = {
        path.parent: each
        for path, each in first.items()
        # Flux has a Kustomization, too.
        if path.name in KUSTOMIZATION_FILES and not each.type.endswith("fluxcd.io")
    }
    named_folders = {(path if path.is_dir() else path.parent).resolve() for path in named}
    ruled = kustomizations.keys() & named_folders
    trees = [
        _tree(each, read)
        for folder, each in kustomizations.items()
        if not ruled & set(folder.parents)
    ]
    inner = {folder for each in trees for folder in list(each.folders)[1:]} - ruled
    roots = [each for each in trees if each.root.kind != "Component" and each.folder not in inner]
    chosen, unread = _chosen(roots, environment, ruled)
    # A chart inside another one is rendered with it.
    chosen += [
        _Tree(each, {}, set(), [])
        for folder, each in charts.items()
        if not charts.keys() & set(folder.parents)
    ]
    found: list[Manifest] = []
    for each in chosen:
        is_chart = each.root.path.name == CHART_FILE
        try:
            found += _templated(each.root, environment) if is_chart else _kustomized(each)
        except TemplateError as error:
            where = error.where or each.root.where()
            if isinstance(error, _RefusedError) and each.folder in ruled:
                raise BudgetError(f"{where}: {error.problem}") from None
            unread.append(Unread(where, error.problem))
    used = {path for each in trees for path in each.files}
    used |= {folder / name for folder in kustomizations for name in KUSTOMIZATION_FILES}
    for path, own in read.items():
        is_inside = bool((ruled | charts.keys()) & {*path.parents})
        found += [] if is_inside or path in used else own
    return found, unread


def _run(folder: Path, *programs: str, options: Sequence[str] = ()) -> str:
    """Return the text that a renderer makes of a folder.

    Args:
        folder: the folder of a kustomization or chart.
        programs: the renderers of such a folder; the first one that is installed runs.
        options: further arguments.

    Raises:
        TemplateError: no renderer is installed.
        _RefusedError: it failed, or took too long.
    """
    shown = f"`{programs[0]} {_VERBS[programs[0]]} {folder}`"
    name = next(filter(shutil.which, programs), None)
    if name is None:
        raise TemplateError(f"install {programs[0]}, or name the output of {shown}")
    with (
        tempfile.TemporaryDirectory() as home,
        subprocess.Popen(
            [str(shutil.which(name)), _VERBS[name], str(folder.resolve()), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=home,
            # Git is not found, no plugin is installed, and no configuration of the user's is read.
            env={**dict.fromkeys(_PROXIES, _CLOSED), "HOME": home, "TMPDIR": home, "PATH": ""},
            start_new_session=True,
        ) as process,
    ):
        try:
            output, errors = process.communicate(timeout=_LONGEST_SECONDS)
        except subprocess.TimeoutExpired:
            raise _RefusedError(f"{shown} took more than {_LONGEST_SECONDS} seconds") from None
        finally:
            # After Ctrl-C too, with everything that it started.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        # A chart may need values or dependencies that are elsewhere.
        first, *_ = errors.decode("utf-8", "replace").strip().splitlines() or ["it gives no reason"]
        raise _RefusedError(f"{shown} fails, so name its output: {_REFUSAL.sub('', first)}")
    return output.decode("utf-8", "replace")


def _objects(documents: Iterable[Document]) -> list[Manifest]:
    return [each for one in documents if isinstance(one.data, dict) for each in objects(one)]


# -- Kustomize ------------------------------------------------------------------------------


class _Tree(NamedTuple):
    """A kustomization and everything that it leads to, as far as it is on this disk; or a chart."""

    root: Manifest
    folders: dict[Path, Manifest]
    """Its own kustomization and those of its bases and components."""
    files: set[Path]
    manifests: list[Manifest]
    """The objects in its files, without patches."""

    @property
    def folder(self) -> Path:
        return self.root.path.parent.resolve()

    def is_variant_of(self, other: _Tree) -> bool:
        """Return whether two trees share a base, so that a cluster has only one of them."""
        shared = self.folders.keys() & other.folders.keys()
        return any(self.folders[each].kind != "Component" for each in shared)


def _tree(root: Manifest, read: dict[Path, list[Manifest]]) -> _Tree:
    """Return a kustomization with all that it leads to; other files are added to `read`."""
    tree, waiting = _Tree(root, {}, set(), []), [root]
    while waiting:
        document = waiting.pop()
        folder = document.path.parent
        if folder.resolve() in tree.folders:
            continue
        tree.folders[folder.resolve()] = document
        for (key, *_), text in _names(document):
            # Without .. in it, so that annotations name a file of the repository.
            target = Path(os.path.normpath(folder / text))
            is_folder = target.is_dir()
            for file in [target / name for name in KUSTOMIZATION_FILES] if is_folder else [target]:
                path = file.resolve()
                if path not in read and file.is_file():
                    try:
                        read[path] = _objects(read_documents(file))
                    except TemplateError:
                        # The renderer reports what is wrong with it.
                        read[path] = []
                waiting += read.get(path, [])[:1] if is_folder else []
                tree.manifests.extend(read.get(path, []) if key in _MANIFESTS else [])
                tree.files.add(path)
    return tree


def _names(kustomization: Document) -> list[tuple[ValuePath, str]]:
    """Return the files and folders that a kustomization names."""
    return [
        (path, text)
        for path, text in texts(kustomization.data)
        # A patch may stand in place of its file.
        if (path[0] in _NAMES_FILES or path[-1] == "path")
        and "\n" not in text
        and len(text) <= _LONGEST_NAME
    ]


def _chosen(
    trees: list[_Tree], environment: str, named: set[Path]
) -> tuple[list[_Tree], list[Unread]]:
    """Return the kustomizations to render: of those with one base, the named or environment's."""
    found, unread = [], []
    for tree in trees:
        variants = sorted(
            (each for each in trees if tree.is_variant_of(each)), key=lambda each: each.root.file
        )
        matching = [each for each in variants if environment in each.folder.parts]
        chosen = [each for each in variants if each.folder in named]
        if not chosen and len(matching) < len(variants):
            chosen = matching
        if tree in chosen or len(variants) == 1:
            found.append(tree)
        elif not chosen:
            listed = ", ".join(str(each.root.path.parent) for each in variants)
            reason = f"several overlays: {listed}; name one of these folders, or an --environment"
            unread.append(Unread(variants[0].root.where(), reason))
    return found, unread


def _kustomized(tree: _Tree) -> list[Manifest]:
    """Return the output of Kustomize, each object with the lines of the object of its name."""
    folder = tree.root.path.parent
    for document in tree.folders.values():
        elsewhere = [path for path, text in _names(document) if _REMOTE.search(text)]
        elsewhere += [(key,) for key in _CHARTS if document.at(key)]
        for path in elsewhere:
            reason = (
                f"{document.at(*path)!s:.200} is elsewhere; name the output of `kubectl kustomize"
            )
            raise TemplateError(f"{reason} {folder}`", document.where(*path))
    output = _run(folder, "kubectl", "kustomize")
    made: list[Manifest] = []
    for each in _objects(parse_documents(output, tree.root.path)):
        # Kustomize adds a prefix, suffix or hash to the name.
        same = [one for one in tree.manifests if one.kind == each.kind and one.name in each.name]
        source = max(same, key=lambda one: len(one.name), default=tree.root)
        lines = source.lines if same else None
        made.append(replace(each, path=source.path, file=source.file, lines=lines))
    return made


# -- Helm -----------------------------------------------------------------------------------


def _templated(chart: Manifest, environment: str) -> list[Manifest]:
    """Return the output of Helm, each object with the template that it comes from."""
    folder = chart.path.parent
    if chart.at("type") == "library":
        return []
    forms = ("values-{}.yaml", "values.{}.yaml", "values/{}.yaml")
    files = [(folder / form.format(environment)).resolve() for form in forms if environment]
    options = [f"--values={file}" for file in files if file.is_file()]
    _, *parts = _SOURCE.split(_run(folder, "helm", options=options))
    made = []
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        # The name begins with the chart's, not with the folder's.
        file = folder / name.strip().partition("/")[2]
        made += [replace(each, lines=None) for each in _objects(parse_documents(text, file))]
    return made
