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
from poolkit.budget.model import Description, Overlap, Variable, Workload, known, unknown
from poolkit.budget.read.values import (
    Joined,
    Unknown,
    as_text,
    get_path,
    identity,
    references,
    why_unknown,
)
from poolkit.budget.signs import is_about_database, uses_database

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.model import Evidence, Quantity, ResourceKey, SourceLocation
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
_NOTES = {
    "DurableConfig": "a suspended durable execution has no execution environment",
    "TenancyConfig": "each tenant has execution environments of its own, within this number",
}
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
        workloads=tuple(_if_present(each, graph) for each in workloads),
        poolers=tuple(poolers),
        databases=tuple(databases),
        entry_points=frozenset(
            each.key for stack in each_stack for each in stack.of_type(*_ENTRY_POINTS)
        ),
        aliases=graph.aliases,
        unread=tuple(dict.fromkeys(stacks.unread)),
    )


def _if_present(workload: Workload, graph: Graph) -> Workload:
    """Return a workload whose number is unknown if it is unknown whether it is deployed."""
    present = graph.resources[workload.resource].present if workload.resource else True
    if not isinstance(present, Unknown):
        return workload
    reason = f"it is unknown whether it is deployed: {present.reason}"
    return dataclasses.replace(workload, instances=unknown(reason, workload.where))


def _every(stacks: Sequence[Stack], *kinds: str) -> list[Resource]:
    return [each for stack in stacks for each in stack.of_type(*kinds)]


def _name(resource: Resource, label: str) -> str:
    """Return a resource's name in AWS if it is known, else its name in the template."""
    name = resource.get(label)
    return name if isinstance(name, str) else resource.logical_id


def _sum(parts: Sequence[Quantity], where: SourceLocation | None) -> Quantity:
    """Return the sum of numbers; the first unknown one if there is any."""
    origin = " + ".join(each.origin for each in parts)
    unclear = [each for each in parts if each.value is None]
    return unclear[0] if unclear else known(sum(each.value or 0 for each in parts), origin, where)


def _signs(resource: Resource, graph: Graph) -> tuple[Evidence, ...]:
    """Return every sign that a resource connects, those of its parts too."""
    parts = graph.parts(resource)
    keys = {key for each in parts for key in graph.mentions(each)}
    return graph.direct(keys, resource) + graph.indirect(parts)


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
        "variables": _about_servers(
            {
                name: _variable(value, resource.origin(*path, name), graph)
                for name, value in found.items()
            },
            graph,
        ),
        "unread_variables": unread,
    }


def _about_servers(variables: Mapping[str, Variable], graph: Graph) -> dict[str, Variable]:
    """Return the variables without those such as DATABASE_TABLE that lead to another store."""
    return {
        name: found
        for name, found in variables.items()
        if not (graph.is_other_store(found.leads_to) and is_about_database(name, found))
    }


def _known_part(value: Any, gap: str = "") -> str:
    """Return the known part: `123.dkr.ecr…/pgbouncer:${Tag}` still shows which image it is."""
    parts = value.parts if isinstance(value, Joined) else (value,)
    return "".join(part if isinstance(part, str) else gap for part in parts)


# -- ECS services ---------------------------------------------------------------------------


def _ecs_services(stacks: Sequence[Stack], graph: Graph) -> Iterator[Workload]:
    """Return every container of every ECS service."""
    families = {identity(f): each for each in _every(stacks, TASK) if (f := each.get("Family"))}
    scaling = _scalable_targets(stacks)
    for service in _every(stacks, _SERVICE):
        name, parts = _name(service, "ServiceName"), graph.parts(service)
        named = identity(service.get("TaskDefinition"))
        task = next((each for each in parts if each.type == TASK), families.get(named, service))
        containers = task.get("ContainerDefinitions")
        if not isinstance(containers, list):
            why = why_unknown(containers) or "its task definition is not in the templates"
            containers = [Unknown(why)]
        found = []
        for number, container in enumerate(containers):
            inner = get_path(container, "Name")
            own = f"{name}/{inner if isinstance(inner, str) else number}"
            workload = Workload(
                name=own if len(containers) > 1 else name,
                platform="ECS service",
                unit="task",
                where=service.where(),
                instances=_tasks(service, scaling),
                overlap=_ecs_overlap(service),
                variables={},
                unread_variables=why_unknown(container),
                resource=service.key,
            )
            if isinstance(container, dict):
                fields = _container(task, number, container, graph)
                fields["evidence"] = graph.direct(graph.named_in(container), task)
                workload = dataclasses.replace(workload, **fields)
            found.append(workload)
        # The role and the security group of a task are explained by the container that connects.
        is_explained = any(each.evidence or uses_database(each) for each in found)
        signs = graph.direct(graph.mentions(service), service) + graph.indirect(parts)
        for each in found:
            more = () if is_explained and not each.evidence else signs
            yield dataclasses.replace(each, evidence=each.evidence + more)


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
    lists = [container.get(key) for key in ("EntryPoint", "Command")]
    words = [each for listed in lists if isinstance(listed, list) for each in listed]
    environment = container.get("Environment")
    # A variable that may or may not be set could hold any of the numbers.
    unclear = [environment, *(environment if isinstance(environment, list) else [])]
    unread = next((each.reason for each in unclear if isinstance(each, Unknown)), "")
    if container.get("EnvironmentFiles"):
        unread = f"its environment files ({task.where(*path, 'EnvironmentFiles')})"
    return {
        "variables": _about_servers(variables, graph),
        "image": _known_part(container.get("Image")),
        "command": tuple(_known_part(as_text(each), "?") for each in words) or None,
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
        if isinstance(target.present, Unknown):
            return unknown(f"its autoscaling: {target.present.reason}", target.where())
        actions = target.get("ScheduledActions")
        # A scheduled action may raise the maximum.
        paths = [
            ("ScheduledActions", number, "ScalableTargetAction", "MaxCapacity")
            for number in range(len(actions) if isinstance(actions, list) else 0)
        ]
        numbers = [target.quantity("MaxCapacity", why="the scalable target has no MaxCapacity")]
        numbers += [target.quantity(*path) for path in paths if target.get(*path) is not None]
        for most in numbers:
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
        sources, aliases, versions = (related.get((function.key, k), []) for k in _OF_FUNCTION)
        concurrency, processes = _reserved(function, sources), None
        if function.get("CapacityProviderConfig") is not None:
            concurrency, processes = _managed(function, versions)
        notes = [note for name, note in _NOTES.items() if function.get(name) is not None]
        field = "reason" if concurrency.value is None else "origin"
        text: dict[str, Any] = {field: "; ".join([getattr(concurrency, field), *notes])}
        kept = "frozen execution environments of the old version keep their connections"
        origin = f"{function.where()}: {kept}"
        for alias in aliases:
            if "UpdatePolicy" in alias.definition or alias.get("RoutingConfig"):
                origin += f", gradual deployment by alias {alias.logical_id}"
        yield Workload(
            name=_name(function, "FunctionName"),
            platform="Lambda function",
            unit="execution environment",
            where=function.where(),
            instances=dataclasses.replace(concurrency, **text),
            overlap=Overlap(kind="percent", amount=100, origin=origin),
            **_variables(function, graph, "Environment", "Variables"),
            processes=processes,
            resource=function.key,
            evidence=_signs(function, graph),
        )


def _reserved(function: Resource, sources: Sequence[Resource]) -> Quantity:
    why = "without ReservedConcurrentExecutions, only the account's quota limits it"
    for source in sources:
        if isinstance(most := source.get("ScalingConfig", "MaximumConcurrency"), int | str):
            # It limits this source, and no other caller.
            why += f" (MaximumConcurrency {most} limits one event source only)"
    return function.quantity("ReservedConcurrentExecutions", why=why)


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
        most = _sum(published, where)
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
        label = _name(each, "FunctionName")
        names |= {identity(each.get("FunctionName")): label, str(each.key): label}

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
        if not most:
            most.append(unknown("no endpoint of the web function is in the templates", where))
        instances = _sum(most, where)
        bound = f"{instances.origin}; each has at most {per} requests at once"
        # An old revision that is in the template is counted by itself.
        is_alone = sum(own == name for own, _ in revisions) == 1
        origin = f"{where}: the environments of the old revision end after the new ones begin"
        yield Workload(
            name=name,
            platform="Lambda web function",
            unit="execution environment",
            where=where,
            instances=dataclasses.replace(instances, origin=bound),
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
    connecting = [each for each in graph.resources.values() if not never_connects(each.type)]
    for resource in connecting:
        kind = resource.type
        if kind in types()["parts"] or resource.key in graph.only_calls:
            continue
        parts = graph.parts(resource)[1:]
        started |= {each.key for each in parts}
        tasks = [each for each in parts if each.type == TASK]
        if kind in (_FUNCTION, _REVISION, _SAM_WEB):
            # A function that has the name of a task definition starts any number of its tasks.
            for task in tasks:
                yield _uncounted(task, graph, f"{resource.logical_id}/{task.logical_id}")
        elif kind != _SERVICE:
            workload = _uncounted(resource, graph, resource.logical_id)
            if workload.evidence or tasks or kind in types()["compute"]:
                yield workload
    for part in (each for each in connecting if each.type in types()["parts"]):
        if part.key not in started and part.type in types()["compute"]:
            workload = _uncounted(part, graph, part.logical_id)
            if part.type == TASK and not graph.may_be_run(part):
                # What nothing starts is run by hand, outside the deployment.
                workload = dataclasses.replace(
                    workload, unit="one-off task", variables={}, evidence=()
                )
            yield workload


def _uncounted(resource: Resource, graph: Graph, name: str) -> Workload:
    variables = {
        key: _variable(value, str(each.where()), graph)
        for each in graph.parts(resource)
        for key, value in _named_values(each.properties)
    }
    return Workload(
        name=name,
        platform=types()["compute"].get(resource.type, resource.type),
        unit="instance",
        where=resource.where(),
        instances=unknown("the template does not say how many run at once", resource.where()),
        overlap=Overlap(),
        variables=variables,
        resource=resource.key,
        evidence=_signs(resource, graph),
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
