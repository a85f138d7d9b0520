"""The part of a cold start that the package of `poolkit package lambda` saves.

`python benchmarks/cold_start.py [--rounds 9]`

Each figure is one cold start of the HTTP function on the local Lambda fleet, in a new process of
the real runtime interface client. `init` ends when it asks for its first event, `answer` when it
has answered `GET /articles` from an embedded PostgreSQL. The arms take turns:

    package        the zip, unpacked; the interpreter has awslambdaric and nothing else
    no bytecode    the same folder without .pyc files; none is written, as in Lambda's
                   read-only code folder
    usual          no bytecode, and boto3 (compiled, as the runtime has it) and SQLAlchemy's
                   ORM imported at the top of the handler's module
    source tree    this checkout and its environment, with the bytecode that Python wrote
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

from pairwise import Comparison, compare, machine

from articles.migrations import upgrade
from poolkit.deploy.package.contents import find_uv, install_wheels, locked_requirements
from poolkit.deploy.package.lambda_zip import package_lambda
from poolkit.deploy.package.settings import PackageSettings, package_settings
from poolkit.lambda_fleet import FunctionConfig, LambdaFleet
from poolkit.local.postgres import EmbeddedPostgres
from poolkit.project import Project

ROOT = Path(__file__).resolve().parent.parent
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
LIMIT = 0.4

HANDLER = "lambda_handler.app.handler"
USUAL = "import boto3\nimport sqlalchemy.orm\n\nfrom lambda_handler.app import handler\n"


def machine_settings(out):
    architecture = {"aarch64": "arm64"}.get(
        subprocess.check_output(["uname", "-m"], text=True).strip(), "x86_64"
    )
    return package_settings(
        Project.find(ROOT), "lambda", architecture=architecture, python=MINOR, out=str(out)
    )


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


def unpacked(zipped, folder, *, bytecode):
    with zipfile.ZipFile(zipped) as archive:
        names = [name for name in archive.namelist() if bytecode or not name.endswith(".pyc")]
        archive.extractall(folder, names)
    return folder


def cold_start(config, work, answers):
    def arm():
        with LambdaFleet(config, log_dir=work / "logs") as fleet:
            with urlopen(f"{fleet.url}/articles", timeout=60) as answer:
                assert answer.status == 200
            (record,) = fleet.records()
        answers.append((record.init_ms + record.duration_ms) / 1e3)
        return record.init_ms / 1e3

    return arm


def configurations(work, url):
    settings = machine_settings(work / "lambda.zip")
    zipped = package_lambda(replace(settings), handler=HANDLER).file
    bare = runtime(work, "bare", ["awslambdaric"], settings)
    with_boto3 = runtime(work, "with-boto3", ["awslambdaric", "boto3"], settings)
    usual = unpacked(zipped, work / "usual", bytecode=False)
    (usual / "usual.py").write_text(USUAL)

    def config(python, folder, handler=HANDLER, **env):
        return FunctionConfig(
            handler=handler,
            task_root=folder,
            python=python,
            env={"DATABASE_URL": url, **env},
            init_limit_s=60,
            reserved_concurrency=1,
        )

    no_bytecode = unpacked(zipped, work / "plain", bytecode=False)
    unwritten = {"PYTHONDONTWRITEBYTECODE": "1"}
    return {
        "package": config(bare, unpacked(zipped, work / "package", bytecode=True)),
        "no bytecode": config(bare, no_bytecode, **unwritten),
        "usual": config(with_boto3, usual, "usual.handler", **unwritten),
        "source tree": config(Path(sys.executable), ROOT),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="cold starts of each arm")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "pg") as server:
        upgrade(server.url(driver="psycopg2"))
        work = Path(folder)
        configs = configurations(work, server.url(driver="psycopg2"))
        answers = {name: [] for name in configs}
        arms = {name: cold_start(config, work, answers[name]) for name, config in configs.items()}
        init = compare(arms, rounds=rounds, warmup=1)
    answer = Comparison(figures={name: figures[1:] for name, figures in answers.items()})
    print(machine("SQLAlchemy", "psycopg2-binary", "aws-lambda-powertools", "awslambdaric"))
    print(f"\ninit, {rounds} rounds\n{init.table(baseline='usual', unit='ms', scale=1e3)}")
    print(f"\nuntil the answer\n{answer.table(baseline='usual', unit='ms', scale=1e3)}")
    ratio = init.ratio("package", to="usual")
    kept = ratio <= LIMIT
    print(f"\npackage is {ratio:.3f} x usual; at most {LIMIT}: {'kept' if kept else 'MISSED'}")
    sys.exit(not kept)


if __name__ == "__main__":
    main()
