"""Stacks as workloads: ECS services, Lambda functions, and other compute.

Sources: Amazon ECS API Reference, DeploymentConfiguration (maximumPercent: of the desired
count, rounded down, 200 by default; a DAEMON service's is 100); Application Auto Scaling API
Reference, RegisterScalableTarget (ResourceId `service/<cluster>/<service>`); AWS Lambda
Developer Guide, "Configuring reserved concurrency" (it holds for all versions of a function
together) and "Understanding the execution environment lifecycle" (a frozen execution environment
keeps its connections); "Lambda Managed Instances" (AWS_LAMBDA_MAX_CONCURRENCY).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.rds import rds_databases, rds_proxies
from poolkit.budget.cloudformation.templates import make_stacks
from poolkit.budget.model import Description, Overlap, Unread, Variable, Workload, unknown
from poolkit.budget.read.values import (
    Joined,
    Unknown,
    as_text,
    get_path,
    references,
    why_unknown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.model import Quantity, ResourceKey
    from poolkit.budget.read.documents import Document
    from poolkit.budget.read.parameters import Environment, ParameterValue

_TASK = "AWS::ECS::TaskDefinition"
_OTHER_COMPUTE = {
    "AWS::AppRunner::Service": "App Runner service",
    "AWS::AutoScaling::AutoScalingGroup": "Auto Scaling group",
    "AWS::Batch::JobDefinition": "Batch job",
    "AWS::CodeBuild::Project": "CodeBuild project",
    "AWS::EC2::Instance": "EC2 instance",
    "AWS::EC2::LaunchTemplate": "launch template",
    "AWS::ECS::ExpressGatewayService": "ECS express service",
    _TASK: "one-off ECS task",
    "AWS::ElasticBeanstalk::Environment": "Elastic Beanstalk environment",
    "AWS::Glue::Job": "Glue job",
}
_TASK_STARTERS = {
    "AWS::Events::Rule": "task of an event rule",
    "AWS::Pipes::Pipe": "task of a pipe",
    "AWS::Scheduler::Schedule": "scheduled task",
    "AWS::StepFunctions::StateMachine": "task of a state machine",
}
"""Resources that start any number of tasks at once; only a service has a limit."""
_ENTRY_POINTS = ("AWS::ElasticLoadBalancingV2::LoadBalancer", "AWS::ServiceDiscovery::Service")


def describe_templates(
    documents: Sequence[Document], environment: Environment, given: Mapping[str, ParameterValue]
) -> Description:
    """Return the workloads, databases and proxies of templates.

    Raises:
        BudgetError: a parameter is given that no template has, or a template is missing.
        TemplateError: a template is wrong; the message names the line.
    """
    stacks = make_stacks(documents, environment, given)
    each_stack = list(stacks.by_name.values())
    workloads: list[Workload] = []
    unread = list(stacks.unread)
    for stack in each_stack:
        workloads += [*_ecs_services(stack), *_functions(stack), *_other_compute(stack)]
        for name, found in stack.section("Resources").items():
            where = stack.where("Resources", name)
            if name.startswith("Fn::ForEach"):
                unread.append(Unread(where, f"the resources that {name} makes are not read"))
            elif isinstance(found, dict) and found.get("Type") == "AWS::Serverless::Application":
                unread.append(Unread(where, f"the published application {name} is not read"))
    return Description(
        workloads=tuple(workloads),
        poolers=tuple(rds_proxies(each_stack)),
        databases=tuple(rds_databases(each_stack)),
        entry_points=frozenset(
            each.key for stack in each_stack for each in stack.of_type(*_ENTRY_POINTS)
        ),
        unread=tuple(unread),
    )


# -- variables ------------------------------------------------------------------------------


def _variable(value: Any, origin: str, *, is_secret: bool = False) -> Variable:
    leads_to = tuple(each.resource for each in references(value))
    if is_secret:
        return Variable(text=None, origin=origin, leads_to=leads_to, reason="it is in a secret")
    if why := why_unknown(value):
        return Variable(
            text=None, origin=origin, leads_to=leads_to, reason=why, partly=_known_part(value)
        )
    return Variable(text=str(as_text(value)), origin=origin)


def _known_part(value: Any, gap: str = "") -> str:
    """Return the known part: `123.dkr.ecr…/pgbouncer:${Tag}` still shows which image it is."""
    parts = value.parts if isinstance(value, Joined) else (value,)
    return "".join(part if isinstance(part, str) else gap for part in parts)


# -- ECS services ---------------------------------------------------------------------------


def _ecs_services(stack: Stack) -> Iterator[Workload]:
    """Return every container of every ECS service."""
    for service in stack.of_type("AWS::ECS::Service"):
        name = service.get("ServiceName")
        name = name if isinstance(name, str) else service.logical_id
        common: dict[str, Any] = {
            "platform": "ECS service",
            "unit": "task",
            "where": service.where(),
            "instances": _tasks(service),
            "overlap": _ecs_overlap(service),
            "resource": service.key,
        }
        task = stack.referenced(service.get("TaskDefinition"))
        containers = task.get("ContainerDefinitions") if task else None
        if task is None or not isinstance(containers, list):
            unread = "its task definition is not in the templates"
            yield Workload(name=name, **common, variables={}, unread_variables=unread)
            continue
        for number, container in enumerate(containers):
            inner = get_path(container, "Name")
            own = f"{name}/{inner if isinstance(inner, str) else number}"
            own = own if len(containers) > 1 else name
            if isinstance(container, dict):
                yield Workload(name=own, **common, **_container(task, number, container))
            else:
                unread = why_unknown(container)
                yield Workload(name=own, **common, variables={}, unread_variables=unread)


def _container(task: Resource, number: int, container: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a workload that a container definition has."""
    path = ("ContainerDefinitions", number)
    variables: dict[str, Variable] = {}
    for section, key in (("Environment", "Value"), ("Secrets", "ValueFrom")):
        listed = container.get(section)
        for index, each in enumerate(listed if isinstance(listed, list) else []):
            if isinstance(name := get_path(each, "Name"), str):
                origin = task.origin(*path, section, index, key)
                is_secret = section == "Secrets"
                variables[name] = _variable(get_path(each, key), origin, is_secret=is_secret)
    words: list[str] = []
    for key in ("EntryPoint", "Command"):
        listed = container.get(key)
        words += [
            _known_part(as_text(each), "?") for each in (listed if isinstance(listed, list) else [])
        ]
    environment = container.get("Environment")
    # A variable that may or may not be set could hold any of the numbers.
    unclear = [environment, *(environment if isinstance(environment, list) else [])]
    unread = next((each.reason for each in unclear if isinstance(each, Unknown)), "")
    if container.get("EnvironmentFiles"):
        unread = f"its environment files ({task.where(*path, 'EnvironmentFiles')})"
    return {
        "variables": variables,
        "image": _known_part(container.get("Image")),
        "command": tuple(words) or None,
        "command_origin": str(task.where(*path, "Command")),
        "unread_variables": unread,
    }


def _tasks(service: Resource) -> Quantity:
    """Return the most tasks outside a deployment: the autoscaling maximum or the desired count."""
    if service.get("SchedulingStrategy") == "DAEMON":
        return unknown("a DAEMON service has a task on every container instance", service.where())
    desired = service.quantity("DesiredCount", default=1, why="1 task, the default of DesiredCount")
    targets = [
        each
        for each in service.stack.of_type("AWS::ApplicationAutoScaling::ScalableTarget")
        if each.get("ServiceNamespace") in ("ecs", None)
    ]
    target = unclear = None
    for each in targets:
        resource_id = each.get("ResourceId")
        found = list(references(resource_id))
        resources = filter(None, map(service.stack.referenced, found))
        is_other = any(other.type == "AWS::ECS::Service" for other in resources)
        # service/<cluster>/<service>: the name alone may be known.
        last = resource_id.parts[-1] if isinstance(resource_id, Joined) else resource_id
        name = last.rpartition("/")[2] if isinstance(last, str) and last.strip("/") else None
        is_named = name is not None and name == service.get("ServiceName")
        if any(other.resource == service.key for other in found) or (is_named and not is_other):
            target = each
            break
        if name is None and not is_other:
            unclear = unclear or each
    if target is not None:
        if isinstance(target.present, Unknown):
            return unknown(f"its autoscaling: {target.present.reason}", target.where())
        most = target.quantity("MaxCapacity", why="the scalable target has no MaxCapacity")
        if most.value is None or desired.value is None or most.value >= desired.value:
            return most
    elif unclear is not None:
        where = unclear.where("ResourceId")
        reason = f"the service that a scalable target scales is unknown ({where})"
        return unknown(reason, service.where())
    return desired


def _ecs_overlap(service: Resource) -> Overlap:
    if service.get("SchedulingStrategy") == "DAEMON":
        return Overlap()
    controller = service.get("DeploymentController", "Type")
    strategy = service.get("DeploymentConfiguration", "Strategy")
    if controller in ("CODE_DEPLOY", "EXTERNAL") or strategy in ("BLUE_GREEN", "CANARY", "LINEAR"):
        where = service.where("DeploymentController")
        origin = f"{where}: a blue/green deployment runs all old and all new tasks"
        return Overlap(kind="percent", amount=100, origin=origin)
    path = ("DeploymentConfiguration", "MaximumPercent")
    most = service.quantity(*path, default=200, why="maximumPercent is 200 by default")
    if most.value is None:
        return Overlap(kind="unknown", reason=most.reason, origin=most.origin)
    return Overlap(
        kind="percent",
        amount=max(0, most.value - 100),
        origin=f"{most.origin} (maximumPercent {most.value})",
    )


# -- Lambda functions -----------------------------------------------------------------------


def _functions(stack: Stack) -> Iterator[Workload]:
    for function in stack.of_type("AWS::Lambda::Function"):
        where, path = function.where(), ("Environment", "Variables")
        name, variables = function.get("FunctionName"), function.get(*path)
        why = "without ReservedConcurrentExecutions, only the account's quota limits it"
        for source in _of_function(function, "AWS::Lambda::EventSourceMapping"):
            most = source.get("ScalingConfig", "MaximumConcurrency")
            if most is not None:
                # It limits this source, and no other caller.
                why += f" (MaximumConcurrency {most} limits one event source only)"
                break
        concurrency = function.quantity("ReservedConcurrentExecutions", why=why)
        if function.get("CapacityProviderConfig") is not None:
            why = (
                "the capacity provider of a managed instance function decides how many execution "
                "environments it has"
            )
            concurrency = unknown(why, function.where("CapacityProviderConfig"))
        origin = f"{where}: frozen execution environments of the old version keep their connections"
        for alias in _of_function(function, "AWS::Lambda::Alias"):
            if "UpdatePolicy" in alias.definition or alias.get("RoutingConfig") is not None:
                origin += f", gradual deployment by alias {alias.logical_id}"
                break
        yield Workload(
            name=name if isinstance(name, str) else function.logical_id,
            platform="Lambda function",
            unit="execution environment",
            where=where,
            instances=concurrency,
            overlap=Overlap(kind="percent", amount=100, origin=origin),
            variables={
                key: _variable(value, function.origin(*path, key))
                for key, value in (variables.items() if isinstance(variables, dict) else ())
            },
            unread_variables=variables.reason if isinstance(variables, Unknown) else "",
            resource=function.key,
        )


def _of_function(function: Resource, kind: str) -> Iterator[Resource]:
    """Return the resources of a type that name a function."""
    for each in function.stack.of_type(kind):
        if function.stack.referenced(each.get("FunctionName")) is function:
            yield each


# -- other compute --------------------------------------------------------------------------


def _other_compute(stack: Stack) -> Iterator[Workload]:
    """Return what templates do not describe well enough to count, one-off tasks included.

    No template shows how many processes an EC2 instance or a batch job runs, or how many tasks
    of a schedule run at once. If one of them refers to a database, its number is unknown.
    """
    started: set[ResourceKey] = {
        each.resource
        for service in stack.of_type("AWS::ECS::Service")
        for each in references(service.get("TaskDefinition"))
    }
    for starter in stack.of_type(*_TASK_STARTERS):
        for name in dict.fromkeys(each.logical_id for each in references(starter.properties)):
            task = stack.resources.get(name)
            if task is not None and task.type == _TASK:
                started.add(task.key)
                yield _uncounted(starter, _TASK_STARTERS[starter.type], _any_variables(task))
    for resource in stack.of_type(*_OTHER_COMPUTE):
        if resource.key not in started:
            # A task definition that nothing starts is run by hand, outside the deployment.
            variables = {} if resource.type == _TASK else _any_variables(resource)
            yield _uncounted(resource, _OTHER_COMPUTE[resource.type], variables)


def _uncounted(resource: Resource, platform: str, variables: Mapping[str, Variable]) -> Workload:
    name = resource.logical_id
    reason = (
        "the template does not say how many run at once; give "
        f"--service {name}=POOL+OVERFLOWxPROCESSES@INSTANCES, or --ignore {name}"
    )
    return Workload(
        name=name,
        platform=platform,
        unit="one-off task" if resource.type == _TASK else "instance",
        where=resource.where(),
        instances=unknown(reason, resource.where()),
        overlap=Overlap(),
        variables=variables,
        resource=resource.key,
    )


def _any_variables(resource: Resource) -> dict[str, Variable]:
    """Return every value that could be a variable: each type writes them in its own way."""
    origin = str(resource.where())
    leads_to = tuple(each.resource for each in references(resource.properties))
    found = {name: _variable(value, origin) for name, value in _named_values(resource.properties)}
    return {**found, "": Variable(text=None, origin=origin, leads_to=leads_to)}


def _named_values(found: Any) -> Iterator[tuple[str, Any]]:
    """Return names with values: of mappings, and of lists of Name and Value."""
    if isinstance(found, list):
        for each in found:
            yield from _named_values(each)
    elif isinstance(found, dict):
        for key, value in found.items():
            if isinstance(value, (dict, list)):
                yield from _named_values(value)
            elif key in ("Name", "OptionName", "Key") and isinstance(value, str):
                yield value, found.get("Value", found.get("ValueFrom"))
            else:
                yield str(key), value
