"""`poolkit bootstrap`: what an account and an environment need before the first deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from poolkit.deploy.aws import in_plain_words
from poolkit.deploy.deployment import Deployment, DeployOptions, require_agreement
from poolkit.deploy.environment import BOOTSTRAP, PREPARED, StackEnvironment
from poolkit.deploy.preflight import PLACEHOLDER
from poolkit.deploy.stacks import deployed_outputs
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICES: Final = (
    "ecs.amazonaws.com",
    "ecs.application-autoscaling.amazonaws.com",
    "elasticloadbalancing.amazonaws.com",
    "rds.amazonaws.com",
)
"""The services whose service-linked roles the templates need."""


def bootstrap(environment_name: str, *, yes: bool = False, plan_only: bool = False) -> None:
    """Deploy the stack that environments share, and the environment's own roles and alarm topic.

    A second run changes nothing.

    Args:
        environment_name: the environment's.
        yes: agree to the plan without being asked.
        plan_only: print the plan and change nothing.

    Raises:
        DeployError: it was refused before anything was changed.
        DeploymentFailed: AWS began and failed; the message has the first cause.
    """
    require_agreement(yes=yes, plan_only=plan_only)
    project = Project.find()
    environment = StackEnvironment.read(project.root, environment_name)
    _require_tables(environment)
    _require_own_names(environment)
    options = DeployOptions(
        target=BOOTSTRAP,
        environment=environment_name,
        yes=yes,
        plan_only=plan_only,
        budget=False,
    )
    deployment = Deployment(options, project, names=PREPARED)
    deployment.run()
    outputs = deployed_outputs(deployment.aws.cloudformation, environment, {*PREPARED})
    if not plan_only and outputs.keys() == {*PREPARED}:
        _make_service_roles(deployment)
        deployment.console.print("\nNext:", style="bold")
        for number, step in enumerate(_next_steps(environment, outputs), 1):
            deployment.console.print(f"{number}. {step}")


def _make_service_roles(deployment: Deployment) -> None:
    """Create the roles with which services of AWS work in an account, as far as they are missing.

    AWS creates each of them when it is first needed. But the first cluster of an account is then
    refused, because ECS cannot assume its role yet; the second attempt works.
    """
    iam = deployment.aws.client("iam")
    for service in SERVICES:
        with in_plain_words(f"looking for the role of {service}"):
            # IAM User Guide, "Service-linked roles": the path that they all have.
            if not iam.list_roles(PathPrefix=f"/aws-service-role/{service}/")["Roles"]:
                iam.create_service_linked_role(AWSServiceName=service)
                deployment.console.print(f"the account's role of {service}: created")


def _require_tables(environment: StackEnvironment) -> None:
    for name in PREPARED:
        if name not in environment.tables:
            raise DeployError(
                f"{environment.file} has no table [{name}]; copy it from infra/environments of "
                "poolkit, or prepare the account without this command"
            )


def _require_own_names(environment: StackEnvironment) -> None:
    """Check that the roles are for this environment's stacks, and for these only."""
    for table, parameter, wanted in (
        (BOOTSTRAP, "NamePrefix", environment.prefix),
        ("access", "StackFamily", environment.family),
    ):
        found = environment.tables[table].get(parameter, "")
        if found != wanted:
            raise DeployError(
                f'{environment.file}: {parameter} in [{table}] must be "{wanted}", the beginning '
                f'of the stacks\' names, not "{found}"'
            )
    shared, access = environment.tables[BOOTSTRAP], environment.tables["access"]
    if access.get("GitHubRepository") and shared.get("GitHubProvider") == "none":
        raise DeployError(
            f"{environment.file}: GitHubRepository in [access] needs the identity provider of "
            'GitHub; take GitHubProvider = "none" out of [bootstrap]'
        )
    for file in sorted(environment.file.parent.glob("*.toml")):
        other = StackEnvironment.read(Project.find().root, file.stem)
        one, two = sorted((environment.family, other.family), key=len)
        if two.startswith(f"{one}-"):
            raise DeployError(
                f"{environment.file}: the roles for {one}-* would reach the stacks of {two}; "
                f"give one of the two environments another name"
            )


def _next_steps(environment: StackEnvironment, outputs: dict[str, dict[str, str]]) -> Iterator[str]:
    access = environment.tables["access"]
    if email := access.get("AlarmEmail"):
        yield f"Confirm the message of AWS to {email}, once; until then no alarm reaches it."
    else:
        yield (
            f"Subscribe to the alarms: set AlarmEmail in [access] of {environment.file} and run "
            "this command again."
        )
    if role := outputs["access"].get("DeployRoleArn"):
        yield (
            f"In the GitHub environment {access['GitHubEnvironment']}, set the variable "
            f"AWS_DEPLOY_ROLE_ARN to {role}"
        )
        yield (
            "In the GitHub repository, set the variable AWS_PLAN_ROLE_ARN to "
            f"{outputs['access']['PlanRoleArn']}, if pull requests plan this environment."
        )
    else:
        yield (
            "To deploy from GitHub's workflows: set GitHubRepository and GitHubEnvironment in "
            f"[access] of {environment.file} and run this command again."
        )
    registry = outputs[BOOTSTRAP]["WebRepositoryUri"].partition("/")[0]
    region = registry.split(".")[3]
    yield (
        f"Log in to the registry: aws ecr get-login-password --region {region} | "
        f"docker login --username AWS --password-stdin {registry}"
    )
    for template, table in environment.tables.items():
        for name, value in table.items():
            if PLACEHOLDER in value:
                yield f"Replace {name} in [{template}] of {environment.file}."
    images = "".join(
        f" --image {name}=URI" for name in ("web", "worker") if name in environment.tables
    )
    migrates = " --migrate" if "migrate" in environment.tables else ""
    yield (
        f"Build and push the images, then: poolkit deploy all --environment {environment.name}"
        f"{migrates}{images}"
    )
