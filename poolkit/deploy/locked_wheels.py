"""The part of the lock file that a target needs, installed as wheels for AWS's machines."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from poolkit.deploy.package_settings import ARCHITECTURES
from poolkit.errors import PackageError

if TYPE_CHECKING:
    from poolkit.deploy.package_settings import PackageSettings

PLATFORM: Final = "manylinux_2_28"
"""Amazon Linux 2023, which the runtimes from Python 3.12 on stand on, has glibc 2.34."""

_PIN = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(\[[^\]]*\])?==(?P<version>[^\s;\\]+)")

_FRAME = re.compile(r"[^\x00-\x7f]+")  # the lines that uv draws around its reasons


def find_uv(root: Path) -> Path:
    """Return uv: on PATH, in the project's .tools, or beside the interpreter.

    Raises:
        PackageError: there is none.
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
    """Return the lock file's entries, with hashes, of the target's extras and what they need.

    uv decides which distributions are needed; versions and hashes are the lock's own.

    Raises:
        PackageError: uv fails, or the lock lacks something that is needed.
    """
    entries = _entries(settings.lock_file.read_text(encoding="utf-8"))
    needed = [pin for pin in _needed(settings) if pin[0] not in settings.provided]
    missing = [f"{name}=={version}" for name, version in needed if (name, version) not in entries]
    if missing:
        raise PackageError(
            f"{settings.lock_file} does not lock {', '.join(missing)}, which the extras "
            f"{', '.join(settings.extras)} need; renew the lock file"
        )
    return [entries[pin] for pin in sorted(needed)]


def install_wheels(settings: PackageSettings, requirements: list[str], folder: Path) -> None:
    """Install the requirements into `folder` from wheels for the target's machine.

    Raises:
        PackageError: a wheel is missing, its hash is another one, or there is no network.
    """
    listed = folder.with_name(f"{folder.name}-requirements.txt")
    listed.write_text("".join(requirements), encoding="utf-8")
    # Copied, not linked: the cache of uv must not be stripped with the package.
    how = ["--no-deps", "--require-hashes", "--link-mode", "copy", "--no-compile-bytecode"]
    where = ["--target", str(folder), "--requirement", str(listed)]
    _uv(settings, "pip", "install", *how, *where, *_machine(settings))


def _needed(settings: PackageSettings) -> list[tuple[str, str]]:
    extras = [word for extra in settings.extras for word in ("--extra", extra)]
    how = ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"]
    what = ["--constraint", str(settings.lock_file), str(settings.root / "pyproject.toml")]
    printed = _uv(settings, "pip", "compile", *how, *what, *_machine(settings), *extras)
    found = map(_PIN.match, printed.splitlines())
    return [(_normal(pin["name"]), pin["version"]) for pin in found if pin]


def _machine(settings: PackageSettings) -> list[str]:
    platform = f"{ARCHITECTURES[settings.architecture]}-{PLATFORM}"
    return [
        # Any interpreter will do; without one, uv asks every one on PATH for its version.
        *("--python", sys.executable),
        *("--python-platform", platform),
        *("--python-version", settings.python),
        *("--only-binary", ":all:"),
    ]


def _uv(settings: PackageSettings, *words: str) -> str:
    uv = find_uv(settings.root)
    done = subprocess.run(
        [str(uv), *words], cwd=settings.root, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = " ".join(_FRAME.sub(" ", done.stderr).split())
        raise PackageError(
            f"uv could not find what {settings.target} needs for Python {settings.python} on "
            f"{settings.architecture}: {reason or f'exit status {done.returncode}'}"
        )
    return done.stdout


def _entries(lock: str) -> dict[tuple[str, str], str]:
    """Return each entry of a requirements file by name and version, its comments left out."""
    entries: dict[tuple[str, str], str] = {}
    pin: tuple[str, str] | None = None
    for line in lock.splitlines():
        found = _PIN.match(line)
        if found:
            pin = (_normal(found["name"]), found["version"])
        if pin and line.strip() and not line.lstrip().startswith("#"):
            entries[pin] = entries.get(pin, "") + line + "\n"
    return entries


def _normal(name: str) -> str:
    # Source: Python Packaging User Guide, "Names and normalization".
    return re.sub(r"[-_.]+", "-", name).lower()
