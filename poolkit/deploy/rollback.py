"""`poolkit deploy --rollback`: back to where a stack was before its last change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit.deploy.aws import Aws, in_plain_words
from poolkit.deploy.environment import StackEnvironment
from poolkit.deploy.events import StackEvents
from poolkit.deploy.stacks import find_stack
from poolkit.deploy.terminal import make_console
from poolkit.deploy.watching import failure, watch
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable

_HOW: Final[dict[str, Callable[[Any, str], Any]]] = {
    "UPDATE_IN_PROGRESS": lambda client, name: client.cancel_update_stack(StackName=name),
    "CREATE_FAILED": lambda client, name: client.rollback_stack(StackName=name),
    "UPDATE_FAILED": lambda client, name: client.rollback_stack(StackName=name),
    "UPDATE_ROLLBACK_FAILED": lambda client, name: client.continue_update_rollback(StackName=name),
}
_ROLLED_BACK: Final = frozenset({"UPDATE_ROLLBACK_COMPLETE", "ROLLBACK_COMPLETE"})


def roll_back(target: str, environment_name: str) -> None:
    """Roll a target's stack back, and follow that to its end.

    Raises:
        DeployError: there is no stack, or nothing to undo.
        DeploymentFailed: rolling back failed; the message has the first cause.
    """
    environment = StackEnvironment.read(Project.find().root, environment_name)
    (template, *more) = environment.chosen(target)
    if more:
        raise DeployError("--rollback is for one stack; name its target")
    console = make_console()
    cloudformation = Aws(environment.region).cloudformation
    name = environment.stack_name(template)
    stack_id, status = _stack(cloudformation, name)
    events = StackEvents(cloudformation, stack_id)
    _begin(cloudformation, name, status, f"{template} --environment {environment.name}")
    status = watch(
        console,
        cloudformation,
        stack=name,
        stack_id=stack_id,
        events=events,
        total=0,
        environment=environment.name,
    )
    if status not in _ROLLED_BACK:
        raise failure(cloudformation, name, status, events)
    console.print(f"{name}: {status}", style="bold green")


def _begin(cloudformation: Any, name: str, status: str, target: str) -> None:
    if status in _HOW:
        with in_plain_words(f"rolling {name} back"):
            _HOW[status](cloudformation, name)
    elif status == "CREATE_IN_PROGRESS":
        raise DeployError(
            f"{name} is in CREATE_IN_PROGRESS: there is nothing yet that it could go back to; "
            f"remove it with: poolkit destroy {target}"
        )
    elif "ROLLBACK_IN_PROGRESS" not in status:
        raise DeployError(f"{name} is in {status}: there is no unfinished change to undo")


def _stack(cloudformation: Any, name: str) -> tuple[str, str]:
    stack = find_stack(cloudformation, name)
    if stack is None:
        raise DeployError(f"there is no stack {name} to roll back")
    return stack["StackId"], stack["StackStatus"]
