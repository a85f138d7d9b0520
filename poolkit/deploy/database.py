"""The databases of an environment: static parameters, and the reboots that they wait for.

RDS applies a dynamic parameter at once. A static one, such as max_connections, has the status
`pending-reboot` until the server is rebooted (Amazon RDS User Guide, "Parameter groups for Amazon
RDS"). CloudFormation changes a parameter group without a reboot. But it reboots an instance whose
own parameter group waits for one, when it changes that instance for any reason (its handler of
AWS::RDS::DBInstance, UpdateHandler). It does not do so for a cluster's parameter group.

RDS does not report the value that the server still has. So a deployment that leaves a reboot
pending writes max_connections to a tag of the instance first.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from poolkit.deploy.aws import Aws, error_code, in_plain_words
from poolkit.deploy.environment import StackEnvironment, Template
from poolkit.deploy.progress import make_console, pauses
from poolkit.deploy.stacks import find_stack
from poolkit.deploy.statuses import REVIEW
from poolkit.errors import DeployError, DeploymentFailed
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from poolkit.deploy.change_set import Change, ChangeSet

INSTANCE: Final = "AWS::RDS::DBInstance"
GROUP: Final = "AWS::RDS::DBParameterGroup"
CLUSTER_GROUP: Final = "AWS::RDS::DBClusterParameterGroup"
PENDING: Final = "pending-reboot"
RUNNING: Final = "poolkit:max-connections"
"""The tag of an instance that waits for a reboot: the max_connections that it still has."""

REBOOT_LIMIT: Final = 1800.0
"""Seconds that a reboot may take."""


class Parameter(NamedTuple):
    """A parameter of a group."""

    value: str | None
    is_static: bool


@dataclass(frozen=True, kw_only=True)
class Server:
    """A database instance of a stack."""

    stack: str
    logical_id: str
    name: str
    arn: str
    status: str
    group: str
    """The name of the parameter group that sets max_connections."""
    group_kind: str
    """GROUP, or CLUSTER_GROUP for an instance of Aurora."""
    is_pending: bool
    is_writer: bool
    running: int | None
    """The max_connections that a pending reboot will replace; None if no deployment wrote it."""

    @classmethod
    def read(
        cls,
        stack: str,
        logical_id: str,
        instance: dict[str, Any],
        cluster: dict[str, Any] | None = None,
    ) -> Server:
        """Return a server from RDS's DBInstance, and the DBCluster of an instance of Aurora."""
        groups = instance.get("DBParameterGroups", [])
        group, kind = (groups[0]["DBParameterGroupName"] if groups else ""), GROUP
        statuses = {each.get("ParameterApplyStatus") for each in groups}
        is_writer = True
        if cluster is not None:
            group, kind = cluster["DBClusterParameterGroup"], CLUSTER_GROUP
            for member in cluster["DBClusterMembers"]:
                if member["DBInstanceIdentifier"] == instance["DBInstanceIdentifier"]:
                    statuses.add(member.get("DBClusterParameterGroupStatus"))
                    is_writer = member["IsClusterWriter"]
        tags = {each["Key"]: each["Value"] for each in instance.get("TagList", ())}
        running = tags.get(RUNNING, "")
        return cls(
            stack=stack,
            logical_id=logical_id,
            name=instance["DBInstanceIdentifier"],
            arn=instance["DBInstanceArn"],
            status=instance["DBInstanceStatus"],
            group=group,
            group_kind=kind,
            is_pending=PENDING in statuses,
            is_writer=is_writer,
            running=int(running) if running.isdecimal() else None,
        )


# -- what AWS has ---------------------------------------------------------------------------


def find_servers(aws: Aws, environment: StackEnvironment) -> list[Server]:
    """Return the database instances of all deployed stacks of an environment.

    Raises:
        DeployError: AWS cannot be asked.
    """
    found: list[Server] = []
    for template in environment.tables:
        if has_database(environment, template):
            found += _servers_of(aws, environment.stack_name(template))
    return found


def has_database(environment: StackEnvironment, template: str) -> bool:
    """Whether a template declares a database instance. No other template is asked for one."""
    file = environment.template_file(template)
    return file.is_file() and INSTANCE in file.read_text(encoding="utf-8")


def _servers_of(aws: Aws, stack: str) -> Iterator[Server]:
    rds = None
    for logical_id, physical_id in _resources(aws, stack, INSTANCE).items():
        rds = rds or aws.client("rds")
        instance = _described(rds, physical_id)
        if instance is None:
            continue
        cluster = None
        if name := instance.get("DBClusterIdentifier"):
            with in_plain_words(f"looking for the cluster {name}"):
                cluster = rds.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"][0]
        yield Server.read(stack, logical_id, instance, cluster)


def _described(rds: Any, name: str) -> dict[str, Any] | None:
    """Return RDS's description of an instance, None if it was deleted by hand."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    with in_plain_words(f"looking for the database {name}"):
        try:
            found: list[dict[str, Any]]
            found = rds.describe_db_instances(DBInstanceIdentifier=name)["DBInstances"]
        except ClientError as error:
            if error_code(error) in {"DBInstanceNotFound", "DBInstanceNotFoundFault"}:
                return None
            raise
    return found[0]


def _resources(aws: Aws, stack: str, kind: str) -> dict[str, str]:
    """Return the physical ids of a deployed stack's resources of a type, by logical id."""
    found = find_stack(aws.cloudformation, stack)
    if found is None or found["StackStatus"] == REVIEW:
        return {}
    with in_plain_words(f"reading the resources of {stack}"):
        pages = aws.cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack)
        return {
            each["LogicalResourceId"]: each["PhysicalResourceId"]
            for page in pages
            for each in page["StackResourceSummaries"]
            if each["ResourceType"] == kind
            and each.get("PhysicalResourceId")
            and each["ResourceStatus"] != "DELETE_COMPLETE"
        }


def _parameters(rds: Any, kind: str, group: str) -> dict[str, Parameter]:
    """Return the parameters of a group. Raises `DeployError`."""
    operation, key = {
        GROUP: ("describe_db_parameters", "DBParameterGroupName"),
        CLUSTER_GROUP: ("describe_db_cluster_parameters", "DBClusterParameterGroupName"),
    }[kind]
    with in_plain_words(f"reading the parameter group {group}"):
        return {
            each["ParameterName"]: Parameter(
                each.get("ParameterValue"), each.get("ApplyType") == "static"
            )
            for page in rds.get_paginator(operation).paginate(**{key: group})
            for each in page["Parameters"]
        }


def _max_connections(rds: Any, server: Server) -> int | None:
    """Return what the server's parameter group sets, None if that is a formula."""
    found = _parameters(rds, server.group_kind, server.group).get("max_connections")
    value = (found and found.value) or ""
    return int(value) if value.isdecimal() else None


# -- the plan -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reboots:
    """The reboots that a change set causes."""

    texts: tuple[str, ...] = ()
    """For the plan."""
    waiting: tuple[Server, ...] = ()
    """The servers that have static parameters before, and wait for a reboot after it."""


def plan_reboots(
    aws: Aws,
    environment: StackEnvironment,
    template: Template,
    parameters: dict[str, str],
    change_set: ChangeSet,
) -> Reboots:
    """Return the reboots that follow from a change set.

    Args:
        aws: where the stack is.
        environment: of the stack.
        template: of the stack.
        parameters: that the change set was made with.
        change_set: not yet executed.

    Raises:
        DeployError: AWS cannot be asked.
    """
    by_id = {change.logical_id: change for change in change_set.changes}
    concerned = {GROUP, CLUSTER_GROUP, INSTANCE} & {each.type for each in by_id.values()}
    if change_set.is_new or not concerned:
        return Reboots()
    texts, waiting = [], []
    static = {
        name: _static_changes(aws, template, change_set.stack, each, values)
        for each, values in _planned_groups(environment, template, parameters)
        if each.logical_id in by_id
        for name in [_physical_name(aws, change_set.stack, each)]
    }
    replaced = {
        _physical_name(aws, change_set.stack, each)
        for each in by_id.values()
        if each.type in (GROUP, CLUSTER_GROUP) and "replace" in each.kind
    }
    for server in _servers_of(aws, change_set.stack):
        changes = static.get(server.group, [])
        is_other_group = server.group in replaced
        if not (changes or is_other_group or server.is_pending):
            continue
        why = ", ".join(changes) or (
            "it gets another parameter group" if is_other_group else "it waits for one already"
        )
        own = by_id.get(server.logical_id)
        if own is not None and server.group_kind == GROUP:
            texts.append(f"{server.name} is rebooted in this deployment, by AWS: {why}")
        elif changes or is_other_group:
            texts.append(
                f"{server.name} needs a reboot: {why}. Until then it keeps the old values. After "
                f"this deployment: poolkit reboot --environment {environment.name}"
            )
            waiting.append(server)
    return Reboots(texts=tuple(texts), waiting=tuple(waiting))


class _PlannedGroup(NamedTuple):
    logical_id: str
    type: str


def _planned_groups(
    environment: StackEnvironment, template: Template, parameters: dict[str, str]
) -> Iterator[tuple[_PlannedGroup, dict[str, Any]]]:
    """Give the parameter groups of a template, and the values that the deployment gives them."""
    from poolkit.budget.cloudformation.templates import make_stacks  # noqa: PLC0415 - as preflight
    from poolkit.budget.read.parameters import find_environment  # noqa: PLC0415

    found = find_environment(environment.name, [environment.file.parent.parent])
    only = dataclasses.replace(found, tables={template.name: found.tables.get(template.name, {})})
    stacks = make_stacks([template.document], only.overridden({template.name: parameters}), {})
    for group in stacks.by_name[template.name].of_type(GROUP, CLUSTER_GROUP):
        yield _PlannedGroup(group.logical_id, group.type), group.get("Parameters") or {}


def _physical_name(aws: Aws, stack: str, group: _PlannedGroup | Change) -> str:
    return _resources(aws, stack, group.type).get(group.logical_id, "")


def _static_changes(
    aws: Aws, template: Template, stack: str, group: _PlannedGroup, values: dict[str, Any]
) -> list[str]:
    """Return a text for each static parameter that a planned group changes."""
    name = _physical_name(aws, stack, group)
    if not name:
        return []
    current = _parameters(aws.client("rds"), group.type, name)
    declared = template.section("Resources")[group.logical_id].get("Properties", {})
    texts = []
    for key in declared.get("Parameters", {}):
        before, after = current.get(key, Parameter(None, is_static=False)), values.get(key)
        # A value that only the deployment knows is no text yet.
        if before.is_static and isinstance(after, str | int) and str(after) != before.value:
            texts.append(f"{key} changes from {before.value or 'its default'} to {after}")
    return texts


def remember_running(aws: Aws, reboots: Reboots) -> None:
    """Write the max_connections of the servers that will wait for a reboot to their tags.

    Raises:
        DeployError: AWS refuses it.
    """
    for server in reboots.waiting:
        rds = aws.client("rds")
        # One that waits already has an older value than its parameter group.
        value = None if server.is_pending else _max_connections(rds, server)
        if value is not None:
            with in_plain_words(f"tagging the database {server.name}"):
                rds.add_tags_to_resource(
                    ResourceName=server.arn, Tags=[{"Key": RUNNING, "Value": str(value)}]
                )


NAMES: Final = {
    INSTANCE: "DBInstanceIdentifier",
    "AWS::RDS::DBCluster": "DBClusterIdentifier",
    "AWS::RDS::DBProxy": "DBProxyName",
}
"""The property that is a resource's own name."""


def require_new_names(template: Template, change_set: ChangeSet) -> None:
    """Check that what is replaced and has a name of its own gets another one.

    Raises:
        DeployError: CloudFormation would fail, because two resources would have one name.
    """
    for change in change_set.changes:
        if change.kind != "replace" or change.type not in NAMES:
            continue
        name = NAMES[change.type]
        declared = template.section("Resources")[change.logical_id].get("Properties", {})
        if name in declared and name not in change.because.split(", "):
            way = (
                f"with --parameter {template.name}.Generation=-2, or another value than now"
                if "Generation" in template.parameters
                else f"by another {name} in {template.file}"
            )
            raise DeployError(
                f"{change_set.stack}: a change of {change.because or 'a property'} replaces "
                f"{change.logical_id}, which keeps its name, and CloudFormation refuses that; if the "
                f"replacement is meant, give it another name {way}"
            )


# -- the budget and the status --------------------------------------------------------------


class ServerLimit(NamedTuple):
    """The max_connections of a server that waits for a reboot."""

    max_connections: int | None
    """The smaller one of before and after, as far as they are known."""
    is_certain: bool
    """False: the one before is not known."""
    text: str


def pending_limit(aws: Aws, environment: StackEnvironment) -> ServerLimit | None:
    """Return the limit that holds until the environment's database is rebooted.

    None if no database waits for a reboot: then the template's number is the server's.

    Raises:
        DeployError: AWS cannot be asked.
    """
    limits = []
    for server in find_servers(aws, environment):
        if server.is_pending:
            after = _max_connections(aws.client("rds"), server)
            known = [each for each in (server.running, after) if each is not None]
            text = _pending_text(server, after, environment.name)
            limits.append(ServerLimit(min(known, default=None), server.running is not None, text))
    # The uncertain first, then the smallest.
    return min(limits, key=lambda each: (each.is_certain, each.max_connections or 0), default=None)


def _pending_text(server: Server, after: int | None, environment: str) -> str:
    has = "an unknown max_connections" if server.running is None else f"{server.running}"
    text = f"{server.name} waits for a reboot ({PENDING})"
    if server.running is None or after is None or server.running != after:
        text += f": it has {has} of max_connections, and {after or 'another number'} after it"
        text = text.replace("an unknown max_connections of", "an unknown number of")
    return f"{text}; reboot it with: poolkit reboot --environment {environment}"


def require_known(limit: ServerLimit, environment: str, *, allow_unknown: bool) -> None:
    """Check that the budget has a number to compare with.

    Raises:
        DeployError: the server's max_connections is not known outside dev.
    """
    if not limit.is_certain and environment != "dev" and not allow_unknown:
        raise DeployError(
            f"connection budget: {limit.text}; to deploy anyway: --allow-unknown-budget"
        )


def pending_texts(aws: Aws, environment: StackEnvironment) -> list[str]:
    """Return a line for each database that waits for a reboot, or why RDS does not say so."""
    try:
        return [
            _pending_text(each, _max_connections(aws.client("rds"), each), environment.name)
            for each in find_servers(aws, environment)
            if each.is_pending
        ]
    except DeployError as error:
        # A role that may not read RDS still gets the status of the stacks.
        return [f"reboots of {environment.name} are not known: {error}"]


# -- `poolkit reboot` -----------------------------------------------------------------------


def reboot(environment_name: str, *, yes: bool = False) -> None:
    """Reboot the databases of an environment that wait for it, and wait for their end.

    Raises:
        DeployError: refused before anything was rebooted.
        DeploymentFailed: a database did not come back in time.
    """
    if not (yes or sys.stdin.isatty()):
        raise DeployError("there is no terminal to ask for agreement; pass --yes")
    environment = StackEnvironment.read(Project.find().root, environment_name)
    console, aws = make_console(), Aws(environment.region)
    waiting = [each for each in find_servers(aws, environment) if each.is_pending]
    if not waiting:
        console.print(f"no database of {environment.name} waits for a reboot", style="green")
        return
    for server in waiting:
        after = _max_connections(aws.client("rds"), server)
        console.print(_pending_text(server, after, environment.name).partition(";")[0])
    question = "Reboot now? All connections end, and none is possible for about a minute"
    if not (yes or click.confirm(question, default=False)):
        return
    # The readers first, so that the writer can fail over to one that has its parameters.
    for server in sorted(waiting, key=lambda each: each.is_writer):
        rds = aws.client("rds")
        with in_plain_words(f"rebooting {server.name}"):
            rds.reboot_db_instance(DBInstanceIdentifier=server.name)
        _wait(aws, server)
        with in_plain_words(f"removing a tag of {server.name}"):
            rds.remove_tags_from_resource(ResourceName=server.arn, TagKeys=[RUNNING])
        console.print(f"{server.name}: rebooted", style="bold green")


def _wait(aws: Aws, server: Server) -> None:
    """Return when a server runs with its parameter group. Raises `DeploymentFailed`."""
    for _ in pauses(REBOOT_LIMIT):
        now = _of_name(_servers_of(aws, server.stack), server.name)
        if now is not None and now.status == "available" and not now.is_pending:
            return
    raise DeploymentFailed(
        f"{server.name} is not back {REBOOT_LIMIT:.0f} s after its reboot; look at its events: "
        f"aws rds describe-events --source-type db-instance --source-identifier {server.name}"
    )


def _of_name(servers: Iterable[Server], name: str) -> Server | None:
    return next((each for each in servers if each.name == name), None)
