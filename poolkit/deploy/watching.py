"""AWS at its work, on the terminal: each event a line, and what goes on after Ctrl-C."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from poolkit.deploy.events import STACK, first_cause, follow, in_words
from poolkit.errors import DeployError, DeploymentFailed

if TYPE_CHECKING:
    from rich.console import Console

    from poolkit.deploy.events import Event, StackEvents


def watch(
    console: Console,
    cloudformation: Any,
    *,
    stack: str,
    stack_id: str,
    events: StackEvents,
    total: int,
    environment: str,
    undo: str = "",
) -> str:
    """Print the events until AWS is done; return the stack's status.

    Args:
        console: where lines go.
        cloudformation: the client.
        stack: its name.
        stack_id: its id, under which also a deleted stack is found.
        events: those that are new are printed.
        total: how many resources are to change.
        environment: for the commands that are printed after Ctrl-C.
        undo: the command that undoes what is going on; empty where nothing can.

    Raises:
        DeploymentFailed: AWS can no longer be asked, though it goes on.
        KeyboardInterrupt: after having said what goes on.
    """
    began = time.monotonic()
    done: set[str] = set()
    with console.status(f"{stack}: waiting for AWS") as spinner:

        def show(new: list[Event]) -> None:
            for event in new:
                _print_event(console, event)
                if event["ResourceType"] != STACK and event["ResourceStatus"].endswith("_COMPLETE"):
                    done.add(event["LogicalResourceId"])
            seconds = time.monotonic() - began
            spinner.update(f"{stack}: {len(done)} of {total} resources, {seconds:.0f} s")

        try:
            return follow(cloudformation, stack_id, events, show)
        except (KeyboardInterrupt, DeployError) as error:
            goes_on = _goes_on(stack, environment, undo)
            if isinstance(error, DeployError):
                raise DeploymentFailed(f"{error}\n{goes_on}") from None
            console.print(f"\nstopped watching. {goes_on}", style="yellow")
            raise


def failure(cloudformation: Any, stack: str, status: str, events: StackEvents) -> DeploymentFailed:
    """Return the error that says what a stack's failure began with."""
    if status.endswith("_IN_PROGRESS"):
        return DeploymentFailed(f"{stack} is still {status}; AWS goes on, watching does not")
    cause = first_cause(cloudformation, events.all)
    if cause is not None:
        said = in_words(cause)
    else:
        reasons = (
            e.get("ResourceStatusReason") for e in events.all if "FAIL" in e["ResourceStatus"]
        )
        said = next((reason for reason in reasons if reason), "AWS names no resource that failed")
    return DeploymentFailed(f"{stack} ended in {status}. First cause: {said}")


def _goes_on(stack: str, environment: str, undo: str) -> str:
    lines = [
        f"AWS goes on with {stack}.",
        f"  follow it: poolkit status --environment {environment}",
        f"  its events: aws cloudformation describe-stack-events --stack-name {stack}",
    ]
    return "\n".join([*lines, f"  undo it: {undo}"] if undo else lines)


def _print_event(console: Console, event: Event) -> None:
    status = event["ResourceStatus"]
    style = "red" if "FAILED" in status else "yellow" if "ROLLBACK" in status else "green"
    if status.endswith("_IN_PROGRESS") and style == "green":
        style = "dim"
    reason = event.get("ResourceStatusReason", "") if style in {"red", "yellow"} else ""
    console.print(
        f"{event['Timestamp']:%H:%M:%S}  {status:<28} {event['LogicalResourceId']} "
        f"({event['ResourceType']}) {reason}".rstrip(),
        style=style,
    )
