"""AWS Lambda functions: reserved concurrency bounds their execution environments, nothing else.

Sources: AWS Lambda Developer Guide, "Configuring reserved concurrency" (it holds for all
versions of a function together) and "Understanding the execution environment lifecycle" (a
frozen execution environment keeps what it had open); "Lambda Managed Instances"
(AWS_LAMBDA_MAX_CONCURRENCY).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolkit.budget.cloudformation.ecs import variable
from poolkit.budget.model import Overlap, Workload
from poolkit.budget.quantity import Quantity, unknown
from poolkit.budget.read.values import Reference, Unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.model import Variable

FUNCTION = "Lambda function"


def function_workloads(stack: Stack) -> Iterator[Workload]:
    """Give every function of a stack.

    Raises:
        TemplateError: a number is negative or none.
    """
    for function in stack.of_type("AWS::Lambda::Function"):
        name = function.get("FunctionName")
        variables = function.get("Environment", "Variables")
        yield Workload(
            name=name if isinstance(name, str) else function.logical_id,
            platform=FUNCTION,
            where=function.where(),
            instances=_concurrency(function),
            overlap=_overlap(function),
            variables=_variables(function, variables),
            unread_variables=variables.reason if isinstance(variables, Unknown) else "",
            resource=function.key,
        )


def _variables(function: Resource, found: object) -> Mapping[str, Variable]:
    if not isinstance(found, dict):
        return {}
    steps = ("Environment", "Variables")
    return {name: variable(value, function.origin(*steps, name)) for name, value in found.items()}


def _concurrency(function: Resource) -> Quantity:
    if function.get("CapacityProviderConfig") is not None:
        return unknown(
            "a managed instance function has as many execution environments as its capacity "
            "provider starts",
            function.where("CapacityProviderConfig"),
        )
    return function.quantity(
        "ReservedConcurrentExecutions",
        why="without ReservedConcurrentExecutions only the account's limit bounds it"
        + _event_source_hint(function),
    )


def _event_source_hint(function: Resource) -> str:
    """An event source's own limit bounds that source, and not who else may invoke."""
    for source in function.stack.of_type("AWS::Lambda::EventSourceMapping"):
        named = source.get("FunctionName")
        most = source.get("ScalingConfig", "MaximumConcurrency")
        if isinstance(named, Reference) and named.resource == function.key and most is not None:
            return f" (MaximumConcurrency {most} bounds one event source alone)"
    return ""


def _overlap(function: Resource) -> Overlap:
    """Return the old version's execution environments, which a deployment leaves frozen."""
    return Overlap(
        kind="percent",
        amount=100,
        origin=f"{function.where()}: frozen execution environments of the version before "
        f"keep their connections{_how_deployed(function)}",
    )


def _how_deployed(function: Resource) -> str:
    for alias in function.stack.of_type("AWS::Lambda::Alias"):
        named = alias.get("FunctionName")
        gradual = "UpdatePolicy" in alias.definition or alias.get("RoutingConfig") is not None
        if isinstance(named, Reference) and named.resource == function.key and gradual:
            return f", gradual deployment by alias {alias.logical_id}"
    return ""
