"""Every check that needs no change, in the order in which `poolkit deploy` makes them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from poolkit.deploy.aws import in_plain_words
from poolkit.deploy.environment import PREPARED
from poolkit.deploy.package.lambda_zip import TASK_ROOT, command_of, read_manifest
from poolkit.deploy.stacks import deployed_outputs
from poolkit.deploy.statuses import REVIEW
from poolkit.errors import BudgetError, DeployError, TemplateError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from poolkit.deploy.aws import Aws
    from poolkit.deploy.database import ServerLimit
    from poolkit.deploy.environment import StackEnvironment, Template

CERTIFICATE: Final = "CertificateArn"
"""The end of the name of a parameter that takes a TLS certificate's ARN."""

PLACEHOLDER: Final = "000000000000"
"""The account in values that have to be replaced; no account has this number."""

GITHUB: Final = "token.actions.githubusercontent.com"
"""The issuer of the tokens of GitHub's workflows."""

PROVIDER: Final = "GitHubProvider"
"""The parameter that says whether the account's identity provider is to be created."""

ALARM_TOPIC: Final = "AlarmTopicArn"
"""The parameter with the topic that a template's alarms publish to."""


class Checked(NamedTuple):
    """The result of a check that did not fail."""

    text: str
    is_shown: bool = True
    """False: a warning, because the check could not be made or found a weakness."""


def check_credentials(aws: Aws) -> Checked:
    """Return the account and the role. Raises `DeployError` if the credentials do not work."""
    with in_plain_words("checking the AWS credentials"):
        caller = aws.client("sts").get_caller_identity()
    return Checked(f"credentials: account {caller['Account']}, {caller['Arn']}")


def check_placeholders(template: Template, values: dict[str, str], origin: Path) -> None:
    """Check that every placeholder of an environment's file has been replaced.

    Raises:
        DeployError: a value still names the account of twelve zeros.
    """
    for name, value in values.items():
        # A digest may have as many zeros.
        if re.search(rf"(?<![0-9a-f]){PLACEHOLDER}(?![0-9a-f])", value):
            raise DeployError(
                f"{origin}: [{template.name}] {name} is still the placeholder {value}; replace "
                f"it there, or pass --parameter {template.name}.{name}=…"
            )


def check_prepared(aws: Aws, environment: StackEnvironment, names: set[str]) -> None:
    """Check that the stacks of `poolkit bootstrap` exist that the templates refer to.

    Raises:
        DeployError: one is missing, and is not deployed together with the templates.
    """
    texts = environment.code_bucket + environment.cloudformation_role
    named = environment.stacks_named(texts) if names - {*PREPARED} else set()
    named = named.union(*(environment.needs(name) for name in names)) & {*PREPARED} - names
    outputs = deployed_outputs(aws.cloudformation, environment, named)
    for name in sorted(named - outputs.keys()):
        raise DeployError(
            f"{environment.file} refers to outputs of {environment.stack_name(name)}, which is "
            f"not deployed; run: poolkit bootstrap -e {environment.name}"
        )


def github_provider(aws: Aws, stack: Mapping[str, Any] | None) -> str:
    """Return the value of the parameter `GitHubProvider` where no file has one.

    Args:
        aws: the account, which has one identity provider of GitHub at most.
        stack: that of the bootstrap template; None if there is none.

    Raises:
        DeployError: AWS cannot be asked.
    """
    if stack is not None and stack["StackStatus"] != REVIEW:
        # It may have created the provider that is found below.
        for each in stack.get("Parameters", ()):
            if each["ParameterKey"] == PROVIDER:
                return str(each["ParameterValue"])
    with in_plain_words("looking for the identity provider of GitHub"):
        providers = aws.client("iam").list_open_id_connect_providers()
    arns = [each["Arn"] for each in providers["OpenIDConnectProviderList"]]
    return "exists" if any(arn.endswith(f"/{GITHUB}") for arn in arns) else "create"


def check_alarm_topic(
    environment: StackEnvironment, template: Template, values: dict[str, str]
) -> None:
    """Check that the alarms of a production environment notify a topic.

    Raises:
        DeployError: the template takes a topic and gets none.
    """
    if not environment.production or ALARM_TOPIC not in template.parameters:
        return
    if not template.value_of(ALARM_TOPIC, values):
        raise DeployError(
            f"{environment.file}: {environment.name} is a production environment, but the alarms "
            f'of {template.name} notify no topic; set {ALARM_TOPIC} = "{{access.{ALARM_TOPIC}}}" '
            f"in [{template.name}]; the topic is made by: poolkit bootstrap -e {environment.name}"
        )


def check_certificates(
    aws: Aws, environment: StackEnvironment, template: Template, values: dict[str, str]
) -> Iterator[Checked]:
    """Check that a template that takes a TLS certificate gets one that is issued.

    Raises:
        DeployError: there is none outside dev, or it is not issued.
    """
    for name, declared in template.parameters.items():
        if not name.endswith(CERTIFICATE):
            continue
        value = template.value_of(name, values)
        if ":acm:" in value:
            with in_plain_words(f"looking for the certificate {value}"):
                found = aws.client("acm").describe_certificate(CertificateArn=value)["Certificate"]
            if found["Status"] != "ISSUED":
                raise DeployError(
                    f"the certificate {value} is {found['Status']}, not ISSUED; a load "
                    "balancer takes issued ones only"
                )
            yield Checked(f"TLS: {found['DomainName']}, issued")
        elif value.startswith("arn:"):
            yield Checked(f"TLS: {value} is not ACM's; not checked", is_shown=False)
        elif not value and environment.name == "dev" and "Default" in (declared or {}):
            text = f"TLS: {template.name} has no certificate, which only dev may do"
            yield Checked(text, is_shown=False)
        elif not value:
            raise DeployError(
                f"{template.name} would serve without TLS: give the certificate's ARN as {name} in "
                f"[{template.name}] of {environment.file}, or with --parameter {name}=arn:…"
            )


# AWS CloudFormation User Guide and ECS Developer Guide, "Fargate task CPU and memory": MiB by CPU
# units. RegisterTaskDefinition refuses any other pair.
FARGATE_MEMORY: Final = {
    256: (512, 1024, 2048),
    512: range(1024, 4096 + 1, 1024),
    1024: range(2048, 8192 + 1, 1024),
    2048: range(4096, 16384 + 1, 1024),
    4096: range(8192, 30720 + 1, 1024),
    8192: range(16384, 61440 + 1, 4096),
    16384: range(32768, 122880 + 1, 8192),
}


def check_task_sizes(template: Template, values: dict[str, str], origin: Path) -> None:
    """Check that Fargate has a task with the CPU and memory of every task definition.

    Raises:
        DeployError: it has none; the message names the memory that it has for this CPU.
    """
    for name, resource in template.section("Resources").items():
        properties = resource.get("Properties") or {}
        is_fargate = "FARGATE" in (properties.get("RequiresCompatibilities") or ())
        if resource.get("Type") != "AWS::ECS::TaskDefinition" or not is_fargate:
            continue
        cpu = _number(template, properties.get("Cpu"), values, {"vcpu": 1024})
        memory = _number(template, properties.get("Memory"), values, {"gb": 1024})
        if cpu is None or memory is None or memory in FARGATE_MEMORY.get(cpu, ()):
            continue
        if cpu not in FARGATE_MEMORY:
            allowed = f"Cpu can be {', '.join(map(str, FARGATE_MEMORY))}"
        else:
            fitting = ", ".join(map(str, FARGATE_MEMORY[cpu]))
            allowed = f"for this Cpu, Memory can be {fitting}"
        raise DeployError(
            f"{origin}: {name} of [{template.name}] would have Cpu {cpu} and Memory {memory}, "
            f"which Fargate does not have; {allowed}"
        )


def _number(
    template: Template, value: object, values: dict[str, str], units: dict[str, int]
) -> int | None:
    """Return CPU units or MiB, None if the template computes them."""
    if isinstance(value, dict):
        if list(value) != ["Ref"]:
            return None
        value = template.value_of(value["Ref"], values)
    text = str(value).strip().lower()
    for unit, factor in units.items():
        if text.endswith(unit):
            number = text.removesuffix(unit).strip()
            return int(float(number) * factor) if number.replace(".", "", 1).isdigit() else None
    return int(text) if text.isdigit() else None


def check_package(file: Path, template: Template, values: dict[str, str]) -> Checked:
    """Check that the function's zip exists and was made for the template's machine and Python.

    Raises:
        PackageError: it is missing, or was not made by `poolkit package lambda`.
        DeployError: it was made for another machine or Python, or lacks a file that a parameter
            names.
    """
    manifest = read_manifest(file)
    for name, made in (
        ("Architecture", str(manifest["architecture"])),
        ("Runtime", f"python{manifest['python']}"),
    ):
        wanted = template.value_of(name, values) or made
        if wanted != made:
            raise DeployError(
                f"{file} was built for {made}, but [{template.name}] {name} is {wanted}; "
                f"build it again with --architecture and --python of {command_of(file)}"
            )
    with zipfile.ZipFile(file) as archive:
        packaged = set(archive.namelist())
    for name in template.parameters:
        value = template.value_of(name, values)
        path = value.removeprefix(f"{TASK_ROOT}/")
        if path != value and path not in packaged:
            raise DeployError(
                f"[{template.name}] {name} is {value}, but {file} lacks {path}; put it into the "
                "project, include it in [tool.poolkit.package.lambda], and package again"
            )
    without = "" if manifest["bytecode"] else ", WITHOUT bytecode: cold starts take longer"
    text = f"package: {file}, Python {manifest['python']}, {manifest['architecture']}{without}"
    return Checked(text, is_shown=not without)


def check_lint(files: Iterable[Path]) -> Checked:
    """Run cfn-lint, where it is installed, over the templates.

    Raises:
        DeployError: it found errors; the first one is in the message.
    """
    files = list(files)
    program = shutil.which("cfn-lint", path=str(Path(sys.executable).parent))
    program = program or shutil.which("cfn-lint")
    if program is None:
        text = "templates: not linted, because cfn-lint is not installed"
        return Checked(text, is_shown=False)
    done = subprocess.run(
        # Errors alone: warnings are for the author of the template.
        [program, "--format", "parseable", "--ignore-checks", "W", "I", "--", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = (done.stdout or done.stderr).strip().splitlines()
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        raise DeployError(f"cfn-lint: {lines[0] if lines else 'failed without a message'}{more}")
    names = ", ".join(file.name for file in files)
    return Checked(f"templates: cfn-lint found nothing in {names}")


def check_budget(
    root: Path,
    environment: str,
    parameters: Mapping[str, Mapping[str, str]],
    *,
    allow_unknown: bool = False,
    limit: ServerLimit | None = None,
) -> Checked:
    """Check that the deployables of the environment fit their database together.

    Args:
        root: the project.
        environment: its name.
        parameters: of the command line, by template; they win over the environment's file.
        allow_unknown: accept outside dev, too, a budget with unknown numbers, as long as the
            known part fits.
        limit: of a server that waits for a reboot, in place of the template's.

    Raises:
        DeployError: they do not fit, or an unknown number is not accepted.
        TemplateError: a template is broken; file and line are named.
    """
    # A third of the time that the whole command takes to start.
    from poolkit.budget.answers import read_answers  # noqa: PLC0415
    from poolkit.budget.command import compute_budget  # noqa: PLC0415
    from poolkit.budget.model import Options  # noqa: PLC0415
    from poolkit.budget.report.rows import headline  # noqa: PLC0415

    options = Options(
        paths=(root / "infra",),
        environment=environment,
        overrides=parameters,
        max_connections=limit and limit.max_connections,
        answers=read_answers(Project.find(root)),
    )
    verdict, text = None, ""
    try:
        budget = compute_budget(options).worst
        verdict, text = budget.verdict, headline(budget)
        if reason := budget.database.max_connections.reason:
            text = f"{text} {reason[0].upper()}{reason[1:]}."
    except TemplateError:
        raise
    except BudgetError as error:
        text = f"not checked: {error}"
    if verdict == "does not fit":
        text = f"{text} {limit.text[0].upper()}{limit.text[1:]}." if limit else text
        raise DeployError(
            f"{text} What would fit: poolkit budget --environment {environment}; "
            "to deploy anyway: --no-budget"
        )
    if verdict != "fits" and environment != "dev" and not allow_unknown:
        raise DeployError(
            f"connection budget: {text.rstrip('.')}. What is missing: poolkit budget --environment "
            f"{environment}; to deploy anyway: --allow-unknown-budget"
        )
    return Checked(f"connection budget: {text}", is_shown=verdict == "fits")
