"""Stacks as workloads: ECS services, functions, and everything else that may connect.

Sources: Amazon ECS API Reference, DeploymentConfiguration (maximumPercent: of the desired
count, rounded down, 200 by default; a DAEMON service's is 100); Application Auto Scaling API
Reference, RegisterScalableTarget (ResourceId `service/<cluster>/<service>`); AWS Lambda
Developer Guide, "Configuring reserved concurrency" (it holds for all versions of a function
together), "Understanding the execution environment lifecycle" (a frozen execution environment
keeps its connections), "Lambda Managed Instances runtimes" (Python starts a process for each
concurrent request, 16 per vCPU by default; Java and .NET one process), "Scaling behavior for Lambda
Web Functions" (maxEnvironments; maxConcurrencyPerEnvironment, 64 by default).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.evidence import TASK, Graph, never_connects, types
from poolkit.budget.cloudformation.rds import rds_databases, rds_proxies
from poolkit.budget.cloudformation.templates import make_stacks
from poolkit.budget.model import Description, Overlap, Variable, Workload, known, total, unknown
from poolkit.budget.read.values import (
    Joined,
    Unknown,
    as_text,
    get_path,
    identity,
    references,
    why_unknown,
)
from poolkit.budget.signs import uses_database

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.model import Evidence, Quantity, ResourceKey
    from poolkit.budget.read.documents import Document
    from poolkit.budget.read.parameters import Environment, ParameterValue

_SERVICE, _FUNCTION = "AWS::ECS::Service", "AWS::Lambda::Function"
_SAM_WEB = "AWS::Serverless::WebFunction"  # the function, its revision and its endpoint in one
_REVISION, _ENDPOINT = "AWS::Lambda::WebFunctionRevision", "AWS::Lambda::WebFunctionEndpoint"
_ENTRY_POINTS = ("AWS::ElasticLoadBalancingV2::LoadBalancer", "AWS::ServiceDiscovery::Service")
_OF_FUNCTION = (
    "AWS::Lambda::EventSourceMapping",
    "AWS::Lambda::Alias",
    "AWS::Lambda::Version",
)
_PER_VCPU = 16
_PER_WEB_ENVIRONMENT = 64


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
    databases, poolers = list(rds_databases(each_stack)), list(rds_proxies(each_stack))
    graph = Graph(each_stack, databases, poolers)
    workloads = [
        *_ecs_services(each_stack, graph),
        *_functions(each_stack, graph),
        *_web_functions(each_stack, graph),
        *_others(graph),
    ]
    return Description(
        workloads=tuple(workloads),
        poolers=tuple(poolers),
        databases=tuple(databases),
        entry_points=frozenset(
            each.key for stack in each_stack for each in stack.of_type(*_ENTRY_POINTS)
        ),
        aliases=graph.aliases,
        unread=tuple(dict.fromkeys(stacks.unread)),
    )


def _every(stacks: Sequence[Stack], *kinds: str) -> list[Resource]:
    return [each for stack in stacks for each in stack.of_type(*kinds)]


# -- variables ------------------------------------------------------------------------------


def _variable(value: Any, origin: str, graph: Graph, *, is_secret: bool = False) -> Variable:
    leads_to = tuple(sorted(graph.named_in(value)))
    why = "it is in a secret" if is_secret else why_unknown(value)
    if not why:
        return Variable(text=str(as_text(value)), origin=origin, leads_to=leads_to)
    partly = "" if is_secret else _known_part(value)
    return Variable(text=None, origin=origin, leads_to=leads_to, reason=why, partly=partly)


def _variables(resource: Resource, graph: Graph, *path: str) -> dict[str, Any]:
    """Return the fields of a workload whose variables are a mapping."""
    found = resource.get(*path)
    unread = found.reason if isinstance(found, Unknown) else ""
    found = found if isinstance(found, dict) else {}
    unread = next((f"{name} is not evaluated" for name in found if "::" in name), unread)
    return {
        "variables": {
            name: _variable(value, resource.origin(*path, name), graph)
            for name, value in found.items()
        },
        "unread_variables": unread,
    }


def _known_part(value: Any, gap: str = "") -> str:
    """Return the known part: `123.dkr.ecr…/pgbouncer:${Tag}` still shows which image it is."""
    parts = value.parts if isinstance(value, Joined) else (value,)
    return "".join(part if isinstance(part, str) else gap for part in parts)


# -- ECS services ---------------------------------------------------------------------------


def _ecs_services(stacks: Sequence[Stack], graph: Graph) -> Iterator[Workload]:
    """Return every container of every ECS service."""
    families = {identity(each.get("Family")): each for each in _every(stacks, TASK)}
    scaling = _scalable_targets(stacks)
    for service in _every(stacks, _SERVICE):
        name = service.get("ServiceName")
        name = name if isinstance(name, str) else service.logical_id
        parts = graph.parts(service)
        signs = graph.indirect(parts) + graph.direct(graph.mentions(service), service)
        common: dict[str, Any] = {
            "platform": "ECS service",
            "unit": "task",
            "where": service.where(),
            "instances": _tasks(service, scaling),
            "overlap": _ecs_overlap(service),
            "resource": service.key,
        }
        named = service.get("TaskDefinition")
        task = next((each for each in parts if each.type == TASK), families.get(identity(named)))
        containers = task.get("ContainerDefinitions") if task else None
        if task is None or not isinstance(containers, list):
            unread = "its task definition is not in the templates"
            yield Workload(
                name=name, **common, variables={}, unread_variables=unread, evidence=signs
            )
            continue
        found = []
        for number, container in enumerate(containers):
            inner = get_path(container, "Name")
            own = f"{name}/{inner if isinstance(inner, str) else number}"
            common["name"] = own if len(containers) > 1 else name
            if isinstance(container, dict):
                direct = graph.direct(graph.named_in(container), task)
                fields = _container(task, number, container, graph)
                found.append(Workload(**common, **fields, evidence=direct))
            else:
                unread = why_unknown(container) or "its container definition is no mapping"
                found.append(Workload(**common, variables={}, unread_variables=unread))
        # The role and the security group of a task are explained by the container that connects.
        is_explained = any(each.evidence or uses_database(each) for each in found)
        for each in found:
            own_signs = each.evidence + (() if is_explained and not each.evidence else signs)
            yield dataclasses.replace(each, evidence=own_signs)


def _container(
    task: Resource, number: int, container: Mapping[str, Any], graph: Graph
) -> dict[str, Any]:
    """Return the fields of a workload that a container definition has."""
    path = ("ContainerDefinitions", number)
    variables: dict[str, Variable] = {}
    for section, key in (("Environment", "Value"), ("Secrets", "ValueFrom")):
        listed = container.get(section)
        for index, each in enumerate(listed if isinstance(listed, list) else []):
            if isinstance(name := get_path(each, "Name"), str):
                origin = task.origin(*path, section, index, key)
                is_secret = section == "Secrets"
                variables[name] = _variable(get_path(each, key), origin, graph, is_secret=is_secret)
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


def _scalable_targets(stacks: Sequence[Stack]) -> dict[str | ResourceKey, list[Resource]]:
    """Return the ECS targets by each service that their ResourceId names; "": it names none.

    A service is named by a reference to it, or by the last part of service/<cluster>/<service>.
    """
    found: dict[str | ResourceKey, list[Resource]] = {}
    services = {each.key for each in _every(stacks, _SERVICE)}
    for target in _every(stacks, "AWS::ApplicationAutoScaling::ScalableTarget"):
        if target.get("ServiceNamespace") not in ("ecs", None):
            continue
        resource_id = target.get("ResourceId")
        keys = services & {each.resource for each in references(resource_id)}
        name = identity(resource_id).rpartition("/")[2]
        # A name with an unknown part may be a service's, whose own name is not as unknown.
        is_open = "<" in name and not keys
        labels: set[str | ResourceKey] = {*keys, name, "" if is_open else name}
        for label in labels:
            found.setdefault(label, []).append(target)
    return found


def _tasks(service: Resource, scaling: Mapping[str | ResourceKey, list[Resource]]) -> Quantity:
    """Return the most tasks outside a deployment: the autoscaling maximum or the desired count."""
    if service.get("SchedulingStrategy") == "DAEMON":
        return unknown("a DAEMON service has a task on every container instance", service.where())
    desired = service.quantity("DesiredCount", default=1, why="1 task, the default of DesiredCount")
    name = service.get("ServiceName")
    targets = scaling.get(service.key, []) + (scaling.get(identity(name), []) if name else [])
    if not targets and "" in scaling:
        where = scaling[""][0].where("ResourceId")
        reason = f"the service that a scalable target scales is unknown ({where})"
        return unknown(reason, service.where())
    if targets and desired.value is None:
        desired = known(0, "")  # the autoscaling decides
    for target in targets:
        most = target.quantity("MaxCapacity", why="the scalable target has no MaxCapacity")
        if isinstance(target.present, Unknown):
            most = unknown(f"its autoscaling: {target.present.reason}", target.where())
        if most.value is None:
            return most
        desired = max(most, desired, key=lambda each: each.value or 0)
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


# -- functions ------------------------------------------------------------------------------


def _functions(stacks: Sequence[Stack], graph: Graph) -> Iterator[Workload]:
    related: dict[tuple[ResourceKey, str], list[Resource]] = {}
    for each in _every(stacks, *_OF_FUNCTION):
        for reference in references(each.get("FunctionName")):
            related.setdefault((reference.resource, each.type), []).append(each)
    for function in _every(stacks, _FUNCTION):
        why = "without ReservedConcurrentExecutions, only the account's quota limits it"
        sources, aliases, versions = (related.get((function.key, k), []) for k in _OF_FUNCTION)
        for source in sources:
            if isinstance(most := source.get("ScalingConfig", "MaximumConcurrency"), int | str):
                # It limits this source, and no other caller.
                why += f" (MaximumConcurrency {most} limits one event source only)"
        concurrency = function.quantity("ReservedConcurrentExecutions", why=why)
        processes = None
        if function.get("CapacityProviderConfig") is not None:
            concurrency, processes = _managed(function, versions)
        notes = ""
        if function.get("DurableConfig") is not None:
            notes += "; a suspended durable execution has no execution environment"
        if function.get("TenancyConfig") is not None:
            notes += "; each tenant has execution environments of its own, within this number"
        field = "reason" if concurrency.value is None else "origin"
        text = getattr(concurrency, field) + notes
        concurrency = dataclasses.replace(concurrency, **{field: text})
        origin = f"{function.where()}: frozen execution environments of the old version keep their connections"
        for alias in aliases:
            if "UpdatePolicy" in alias.definition or alias.get("RoutingConfig"):
                origin += f", gradual deployment by alias {alias.logical_id}"
        name = function.get("FunctionName")
        yield Workload(
            name=name if isinstance(name, str) else function.logical_id,
            platform="Lambda function",
            unit="execution environment",
            where=function.where(),
            instances=concurrency,
            overlap=Overlap(kind="percent", amount=100, origin=origin),
            **_variables(function, graph, "Environment", "Variables"),
            processes=processes,
            resource=function.key,
            evidence=_signs(function, graph),
        )


def _signs(resource: Resource, graph: Graph) -> tuple[Evidence, ...]:
    parts = graph.parts(resource)
    keys = {key for each in parts for key in graph.mentions(each)}
    return graph.direct(keys, resource) + graph.indirect(parts)


def _managed(function: Resource, versions: Sequence[Resource]) -> tuple[Quantity, Quantity]:
    """Return the execution environments of a managed instance function, and processes in each."""
    where = function.where("CapacityProviderConfig")
    why = (
        "the capacity provider of a managed instance function decides how many execution "
        "environments it has; FunctionScalingConfig.MaxExecutionEnvironments limits them"
    )
    limit = ("FunctionScalingConfig", "MaxExecutionEnvironments")
    most = function.quantity(*limit, why=why)
    published = [each.quantity(*limit) for each in versions if each.get(*limit) is not None]
    if published and most.reason == why:
        origin = " + ".join(each.origin for each in published)
        summed = total(*(each.value for each in published))
        most = published[0] if summed is None else known(summed, origin, where)
    path: tuple[str, ...] = (
        "CapacityProviderConfig",
        "LambdaManagedInstancesCapacityProviderConfig",
    )
    path = path if function.get(*path) is not None else path[:1]  # SAM has no second level
    each = function.quantity(*path, "PerExecutionEnvironmentMaxConcurrency", why="default")
    runtime = str(function.get("Runtime") or "")
    if runtime.startswith(("java", "dotnet")):
        return most, known(1, f"{runtime} runs one process in an execution environment", where)
    if not runtime.startswith("python"):
        return most, unknown(f"the processes of runtime {runtime or '?'} are not documented", where)
    memory = function.get("MemorySize"), function.get(*path, "ExecutionEnvironmentMemoryGiBPerVCpu")
    if each.reason == "default" and not any(map(why_unknown, memory)) and None not in memory:
        vcpus = max(1, -(-int(memory[0]) // int(1024 * float(memory[1]))))
        each = known(_PER_VCPU * vcpus, f"{where}: {_PER_VCPU} for each of {vcpus} vCPU", where)
    elif each.value is None:
        each = unknown(f"PerExecutionEnvironmentMaxConcurrency: {each.reason}, 16 per vCPU", where)
    return most, each


def _web_functions(stacks: Sequence[Stack], graph: Graph) -> Iterator[Workload]:
    """Return every revision of every web function, with the environments of its endpoints."""
    names: dict[str, str] = {}
    for each in _every(stacks, "AWS::Lambda::WebFunction", _SAM_WEB):
        name = each.get("FunctionName")
        label = name if isinstance(name, str) else each.logical_id
        names |= {identity(name): label, str(each.key): label}

    def owner(resource: Resource) -> str:
        """Return the name of the web function that an endpoint or a revision belongs to."""
        named = resource.get("FunctionName")
        key = next((str(each.resource) for each in references(named)), identity(named))
        key = str(resource.key) if resource.type == _SAM_WEB else key
        return names.get(key, key)

    endpoints = [(owner(each), each) for each in _every(stacks, _ENDPOINT, _SAM_WEB)]
    revisions = [(owner(each), each) for each in _every(stacks, _REVISION, _SAM_WEB)]
    for name, revision in revisions:
        service = () if revision.type == _SAM_WEB else ("ServiceConfig",)
        where, why = revision.where(), "only the account's vCPU quota limits an endpoint"
        path = ("ScalingConfig", "MaxEnvironments")
        most = [
            endpoint.quantity(*path, why=f"without MaxEnvironments, {why}")
            for own, endpoint in endpoints
            if own == name
            # Each region has as many.
            for _ in endpoint.get("Regions") or ("home",)
        ]
        if any(own == name and each.get("ReplicaRegions") for own, each in endpoints):
            most.append(unknown("SAM's ReplicaRegions may name any number of regions", where))
        per = revision.quantity(
            *service,
            "MaxConcurrencyPerEnvironment",
            default=_PER_WEB_ENVIRONMENT,
            why=f"{_PER_WEB_ENVIRONMENT}, the default of MaxConcurrencyPerEnvironment",
        )
        summed = total(*(each.value for each in most))
        origin = " + ".join(each.origin for each in most)
        instances = known(summed or 0, f"{origin}; each has at most {per} requests at once", where)
        if summed is None or not most:
            open_ones = [each for each in most if each.value is None]
            nothing = unknown("no endpoint of the web function is in the templates", where)
            instances = open_ones[0] if open_ones else nothing
        # An old revision that is in the template is counted by itself.
        is_alone = sum(own == name for own, _ in revisions) == 1
        origin = f"{where}: the environments of the old revision end after the new ones begin"
        yield Workload(
            name=name,
            platform="Lambda web function",
            unit="execution environment",
            where=where,
            instances=instances,
            overlap=Overlap(kind="percent", amount=100 * is_alone, origin=origin),
            **_variables(revision, graph, *service, "EnvironmentVariables"),
            requests=per,
            resource=revision.key,
            evidence=_signs(revision, graph),
        )


# -- everything else ------------------------------------------------------------------------


def _others(graph: Graph) -> Iterator[Workload]:
    """Return what templates do not describe well enough to count, of any type.

    No template shows how many processes an EC2 instance or a batch job runs, or how many tasks
    of a schedule run at once. If one of them refers to a database, its number is unknown.
    """
    started: set[ResourceKey] = set()
    held_back: list[Resource] = []
    for resource in graph.resources.values():
        kind = resource.type
        if never_connects(kind) or kind in types()["transparent"]:
            continue
        if kind in types()["parts"]:
            held_back.append(resource)
            continue
        parts = graph.parts(resource)
        started |= {each.key for each in parts[1:]}
        tasks = [each for each in parts[1:] if each.type == TASK]
        if kind in (_FUNCTION, _REVISION, _SAM_WEB):
            # A function that has the name of a task definition starts any number of its tasks.
            for task in tasks:
                yield _uncounted(
                    task,
                    f"{resource.logical_id}/{task.logical_id}",
                    graph,
                    [task],
                    _signs(task, graph),
                )
        elif kind != _SERVICE:
            signs = _signs(resource, graph)
            if signs or tasks or kind in types()["compute"]:
                yield _uncounted(resource, resource.logical_id, graph, parts, signs)
    for part in held_back:
        if part.key not in started and part.type in types()["compute"]:
            # A task definition that nothing starts is run by hand, outside the deployment.
            is_task = part.type == TASK
            own = [] if is_task else graph.parts(part)
            signs = () if is_task else _signs(part, graph)
            yield _uncounted(part, part.logical_id, graph, own, signs)


def _uncounted(
    resource: Resource,
    name: str,
    graph: Graph,
    parts: Sequence[Resource],
    signs: tuple[Evidence, ...] = (),
) -> Workload:
    reason = "the template does not say how many run at once"
    variables = {
        key: _variable(value, str(each.where()), graph)
        for each in parts
        for key, value in _named_values(each.properties)
    }
    return Workload(
        name=name,
        platform=types()["compute"].get(resource.type, resource.type),
        unit="one-off task" if resource.type == TASK and not parts else "instance",
        where=resource.where(),
        instances=unknown(reason, resource.where()),
        overlap=Overlap(),
        variables=variables,
        resource=resource.key,
        evidence=signs,
    )


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
