"""The contents of a package: wheels from the lock file, and the project's own files.

Wheels lose the files that a function never reads, and secrets and tests are left out.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import ssl
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


_DER: Final = b"\x30"
"""The first byte of a certificate that is not PEM: a sequence."""


class ProjectFiles(NamedTuple):
    """What became of the project's own files; names are relative to the project."""

    left_out: list[str]
    """Secrets, tests and hidden files."""
    links: list[str]
    """Symbolic links as `NAME -> TARGET`: the package has the target's content under the name."""
    unreadable: list[str]
    """Files of certificates from which OpenSSL reads none; they are packaged."""


def copy_project_code(settings: PackageSettings, folder: Path) -> ProjectFiles:
    """Copy the included files into `folder`; a symbolic link becomes what it points to.

    Raises:
        PackageError: an included file is missing or lies outside the project, a link points
            nowhere, outside or in a circle, a module has a private key in it, or a file of
            certificates has none.
    """
    root = settings.root.resolve()
    files = ProjectFiles([], [], [])
    copied: list[Path] = []
    excluded = tuple(name.rstrip("/") for name in settings.exclude)
    inside_excluded = tuple(f"{name}/" for name in excluded)

    def copy(path: Path, *inside: Path) -> None:
        name = path.relative_to(settings.root).as_posix()
        # A link has two names, and a secret is one under either of them.
        names, shown = [name], name
        if path.is_symlink() and not _is_never(name):
            names.append(_link_target(path, root, inside))
            shown = f"{name} -> {names[1]}"
        if any(each in excluded or each.startswith(inside_excluded) for each in names):
            return
        if any(map(_is_never, names)) or (path.is_file() and holds_private_key(path)):
            files.left_out.append(shown)
            return
        if shown != name:
            files.links.append(shown)
        if path.is_dir():
            for each in sorted(path.iterdir()):
                copy(each, *inside, path.resolve())
        elif path.is_file():
            target = folder / name
            copied.append(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            # A script stays one that can be started.
            target.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)

    for path in _included(settings, root):
        copy(path)
    left_out = [name for name in files.left_out if "__pycache__" not in name]
    unread = [path for path in copied if not has_certificates(path)]
    unreadable = [path.relative_to(settings.root).as_posix() for path in unread]
    return files._replace(left_out=left_out, unreadable=unreadable)


def _included(settings: PackageSettings, root: Path) -> Iterator[Path]:
    missing = missing_files(settings)
    for name in (*settings.include, *settings.include_if_there):
        path = settings.root / name
        if name in missing:
            continue
        if not path.resolve().is_relative_to(root):
            raise PackageError(f"include names {name!r}, which lies outside of {root}")
        if not path.exists():
            raise PackageError(f"include names {name!r}, but there is no {path}")
        yield path


def _is_never(name: str) -> bool:
    parts = name.split("/")
    return any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in NEVER)


def _link_target(path: Path, root: Path, inside: tuple[Path, ...]) -> str:
    """Return the name of what a link points to; `inside` are the real folders around the link."""
    real = path.resolve()
    if not real.is_relative_to(root):
        raise PackageError(f"{path} is a link to a file outside of {root}; it is not packaged")
    if not real.exists():
        raise PackageError(f"{path} is a link to {real}, which does not exist")
    if real in inside:
        raise PackageError(f"{path} is a link to {real}, the folder that it is in")
    return real.relative_to(root).as_posix()


def missing_files(settings: PackageSettings) -> list[str]:
    """Return the names in `include_if_there` that do not exist, or are folders without a file."""
    return [name for name in settings.include_if_there if not _has_content(settings.root / name)]


def _has_content(path: Path) -> bool:
    if path.is_dir():
        # What a download that was interrupted leaves has a hidden name.
        return any(_has_content(each) for each in path.iterdir() if not _is_never(each.name))
    return path.exists()


def has_certificates(file: Path) -> bool:
    """Return whether OpenSSL reads a file that is named as certificates; True for any other file.

    Raises:
        PackageError: it is empty or something else, such as the HTML that a proxy answered with.
    """
    if file.suffix not in {".crt", ".cer", ".pem"}:
        return True
    content = file.read_bytes()
    if content.startswith(_DER):
        return True
    if b"-----BEGIN " not in content:
        raise PackageError(
            f"{file} should hold certificates, but has none; write it again (the authorities of the "
            "database's servers: scripts/database-certificates), or remove it"
        )
    if b"-----BEGIN CERTIFICATE" not in content:
        return True
    try:
        authorities = content.decode("ascii", "ignore")
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=authorities)
    except ssl.SSLError:
        return False
    return True


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
