"""The files of a deployment: their kinds, and the ones that an environment deploys.

A folder holds other files too. A file of a folder that cannot be read is listed; if it looks like a
deployment, it may hold services, so it is unread. Only a file that was named stops the run.

An environment's file has a table for each template that it deploys. A compose file or manifests in
the same folder are the same services, deployed in another way, so they do not count again. Files
that are left out for that reason are listed, so that a user can see what is not in the sum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.templates import named_by_others
from poolkit.budget.kubernetes.objects import has_pods, objects
from poolkit.budget.kubernetes.renderers import CHART_FILE
from poolkit.budget.model import NotCounted, SourceLocation, Unread
from poolkit.budget.read.documents import Document, read_documents
from poolkit.budget.read.values import walk
from poolkit.budget.tables import table
from poolkit.budget.terraform.workloads import (
    HINT,
    is_binary_plan,
    is_terraform,
    may_hold_services,
    planned_folders,
)
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from poolkit.budget.model import Description
    from poolkit.budget.read.parameters import Environment

_TABLE = table("files")
_KINDS: dict[str, str] = _TABLE["kinds"]
_LOOKED_AT = 1_000_000
_MOST_LISTED = 3


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
        kind = _kind(document)
        if kind == "kubernetes":
            self.kubernetes.extend(objects(document))
        elif kind in _KINDS:
            getattr(self, kind).append(document)
        elif kind:
            self.unread.append(Unread(document.where(), f"{kind}: {HINT}"))
        for path in document.repeated if kind else ():
            if path[0] in _TABLE["counted"] and "Metadata" not in path:
                reason = f"the key {path[-1]} stands there twice, with different values"
                self.unread.append(Unread(document.where(*path), reason))
        return bool(kind)


def _kind(document: Document) -> str:
    """Return the kind of a document by its keys, and by its file's name; empty if it has none."""
    if is_terraform(document.data):
        return "terraform"
    for rule in _TABLE["rules"]:
        is_named = any(fnmatch(document.path.name, each) for each in rule.get("files", "*"))
        for keys in rule["any"] if is_named else ():
            if all(_has(document.data, key.split(".")) for key in keys.split()):
                return str(rule["kind"])
    return ""


def _has(data: Any, path: Sequence[str]) -> bool:
    """Return whether a value has something at a path; `*` is any key."""
    if not path or not isinstance(data, dict):
        return not path and data is not None
    parts = data.values() if path[0] == "*" else [data.get(path[0])]
    return any(_has(part, path[1:]) for part in parts)


def read_files(paths: Iterable[Path], *, may_be_none: bool = False) -> Files:
    """Read the files that describe a deployment, including those in folders.

    Args:
        paths: files and folders.
        may_be_none: accept that no file describes a deployment.

    Raises:
        BudgetError: a path does not exist, or is a file that describes no deployment.
        TemplateError: a file that was named is broken.
    """
    paths, found = list(paths), _Walk()
    for path in paths:
        found.add(path)
    named, files = {path.resolve() for path in paths}, Files(unread=found.unread)
    for file in sorted(found.files.values()):
        try:
            documents = read_documents(file)
            kinds = [files.add(each) for each in documents]
            # Any text is YAML, and a log may be a stream of JSON objects.
            is_text = any(isinstance(each.data, str) for each in documents)
            is_read = any(kinds) or not (is_text or (file.suffix == ".json" and len(kinds) > 1))
        except TemplateError as error:
            if file.resolve() in named:
                raise
            if is_read := _looks_like_a_deployment(file):
                files.unread.append(Unread(error.where, error.problem))
        if not is_read:
            found.skip(_TABLE["broken"], file)
    _leave_out_copies(files.templates, found)
    planned = {folder for each in files.terraform for folder in planned_folders(each)}
    if open_ := [each for each in found.terraform if planned.isdisjoint(each.resolve().parents)]:
        reason = f"Terraform's own files ({len(open_)}) are not read; in their folder, {HINT}"
        files.unread.append(Unread(SourceLocation(str(open_[0]), 1), reason))
    if not (files.unread or may_be_none or any(getattr(files, kind) for kind in _KINDS)):
        if not any(path.is_dir() for path in paths):
            raise BudgetError(f"{', '.join(map(str, paths))}: {_TABLE['nothing']}")
        found.skip(_TABLE["nothing"], *paths)
    files.not_read.extend(found.not_read())
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
    try:
        return describe(list(documents))
    except TemplateError as error:
        where, problem = error.where or SourceLocation(""), error.problem
        if Path(where.file) in named or not named & set(Path(where.file).parents):
            raise
    rest = [each for each in documents if each.file != where.file]
    if len(rest) == len(documents):
        # Another file names it, such as a list of variables: keep the files that can stand alone.
        rest = []
        for each in documents:
            with contextlib.suppress(TemplateError):
                describe([each])
                rest.append(each)
    found = read_by(describe, rest if len(rest) < len(documents) else [], named)
    return dataclasses.replace(found, unread=(*found.unread, Unread(where, problem)))


def _looks_like_a_deployment(file: Path) -> bool:
    """Return whether a file that cannot be read may hold services."""
    patterns = [each for rule in _TABLE["rules"] for each in rule.get("files", ())]
    if any(fnmatch(file.name, each) for each in patterns):
        return True
    try:
        with file.open("rb") as opened:
            # UTF-16 without a byte order mark has a zero byte beside every letter.
            text = opened.read(_LOOKED_AT).replace(b"\0", b"")
            return re.search(_TABLE["signs"].encode(), text, re.MULTILINE) is not None
    except OSError:
        return False


def _leave_out_copies(templates: list[Document], found: _Walk) -> None:
    """Leave out templates that stand in a program's output and in another file as well."""
    generated = set(_TABLE["generated"])
    for copy in [each for each in templates if generated & set(each.path.parts)]:
        others = [each for each in templates if each is not copy]
        if same := [each for each in others if each.data == copy.data]:
            templates[:] = others
            found.skip(f"the same template as {same[0].file}", copy.path)


class _Walk:
    """The files to read, and what is passed on the way to them."""

    def __init__(self) -> None:
        self.files: dict[Path, Path] = {}
        """By their real paths."""
        self.unread: list[Unread] = []
        self.terraform: list[Path] = []
        """Files that Terraform plans from, and that may describe services."""
        self._skipped: dict[str, list[Path]] = {}

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
                folders[:] = set(folders) - set(_TABLE["chart"])
            folders[:] = sorted(each for each in folders if self._is_walked(folder / each))
            for name in sorted(names):
                self._add_file(folder / name)

    def _cannot_open(self, error: OSError) -> None:
        self.unread.append(Unread(SourceLocation(str(error.filename)), "it cannot be opened"))

    def _is_walked(self, folder: Path) -> bool:
        reason = _row(_TABLE["folders"], folder.name)
        if not reason and folder.is_symlink():
            reason = "a link to a folder"
        if reason and folder.name != ".git":
            self.skip(reason, folder)
        return not reason

    def _add_file(self, file: Path, *, is_named: bool = False) -> None:
        row = _row(_TABLE["files"], file.name)
        if program := _TABLE["programs"].get(row):
            made = file.parent / program["makes"]
            if made.is_dir():
                self._add_assembly(made)
            elif made.is_file():
                self.files.setdefault(made.resolve(), made)
            else:
                reason = f"it is not expanded: run `{program['command']}` first"
                self.unread.append(Unread(SourceLocation(str(file), 1), reason))
        elif row == "terraform":
            self.terraform += [file] if may_hold_services(file) else []
        elif is_named or (row == "documents" and file.is_file()):
            self.files.setdefault(file.resolve(), file)
        elif row == "documents":
            self.skip("no regular file", file)
        elif row == "rendered" and _looks_like_a_deployment(file):
            self.skip("a template of another program: name its output", file)

    def _add_assembly(self, folder: Path) -> None:
        """Add the templates of an output of the CDK; old files in it belong to no stack."""
        try:
            manifest = [*walk([each.data for each in read_documents(folder / "manifest.json")])]
            found = [folder / str(each) for key, each in manifest if key == "templateFile"]
        except TemplateError:
            manifest, found = [], list(folder.glob("*.template.json"))
        for key, stage in manifest:
            if key == "directoryName" and Path(str(stage)).name == stage != "..":
                self._add_assembly(folder / stage)
        self.files |= {template.resolve(): template for template in found if template.is_file()}


def _row(rows: Mapping[str, Sequence[str]], name: str) -> str:
    """Return the first row of a table with a pattern for a name; empty if there is none."""
    return next((row for row, each in rows.items() if any(fnmatch(name, p) for p in each)), "")


def of_environment(
    files: Files, environment: Environment, paths: Iterable[Path]
) -> tuple[Files, tuple[NotCounted, ...]]:
    """Return the files that an environment deploys, and those that it does not.

    A file in `paths` belongs to it, and so does every file of a folder in `paths` that has none
    of the environment's templates.
    """
    if not environment.file:
        return files, ()
    # The first template of a name is the one that is meant.
    by_name = {each.path.name.split(".")[0]: each.path for each in reversed(files.templates)}
    deployed = {path.resolve() for name, path in by_name.items() if name in environment.tables}
    deployed |= named_by_others(files.templates)
    named = {path.resolve() for path in paths}
    named -= {folder for template in deployed for folder in template.parents}
    chosen: dict[str, Any] = {}
    left_out: list[NotCounted] = []
    why = f"environment {environment.name} has no table for it; to count it as well, name it"
    for kind, platform in _KINDS.items():
        chosen[kind], others = [], set()
        for document in getattr(files, kind):
            own = document.path.resolve()
            if own in deployed or named & {own, *own.parents}:
                chosen[kind].append(document)
            elif kind != "kubernetes" or has_pods(document):
                others.add(document.file)
        place = {"platform": platform, "where": environment.file}
        left_out += [NotCounted(name=file, **place, reason=why) for file in sorted(others)]
        why = f"environment {environment.name} deploys templates; to count it as well, name it"
    return dataclasses.replace(files, **chosen), tuple(left_out)
