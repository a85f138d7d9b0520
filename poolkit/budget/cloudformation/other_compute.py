"""What else in a stack could open connections, and cannot be counted from its template.

Nothing says how many processes an EC2 instance or a batch job runs, and how many tasks of a
schedule run at once. These are listed; where something in them speaks of a database, their number
is unknown until somebody says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.ecs import variable
from poolkit.budget.model import Overlap, Variable, Workload
from poolkit.budget.quantity import unknown
from poolkit.budget.read.values import references

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from poolkit.budget.cloudformation.stacks import Resource, Stack

ONE_OFF_TASK = "one-off ECS task"
_TASK = "AWS::ECS::TaskDefinition"
_TYPES = {
    "AWS::AppRunner::Service": "App Runner service",
    "AWS::AutoScaling::AutoScalingGroup": "Auto Scaling group",
    "AWS::Batch::JobDefinition": "Batch job",
    "AWS::CodeBuild::Project": "CodeBuild project",
    "AWS::EC2::Instance": "EC2 instance",
    "AWS::EC2::LaunchTemplate": "launch template",
    "AWS::ECS::ExpressGatewayService": "ECS express service",
    _TASK: ONE_OFF_TASK,
    "AWS::ElasticBeanstalk::Environment": "Elastic Beanstalk environment",
    "AWS::Glue::Job": "Glue job",
}
_STARTERS = {
    "AWS::Events::Rule": "task of an event rule",
    "AWS::Pipes::Pipe": "task of a pipe",
    "AWS::Scheduler::Schedule": "scheduled task",
    "AWS::StepFunctions::StateMachine": "task of a state machine",
}
"""What starts tasks, as many as come; a service bounds its own."""


def other_workloads(stack: Stack) -> Iterator[Workload]:
    """Give what the templates do not tell enough of; one-off tasks among it."""
    started = {
        each.resource
        for service in stack.of_type("AWS::ECS::Service")
        for each in references(service.get("TaskDefinition"))
    }
    for starter in stack.of_type(*_STARTERS):
        for task in _tasks_of(starter):
            started.add(task.key)
            yield _workload(starter, _STARTERS[starter.type], _variables(task))
    for resource in stack.of_type(*_TYPES):
        if resource.key not in started:
            # Somebody runs it by hand: what it opens is not the fleet's.
            by_hand = resource.type == _TASK
            variables = {} if by_hand else _variables(resource)
            yield _workload(resource, _TYPES[resource.type], variables)


def _tasks_of(starter: Resource) -> Iterator[Resource]:
    in_stack = starter.stack.resources
    for name in dict.fromkeys(each.logical_id for each in references(starter.properties)):
        if name in in_stack and in_stack[name].type == _TASK:
            yield in_stack[name]


def _workload(resource: Resource, platform: str, variables: Mapping[str, Variable]) -> Workload:
    name = resource.logical_id
    said = f"--service {name}=POOL+OVERFLOWxPROCESSES@INSTANCES"
    reason = f"how many there are at once is not said; say it with {said}, or --ignore {name}"
    return Workload(
        name=name,
        platform=platform,
        where=resource.where(),
        instances=unknown(reason, resource.where()),
        overlap=Overlap(),
        variables=variables,
        resource=resource.key,
    )


def _variables(resource: Resource) -> dict[str, Variable]:
    """Return whatever could be a variable, in all the ways in which the types have them."""
    origin = str(resource.where())
    found = {name: variable(value, origin) for name, value in _named(resource.properties)}
    leads_to = tuple(references(resource.properties))
    return {**found, "": Variable(text=None, origin=origin, references=leads_to)}


def _named(found: Any) -> Iterator[tuple[str, Any]]:
    """Give names with values: of mappings, and of lists of Name and Value."""
    for each in found if isinstance(found, list) else []:
        yield from _named(each)
    if not isinstance(found, dict):
        return
    for key, value in found.items():
        if isinstance(value, (dict, list)):
            yield from _named(value)
        elif key in ("Name", "OptionName", "Key") and isinstance(value, str):
            yield value, found.get("Value", found.get("ValueFrom"))
        else:
            yield str(key), value
