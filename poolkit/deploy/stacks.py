"""The stacks that AWS has, and `poolkit status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from poolkit.deploy.aws import Aws, in_plain_words
from poolkit.deploy.environment import StackEnvironment
from poolkit.deploy.progress import make_console, make_table, print_table
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DONE: Final = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE"})
"""Statuses of a stack whose last change succeeded."""

REVIEW: Final = "REVIEW_IN_PROGRESS"
"""The status of a stack that exists in a change set only."""

_STUCK: Final = {
    "ROLLBACK_COMPLETE": "its creation failed, so there is nothing to update; remove it with: "
    "poolkit destroy {target}, then deploy it again",
    "ROLLBACK_FAILED": "its creation failed, and so did the cleanup; remove it with: "
    "poolkit destroy {target}",
    "CREATE_FAILED": "its creation failed; clean it up with: poolkit deploy {target} --rollback",
    "DELETE_FAILED": "its deletion failed; finish it with: poolkit destroy {target}",
    "UPDATE_FAILED": "its update failed; undo it with: poolkit deploy {target} --rollback",
    "UPDATE_ROLLBACK_FAILED": "an update failed, and so did undoing it; repair what its events "
    "name, then: poolkit deploy {target} --rollback",
}


def find_stack(cloudformation: Any, name: str) -> dict[str, Any] | None:
    """Return AWS's description of a stack, None if there is no such stack.

    Raises:
        DeployError: AWS cannot be asked.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    with in_plain_words(f"looking for {name}"):
        try:
            found: list[dict[str, Any]] = cloudformation.describe_stacks(StackName=name)["Stacks"]
        except ClientError as error:
            # The code is ValidationError, as for other mistakes; only AWS's text shows it.
            if "does not exist" in str(error):
                return None
            raise
    return found[0] if found else None


def stack_outputs(stack: dict[str, Any]) -> dict[str, str]:
    """Return a stack's outputs by name."""
    return {each["OutputKey"]: each["OutputValue"] for each in stack.get("Outputs", ())}


def deployed_outputs(
    cloudformation: Any, environment: StackEnvironment, templates: set[str]
) -> dict[str, dict[str, str]]:
    """Return the outputs of those of the templates whose stack is deployed.

    Raises:
        DeployError: AWS cannot be asked.
    """
    found = {}
    for template in sorted(templates):
        stack = find_stack(cloudformation, environment.stack_name(template))
        if stack is not None and stack["StackStatus"] != REVIEW:
            found[template] = stack_outputs(stack)
    return found


def require_changeable(stack: dict[str, Any], target: str) -> None:
    """Check that a stack can be updated.

    Args:
        stack: as `find_stack` returns it.
        target: the arguments of `poolkit deploy` that name it.

    Raises:
        DeployError: it is being changed, or a failure must be repaired first.
    """
    name, status = stack["StackName"], stack["StackStatus"]
    if status in _STUCK:
        raise DeployError(f"{name} is in {status}: {_STUCK[status].format(target=target)}")
    if status.endswith("_IN_PROGRESS") and status != REVIEW:
        raise DeployError(
            f"{name} is already being changed ({status}); wait until `poolkit status` shows the end"
        )


def print_status(
    environment_name: str | None, notes: Callable[[Aws, StackEnvironment], Iterable[str]]
) -> None:
    """Print a table of every stack of one environment, or of all, and the notes about each.

    Raises:
        DeployError: there is no environment, or AWS cannot be asked.
    """
    root = Project.find().root
    names = [environment_name] if environment_name else []
    if not names:
        folder = root / "infra" / "environments"
        names = sorted(file.stem for file in folder.glob("*.toml"))
        if not names:
            raise DeployError(f"{folder} must hold one TOML file for each environment; it has none")
    table = make_table("stack", "status", "changed", "protected")
    waiting: list[str] = []
    for name in names:
        environment = StackEnvironment.read(root, name)
        cloudformation = Aws(environment.region).cloudformation
        for template in environment.every():
            stack_name = environment.stack_name(template)
            stack = find_stack(cloudformation, stack_name)
            if stack is None:
                table.add_row(stack_name, "not deployed", "", "", style="dim")
            else:
                table.add_row(stack_name, *status_cells(stack))
        waiting += notes(Aws(environment.region), environment)
    console = make_console()
    print_table(console, table)
    for text in waiting:
        console.print(text, style="yellow")


def status_cells(stack: dict[str, Any]) -> tuple[Text, str, str]:
    """Return the status, the time of the last change and the protection of a stack."""
    status = stack["StackStatus"]
    style = "green" if status in DONE else "yellow" if status.endswith("_IN_PROGRESS") else "red"
    changed = stack.get("LastUpdatedTime") or stack["CreationTime"]
    reason = f" {stack['StackStatusReason']}" if stack.get("StackStatusReason") else ""
    protected = "yes" if stack.get("EnableTerminationProtection") else "no"
    return Text.assemble((status, style), reason), f"{changed:%Y-%m-%d %H:%M} UTC", protected
