"""`poolkit rehearse`: an environment's whole life, on an account of this machine.

Each step is a command as a user types it. It runs in a process of its own, against the account of
`account.py`, and ends with the exit status that the step is about.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trustme
from rich.text import Text

from poolkit.budget.read.parameters import OUTPUT
from poolkit.deploy.environment import ALL, PREPARED, StackEnvironment
from poolkit.deploy.images import IMAGE_PARAMETER
from poolkit.deploy.preflight import CERTIFICATE, PLACEHOLDER
from poolkit.deploy.rehearsal.account import NUMBER, RehearsalAccount, open_account
from poolkit.deploy.stacks import deployed_outputs
from poolkit.deploy.statuses import DONE
from poolkit.errors import DeployError, DeploymentFailed
from poolkit.project import Project
from poolkit.terminal import new_console

if TYPE_CHECKING:
    from rich.console import Console

_NOT_PASSED: Final = ("AWS_", "DATABASE_", "POOLKIT_")
"""Beginnings of variables that would lead a step to another account or database."""

_REFUSED: Final = """\
  RehearsedFailure:
    Type: AWS::S3::Bucket
    Properties: {BucketName: x}
"""
"""A resource that AWS refuses: the name of a bucket has three characters or more."""

_NOT_COPIED: Final = frozenset({"build", "dist", "node_modules", "site", "venv", "__pycache__"})
_STEP_LIMIT_S: Final = 1200


def rehearse(environment_name: str | None, *, verbose: bool = False) -> None:
    """Rehearse one environment, or each of the project's.

    Args:
        environment_name: the environment's name; None is all.
        verbose: whether to print the output of every command.

    Raises:
        DeployError: the project has no environments.
        DeploymentFailed: a step ended otherwise than it should.
    """
    project = Project.find()
    folder = project.root / "infra" / "environments"
    names = (
        [environment_name] if environment_name else sorted(f.stem for f in folder.glob("*.toml"))
    )
    if not names:
        raise DeployError(f"{folder} must hold one TOML file for each environment; it has none")
    console = new_console()
    for name in names:
        region = StackEnvironment.read(project.root, name).region or "eu-central-1"
        with tempfile.TemporaryDirectory() as temporary:
            copy = _copy_project(project.root, Path(temporary) / project.root.name)
            with open_account(region, copy) as account:
                console.print(f"\n{name}: an empty account on this machine, {region}", style="bold")
                _Rehearsal(console, account, copy, name, verbose=verbose).run()
    print_unproven(console, project.root)


def _copy_project(root: Path, copy: Path) -> Path:
    """Copy the project, with an account's own values where its files have placeholders."""

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [
            name
            for name in names
            if name in _NOT_COPIED or (Path(folder, name).is_dir() and name.startswith("."))
        ]

    shutil.copytree(root, copy, ignore=left_out, symlinks=True)
    for folder in root.iterdir():
        # Environments and tools, which are large, and which no step changes.
        if folder.name.startswith(".") and folder.is_dir() and folder.name != ".git":
            (copy / folder.name).symlink_to(folder)
    package = root / "build/lambda.zip"
    if package.is_file():
        (copy / "build").mkdir()
        shutil.copy(package, copy / "build")
    authorities = copy / "certificates" / "database-ca.crt"
    if not authorities.is_file():
        # In place of what scripts/database-certificates downloads.
        authorities.parent.mkdir(exist_ok=True)
        trustme.CA().cert_pem.write_to_path(authorities)
    for file in copy.glob("infra/environments/*.toml"):
        # A certificate of IAM needs no domain.
        certificate = f"arn:aws:iam::{NUMBER}:server-certificate/rehearsal"
        text = re.sub(rf'({CERTIFICATE} = )"[^"]*"', rf'\1"{certificate}"', file.read_text())
        file.write_text(text.replace(PLACEHOLDER, NUMBER))
    return copy


def print_unproven(console: Console, root: Path) -> None:
    """Print what a rehearsal cannot prove, and the command that proves each on an account.

    `infra/unproven.toml` lists it; a project that has copied only templates may lack the file.
    """
    file = root / "infra/unproven.toml"
    if not file.is_file():
        return
    rows = tomllib.loads(file.read_text(encoding="utf-8"))["unproven"]
    console.print("\nWhat only an account can prove, and the command that proves it:", style="bold")
    for row in rows:
        if row["needs"] == "account":
            console.print(f"- {row['what'].replace('`', '')}", highlight=False)
            console.print(f"  $ {row['command']}", style="dim", highlight=False, soft_wrap=True)
    console.print("The reasons, and what Docker or a cluster must prove: docs/infrastructure.md")


@dataclass
class _Rehearsal:
    """One environment on one account: from nothing to nothing, with a bad release in between."""

    console: Console
    account: RehearsalAccount
    project: Path
    """The copy, which the steps run in."""
    environment_name: str
    verbose: bool = False

    def __post_init__(self) -> None:
        self.environment = StackEnvironment.read(self.project, self.environment_name)

    def run(self) -> None:
        """Run every step. Raises `DeploymentFailed` at the first that ends otherwise."""
        started = time.monotonic()
        environment = self.environment
        if (self.project / "infra/bootstrap.yaml").is_file():
            self._step("The account's own stacks", "bootstrap", "--yes")
        elif environment.code_bucket:
            self.account.make_bucket(environment.code_bucket)
        if "lambda" in environment.tables and not (self.project / "build/lambda.zip").is_file():
            self._step("The function's package", "package", "lambda", of_environment=False)
        images = self._images(environment)
        first, second = (self._push(images, release) for release in ("release-1", "release-2"))
        if "migrate" in environment.tables:
            first = ("--migrate", *first)

        self._step("The first deployment", "deploy", "all", "--yes", *first)
        self._require_complete(environment)
        again = self._step("The same again changes nothing", "deploy", "all", "--yes")
        if (unchanged := again.count("nothing to change")) != len(environment.chosen(ALL)):
            raise DeploymentFailed(f"only {unchanged} stacks had nothing to change\n{again}")
        self._step("Every stack is complete", "status")

        if "web" in images:
            self._release(images["web"], second)
        self._fail_an_update(environment)
        self._remove(environment)
        seconds = time.monotonic() - started
        self.console.print(f"{self.environment_name}: every step as expected, {seconds:.0f} s")

    def _images(self, environment: StackEnvironment) -> dict[str, str]:
        """Return the repository's URI for each template that takes an image."""
        cloudformation = self.account.client("cloudformation")
        outputs = deployed_outputs(cloudformation, environment, {*PREPARED})
        found = {}
        for template in environment.chosen(ALL):
            if (image := environment.tables[template].get(IMAGE_PARAMETER)) is not None:
                uri = OUTPUT.sub(lambda name: outputs[name[1]][name[2]], image)
                found[template] = re.sub(r"[:@][^/]*$", "", uri)
        return found

    def _push(self, images: dict[str, str], release: str) -> tuple[str, ...]:
        """Push an image to each repository; return the options that deploy them."""
        for uri in sorted(set(images.values())):
            self.account.push_image(uri.partition("/")[2], release)
        if images:
            self.console.print(f"  images with the tag {release} are pushed")
        # --migrate takes the image of the web service for the migrations.
        pairs = (f"{name}={uri}:{release}" for name, uri in images.items() if name != "migrate")
        return tuple(word for pair in pairs for word in ("--image", pair))

    def _release(self, repository: str, options: tuple[str, ...]) -> None:
        """Deploy the next release of the web service, and go back to the one before."""
        image = next(text for text in options if text.startswith("web=")).partition("=")[2]
        words = ("deploy", "web", "--yes")
        missing = f"{repository}@sha256:{'0' * 64}"
        self._step("An image that does not exist is refused", *words, "--image", missing, wanted=2)
        if "migrate" in self.environment.tables:
            self._step("The schema of the next release", "migrate", "--image", image)
        self._step("The next release", *words, "--image", image)
        self._step("Back to the release before", *words, "--rollback", "previous")

    def _fail_an_update(self, environment: StackEnvironment) -> None:
        """Deploy a template with a resource that AWS refuses, and the right one afterwards."""
        target = environment.chosen(ALL)[-1]
        file = environment.template_file(target)
        text = file.read_text()
        file.write_text(text.replace("\nResources:\n", f"\nResources:\n{_REFUSED}", 1))
        words = ("deploy", target, "--yes", "--no-lint")
        self._step("An update that fails is undone", *words, wanted=1)
        stack = environment.stack_name(target)
        status = self.account.statuses()[stack]
        if status != "UPDATE_ROLLBACK_COMPLETE":
            raise DeploymentFailed(f"{stack} is in {status} after an update that failed")
        file.write_text(text)
        self._step("Repaired, it deploys again", *words[:3])

    def _remove(self, environment: StackEnvironment) -> None:
        """Remove everything, after what is protected has refused."""
        if environment.termination_protection or any(
            table.get("DeletionProtection") == "true" for table in environment.tables.values()
        ):
            self._step("Removal is refused while it is protected", "destroy", "all", wanted=2)
        words = ("destroy", "all", "--lift-protection", "--yes-delete", environment.family)
        self._step("Removal", *words)
        names = {
            environment.stack_name(name) for name in environment.every() if name not in PREPARED
        }
        if left := names & self.account.statuses().keys():
            raise DeploymentFailed(f"after the removal there still is {', '.join(sorted(left))}")

    def _require_complete(self, environment: StackEnvironment) -> None:
        statuses = self.account.statuses()
        for name in map(environment.stack_name, environment.chosen(ALL)):
            if statuses.get(name) not in DONE:
                raise DeploymentFailed(f"{name} is in {statuses.get(name, 'no stack')}")

    def _step(
        self,
        title: str,
        command: str,
        *words: str,
        wanted: int = 0,
        of_environment: bool = True,
    ) -> str:
        """Run a command, print how it ended, and return what it printed.

        Raises:
            DeploymentFailed: it ended with another exit status than wanted.
        """
        arguments = [command, *words]
        if of_environment:
            arguments += ["--environment", self.environment_name]
        started = time.monotonic()
        variables = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_PASSED)}
        # The streams are one file, so that a refusal stands where it was printed.
        done = subprocess.run(
            [sys.executable, "-m", "poolkit", *arguments],
            cwd=self.project,
            env=variables | self.account.variables | {"COLUMNS": "100"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_STEP_LIMIT_S,
            check=False,
        )
        is_right = done.returncode == wanted
        mark = Text("ok  " if is_right else "FAIL", "green" if is_right else "red")
        seconds = time.monotonic() - started
        self.console.print(Text.assemble("  ", mark, f" {title} ({seconds:.0f} s)"))
        self.console.print(f"       $ poolkit {shlex.join(arguments)}", style="dim", soft_wrap=True)
        if self.verbose or not is_right:
            self.console.print(done.stdout, soft_wrap=True)
        if not is_right:
            raise DeploymentFailed(
                f"{self.environment_name}: poolkit {command} ended with exit status "
                f"{done.returncode}, but {wanted} was expected; its output is above"
            )
        return done.stdout
