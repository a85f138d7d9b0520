"""`poolkit package lambda`: the zip that a function runs from.

The same files give the same bytes: order, times, permissions and bytecode are fixed. So
an unchanged function has an unchanged checksum, and CloudFormation leaves it alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from poolkit.deploy.package.contents import (
    ProjectFiles,
    copy_project_code,
    find_uv,
    install_wheels,
    locked_requirements,
    prune,
)
from poolkit.deploy.package.settings import OUT
from poolkit.errors import PackageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.deploy.package.settings import PackageSettings

MANIFEST: Final = "poolkit-package.json"
"""In the zip: the machine and Python that it was made for, and its distributions."""

LIMIT: Final = 50 * 2**20
"""Bytes of a zip that Lambda takes (Developer Guide, "Lambda quotas", Deployment package)."""

UNZIPPED_LIMIT: Final = 250 * 2**20
"""Bytes of its contents (same table)."""


class PackagePart(NamedTuple):
    """A top-level file or folder of the zip; sizes in bytes."""

    name: str
    unzipped: int
    zipped: int


class LambdaPackage(NamedTuple):
    """What was made; sizes in bytes."""

    file: Path
    sha256: str
    zipped: int
    unzipped: int
    parts: list[PackagePart]
    """The largest first."""
    bytecode: str
    """The interpreter that compiled the modules; empty when they are not compiled."""
    project_files: ProjectFiles


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
        project_files = copy_project_code(settings, folder)
        if handler is not None:
            module = folder.joinpath(*handler.rpartition(".")[0].split("."))
            if not (module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()):
                raise PackageError(
                    f"the handler {handler} is not in the package; "
                    "add its module to include in [tool.poolkit.package.lambda]"
                )
        if compiler is not None:
            compile_folder(folder, compiler)
        manifest = {
            "architecture": settings.architecture,
            "python": settings.python,
            "bytecode": compiler is not None,
            "requirements": [entry.split()[0] for entry in requirements],
        }
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        write_zip(folder, settings.out_path)
    return _described(settings.out_path, str(compiler or ""), project_files)


def _described(file: Path, compiler: str, project_files: ProjectFiles) -> LambdaPackage:
    """Return the sizes of a package. Raises `PackageError` when Lambda would not take it."""
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
        parts=[PackagePart(name, plain[name], size) for name, size in zipped.most_common()],
        bytecode=compiler,
        project_files=project_files,
    )
    if package.zipped > LIMIT or package.unzipped > UNZIPPED_LIMIT:
        largest = ", ".join(f"{p.name} {p.unzipped / 2**20:.1f} MB" for p in package.parts[:4])
        raise PackageError(
            f"{package.file} has {package.zipped / 2**20:.0f} MB, {package.unzipped / 2**20:.0f} "
            f"MB unzipped; Lambda allows 50 and 250. The largest parts: {largest}"
        )
    return package


def command_of(file: Path) -> str:
    """Return the command that makes a package, by the name that it has in build/."""
    return f"poolkit package {file.stem if file.stem in OUT else 'lambda'}"


def read_manifest(file: Path) -> dict[str, object]:
    """Return a package's manifest.

    Raises:
        PackageError: the file is missing, or was not made by `poolkit package lambda`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            manifest: dict[str, object] = json.loads(archive.read(MANIFEST))
    except FileNotFoundError:
        raise PackageError(f"{file} is missing; build it with: {command_of(file)}") from None
    except (zipfile.BadZipFile, KeyError, ValueError):
        raise PackageError(
            f"{file} was not built by `{command_of(file)}`; build it again"
        ) from None
    return manifest


# -- bytecode -------------------------------------------------------------------------------

# Lambda's code folder is read-only: without shipped bytecode each cold start compiles every
# module again. Unchecked hashes (PEP 552), because the files' times are not those of the
# sources, and because checking would read every source at every cold start.

TASK_ROOT: Final = "/var/task"
"""Where Lambda unpacks the code; the file names in tracebacks."""

_VERSION = (
    "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2], sys.executable)"
)


class _Interpreter(NamedTuple):
    version: str
    executable: Path


def find_interpreter(minor: str, uv: Path, named: Path | None = None) -> Path | None:
    """Return an interpreter of that minor version, or None: the running one, on PATH, or uv's.

    The path is the program's own: the path that was found may be a script that starts it and
    needs variables which `compile_folder` does not pass on.

    Args:
        minor: such as "3.13".
        uv: asked for the interpreters that are installed; it downloads none.
        named: this one, or none at all.

    Raises:
        PackageError: the interpreter `named` has another version.
    """
    if named is not None:
        interpreter = _interpreter(named)
        if interpreter is None or interpreter.version != minor:
            found = interpreter.version if interpreter else "not a CPython program"
            raise PackageError(f"{named} should be Python {minor}, but is {found}")
        return interpreter.executable
    for path in _candidates(minor, uv):
        interpreter = _interpreter(path)
        if interpreter is not None and interpreter.version == minor:
            return interpreter.executable
    return None


def _candidates(minor: str, uv: Path) -> Iterator[Path]:
    yield Path(sys.executable)
    found = shutil.which(f"python{minor}")
    if found:
        yield Path(found)
    command = [str(uv), "python", "find", "--no-python-downloads", "--no-project", minor]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        yield Path(done.stdout.strip())


def _interpreter(path: Path) -> _Interpreter | None:
    """Run a program to get its version; None if it is not CPython."""
    command = [str(path), "-I", "-c", _VERSION]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    implementation, _, rest = done.stdout.strip().partition(" ")
    version, _, executable = rest.partition(" ")
    return _Interpreter(version, Path(executable)) if implementation == "cpython" else None


def compile_folder(folder: Path, interpreter: Path) -> None:
    """Compile every module below `folder`, to the same bytes each time.

    Raises:
        PackageError: a module of the package is not Python of that version.
    """
    compileall = ("-m", "compileall", "-q", "-f", "-j", "1", "--invalidation-mode")
    done = subprocess.run(
        [
            *(str(interpreter), "-s", *compileall, "unchecked-hash"),
            *("-s", str(folder), "-p", TASK_ROOT, str(folder)),
        ],
        # Nothing else of the environment, and a folder without modules: -I would do both, and
        # would ignore the seed as well, on which the order of sets in bytecode depends.
        env={"PYTHONHASHSEED": "0"},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise PackageError(f"compiling with {interpreter} failed: {' '.join(lines[:4])}")


# -- the zip --------------------------------------------------------------------------------

TIME: Final = (1980, 1, 1, 0, 0, 0)
"""Every entry's time: the earliest that the format can hold."""

LEVEL: Final = 6
"""zlib's own choice: 9 takes four times as long for less than one percent of the size."""


def write_zip(folder: Path, out: Path) -> None:
    """Pack every file below `folder`.

    The bytes are a function of the files, and of the version of zlib.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL) as archive:
        for file in sorted(folder.rglob("*"), key=lambda path: path.as_posix()):
            if not file.is_file():
                continue
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), date_time=TIME)
            entry.create_system = 3  # Unix, on every machine: Lambda needs the permissions
            mode = 0o755 if ".so" in file.suffixes else 0o644
            entry.external_attr = (0o100000 | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes(), compresslevel=LEVEL)
    # A deployment that runs meanwhile finds the old package or the new one, never half of one.
    partial.replace(out)


def sha256(file: Path) -> str:
    """Return the file's SHA-256 in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
