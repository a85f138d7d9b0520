"""What else in a stack could open connections, and cannot be counted from its template.

Nothing says how many processes an EC2 instance or a batch job runs, so these are listed, and
counted where somebody says what they hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.budget.model import Overlap, Workload
from poolkit.budget.quantity import unknown
from poolkit.budget.values import references

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.stacks import Resource, Stack

ONE_OFF_TASK = "one-off ECS task"
_TYPES = {
    "AWS::AppRunner::Service": "App Runner service",
    "AWS::AutoScaling::AutoScalingGroup": "Auto Scaling group",
    "AWS::Batch::JobDefinition": "Batch job",
    "AWS::CodeBuild::Project": "CodeBuild project",
    "AWS::EC2::Instance": "EC2 instance",
    "AWS::ECS::TaskDefinition": ONE_OFF_TASK,
    "AWS::ElasticBeanstalk::Environment": "Elastic Beanstalk environment",
    "AWS::Glue::Job": "Glue job",
}


def other_workloads(stack: Stack) -> Iterator[Workload]:
    """Give what the templates do not tell enough of; one-off tasks among it."""
    of_services = {
        each.resource
        for service in stack.of_type("AWS::ECS::Service")
        for each in references(service.get("TaskDefinition"))
    }
    for resource in stack.of_type(*_TYPES):
        if resource.key not in of_services:
            yield _workload(resource)


def _workload(resource: Resource) -> Workload:
    platform = _TYPES[resource.type]
    name = resource.logical_id
    said = f"--service {name}=POOL+OVERFLOWxPROCESSES@INSTANCES"
    reason = f"how many there are is not said; say it with {said}"
    return Workload(
        name=name,
        platform=platform,
        where=resource.where(),
        instances=unknown(reason, resource.where()),
        overlap=Overlap(),
        variables={},
        resource=resource.key,
    )
