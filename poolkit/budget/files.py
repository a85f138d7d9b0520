"""The files of a deployment: their kinds, and the ones that an environment deploys.

A folder holds other files too. A file of a folder that cannot be read is listed; if it looks like a
deployment, it may hold services, so it is unread. Only a file that was named stops the run.

An environment's file has a table for each template that it deploys. A compose file or manifests in
the same folder are the same services, deployed in another way, so they do not count again. Files
that are left out for that reason are listed, so that a user can see what is not in the sum.
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.templates import named_by_others
from poolkit.budget.kubernetes.objects import has_pods, objects
from poolkit.budget.kubernetes.renderers import CHART_FILE, KUSTOMIZATION_FILES
from poolkit.budget.model import NotCounted, SourceLocation, Unread
from poolkit.budget.read.documents import Document, read_documents
from poolkit.budget.read.values import get_path
from poolkit.budget.tables import table
from poolkit.budget.terraform.workloads import (
    HINT,
    SOURCES,
    is_binary_plan,
    is_terraform,
    may_hold_services,
    planned_folders,
)
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from poolkit.budget.model import Description
    from poolkit.budget.read.parameters import Environment

_COMPOSE = re.compile(r"(docker-)?compose\b.*\.ya?ml")
_SERVICE_KEYS = {"image", "build", "command", "extends"}
_DEPLOYS = re.compile(
    rb"""(^|[\s{,])["']?(AWSTemplateFormatVersion|Resources|apiVersion|services"""
    rb"""|planned_values)["']?\s*:""",
    re.MULTILINE,
)
_LOOKED_AT = 1_000_000
_MOST_LISTED = 3
# A repeated key elsewhere changes nothing that is counted.
_COUNTED_PARTS = {"Resources", "services", "spec", "data", "items"}
_NOTHING = (
    "no CloudFormation or SAM template, Terraform plan, Kubernetes manifest or compose file there; "
    "without files, declare each service: --service web=POOL+OVERFLOWxPROCESSES@INSTANCES "
    "--max-connections N"
)
_KINDS = {
    "templates": "template",
    "compose": "compose file",
    "terraform": "Terraform plan",
    "kubernetes": "Kubernetes manifest",
}
_BROKEN = "not a document of YAML or JSON, and no sign of a deployment in it"


@dataclass(frozen=True, kw_only=True)
class Files:
    """The documents of all files, by what they are."""

    templates: list[Document] = field(default_factory=list)
    compose: list[Document] = field(default_factory=list)
    kubernetes: list[Document] = field(default_factory=list)
    terraform: list[Document] = field(default_factory=list)
    not_read: list[NotCounted] = field(default_factory=list)
    """Files and folders that are passed, and do not look like a deployment."""
    unread: list[Unread] = field(default_factory=list)

    def add(self, document: Document) -> bool:
        """Add a document to its kind; return False if it is none of a deployment.

        Raises:
            TemplateError: it is a broken list of Kubernetes objects.
        """
        data = document.data
        if not isinstance(data, dict):
            return False
        resources, services = data.get("Resources"), data.get("services")
        parts = resources.values() if isinstance(resources, dict) else ()
        has_resources = any("::" in str(get_path(each, "Type")) for each in parts)
        parts = services.values() if isinstance(services, dict) else ()
        has_services = any(isinstance(each, dict) and _SERVICE_KEYS & each.keys() for each in parts)
        name = document.path.name
        if name in (*KUSTOMIZATION_FILES, CHART_FILE) or ("apiVersion" in data and "kind" in data):
            self.kubernetes.extend(objects(document))
        elif is_terraform(data):
            self.terraform.append(document)
        elif "lineage" in data and "resources" in data:
            self.unread.append(Unread(document.where(), f"a state as Terraform stores it: {HINT}"))
        elif has_resources or "AWSTemplateFormatVersion" in data:
            self.templates.append(document)
        elif has_services or (
            _COMPOSE.match(name) and isinstance(services or data.get("include"), dict | list)
        ):
            self.compose.append(document)
        else:
            return False
        for path in document.repeated:
            if path[0] in _COUNTED_PARTS and "Metadata" not in path:
                reason = f"the key {path[-1]} stands there twice, with different values"
                self.unread.append(Unread(document.where(*path), reason))
        return True


def read_files(paths: Iterable[Path], *, may_be_none: bool = False) -> Files:
    """Read the files that describe a deployment, including those in folders.

    Args:
        paths: files and folders.
        may_be_none: accept that no file describes a deployment.

    Raises:
        BudgetError: a path does not exist, or is a file that describes no deployment.
        TemplateError: a file that was named is broken.
    """
    paths, files, walk = list(paths), Files(), _Walk()
    named = {path.resolve() for path in paths}
    for path in paths:
        walk.add(path)
    for file in sorted(walk.files.values()):
        try:
            documents = read_documents(file)
            is_deployment = [files.add(each) for each in documents]
            # Any text is YAML, and a log may be a stream of JSON objects.
            is_other = any(isinstance(each.data, str) for each in documents)
            if is_other or (len(documents) > 1 and file.suffix == ".json"):
                walk.skip(_BROKEN, *[] if any(is_deployment) else [file])
        except TemplateError as error:
            if file.resolve() in named:
                raise
            if _looks_like_a_deployment(file):
                files.unread.append(Unread(error.where, error.problem))
            else:
                walk.skip(_BROKEN, file)
    files.unread.extend(walk.unread)
    _leave_out_copies(files.templates, walk)
    planned = {folder for each in files.terraform for folder in planned_folders(each)}
    if open_ := [each for each in walk.terraform if planned.isdisjoint(each.resolve().parents)]:
        reason = f"Terraform's own files ({len(open_)}) are not read; in their folder, {HINT}"
        files.unread.append(Unread(SourceLocation(str(open_[0]), 1), reason))
    if not (files.unread or may_be_none or any(getattr(files, kind) for kind in _KINDS)):
        if not any(path.is_dir() for path in paths):
            raise BudgetError(f"{', '.join(map(str, paths))}: {_NOTHING}")
        walk.skip(_NOTHING, *paths)
    files.not_read.extend(walk.not_read())
    return files


def read_by(
    describe: Callable[[list[Document]], Description],
    documents: Sequence[Document],
    named: set[Path],
) -> Description:
    """Return what a reader finds; the files that it refuses are unread if they are in named folders.

    Raises:
        TemplateError: a file that was named is wrong, or one that it leads to.
    """
    rest, unread = list(documents), list[Unread]()
    while True:
        try:
            found = describe(rest)
        except TemplateError as error:
            file = Path(error.where.file if error.where else "")
            if file in named or not named & set(file.parents):
                raise
            unread.append(Unread(error.where, error.problem))
            wrong = [each for each in rest if each.file == error.where.file]
            # Another file may name it, such as a list of variables.
            wrong = wrong or [each for each in rest if _is_refused(describe, each)] or rest
            rest = [each for each in rest if not any(each is one for one in wrong)]
        else:
            return dataclasses.replace(found, unread=(*found.unread, *unread))


def _is_refused(describe: Callable[[list[Document]], Description], document: Document) -> bool:
    try:
        describe([document])
    except TemplateError:
        return True
    return False


def _looks_like_a_deployment(file: Path) -> bool:
    """Return whether a file that cannot be read may hold services."""
    if _COMPOSE.match(file.name) or file.name in KUSTOMIZATION_FILES:
        return True
    try:
        with file.open("rb") as opened:
            # UTF-16 without a byte order mark has a zero byte beside every letter.
            return _DEPLOYS.search(opened.read(_LOOKED_AT).replace(b"\0", b"")) is not None
    except OSError:
        return False


def _leave_out_copies(templates: list[Document], walk: _Walk) -> None:
    """Leave out templates that stand in a program's output and in another file as well."""
    generated = set(table("files")["generated"])
    for copy in [each for each in templates if generated & set(each.path.parts)]:
        same = [each for each in templates if each is not copy and each.data == copy.data]
        if same:
            templates[:] = [each for each in templates if each is not copy]
            walk.skip(f"the same template as {same[0].file}", copy.path)


class _Walk:
    """The files to read, and what is passed on the way to them."""

    def __init__(self) -> None:
        self.files: dict[Path, Path] = {}
        """By their real paths."""
        self.unread: list[Unread] = []
        self.terraform: list[Path] = []
        """Files that Terraform plans from, and that may describe services."""
        self._skipped: dict[str, list[Path]] = {}
        self._table = table("files")

    def skip(self, reason: str, *paths: Path) -> None:
        """Put paths on the list of what is not read."""
        self._skipped.setdefault(reason, []).extend(paths)

    def not_read(self) -> Iterator[NotCounted]:
        """Yield what was passed: one by one if it is little, else in one line for each reason."""
        for reason, paths in sorted(self._skipped.items()):
            names = sorted(map(str, paths))
            if len(names) > _MOST_LISTED:
                names = [f"{names[0]}, {names[1]} and {len(names) - 2} more"]
            for name in names:
                yield NotCounted(name=name, platform="file", where="", reason=reason)

    def add(self, root: Path) -> None:
        """Add a file that was named, or the files of a folder that may be a deployment's.

        Raises:
            BudgetError: it does not exist, or is a binary plan.
        """
        if not root.exists():
            raise BudgetError(f"{root}: there is no such file or folder")
        if not root.is_dir():
            # A pipe can be read once only, such as that of `<(helm template .)`.
            if root.is_file() and is_binary_plan(root):
                raise BudgetError(f"{root}: a binary plan, or another archive: {HINT}")
            self._add_file(root, is_named=True)
            return
        for here, folders, names in os.walk(root, onerror=self._cannot_open):
            folder = Path(here)
            if folder.name == "cdk.out" or {"cdk.out", "manifest.json"} <= set(names):
                folders.clear()
                self._add_assembly(folder)
                continue
            if CHART_FILE in names:
                folders[:] = set(folders) - set(self._table["chart"])
            folders[:] = sorted(each for each in folders if self._is_walked(folder / each, root))
            for name in sorted(names):
                self._add_file(folder / name)

    def _cannot_open(self, error: OSError) -> None:
        self.unread.append(Unread(SourceLocation(str(error.filename)), "it cannot be opened"))

    def _is_walked(self, folder: Path, root: Path) -> bool:
        passed = self._table["folders"].items()
        reason = next((why for why, names in passed if folder.name in names), "")
        if folder.name.startswith("."):
            reason = "hidden folders"
        elif "{{" in folder.name:
            reason = "a template of projects"
        elif folder.is_symlink():
            # A folder inside of the root is on the way in any case.
            is_inside = root.resolve() in (folder.resolve(), *folder.resolve().parents)
            reason = "a link to a part of this folder" if is_inside else "a link to another folder"
        if reason and folder.name != ".git":
            self.skip(reason, folder)
        return not reason

    def _add_file(self, file: Path, *, is_named: bool = False) -> None:
        program = next((p for p in self._table["programs"] if file.name in p["files"]), None)
        is_one = file.suffix in self._table["endings"] or file.name in KUSTOMIZATION_FILES
        if program is not None:
            made = file.parent / program["makes"]
            if made.is_dir():
                self._add_assembly(made)
            elif made.is_file():
                self.files.setdefault(made.resolve(), made)
            else:
                reason = f"it is not expanded: run `{program['command']}` first"
                self.unread.append(Unread(SourceLocation(str(file), 1), reason))
        elif file.name.endswith(SOURCES):
            self.terraform += [file] if may_hold_services(file) else []
        elif is_named or (is_one and file.is_file()):
            self.files.setdefault(file.resolve(), file)
        elif is_one:
            self.skip("no regular file", file)
        elif file.suffix in self._table["rendered"] and _looks_like_a_deployment(file):
            self.skip("a template of another program: name its output", file)

    def _add_assembly(self, folder: Path) -> None:
        """Add the templates of an output of the CDK; old files in it belong to no stack."""
        try:
            (manifest,) = read_documents(folder / "manifest.json")
        except (TemplateError, ValueError):
            found = list(folder.glob("*.template.json"))
        else:
            each = [("artifacts", name, "properties") for name in manifest.at("artifacts") or ()]
            found = [folder / str(manifest.at(*path, "templateFile") or "") for path in each]
            for path in each:
                stage = Path(str(manifest.at(*path, "directoryName") or ""))
                if stage.name == str(stage):
                    self._add_assembly(folder / stage)
        self.files |= {template.resolve(): template for template in found if template.is_file()}


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
    chosen: dict[str, Any] = {}
    left_out: list[NotCounted] = []
    why = f"environment {environment.name} has no table for it"
    for kind, platform in _KINDS.items():
        chosen[kind], others = [], {}
        for document in getattr(files, kind):
            own = document.path.resolve()
            if own in deployed or named & {own, *own.parents}:
                chosen[kind].append(document)
            elif kind != "kubernetes" or has_pods(document):
                others[document.file] = f"{why}; to count it as well, name it"
        counted = {each.file for each in chosen[kind]}
        left_out += [
            NotCounted(name=file, platform=platform, where=environment.file, reason=reason)
            for file, reason in others.items()
            if file not in counted
        ]
        why = f"environment {environment.name} deploys templates"
    return dataclasses.replace(files, **chosen), tuple(left_out)
