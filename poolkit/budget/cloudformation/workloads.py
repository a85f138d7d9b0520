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
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.evidence import TASK, Graph, never_connects, types
from poolkit.budget.cloudformation.rds import rds_databases, rds_proxies
from poolkit.budget.cloudformation.templates import make_stacks
from poolkit.budget.model import Description, Overlap, Variable, Workload, known, unknown
from poolkit.budget.read.values import (
    Joined,
    Reference,
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
    from poolkit.budget.model import Quantity, ResourceKey, SourceLocation
    from poolkit.budget.read.documents import Document
    from poolkit.budget.read.parameters import Environment, ParameterValue

_SERVICE, _FUNCTION = "AWS::ECS::Service", "AWS::Lambda::Function"
_SAM_WEB = "AWS::Serverless::WebFunction"  # the function, its revision and its endpoint in one
_REVISION, _ENDPOINT = "AWS::Lambda::WebFunctionRevision", "AWS::Lambda::WebFunctionEndpoint"
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
    workloads = (
        *_ecs_services(each_stack, graph),
        *_functions(each_stack, graph),
        *_web_functions(each_stack, graph),
        *_others(graph),
    )
    entry_points = _every(each_stack, *types()["entry_points"])
    return Description(
        workloads=workloads,
        poolers=tuple(poolers),
        databases=tuple(databases),
        entry_points=frozenset(each.key for each in entry_points),
        aliases=graph.aliases,
        unread=tuple(dict.fromkeys(stacks.unread)),
    )


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


def _workload(
    resource: Resource, graph: Graph, path: tuple[str, ...] = (), **fields: Any
) -> Workload:
    """Return a workload with the variables at a path, and with all signs of its resource.

    Its number is unknown if it is unknown whether it is deployed.
    """
    where, made = resource.where(), {"overlap": Overlap(), **fields}
    if path:
        made["variables"], made["unread_variables"] = _variables(resource, graph, *path)
    if isinstance(resource.present, Unknown):
        reason = f"it is unknown whether it is deployed: {resource.present.reason}"
        made["instances"] = unknown(reason, where)
    if "evidence" not in made:
        parts = graph.parts(resource)
        keys = {key for each in parts for key in graph.mentions(each)}
        made["evidence"] = graph.direct(keys, resource) + graph.indirect(parts)
    return Workload(where=where, resource=resource.key, **made)


# -- variables ------------------------------------------------------------------------------


def _variable(value: Any, origin: str, graph: Graph, *, is_secret: bool = False) -> Variable:
    leads_to = tuple(sorted(graph.named_in(value)))
    why = "it is in a secret" if is_secret else why_unknown(value)
    if not why:
        return Variable(text=str(as_text(value)), origin=origin, leads_to=leads_to)
    partly = "" if is_secret else _known_part(value)
    return Variable(text=None, origin=origin, leads_to=leads_to, reason=why, partly=partly)


def _variables(
    resource: Resource, graph: Graph, *path: str | int
) -> tuple[dict[str, Variable], str]:
    """Return the variables of a mapping or a list, and why others could not be read.

    The items of a list have a Name, and a Value or the ValueFrom of a secret.
    """
    found = resource.get(*path)
    items = found if isinstance(found, list) else []
    pairs = found.items() if isinstance(found, dict) else ()
    entries: list[tuple[Any, ...]] = [(name, "", name, value) for name, value in pairs]
    for number, each in enumerate(items):
        key = "ValueFrom" if get_path(each, "ValueFrom") else "Value"
        entries.append((number, key, get_path(each, "Name"), get_path(each, key)))
    variables: dict[str, Variable] = {}
    for step, key, name, value in entries:
        if isinstance(name, str):
            origin = resource.origin(*path, step, *([key] if key else []))
            made = _variable(value, origin, graph, is_secret=key == "ValueFrom")
            # A variable such as DATABASE_TABLE may lead to another store.
            if not (graph.is_other_store(made.leads_to) and is_about_database(name, made)):
                variables[name] = made
    # A variable that may or may not be set could hold any of the numbers.
    unread = [each.reason for each in (found, *items) if isinstance(each, Unknown)]
    unread += [f"{name} is not evaluated" for name in variables if "::" in name]
    return variables, next(iter(unread), "")


def _known_part(value: Any, gap: str = "") -> str:
    """Return the known part: `123.dkr.ecr…/pgbouncer:${Tag}` still shows which image it is."""
    parts = value.parts if isinstance(value, Joined) else (value,)
    return "".join(part if isinstance(part, str) else gap for part in parts)


# -- ECS services ---------------------------------------------------------------------------


def _ecs_services(stacks: Sequence[Stack], graph: Graph) -> Iterator[Workload]:
    """Return every container of every ECS service."""
    families = {identity(f): each for each in _every(stacks, TASK) if (f := each.get("Family"))}
    scaling = _scaling(stacks)
    for service in _every(stacks, _SERVICE):
        name, parts = _name(service, "ServiceName"), graph.parts(service)
        named = identity(service.get("TaskDefinition"))
        task = next((each for each in parts if each.type == TASK), families.get(named, service))
        containers = task.get("ContainerDefinitions")
        if not isinstance(containers, list):
            why = why_unknown(containers) or "its task definition is not in the templates"
            containers = [Unknown(why)]
        tasks, overlap, found = _tasks(service, scaling), _ecs_overlap(service), list[Workload]()
        for number, container in enumerate(containers):
            inner = get_path(container, "Name")
            own = f"{name}/{inner if isinstance(inner, str) else number}"
            fields = _container(task, number, container, graph)
            fields |= {"name": own if len(containers) > 1 else name, "instances": tasks}
            fields |= {"platform": "ECS service", "unit": "task", "overlap": overlap}
            found.append(_workload(service, graph, **fields))
        # The role and the security group of a task are explained by the container that connects.
        is_explained = any(each.evidence or uses_database(each) for each in found)
        signs = graph.direct(graph.mentions(service), service) + graph.indirect(parts)
        for each in found:
            more = () if is_explained and not each.evidence else signs
            yield dataclasses.replace(each, evidence=each.evidence + more)


def _container(task: Resource, number: int, container: Any, graph: Graph) -> dict[str, Any]:
    """Return the fields of a workload that a container definition has."""
    path = ("ContainerDefinitions", number)
    variables, unread = _variables(task, graph, *path, "Environment")
    secrets, _ = _variables(task, graph, *path, "Secrets")
    if isinstance(container, Unknown):
        unread = container.reason
    elif get_path(container, "EnvironmentFiles"):
        unread = f"its environment files ({task.where(*path, 'EnvironmentFiles')})"
    lists = [get_path(container, key) for key in ("EntryPoint", "Command")]
    words = [each for listed in lists if isinstance(listed, list) for each in listed]
    return {
        "variables": variables | secrets,
        "unread_variables": unread,
        "image": _known_part(get_path(container, "Image")),
        "command": tuple(_known_part(as_text(each), "?") for each in words) or None,
        "command_origin": str(task.where(*path, "Command")),
        "evidence": graph.direct(graph.named_in(container), task),
    }


def _scaling(stacks: Sequence[Stack]) -> dict[str | ResourceKey, list[Quantity]]:
    """Return the maxima of autoscaling by each service that it scales; "": it is unknown which.

    A service is named by a reference to it, or by the last part of service/<cluster>/<service>.
    """
    found: dict[str | ResourceKey, list[Quantity]] = defaultdict(list)
    services = {each.key for each in _every(stacks, _SERVICE)}
    for target in _every(stacks, "AWS::ApplicationAutoScaling::ScalableTarget"):
        if target.get("ServiceNamespace") not in ("ecs", None):
            continue
        numbers = [target.quantity("MaxCapacity", why="the scalable target has no MaxCapacity")]
        # A scheduled action may raise the maximum.
        actions = target.get("ScheduledActions")
        for number in range(len(actions) if isinstance(actions, list) else 0):
            path = ("ScheduledActions", number, "ScalableTargetAction", "MaxCapacity")
            numbers += [target.quantity(*path)] if target.get(*path) is not None else []
        if isinstance(target.present, Unknown):
            numbers = [unknown(f"its autoscaling: {target.present.reason}", target.where())]
        resource_id = target.get("ResourceId")
        keys = services & {each.resource for each in references(resource_id)}
        name = identity(resource_id).rpartition("/")[2]
        labels: set[str | ResourceKey] = {*keys, name}
        if "<" in name and not keys:
            # A service's own name need not be unknown in the same way.
            labels.add("")
        for label in labels:
            found[label] += numbers
    return found


def _tasks(service: Resource, scaling: Mapping[str | ResourceKey, list[Quantity]]) -> Quantity:
    """Return the most tasks outside a deployment: the autoscaling maximum or the desired count."""
    where = service.where()
    if service.get("SchedulingStrategy") == "DAEMON":
        return unknown("a DAEMON service has a task on every container instance", where)
    desired = service.quantity("DesiredCount", default=1, why="1 task, the default of DesiredCount")
    name = service.get("ServiceName")
    most = scaling.get(service.key, []) + (scaling.get(identity(name), []) if name else [])
    if not most and "" in scaling:
        return unknown("it is unknown which service a scalable target scales", where)
    # Where it scales, the autoscaling decides about a desired count that is unknown.
    numbers = [*most, desired] if desired.value is not None or not most else most
    unclear = [each for each in numbers if each.value is None]
    return unclear[0] if unclear else max(numbers, key=lambda each: each.value or 0)


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
    origin = f"{most.origin} (maximumPercent {most.value})"
    return Overlap(kind="percent", amount=max(0, most.value - 100), origin=origin)


# -- functions ------------------------------------------------------------------------------


def _functions(stacks: Sequence[Stack], graph: Graph) -> Iterator[Workload]:
    versions: dict[ResourceKey, list[Resource]] = defaultdict(list)
    for each in _every(stacks, "AWS::Lambda::Version"):
        for reference in references(each.get("FunctionName")):
            versions[reference.resource].append(each)
    why = "without ReservedConcurrentExecutions, only the account's quota limits it"
    kept = "frozen execution environments of the old version keep their connections"
    for function in _every(stacks, _FUNCTION):
        number, processes = function.quantity("ReservedConcurrentExecutions", why=why), None
        if function.get("CapacityProviderConfig") is not None:
            number, processes = _managed(function, versions[function.key])
        notes = [note for name, note in types()["notes"].items() if function.get(name) is not None]
        number = dataclasses.replace(number, origin="; ".join([number.origin, *notes]))
        yield _workload(
            function,
            graph,
            ("Environment", "Variables"),
            name=_name(function, "FunctionName"),
            platform="Lambda function",
            unit="execution environment",
            instances=number,
            overlap=Overlap(kind="percent", amount=100, origin=f"{function.where()}: {kept}"),
            processes=processes,
        )


def _managed(function: Resource, versions: Sequence[Resource]) -> tuple[Quantity, Quantity]:
    """Return the execution environments of a managed instance function, and processes in each."""
    where = function.where("CapacityProviderConfig")
    why = "without MaxExecutionEnvironments, only the capacity provider limits it"
    limit = ("FunctionScalingConfig", "MaxExecutionEnvironments")
    published = [each.quantity(*limit) for each in versions if each.get(*limit) is not None]
    is_set = function.get(*limit) is not None or not published
    most = function.quantity(*limit, why=why) if is_set else _sum(published, where)
    path = ["CapacityProviderConfig", "LambdaManagedInstancesCapacityProviderConfig"]
    path = path if function.get(*path) is not None else path[:1]  # SAM has no second level
    runtime = str(function.get("Runtime") or "?")
    if runtime.startswith(("java", "dotnet")):
        return most, known(1, f"{runtime} runs one process in an execution environment", where)
    if not runtime.startswith("python"):
        return most, unknown(f"the processes of runtime {runtime} are not documented", where)
    setting = (*path, "PerExecutionEnvironmentMaxConcurrency")
    if function.get(*setting) is not None:
        return most, function.quantity(*setting)
    gib = function.get(*path, "ExecutionEnvironmentMemoryGiBPerVCpu")
    try:
        vcpus = max(1, math.ceil(int(function.get("MemorySize")) / 1024 / float(gib)))
    except (ArithmeticError, TypeError, ValueError):
        return most, unknown(f"{setting[-1]} is not set; it is {_PER_VCPU} per vCPU", where)
    return most, known(_PER_VCPU * vcpus, f"{where}: {_PER_VCPU} for each of {vcpus} vCPU", where)


def _web_functions(stacks: Sequence[Stack], graph: Graph) -> Iterator[Workload]:
    """Return every revision of every web function, with the environments of its endpoints."""
    names: dict[str, str] = {}
    for each in _every(stacks, "AWS::Lambda::WebFunction", _SAM_WEB):
        label = _name(each, "FunctionName")
        names |= {identity(each.get("FunctionName")): label, str(each.key): label}

    def owner(resource: Resource) -> str:
        """Return the name of the web function that an endpoint or a revision belongs to."""
        named = resource.get("FunctionName")
        named = Reference(*resource.key) if resource.type == _SAM_WEB else named
        key = next((str(each.resource) for each in references(named)), identity(named))
        return names.get(key, key)

    endpoints = [(owner(each), each) for each in _every(stacks, _ENDPOINT, _SAM_WEB)]
    revisions = [(owner(each), each) for each in _every(stacks, _REVISION, _SAM_WEB)]
    for name, revision in revisions:
        service = () if revision.type == _SAM_WEB else ("ServiceConfig",)
        where, why = revision.where(), "without MaxEnvironments, only the account's quota limits it"
        most = [
            endpoint.quantity("ScalingConfig", "MaxEnvironments", why=why)
            for own, endpoint in endpoints
            if own == name
            # Each region has as many.
            for _ in endpoint.get("Regions") or ("home",)
        ]
        if any(own == name and each.get("ReplicaRegions") for own, each in endpoints):
            most.append(unknown("SAM's ReplicaRegions may name any number of regions", where))
        if not most:
            most.append(unknown("no endpoint of the web function is in the templates", where))
        setting = (*service, "MaxConcurrencyPerEnvironment")
        why = f"{_PER_WEB_ENVIRONMENT}, the default of {setting[-1]}"
        per = revision.quantity(*setting, default=_PER_WEB_ENVIRONMENT, why=why)
        number = _sum(most, where)
        bound = f"{number.origin}; each has at most {per} requests at once"
        # An old revision that is in the template is counted by itself.
        is_alone = sum(own == name for own, _ in revisions) == 1
        origin = f"{where}: the environments of the old revision end after the new ones begin"
        yield _workload(
            revision,
            graph,
            (*service, "EnvironmentVariables"),
            name=name,
            platform="Lambda web function",
            unit="execution environment",
            instances=dataclasses.replace(number, origin=bound),
            overlap=Overlap(kind="percent", amount=100 * is_alone, origin=origin),
            requests=per,
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
    why = "the template does not say how many run at once"
    return _workload(
        resource,
        graph,
        name=name,
        platform=types()["compute"].get(resource.type, resource.type),
        unit="instance",
        instances=unknown(why, resource.where()),
        variables=variables,
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
