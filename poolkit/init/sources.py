"""The Python files of a project: parsed, and with the names by which they are imported."""

from __future__ import annotations

import ast
import os
import tokenize
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MAX_FILES = 5_000
MAX_BYTES = 1_000_000
"""A longer file is generated, and no application object stands in it."""
_SKIPPED = frozenset(
    [
        "__pycache__",
        "node_modules",
        "site-packages",
        "venv",
        "env",
        "virtualenv",
        "build",
        "dist",
        "htmlcov",
    ]
)
_TESTS = frozenset(["tests", "test", "testing", "conftest", "examples", "docs", "scripts"])
_MARKERS = frozenset(
    [
        "pyproject.toml",
        "requirements.txt",
        "manage.py",
        "alembic.ini",
        ".env",
        ".env.example",
        "Pipfile",
        "setup.py",
    ]
)
"""Files that stand where a project is started."""
CODE_FOLDERS = ("src", "lib")
"""Folders that hold packages and are none themselves."""


def files_below(root: Path) -> Iterator[Path]:
    """Yield the project's own files: no hidden folders, no environments, nothing installed."""
    number = 0
    for folder, names, files in os.walk(root):
        names[:] = sorted(
            name
            for name in names
            if not name.startswith((".", "{{"))
            and name not in _SKIPPED
            and not os.path.exists(os.path.join(folder, name, "pyvenv.cfg"))  # noqa: PTH110, PTH118
        )
        for name in sorted(files):
            number += 1
            if number > MAX_FILES:
                return
            yield root.__class__(folder) / name


def text_of(file: Path) -> str:
    """Return a file's text; nothing if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


@dataclass(frozen=True)
class Module:
    """One Python file.

    Args:
        path: the file.
        tree: its syntax.
        nodes: every node of it: a walk for each question would be most of the time.
        root: the folder from which it is imported.
        name: its name there, such as `app.main`.
    """

    path: Path
    tree: ast.Module = field(repr=False)
    nodes: tuple[ast.AST, ...] = field(repr=False)
    root: Path
    name: str

    @cached_property
    def imported(self) -> dict[str, str]:
        """The full names behind the names that it imports, such as `FastAPI: fastapi.FastAPI`."""
        found = {}
        package = self.name.split(".")
        is_package = self.path.name == "__init__.py"
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for each in node.names:
                    name = each.asname or each.name.partition(".")[0]
                    found[name] = each.name if each.asname else name
            elif isinstance(node, ast.ImportFrom):
                # Each dot after the first goes one package up; a package's own file stands in it.
                above = package[: len(package) - node.level + is_package] if node.level else []
                origin = ".".join([*above, *([node.module] if node.module else [])])
                for each in node.names:
                    found[each.asname or each.name] = f"{origin}.{each.name}".lstrip(".")
        return found

    def full_name(self, node: ast.expr) -> str:
        """Return the full name of an expression such as `FastAPI` or `fastapi.FastAPI`."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            return f"{self.full_name(node.value)}.{node.attr}"
        return ""


@dataclass(frozen=True)
class Sources:
    """The parsed files of a project."""

    root: Path
    files: tuple[Path, ...] = field(repr=False)
    modules: tuple[Module, ...] = field(repr=False)
    """Without tests, examples and documentation."""

    @classmethod
    def read(cls, root: Path) -> Sources:
        """Parse every file below a folder; one that is no Python is left out."""
        files = tuple(files_below(root))
        modules = []
        for path in files:
            parts = path.relative_to(root).parts
            is_test = _TESTS & set(parts[:-1]) or path.name.startswith(("test_", "conftest"))
            if path.suffix != ".py" or is_test or path.name.endswith("_test.py"):
                continue
            try:
                if path.stat().st_size > MAX_BYTES:
                    continue
                with warnings.catch_warnings(), tokenize.open(path) as file:
                    # Invalid escapes in the project's strings are not this command's subject.
                    warnings.simplefilter("ignore")
                    tree = ast.parse(file.read())
            except (OSError, SyntaxError, ValueError, RecursionError):
                continue
            nodes = tuple(ast.walk(tree))
            import_root = _import_root(path, nodes, root)
            inside = path.relative_to(import_root).with_suffix("").parts
            name = ".".join(inside[:-1] if inside[-1] == "__init__" else inside)
            modules.append(Module(path, tree, nodes, import_root, name))
        return cls(root, files, tuple(modules))

    @cached_property
    def by_name(self) -> dict[str, Module]:
        """The modules by the names under which they import each other."""
        return {module.name: module for module in self.modules}

    def origin(self, full: str) -> str:
        """Return the name where a function is defined, if a package only passes it on."""
        for _ in range(5):
            package, _, name = full.rpartition(".")
            module = self.by_name.get(package)
            further = module.imported.get(name) if module else None
            if further is None or further == full:
                break
            full = further
        return full


def _import_root(path: Path, nodes: Iterable[ast.AST], root: Path) -> Path:
    """Return the folder that has to be on `sys.path` for this file.

    Packages end where no `__init__.py` is. A folder need not have one, so their files may be imported
    from higher up all the same. The project's own imports decide.
    """
    package = path.parent
    while package != root and (package / "__init__.py").is_file():
        package = package.parent
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module.partition(".")[0])
    candidates = [package, *(p for p in package.parents if p == root or root in p.parents)]
    votes = {
        folder: sum((folder / name).is_dir() or (folder / f"{name}.py").is_file() for name in names)
        for folder in candidates
    }
    best = max(candidates, key=lambda folder: votes[folder])
    if votes[best] or package.name in CODE_FOLDERS:
        return best
    # Without imports of its own it runs from anywhere: its settings are where the project's are.
    return next((f for f in candidates if _MARKERS & {p.name for p in f.iterdir()}), package)
