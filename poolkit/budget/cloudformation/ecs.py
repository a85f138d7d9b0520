"""Amazon ECS services: tasks at the autoscaling maximum, and old and new ones in a deployment.

Sources: Amazon ECS API Reference, DeploymentConfiguration (maximumPercent: of the desired
count, rounded down, 200 by default; a DAEMON service's is 100); Application Auto Scaling API
Reference, RegisterScalableTarget (ResourceId `service/<cluster>/<service>`).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.stacks import get_path
from poolkit.budget.model import Overlap, Variable, Workload
from poolkit.budget.quantity import unknown
from poolkit.budget.read.values import Joined, Reference, Unknown, as_text, references, why_unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.quantity import Quantity

_SCALABLE = "AWS::ApplicationAutoScaling::ScalableTarget"


def ecs_workloads(stack: Stack) -> Iterator[Workload]:
    """Give every container of every ECS service of a stack.

    Raises:
        TemplateError: a number is negative or none.
    """
    for service in stack.of_type("AWS::ECS::Service"):
        task = _task_definition(service)
        instances, overlap = _tasks(service), _overlap(service)
        containers = task.get("ContainerDefinitions") if task else None
        if task is None or not isinstance(containers, list):
            yield _opaque(service, instances, overlap)
            continue
        for number, container in enumerate(containers):
            name = _name(service)
            if len(containers) > 1:
                name = f"{name}/{get_path(container, 'Name') or number}"
            if not isinstance(container, dict):
                opaque = _opaque(service, instances, overlap)
                yield dataclasses.replace(
                    opaque, name=name, unread_variables=why_unknown(container)
                )
                continue
            yield _container(service, task, number, name=name, instances=instances, overlap=overlap)


def _name(service: Resource) -> str:
    name = service.get("ServiceName")
    return name if isinstance(name, str) else service.logical_id


def _task_definition(service: Resource) -> Resource | None:
    found = service.get("TaskDefinition")
    if not isinstance(found, Reference):
        return None
    task = service.stack.resources.get(found.logical_id)
    return task if found.stack == service.stack.name else None


def _opaque(service: Resource, instances: Quantity, overlap: Overlap) -> Workload:
    """A service whose containers are described elsewhere."""
    return Workload(
        name=_name(service),
        platform="ECS service",
        where=service.where(),
        instances=instances,
        overlap=overlap,
        variables={},
        unread_variables="its task definition is not in the templates",
        resource=service.key,
    )


def _container(
    service: Resource,
    task: Resource,
    number: int,
    *,
    name: str,
    instances: Quantity,
    overlap: Overlap,
) -> Workload:
    steps = ("ContainerDefinitions", number)
    command = _command(task, number)
    image = task.get(*steps, "Image")
    return Workload(
        name=name,
        platform="ECS service",
        where=service.where(),
        instances=instances,
        overlap=overlap,
        variables=_variables(task, number),
        image=image if isinstance(image, str) else _shown(image),
        command=command,
        command_origin=str(task.where(*steps, "Command")),
        unread_variables=_unread(task, number),
        resource=service.key,
    )


def _shown(value: Any, gap: str = "") -> str:
    """Return as much of a text as is known: `123.dkr.ecr…/pgbouncer:${Tag}` still says what it is."""
    parts = value.parts if isinstance(value, Joined) else (value,)
    return "".join(part if isinstance(part, str) else gap for part in parts)


def _command(task: Resource, number: int) -> tuple[str, ...] | None:
    words: list[str] = []
    for name in ("EntryPoint", "Command"):
        found = task.get("ContainerDefinitions", number, name)
        if isinstance(found, list):
            texts = (as_text(each) for each in found)
            words += [each if isinstance(each, str) else _shown(each, "?") for each in texts]
    return tuple(words) or None


def _unread(task: Resource, number: int) -> str:
    if task.get("ContainerDefinitions", number, "EnvironmentFiles"):
        return f"its environment files ({task.where('ContainerDefinitions', number, 'EnvironmentFiles')})"
    environment = task.get("ContainerDefinitions", number, "Environment")
    # One that may or may not be there could hold any of the numbers.
    unclear = [environment, *(environment if isinstance(environment, list) else [])]
    return next((each.reason for each in unclear if isinstance(each, Unknown)), "")


def _variables(task: Resource, number: int) -> Mapping[str, Variable]:
    found: dict[str, Variable] = {}
    for section, key in (("Environment", "Value"), ("Secrets", "ValueFrom")):
        listed = task.get("ContainerDefinitions", number, section)
        for index, each in enumerate(listed if isinstance(listed, list) else []):
            steps = ("ContainerDefinitions", number, section, index, key)
            name = get_path(each, "Name")
            if isinstance(name, str):
                value = get_path(each, key)
                secret = section == "Secrets"
                found[name] = variable(value, task.origin(*steps), secret=secret)
    return found


def variable(value: Any, origin: str, *, secret: bool = False) -> Variable:
    """Return an environment variable of an evaluated value."""
    leads_to = tuple(references(value))
    if secret:
        return Variable(text=None, origin=origin, references=leads_to, reason="it is in a secret")
    if why := why_unknown(value):
        return Variable(
            text=None, origin=origin, references=leads_to, reason=why, partly=_shown(value)
        )
    if isinstance(value, bool):
        value = str(value).lower()
    return Variable(text=str(value), origin=origin)


# -- how many tasks -------------------------------------------------------------------------


def _tasks(service: Resource) -> Quantity:
    """Return the most tasks outside a deployment."""
    if service.get("SchedulingStrategy") == "DAEMON":
        return unknown("a DAEMON service has a task on every container instance", service.where())
    desired = service.quantity("DesiredCount", default=1, why="1 task, the default of DesiredCount")
    target = _scalable_target(service)
    if isinstance(target, Unknown):
        return unknown(target.reason, service.where())
    if target is None or target.present is False:
        return desired
    if isinstance(target.present, Unknown):
        return unknown(f"its autoscaling: {target.present.reason}", target.where())
    most = target.quantity("MaxCapacity", why="the scalable target has no MaxCapacity")
    if most.value is None or desired.value is None or most.value >= desired.value:
        return most
    return desired


def _scalable_target(service: Resource) -> Resource | Unknown | None:
    unclear: Unknown | None = None
    for target in service.stack.of_type(_SCALABLE):
        if target.get("ServiceNamespace") not in ("ecs", None):
            continue
        found = _is_of(target.get("ResourceId"), service)
        if found is True:
            return target
        if found is None:
            unclear = Unknown(f"{target.where('ResourceId')}: cannot tell which service it scales")
    return unclear


def _is_of(resource_id: Any, service: Resource) -> bool | None:
    """Tell whether a ResourceId names a service; None where it cannot be told."""
    names = {each.resource for each in references(resource_id)}
    if service.key in names:
        return True
    in_stack = service.stack.resources
    if any(
        stack == service.stack.name and in_stack[name].type == "AWS::ECS::Service"
        for stack, name in names
        if name in in_stack
    ):
        return False
    parts = resource_id.parts if isinstance(resource_id, Joined) else (resource_id,)
    last = parts[-1]
    if isinstance(last, str) and last.strip("/"):
        return bool(last.rpartition("/")[2] == service.get("ServiceName"))
    return None


def _overlap(service: Resource) -> Overlap:
    if service.get("SchedulingStrategy") == "DAEMON":
        return Overlap()
    if _is_blue_green(service):
        origin = f"{service.where('DeploymentController')}: blue/green runs both fleets"
        return Overlap(kind="percent", amount=100, origin=origin)
    steps = ("DeploymentConfiguration", "MaximumPercent")
    most = service.quantity(*steps, default=200, why="maximumPercent is 200 by default")
    if most.value is None:
        return Overlap(kind="unknown", reason=most.reason, origin=most.origin)
    return Overlap(
        kind="percent",
        amount=max(0, most.value - 100),
        origin=f"{most.origin} (maximumPercent {most.value})",
    )


def _is_blue_green(service: Resource) -> bool:
    controller = service.get("DeploymentController", "Type")
    strategy = service.get("DeploymentConfiguration", "Strategy")
    return controller in ("CODE_DEPLOY", "EXTERNAL") or strategy in (
        "BLUE_GREEN",
        "CANARY",
        "LINEAR",
    )
