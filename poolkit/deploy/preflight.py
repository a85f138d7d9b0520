"""Everything that can be known before anything is changed, checked in that order."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from poolkit.deploy.aws import in_plain_words
from poolkit.deploy.bytecode import TASK_ROOT
from poolkit.deploy.package_lambda import read_manifest
from poolkit.errors import BudgetError, DeployError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from poolkit.deploy.aws import Aws
    from poolkit.deploy.environment import StackEnvironment
    from poolkit.deploy.template import Template

CERTIFICATE: Final = "CertificateArn"
"""The end of the name of a parameter that takes a TLS certificate's ARN."""


PLACEHOLDER: Final = "000000000000"
"""The account in values that have to be replaced; no account has this number."""


class Checked(NamedTuple):
    """What a check found, in words."""

    said: str
    is_shown: bool = True
    """False: nothing speaks against it, and nothing shows it either."""


def check_credentials(aws: Aws) -> Checked:
    """Return whose credentials these are. Raises `DeployError` when they are no use."""
    with in_plain_words("asking AWS whose credentials these are"):
        caller = aws.client("sts").get_caller_identity()
    return Checked(f"credentials: account {caller['Account']}, {caller['Arn']}")


def check_lint(files: Iterable[Path]) -> Checked:
    """Run cfn-lint, where it is installed, over the templates.

    Raises:
        DeployError: it found errors; the first one is in the message.
    """
    files = list(files)
    program = shutil.which("cfn-lint", path=str(Path(sys.executable).parent))
    program = program or shutil.which("cfn-lint")
    if program is None:
        said = "templates: not linted, because cfn-lint is not installed"
        return Checked(said, is_shown=False)
    done = subprocess.run(
        # Errors alone: warnings are the business of whoever writes the template.
        [program, "--format", "parseable", "--ignore-checks", "W", "I", "--", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout or done.stderr).strip().splitlines()
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise DeployError(f"cfn-lint: {lines[0] if lines else 'failed without a word'}{more}")
    names = ", ".join(file.name for file in files)
    return Checked(f"templates: {names} without a finding of cfn-lint")


def check_certificates(
    aws: Aws, environment: StackEnvironment, template: Template, given: dict[str, str]
) -> list[Checked]:
    """Check that a template that takes a TLS certificate gets one that is issued.

    Raises:
        DeployError: there is none outside dev, or it is not issued.
    """
    said = []
    for name, declared in template.parameters.items():
        if not name.endswith(CERTIFICATE):
            continue
        value = given.get(name) or (declared or {}).get("Default") or ""
        if value.startswith("arn:"):
            said.append(_issued(aws, value))
        elif not value and environment.name == "dev" and "Default" in (declared or {}):
            without = f"TLS: {template.name} has no certificate, which only dev may do"
            said.append(Checked(without, is_shown=False))
        elif not value:
            raise DeployError(
                f"{template.name} would serve without TLS: give the certificate's ARN as {name} in "
                f"[{template.name}] of {environment.file}, or with --parameter {name}=arn:…"
            )
    return said


def _issued(aws: Aws, arn: str) -> Checked:
    if ":acm:" not in arn:
        return Checked(f"TLS: {arn} is not ACM's; not checked", is_shown=False)
    with in_plain_words(f"looking for the certificate {arn}"):
        found = aws.client("acm").describe_certificate(CertificateArn=arn)["Certificate"]
    if found["Status"] != "ISSUED":
        raise DeployError(
            f"the certificate {arn} is {found['Status']}, not ISSUED; a load "
            "balancer takes issued ones only"
        )
    return Checked(f"TLS: {found['DomainName']}, issued")


def check_package(file: Path, template: Template, given: dict[str, str]) -> Checked:
    """Check that the function's zip is there and made for what the template runs.

    Raises:
        PackageError: it is not there, or was made by something else.
        DeployError: it was made for another machine or Python.
    """
    manifest = read_manifest(file)
    for name, made in (
        ("Architecture", str(manifest["architecture"])),
        ("Runtime", f"python{manifest['python']}"),
    ):
        declared = template.parameters.get(name) or {}
        wanted = given.get(name) or declared.get("Default") or made
        if wanted != made:
            raise DeployError(
                f"{file} was made for {made}, but [{template.name}] {name} is {wanted}; "
                "make it again with --architecture and --python of poolkit package lambda"
            )
    _require_files(file, template, given)
    without = "" if manifest["bytecode"] else ", WITHOUT bytecode: cold starts take longer"
    said = f"package: {file}, Python {manifest['python']}, {manifest['architecture']}{without}"
    return Checked(said, is_shown=not without)


def _require_files(file: Path, template: Template, given: dict[str, str]) -> None:
    """Check that the files that parameters name below the task root are in the zip."""
    with zipfile.ZipFile(file) as archive:
        names = set(archive.namelist())
    for name, declared in template.parameters.items():
        value = str(given.get(name) or (declared or {}).get("Default") or "")
        path = value.removeprefix(f"{TASK_ROOT}/")
        if path != value and path not in names:
            raise DeployError(
                f"[{template.name}] {name} is {value}, but {file} holds no {path}; put it into the "
                "project, include it in [tool.poolkit.package.lambda], and package again"
            )


def check_budget(
    root: Path,
    environment: str,
    given: Mapping[str, Mapping[str, str]],
    *,
    allow_unknown: bool = False,
) -> Checked:
    """Check that the fleet of the environment fits its database.

    Args:
        root: the project.
        environment: its name.
        given: parameters of the command line, by template; they win over the environment's file.
        allow_unknown: outside dev, too, it is enough that nothing known speaks against it.

    Raises:
        DeployError: it does not, or that cannot be shown.
        TemplateError: a template is broken; file and line are named.
    """
    verdict, said = _budget(root, environment, given)
    if verdict == "does not fit":
        raise DeployError(
            f"{said} What would fit: poolkit budget --environment {environment}; "
            "to deploy all the same: --no-budget"
        )
    if verdict != "fits" and environment != "dev" and not allow_unknown:
        raise DeployError(
            f"connection budget: {said.rstrip('.')}. What is missing: poolkit budget --environment "
            f"{environment}; to deploy all the same: --allow-unknown-budget"
        )
    return Checked(f"connection budget: {said}", is_shown=verdict == "fits")


def _budget(
    root: Path, environment: str, given: Mapping[str, Mapping[str, str]]
) -> tuple[str, str]:
    """Return the verdict, empty where none can be computed, and what is to be said of it."""
    # A third of the time that the whole command takes to start.
    from poolkit.budget.command import Options, compute_budget  # noqa: PLC0415
    from poolkit.budget.report.rows import headline  # noqa: PLC0415

    options = Options(paths=(root / "infra",), environment=environment, overrides=given)
    try:
        budget = compute_budget(options)
    except TemplateError:
        raise
    except BudgetError as error:
        return "", f"not checked: {error}"
    return budget.verdict, headline(budget)


def check_placeholders(template: Template, given: dict[str, str], origin: Path) -> None:
    """Check that what an environment's file leaves to be replaced has been replaced.

    Raises:
        DeployError: a value still names the account of twelve zeros.
    """
    for name, value in given.items():
        if PLACEHOLDER in value:
            raise DeployError(
                f"{origin}: [{template.name}] {name} is still the placeholder {value}; replace "
                f"it there, or pass --parameter {template.name}.{name}=…"
            )
