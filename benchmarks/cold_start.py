"""The part of a cold start that the package of `poolkit package lambda` saves.

`python benchmarks/cold_start.py [--rounds 9]`

Each figure is one cold start of the HTTP function on the local Lambda fleet, in a new process of
the real runtime interface client. `init` ends when it asks for its first event, `answer` when it
has answered `GET /articles` from an embedded PostgreSQL. The arms take turns:

    package        the zip, unpacked; the interpreter has awslambdaric and nothing else
    no bytecode    the same folder without .pyc files; none is written, as in Lambda's
                   read-only code folder
    usual          no bytecode, and boto3 (compiled, as the runtime has it) imported at the
                   top of the handler's module
    source tree    this checkout and its environment, with the bytecode that Python wrote
"""

import platform
import subprocess
import sys
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from urllib.request import urlopen

from harness import ROOT, compare, machine, postgresql, read_options

from poolkit.alembic import Scripts
from poolkit.deploy.package.contents import find_uv, install_wheels, locked_requirements
from poolkit.deploy.package.lambda_zip import package_lambda
from poolkit.deploy.package.settings import PackageSettings, package_settings
from poolkit.lambda_fleet import FunctionConfig, LambdaFleet
from poolkit.project import Project

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
LIMIT = 0.4

HANDLER = "lambda_handler.app.handler"
USUAL = "import boto3\n\nfrom lambda_handler.app import handler\n"


def runtime(work, name, distributions, package):
    """Make an environment that has these distributions, locked and compiled, and no other."""
    project = work / name
    project.mkdir()
    (project / "pyproject.toml").write_text(
        f'[project]\nname = "runtime"\nversion = "1"\ndependencies = {distributions}\n'
    )
    settings = PackageSettings(
        target="runtime",
        root=project,
        include=("pyproject.toml",),
        architecture=package.architecture,
        python=MINOR,
        lock=str(ROOT / "requirements.lock"),
        provided=(),
    )
    environment = project / "venv"
    uv = find_uv(ROOT)
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, environment], check=True)
    site = environment / "lib" / f"python{MINOR}" / "site-packages"
    install_wheels(settings, locked_requirements(settings), site)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "compileall", "-q", site], check=True)
    return python


def cold_start(config, log_dir):
    """Return the seconds of the init phase, and those until the answer."""
    with LambdaFleet(config, log_dir=log_dir) as fleet:
        with urlopen(f"{fleet.url}/articles", timeout=60) as answer:
            assert answer.status == 200
        (record,) = fleet.records()
    return record.init_ms / 1e3, (record.init_ms + record.duration_ms) / 1e3


def configurations(work, url):
    """Package the function, make the environments, and return each arm's configuration."""
    architecture = "arm64" if platform.machine() in {"aarch64", "arm64"} else "x86_64"
    settings = package_settings(
        Project.find(ROOT),
        "lambda",
        architecture=architecture,
        python=MINOR,
        out=str(work / "lambda.zip"),
    )
    zipped = package_lambda(settings, handler=HANDLER).file
    for name, bytecode in (("package", True), ("plain", False), ("usual", False)):
        with zipfile.ZipFile(zipped) as archive:
            names = [name for name in archive.namelist() if bytecode or not name.endswith(".pyc")]
            archive.extractall(work / name, names)
    (work / "usual" / "usual.py").write_text(USUAL)
    bare = runtime(work, "bare", ["awslambdaric"], settings)
    with_boto3 = runtime(work, "with-boto3", ["awslambdaric", "boto3"], settings)

    def config(python, folder, handler=HANDLER, **env):
        return FunctionConfig(
            handler=handler,
            task_root=folder,
            python=python,
            env={"DATABASE_URL": url, **env},
            init_limit_s=60,
            reserved_concurrency=1,
        )

    unwritten = {"PYTHONDONTWRITEBYTECODE": "1"}
    return {
        "package": config(bare, work / "package"),
        "no bytecode": config(bare, work / "plain", **unwritten),
        "usual": config(with_boto3, work / "usual", "usual.handler", **unwritten),
        "source tree": config(Path(sys.executable), ROOT),
    }


def main():
    rounds = read_options(__doc__, rounds=9).rounds
    with tempfile.TemporaryDirectory() as folder, postgresql() as server:
        url = server.url(driver="psycopg2")
        Scripts(ROOT / "articles/migrations").upgrade(url)
        work = Path(folder)
        arms = {
            name: partial(cold_start, config, work / "logs")
            for name, config in configurations(work, url).items()
        }
        figures = compare(arms, rounds=rounds)
    init, answer = figures.part(0), figures.part(1)
    print(machine("SQLAlchemy", "psycopg2-binary", "aws-lambda-powertools", "awslambdaric"))
    print(f"\ninit, {rounds} rounds\n{init.table(baseline='usual', unit='ms', scale=1e3)}")
    print(f"\nuntil the answer\n{answer.table(baseline='usual', unit='ms', scale=1e3)}")
    ratio = init.ratio("package", to="usual")
    kept = ratio <= LIMIT
    print(f"\npackage is {ratio:.3f} x usual; at most {LIMIT}: {'kept' if kept else 'MISSED'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
