"""What the tests of packaging and deploying share: one package, an interpreter of its own."""

import functools
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from botocore.loaders import JSONFileLoader
from deploy.stacks_project import FILES
from poolkit_command import ROOT, Answer, run_here, run_process

from poolkit.deploy.package.contents import find_uv, install_wheels, locked_requirements
from poolkit.deploy.package.lambda_zip import LambdaPackage, package_lambda
from poolkit.deploy.package.settings import PackageSettings, package_settings
from poolkit.project import Project

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
MACHINE = {"aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)

Run = Callable[..., Answer]


class Gate:
    """Holds executions until it is opened, as AWS takes minutes."""

    def __init__(self):
        self.opened = threading.Event()
        self.opened.set()
        self.threads = []

    def start(self, work):
        def run():
            self.opened.wait(600)
            work()

        thread = threading.Thread(target=run)
        self.threads.append(thread)
        thread.start()

    def close(self):
        self.opened.clear()

    def end(self):
        self.opened.set()
        for thread in self.threads:
            thread.join()


@pytest.fixture
def run() -> Run:
    return run_here


@pytest.fixture(scope="session")
def this_machine(tmp_path_factory: pytest.TempPathFactory) -> PackageSettings:
    """How this project is packaged for the machine and the Python that run the tests."""
    out = tmp_path_factory.mktemp("package") / "lambda.zip"
    return package_settings(
        Project.find(ROOT), "lambda", architecture=MACHINE, python=MINOR, out=str(out)
    )


@pytest.fixture(scope="session")
def built(this_machine: PackageSettings) -> LambdaPackage:
    return package_lambda(this_machine, handler="lambda_handler.app.handler")


@pytest.fixture
def unpacked(built: LambdaPackage, tmp_path: Path) -> Path:
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


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Hold AWS's work until the test lets it go on; open at first."""
    gate = Gate()
    yield gate
    gate.end()


@pytest.fixture(scope="session", autouse=True)
def descriptions_are_read_once() -> Iterator[None]:
    """Keep what botocore parses anew for every session: megabytes that describe AWS's services."""
    with pytest.MonkeyPatch.context() as patch:
        read = functools.cache(JSONFileLoader().load_file)
        patch.setattr(JSONFileLoader, "load_file", lambda _, path: read(path))
        yield


@pytest.fixture
def aws(
    monkeypatch: pytest.MonkeyPatch, gate: Gate, served_aws: dict[str, str]
) -> Iterator[dict[str, str]]:
    """Give an AWS with nothing in it and moto's gaps filled: the variables that lead there."""
    # It imports all of moto: a second or more.
    from poolkit.deploy.rehearsal.moto_gaps import fill_gaps

    fill_gaps(monkeypatch, gate)
    yield served_aws
    gate.end()  # before the gaps open again under what AWS is still at


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / "shop" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    write_package(tmp_path / "shop/build/lambda.zip", "first")
    return tmp_path / "shop"


def write_package(file: Path, content: str, architecture: str = "arm64") -> None:
    """Write what stands for a function's package."""
    file.parent.mkdir(exist_ok=True)
    manifest = {"python": "3.13", "bytecode": True, "requirements": []}
    manifest["architecture"] = architecture
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("poolkit-package.json", json.dumps(manifest))
        archive.writestr("app.py", content)
        archive.writestr("certificates/database-ca.crt", "")


@pytest.fixture
def poolkit_process(aws: dict[str, str], shop: Path) -> Run:
    return lambda *words, **variables: run_process(*words, cwd=shop, **aws | variables)


@pytest.fixture
def poolkit(aws: dict[str, str], shop: Path) -> Run:
    return lambda *words, **variables: run_here(*words, cwd=shop, **aws | variables)
