"""What the tests of packaging and deploying share: one package, an interpreter of its own."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from poolkit.deploy.locked_wheels import find_uv, install_wheels, locked_requirements
from poolkit.deploy.package_lambda import LambdaPackage, package_lambda
from poolkit.deploy.package_settings import PackageSettings, package_settings
from poolkit.project import Project

ROOT = Path(__file__).resolve().parents[2]
POOLKIT = Path(sys.executable).with_name("poolkit")
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
MACHINE = {"aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run() -> Run:
    """Run `poolkit` as a user does, without a terminal; keywords are variables."""

    def run_poolkit(*arguments, cwd=ROOT, typed="", **environ):
        keep = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "DATABASE_", "POOLKIT_"))
        }
        return subprocess.run(
            [str(POOLKIT), *map(str, arguments)],
            cwd=cwd,
            env=keep | {"COLUMNS": "200"} | environ,
            input=typed,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run_poolkit


@pytest.fixture(scope="session")
def this_machine(tmp_path_factory: pytest.TempPathFactory) -> PackageSettings:
    """How this project is packaged for the machine and the Python that run the tests."""
    out = tmp_path_factory.mktemp("package") / "lambda.zip"
    return package_settings(
        Project.find(ROOT), "lambda", architecture=MACHINE, python=MINOR, out=str(out)
    )


@pytest.fixture(scope="session")
def built(this_machine: PackageSettings) -> LambdaPackage:
    """Build the package once for the session."""
    return package_lambda(this_machine, handler="lambda_handler.app.handler")


@pytest.fixture
def unpacked(built: LambdaPackage, tmp_path: Path) -> Path:
    """Unpack it alone into an empty folder."""
    folder = tmp_path / "task"
    folder.mkdir()
    with zipfile.ZipFile(built.file) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="session")
def bare_runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an interpreter that has awslambdaric and what it needs, and nothing else."""
    project = tmp_path_factory.mktemp("runtime")
    (project / "pyproject.toml").write_text(
        '[project]\nname = "runtime"\nversion = "1"\ndependencies = ["awslambdaric"]\n'
    )
    settings = PackageSettings(
        target="runtime",
        root=project,
        include=("pyproject.toml",),
        architecture=MACHINE,
        python=MINOR,
        lock=str(ROOT / "requirements.lock"),
    )
    uv, environment = find_uv(ROOT), project / "venv"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, environment], check=True)
    site = environment / "lib" / f"python{MINOR}" / "site-packages"
    install_wheels(settings, locked_requirements(settings), site)
    return environment / "bin" / "python"
