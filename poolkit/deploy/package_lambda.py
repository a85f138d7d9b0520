"""`poolkit package lambda`: the zip that a function runs from."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from poolkit.deploy.bytecode import compile_folder, find_interpreter
from poolkit.deploy.deterministic_zip import sha256, write_zip
from poolkit.deploy.locked_wheels import find_uv, install_wheels, locked_requirements
from poolkit.deploy.project_code import copy_project_code
from poolkit.deploy.pruning import prune
from poolkit.errors import PackageError

if TYPE_CHECKING:
    from poolkit.deploy.package_settings import PackageSettings

MANIFEST: Final = "poolkit-package.json"
"""In the zip: what it was made for, and from what."""

LIMIT: Final = 50 * 2**20
"""Bytes of a zip that Lambda takes (Developer Guide, "Lambda quotas", Deployment package)."""

UNZIPPED_LIMIT: Final = 250 * 2**20
"""Bytes of its contents (same table)."""


class LambdaPackage(NamedTuple):
    """What was made."""

    file: Path
    sha256: str
    zipped: int
    """Bytes."""
    unzipped: int
    """Bytes."""
    rooms: list[tuple[str, int, int]]
    """Top-level name, bytes, bytes zipped; the largest first."""
    bytecode: str
    """What compiled it; empty when nothing did."""
    left_out: list[str]
    """Files of the project that look like secrets or tests."""


def package_lambda(
    settings: PackageSettings,
    *,
    bytecode: bool = True,
    interpreter: Path | None = None,
    handler: str | None = None,
) -> LambdaPackage:
    """Make the zip at `settings.out_path`.

    Args:
        settings: what goes into it.
        bytecode: compile, if an interpreter of the runtime's minor version is found.
        interpreter: compile with this one.
        handler: `module.function` that must be in it.

    Raises:
        PackageError: it cannot be made, or Lambda would not take it.
    """
    compiler = None
    if bytecode:
        compiler = find_interpreter(settings.python, find_uv(settings.root), interpreter)
    with tempfile.TemporaryDirectory(prefix="poolkit-package-") as work:
        folder = Path(work) / "code"
        folder.mkdir()
        requirements = locked_requirements(settings)
        install_wheels(settings, requirements, folder)
        prune(folder)
        left_out = copy_project_code(settings, folder)
        _require_handler(folder, handler)
        if compiler is not None:
            compile_folder(folder, compiler)
        _write_manifest(settings, folder, requirements, compiled=compiler is not None)
        write_zip(folder, settings.out_path)
    return _described(settings.out_path, str(compiler or ""), left_out)


def _require_handler(folder: Path, handler: str | None) -> None:
    if handler is None:
        return
    module = folder.joinpath(*handler.rpartition(".")[0].split("."))
    if not (module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()):
        raise PackageError(
            f"the handler {handler} is not in the package; "
            "add its module to include in [tool.poolkit.package.lambda]"
        )


def _write_manifest(
    settings: PackageSettings, folder: Path, requirements: list[str], *, compiled: bool
) -> None:
    manifest = {
        "architecture": settings.architecture,
        "python": settings.python,
        "bytecode": compiled,
        "requirements": [entry.split()[0] for entry in requirements],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def read_manifest(file: Path) -> dict[str, object]:
    """Return what a package says of itself.

    Raises:
        PackageError: the file is not there, or was not made by `poolkit package lambda`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest: dict[str, object] = json.loads(archive.read(MANIFEST))
    except FileNotFoundError:
        raise PackageError(f"{file} is not there; make it with: poolkit package lambda") from None
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise PackageError(
            f"{file} was not made by `poolkit package lambda`; make it again"
        ) from None
    return manifest


def _described(file: Path, compiler: str, left_out: list[str]) -> LambdaPackage:
    plain: Counter[str] = Counter()
    zipped: Counter[str] = Counter()
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            top = entry.filename.partition("/")[0]
            plain[top] += entry.file_size
            zipped[top] += entry.compress_size
    package = LambdaPackage(
        file=file,
        sha256=sha256(file),
        zipped=file.stat().st_size,
        unzipped=plain.total(),
        rooms=[(name, plain[name], size) for name, size in zipped.most_common()],
        bytecode=compiler,
        left_out=left_out,
    )
    _require_size(package)
    return package


def _require_size(package: LambdaPackage) -> None:
    if package.zipped > LIMIT or package.unzipped > UNZIPPED_LIMIT:
        rooms = ", ".join(f"{name} {size / 2**20:.1f} MB" for name, size, _ in package.rooms[:4])
        raise PackageError(
            f"{package.file} has {package.zipped / 2**20:.0f} MB, {package.unzipped / 2**20:.0f} "
            f"MB unzipped; Lambda takes 50 and 250. The largest parts: {rooms}"
        )
