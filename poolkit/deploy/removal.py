"""`poolkit destroy`: stacks removed in the reverse order, after their names were typed."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from poolkit.deploy.aws import Aws, error_code, in_plain_words
from poolkit.deploy.environment import ALL, BOOTSTRAP, PREPARED, StackEnvironment
from poolkit.deploy.progress import make_console, watch_change
from poolkit.deploy.stacks import find_stack
from poolkit.deploy.statuses import require_accepted
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console


def destroy(
    target: str,
    environment_name: str,
    *,
    yes_delete: str | None,
    lift_protection: bool = False,
    retain: tuple[str, ...] = (),
) -> None:
    """Remove a target's stacks.

    Args:
        target: a template's name, or "all".
        environment_name: the environment's.
        yes_delete: the name that would be typed; None asks on the terminal.
        lift_protection: turn off the protection of the stacks, databases and load balancers
            before, once the name was typed.
        retain: resources that stay in the account, of one stack whose removal failed.

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
    stacks = {
        name: stack
        for name in chosen
        if (stack := find_stack(aws.cloudformation, environment.stack_name(name))) is not None
    }
    if not stacks:
        console.print("nothing to remove: none of the stacks exists")
        return
    # Checked for every stack before the first one is removed.
    _require_unneeded(aws, environment, chosen)
    protected = []
    for template, stack in stacks.items():
        require_accepted(stack, "destroy", f"{template} --environment {environment.name}")
        protected += list(_protections(aws, stack))
    if protected and not lift_protection:
        raise DeployError(
            f"{protected[0].stack}: {protected[0].label}. Next: poolkit destroy {target} "
            f"--environment {environment.name} --lift-protection"
        )
    if retain:
        _require_retainable(aws, list(stacks.values()), retain)
    names = [stack["StackName"] for stack in stacks.values()]
    for each in protected:
        console.print(f"to be lifted: {each.stack}: {each.label}", style="bold red")
    console.print(f"to be removed, in this order: {', '.join(names)}", style="bold red")
    if retain:
        console.print(f"to stay in the account: {', '.join(retain)}", style="bold red")
    _require_name(environment.family if target == ALL else names[0], yes_delete)
    for each in protected:
        each.lift()
        console.print(f"lifted: {each.label}")
    for template, stack in stacks.items():
        _delete(console, aws, environment, template, stack, retain=retain)
        console.print(f"{stack['StackName']}: removed", style="bold green")


def _require_name(wanted: str, typed: str | None) -> None:
    """Ask for the name, unless the command line has it. Raises `DeployError` on another one."""
    if typed is None:
        typed = click.prompt(f"Type {wanted} to remove it", default="", show_default=False)
    if typed != wanted:
        raise DeployError(f"wanted the name {wanted}, found {typed!r}; nothing was removed")


def _delete(
    console: Console,
    aws: Aws,
    environment: StackEnvironment,
    template: str,
    stack: dict[str, Any],
    *,
    retain: tuple[str, ...],
) -> None:
    """Remove one stack and follow that to its end. Raises as `destroy`."""
    name, stack_id = stack["StackName"], stack["StackId"]
    call: dict[str, Any] = {"StackName": stack_id}
    if retain:
        call["RetainResources"] = list(retain)
    if environment.fixed_role:
        call["RoleARN"] = environment.fixed_role

    def delete() -> None:
        with in_plain_words(f"removing {name}"):
            aws.cloudformation.delete_stack(**call)

    watch_change(
        console,
        aws.cloudformation,
        delete,
        stack=name,
        stack_id=stack_id,
        wanted=frozenset({"DELETE_COMPLETE"}),
        target=f"{template} --environment {environment.name}",
    )


def _require_retainable(aws: Aws, stacks: list[dict[str, Any]], retain: tuple[str, ...]) -> None:
    """Check the rules of RetainResources (API Reference, DeleteStack)."""
    if len(stacks) != 1 or stacks[0]["StackStatus"] != "DELETE_FAILED":
        raise DeployError(
            "--retain is for one stack in DELETE_FAILED; without it, remove the stack first: "
            "what cannot be removed is named then"
        )
    resources = _resources(aws, stacks[0]["StackId"])
    failed = [r["LogicalResourceId"] for r in resources if r["ResourceStatus"] == "DELETE_FAILED"]
    for name in retain:
        if name not in failed:
            raise DeployError(
                f"--retain {name}: it is not in DELETE_FAILED; "
                f"{', '.join(failed) or 'no resource of this stack'} can be retained"
            )


def _require_unneeded(aws: Aws, environment: StackEnvironment, chosen: list[str]) -> None:
    for name in chosen:
        for other in environment.needed_by(name):
            other_stack = environment.stack_name(other)
            if other not in chosen and find_stack(aws.cloudformation, other_stack) is not None:
                words = f"--environment {environment.name}"
                everything = f", or poolkit destroy {ALL} {words}" * (other not in PREPARED)
                raise DeployError(
                    f"{other_stack} uses outputs of {environment.stack_name(name)}. Next: "
                    f"poolkit destroy {other} {words}{everything}"
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


# -- deletion protection --------------------------------------------------------------------

# CloudFormation deletes a stack's resources one after the other, and finds a protected one only
# when it reaches it. By then the service behind the load balancer is gone. So this is asked before
# a removal begins.

_GONE: Final = frozenset({"DBInstanceNotFound", "DBClusterNotFoundFault", "LoadBalancerNotFound"})


class Protection(NamedTuple):
    """What keeps a stack, or a resource of it, from being removed."""

    stack: str
    label: str
    lift: Callable[[], None]
    """Turns it off. Raises `DeployError`."""


def _protections(aws: Aws, stack: dict[str, Any]) -> Iterator[Protection]:
    """Yield the protection of a stack and of its resources. Raises `DeployError`."""
    name = stack["StackName"]

    def lift() -> None:
        with in_plain_words(f"lifting the termination protection of {name}"):
            aws.cloudformation.update_termination_protection(
                StackName=name, EnableTerminationProtection=False
            )

    if stack.get("EnableTerminationProtection"):
        yield Protection(name, "termination protection of the stack", lift)
    yield from protected_resources(aws, name)


def _resources(aws: Aws, stack: str) -> list[dict[str, Any]]:
    with in_plain_words(f"reading the resources of {stack}"):
        pages = aws.cloudformation.get_paginator("list_stack_resources")
        return [
            each
            for page in pages.paginate(StackName=stack)
            for each in page["StackResourceSummaries"]
        ]


def protected_resources(aws: Aws, stack: str) -> Iterator[Protection]:
    """Yield the deletion protection of a stack's resources.

    Raises:
        DeployError: AWS cannot be asked.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    for resource in _resources(aws, stack):
        identifier = resource.get("PhysicalResourceId")
        kind = _PROTECTABLE.get(resource["ResourceType"])
        # After a failed creation, or half of a removal, resources that are gone are still listed.
        if kind is None or not identifier or resource["ResourceStatus"] == "DELETE_COMPLETE":
            continue
        client = aws.client(kind.service)
        with in_plain_words(f"asking whether {identifier} is protected"):
            try:
                protected = kind.is_protected(client, identifier)
            except ClientError as error:
                if error_code(error) not in _GONE:
                    raise
                protected = False
        if protected:
            label = f"deletion protection of {kind.label} {identifier}"
            yield Protection(stack, label, partial(_lift, kind, client, identifier))


def _lift(kind: _Protectable, client: Any, identifier: str) -> None:
    with in_plain_words(f"lifting the deletion protection of {identifier}"):
        kind.lift(client, identifier)


class _Protectable(NamedTuple):
    """A type of resource that can have deletion protection."""

    label: str
    service: str
    is_protected: Callable[[Any, str], bool]
    lift: Callable[[Any, str], Any]


def _balancer_is_protected(elb: Any, arn: str) -> bool:
    found = elb.describe_load_balancer_attributes(LoadBalancerArn=arn)
    return {"Key": "deletion_protection.enabled", "Value": "true"} in found["Attributes"]


_PROTECTABLE: Final = {
    "AWS::RDS::DBInstance": _Protectable(
        "the database",
        "rds",
        lambda rds, name: any(
            each.get("DeletionProtection")
            for each in rds.describe_db_instances(DBInstanceIdentifier=name)["DBInstances"]
        ),
        lambda rds, name: rds.modify_db_instance(
            DBInstanceIdentifier=name, DeletionProtection=False
        ),
    ),
    "AWS::RDS::DBCluster": _Protectable(
        "the database",
        "rds",
        lambda rds, name: any(
            each.get("DeletionProtection")
            for each in rds.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"]
        ),
        lambda rds, name: rds.modify_db_cluster(DBClusterIdentifier=name, DeletionProtection=False),
    ),
    "AWS::ElasticLoadBalancingV2::LoadBalancer": _Protectable(
        "the load balancer",
        "elbv2",
        _balancer_is_protected,
        lambda elb, arn: elb.modify_load_balancer_attributes(
            LoadBalancerArn=arn,
            Attributes=[{"Key": "deletion_protection.enabled", "Value": "false"}],
        ),
    ),
}
