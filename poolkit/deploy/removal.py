"""`poolkit destroy`: stacks removed in the reverse order, after their names were typed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from poolkit.deploy.aws import Aws, error_code, in_plain_words
from poolkit.deploy.environment import ALL, BOOTSTRAP, StackEnvironment
from poolkit.deploy.progress import make_console, watch_change
from poolkit.deploy.stacks import find_stack
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator


def destroy(target: str, environment_name: str, *, yes_delete: str | None) -> None:
    """Remove a target's stacks.

    Args:
        target: a template's name, or "all".
        environment_name: the environment's.
        yes_delete: the name that would be typed; None asks on the terminal.

    Raises:
        DeployError: not agreed to, protected, or still needed; nothing was removed.
        DeploymentFailed: AWS began and failed; the message has the first cause.
    """
    if yes_delete is None and not sys.stdin.isatty():
        raise DeployError("there is no terminal to type the name on; pass --yes-delete NAME")
    environment = StackEnvironment.read(Project.find().root, environment_name)
    aws, console = Aws(environment.region), make_console()
    every = environment.removed_with_all()
    chosen = (every if target == ALL else environment.chosen(target))[::-1]
    found = [find_stack(aws.cloudformation, environment.stack_name(name)) for name in chosen]
    stacks = [stack for stack in found if stack is not None]
    if not stacks:
        console.print("nothing to remove: none of the stacks exists")
        return
    # Checked for every stack before the first one is removed.
    _require_unneeded(aws, environment, chosen)
    for stack in stacks:
        _require_unprotected(aws, stack)
    names = [stack["StackName"] for stack in stacks]
    wanted = environment.family if target == ALL else names[0]
    console.print(f"to be removed, in this order: {', '.join(names)}", style="bold red")
    typed = yes_delete
    if typed is None:
        typed = click.prompt(f"Type {wanted} to remove it", default="", show_default=False)
    if typed != wanted:
        raise DeployError(f"wanted the name {wanted}, found {typed!r}; nothing was removed")
    for stack in stacks:
        name, stack_id = stack["StackName"], stack["StackId"]

        def delete(name: str = name, stack_id: str = stack_id) -> None:
            with in_plain_words(f"removing {name}"):
                aws.cloudformation.delete_stack(StackName=stack_id)

        watch_change(
            console,
            aws.cloudformation,
            delete,
            stack=name,
            stack_id=stack_id,
            wanted=frozenset({"DELETE_COMPLETE"}),
            environment=environment.name,
        )
        console.print(f"{name}: removed", style="bold green")


def _require_unneeded(aws: Aws, environment: StackEnvironment, chosen: list[str]) -> None:
    for name in chosen:
        for other in environment.needed_by(name):
            other_stack = environment.stack_name(other)
            if other not in chosen and find_stack(aws.cloudformation, other_stack) is not None:
                raise DeployError(
                    f"{other_stack} uses outputs of {environment.stack_name(name)}; "
                    f"destroy {other} first, or all"
                )
    if BOOTSTRAP in chosen:
        _require_no_environment(aws, environment)


def _require_no_environment(aws: Aws, environment: StackEnvironment) -> None:
    """Check that no stack of another environment of the project uses the shared stack."""
    shared = environment.stack_name(BOOTSTRAP)
    for file in sorted(environment.file.parent.glob("*.toml")):
        other = StackEnvironment.read(Project.find().root, file.stem)
        if BOOTSTRAP not in other.tables or other.stack_name(BOOTSTRAP) != shared:
            continue
        if other.region != environment.region:
            continue
        for name in other.needed_by(BOOTSTRAP):
            if find_stack(aws.cloudformation, other.stack_name(name)) is not None:
                raise DeployError(
                    f"{other.stack_name(name)} uses outputs of {shared}; destroy it first: "
                    f"poolkit destroy {name} -e {other.name}"
                )


def _require_unprotected(aws: Aws, stack: dict[str, Any]) -> None:
    name = stack["StackName"]
    if stack.get("EnableTerminationProtection"):
        raise DeployError(
            f"{name} is protected against deletion. To lift that: aws cloudformation "
            f"update-termination-protection --no-enable-termination-protection "
            f"--stack-name {name}"
        )
    for protected in protected_resources(aws, name):
        raise DeployError(
            f"{name}: {protected} has deletion protection. To lift that, deploy with "
            "DeletionProtection=false in its table of the environment's file"
        )


# -- deletion protection --------------------------------------------------------------------

# CloudFormation deletes a stack's resources one after the other, and finds a protected one only
# when it reaches it. By then the service behind the load balancer is gone. So this is asked before
# a removal begins.

_PROTECTABLE: Final = {
    "AWS::RDS::DBInstance": "the database",
    "AWS::RDS::DBCluster": "the database",
    "AWS::ElasticLoadBalancingV2::LoadBalancer": "the load balancer",
}
_GONE: Final = frozenset({"DBInstanceNotFound", "DBClusterNotFoundFault", "LoadBalancerNotFound"})


def protected_resources(aws: Aws, stack: str) -> Iterator[str]:
    """Yield a label for each of a stack's resources that has deletion protection.

    Raises:
        DeployError: AWS cannot be asked.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    with in_plain_words(f"reading the resources of {stack}"):
        pages = aws.cloudformation.get_paginator("list_stack_resources")
        resources = [
            each
            for page in pages.paginate(StackName=stack)
            for each in page["StackResourceSummaries"]
        ]
    for resource in resources:
        identifier, kind = resource.get("PhysicalResourceId"), resource["ResourceType"]
        # After a failed creation, or half of a removal, resources that are gone are still listed.
        if kind not in _PROTECTABLE or not identifier:
            continue
        if resource["ResourceStatus"] == "DELETE_COMPLETE":
            continue
        with in_plain_words(f"asking whether {identifier} is protected"):
            try:
                if kind == "AWS::RDS::DBInstance":
                    rds = aws.client("rds").describe_db_instances(DBInstanceIdentifier=identifier)
                    protected = any(each.get("DeletionProtection") for each in rds["DBInstances"])
                elif kind == "AWS::RDS::DBCluster":
                    rds = aws.client("rds").describe_db_clusters(DBClusterIdentifier=identifier)
                    protected = any(each.get("DeletionProtection") for each in rds["DBClusters"])
                else:
                    elb = aws.client("elbv2")
                    found = elb.describe_load_balancer_attributes(LoadBalancerArn=identifier)
                    on = {"Key": "deletion_protection.enabled", "Value": "true"}
                    protected = on in found["Attributes"]
            except ClientError as error:
                if error_code(error) not in _GONE:
                    raise
                protected = False
        if protected:
            yield f"{_PROTECTABLE[kind]} {identifier}"
