"""The contents of a package: wheels from the lock file, and the project's own files.

Wheels lose the files that a function never reads, and secrets and tests are left out.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from poolkit.deploy.package.settings import ARCHITECTURES
from poolkit.errors import PackageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.deploy.package.settings import PackageSettings

# -- the part of the lock file that a target needs ------------------------------------------

PLATFORM: Final = "manylinux_2_28"
"""The runtimes from Python 3.12 on run on Amazon Linux 2023, which has glibc 2.34."""

_PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(\[[^\]]*\])?==(?P<version>[^\s;\\]+)")


class _Pin(NamedTuple):
    name: str
    version: str


def find_uv(root: Path) -> Path:
    """Return the path of uv: on PATH, in the project's .tools, or beside the interpreter.

    Raises:
        PackageError: it is in none of these.
    """
    for place in (None, str(root / ".tools" / "bin"), str(Path(sys.executable).parent)):
        found = shutil.which("uv", path=place)
        if found:
            return Path(found)
    raise PackageError(
        f"uv was not found on PATH nor in {root / '.tools'}; it downloads wheels for another "
        "machine. Install it with: python -m pip install uv"
    )


def locked_requirements(settings: PackageSettings) -> list[str]:
    """Return the lock file's entries, with hashes, of the target's extras and their dependencies.

    uv decides which distributions are needed; versions and hashes are the lock's own.

    Raises:
        PackageError: uv fails, or the lock lacks a needed distribution.
    """
    entries: dict[_Pin, str] = {}
    current: _Pin | None = None
    for line in settings.lock_file.read_text(encoding="utf-8").splitlines():
        current = _pin(line) or current
        if current and line.strip() and not line.lstrip().startswith("#"):
            entries[current] = entries.get(current, "") + line + "\n"
    printed = _uv(
        settings,
        *("pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"),
        *("--constraint", str(settings.lock_file), str(settings.root / "pyproject.toml")),
        *(argument for extra in settings.extras for argument in ("--extra", extra)),
    )
    pins = [pin for line in printed.splitlines() if (pin := _pin(line))]
    needed = [pin for pin in pins if pin.name not in settings.provided]
    missing = [f"{pin.name}=={pin.version}" for pin in needed if pin not in entries]
    if missing:
        raise PackageError(
            f"{settings.lock_file} does not lock {', '.join(missing)}, which the extras "
            f"{', '.join(settings.extras)} need; renew the lock file"
        )
    return [entries[pin] for pin in sorted(needed)]


def install_wheels(settings: PackageSettings, requirements: list[str], folder: Path) -> None:
    """Install the requirements into `folder` from wheels for the target's machine.

    Raises:
        PackageError: a wheel is missing, its hash differs, or the index cannot be reached.
    """
    listed = folder.with_name(f"{folder.name}-requirements.txt")
    listed.write_text("".join(requirements), encoding="utf-8")
    _uv(
        settings,
        *("pip", "install", "--no-deps", "--require-hashes", "--no-compile-bytecode"),
        # Copied, not linked: the cache of uv must not be stripped with the package.
        *("--link-mode", "copy"),
        *("--target", str(folder), "--requirement", str(listed)),
    )


def _uv(settings: PackageSettings, *arguments: str) -> str:
    """Run uv for the target's machine and return what it prints."""
    machine = (
        # Any interpreter will do; without one, uv asks every one on PATH for its version.
        *("--python", sys.executable),
        *("--python-platform", f"{ARCHITECTURES[settings.architecture]}-{PLATFORM}"),
        *("--python-version", settings.python),
        *("--only-binary", ":all:"),
    )
    done = subprocess.run(
        [str(find_uv(settings.root)), *arguments, *machine],
        cwd=settings.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        # uv draws lines around its reasons.
        reason = " ".join(re.sub(r"[^\x00-\x7f]+", " ", done.stderr).split())
        raise PackageError(
            f"uv could not find what {settings.target} needs for Python {settings.python} on "
            f"{settings.architecture}: {reason or f'exit status {done.returncode}'}"
        )
    return done.stdout


def _pin(line: str) -> _Pin | None:
    found = _PIN.match(line)
    if found is None:
        return None
    # Source: Python Packaging User Guide, "Names and normalization".
    return _Pin(re.sub(r"[-_.]+", "-", found["name"]).lower(), found["version"])


# -- what a function never reads ------------------------------------------------------------

PRUNED_FOLDERS: Final = ("bin", "__pycache__", "tests", "test")
"""Command-line programs, stale bytecode, and the libraries' own tests."""

PRUNED_FILES: Final = ("*.pyi", "*.pyx", "*.pxd", "*.c", "*.h", "*.cpp", "py.typed")
"""For type checkers and compilers."""

PRUNED_METADATA: Final = (
    *("RECORD", "INSTALLER", "REQUESTED", "WHEEL", "direct_url.json", "top_level.txt"),
)
"""For installers. METADATA stays, because `importlib.metadata.version` reads it, and so do
licences, because they ask for it. RECORD would list files that are gone."""


def prune(folder: Path) -> None:
    """Remove from installed wheels what a function never reads."""
    for name in PRUNED_FOLDERS:
        for found in sorted(folder.rglob(name)):
            # `bin` is where installers put programs only at the top.
            if found.is_dir() and (name != "bin" or found.parent == folder):
                shutil.rmtree(found)
    for pattern in (*PRUNED_FILES, *(f"*.dist-info/{name}" for name in PRUNED_METADATA)):
        for file in sorted(folder.rglob(pattern)):
            if file.is_file():
                file.unlink()
    # Installers lock the folder they work in.
    (folder / ".lock").unlink(missing_ok=True)


# -- the project's own files ----------------------------------------------------------------

NEVER: Final = (
    *(".*", "__pycache__", "*.py[cod]", "*.egg-info"),
    *("tests", "test_*.py", "conftest.py"),
    *("*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "credentials.json"),
    *("*.env", "*.sqlite", "*.sqlite3", "*.db"),
)
"""Names of files and folders that are left out in every folder: hidden ones (among them
.env and .git), secrets, tests, and what tools make."""

_PRIVATE_KEY: Final = re.compile(
    rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"
    rb"(?:\s|\\[nr]|[\w-]++: [^\n\\]*+)*+[A-Za-z0-9+/]{16}"
)
"""A header and what follows it (RFC 7468), in a file of its own or as a text in JSON or code. The
header alone is what programs that read keys look for."""


def copy_project_code(settings: PackageSettings, folder: Path) -> list[str]:
    """Copy the included files into `folder`; return the names of secrets and tests left out.

    Raises:
        PackageError: an included file is missing, lies outside the project, or is a module
            with a private key in it.
    """
    left_out = []
    excluded = tuple(name.rstrip("/") for name in settings.exclude)
    inside_excluded = tuple(f"{name}/" for name in excluded)
    for path in _included(settings):
        name = path.relative_to(settings.root).as_posix()
        if name in excluded or name.startswith(inside_excluded):
            continue
        parts = name.split("/")
        never = any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in NEVER)
        if never or holds_private_key(path):
            left_out.append(name)
        else:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return [name for name in left_out if "__pycache__" not in name]


def missing_files(settings: PackageSettings) -> list[str]:
    """Return the names in `include_if_there` that do not exist."""
    return [name for name in settings.include_if_there if not (settings.root / name).exists()]


def _included(settings: PackageSettings) -> Iterator[Path]:
    root = settings.root.resolve()
    missing = missing_files(settings)
    there = [name for name in settings.include_if_there if name not in missing]
    for name in (*settings.include, *there):
        path = root / name
        if not path.resolve().is_relative_to(root):
            raise PackageError(f"include names {name!r}, which lies outside of {root}")
        if path.is_file():
            yield path
        elif not path.is_dir():
            raise PackageError(f"include names {name!r}, but there is no {path}")
        else:
            for file in sorted(path.rglob("*")):
                if not file.is_file():
                    continue
                if not file.resolve().is_relative_to(root):
                    raise PackageError(
                        f"{file} is a link to a file outside of {root}; it is not packaged"
                    )
                yield file


def holds_private_key(file: Path) -> bool:
    """Return whether a file has a private key in it; certificates have the same endings.

    Raises:
        PackageError: the file is a Python module.
    """
    found = _PRIVATE_KEY.search(file.read_bytes()) is not None
    if found and file.suffix == ".py":
        # Left out, the package would lack a module, and the key would stay in the sources.
        raise PackageError(
            f"{file} holds a private key, which no package may hold; let the code read it from "
            "Secrets Manager, or name the file in exclude"
        )
    return found
