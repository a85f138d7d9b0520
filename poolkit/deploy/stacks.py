"""Stacks as they are in AWS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit.deploy.aws import in_plain_words
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from poolkit.deploy.environment import StackEnvironment

DONE: Final = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE"})
"""Statuses of a stack whose last change came to a good end."""

REVIEW: Final = "REVIEW_IN_PROGRESS"
"""The status of a stack that exists in a change set only."""

_STUCK: Final = {
    "ROLLBACK_COMPLETE": "its creation failed and nothing of it is left to update; remove it with: "
    "poolkit destroy {target}, then deploy it again",
    "ROLLBACK_FAILED": "its creation failed and so did the clearing up; remove it with: "
    "poolkit destroy {target}",
    "CREATE_FAILED": "its creation failed; clear it up with: poolkit deploy {target} --rollback",
    "DELETE_FAILED": "its deletion failed; finish it with: poolkit destroy {target}",
    "UPDATE_FAILED": "its update failed; undo it with: poolkit deploy {target} --rollback",
    "UPDATE_ROLLBACK_FAILED": "an update failed and so did undoing it; repair what its events "
    "name, then: poolkit deploy {target} --rollback",
}


def find_stack(cloudformation: Any, name: str) -> dict[str, Any] | None:
    """Return what AWS says of a stack, None if there is none.

    Raises:
        DeployError: AWS cannot be asked.
    """
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    with in_plain_words(f"looking for {name}"):
        try:
            found: list[dict[str, Any]] = cloudformation.describe_stacks(StackName=name)["Stacks"]
        except ClientError as error:
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
        target: the words after `poolkit deploy` that stand for it.

    Raises:
        DeployError: it is being changed, or a failure must be dealt with first.
    """
    name, status = stack["StackName"], stack["StackStatus"]
    if status in _STUCK:
        raise DeployError(f"{name} is in {status}: {_STUCK[status].format(target=target)}")
    if status.endswith("_IN_PROGRESS") and status != REVIEW:
        raise DeployError(
            f"{name} is being changed already ({status}); wait for its end, which "
            "`poolkit status` shows"
        )
