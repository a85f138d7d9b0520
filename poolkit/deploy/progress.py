"""AWS's work on a stack: its events on the terminal, and the first cause of a failure."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table

from poolkit.deploy.aws import in_plain_words
from poolkit.deploy.statuses import next_step
from poolkit.errors import DeployError, DeploymentFailed
from poolkit.terminal import new_console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

Event = dict[str, Any]

TIME_LIMIT: Final = 3 * 3600.0
"""Seconds after which watching ends, although AWS goes on: a Multi-AZ database takes most of an
hour."""

STACK: Final = "AWS::CloudFormation::Stack"

# The effect of a failure on other resources. AWS has a text for it, but no code.
_CONSEQUENCES: Final = ("cancelled", "The following resource(s) failed")


# -- the terminal ---------------------------------------------------------------------------


def make_console() -> Console:
    """Return the console that commands print on.

    Lines are not wrapped, so that names and links can be copied.
    """
    return new_console(soft_wrap=True)


def make_table(*headings: str) -> Table:
    """Return a table whose cells go on in the next line instead of being cut off."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def print_table(console: Console, table: Table) -> None:
    """Print a table within the terminal's width."""
    console.print(table, soft_wrap=False)


# -- events ---------------------------------------------------------------------------------


class StackEvents:
    """The events of one stack that are newer than this object."""

    def __init__(self, cloudformation: Any, stack_id: str) -> None:
        self._cloudformation = cloudformation
        self._stack_id = stack_id
        self._seen: set[str] = set()
        self.all: list[Event] = []
        self.new()
        self.all.clear()

    def new(self) -> list[Event]:
        """Return the events since the last call, the oldest first. Raises `DeployError`."""
        found: list[Event] = []
        with in_plain_words("reading the events"):
            pages = self._cloudformation.get_paginator("describe_stack_events")
            for page in pages.paginate(StackName=self._stack_id):
                unseen = [each for each in page["StackEvents"] if each["EventId"] not in self._seen]
                found += unseen
                # The newest are first, so that older pages hold nothing new.
                if len(unseen) < len(page["StackEvents"]):
                    break
        found.reverse()
        self._seen |= {event["EventId"] for event in found}
        self.all += found
        return found


def watch_change(
    console: Console,
    cloudformation: Any,
    begin: Callable[[], object],
    *,
    stack: str,
    stack_id: str,
    wanted: frozenset[str],
    target: str,
    total: int = 0,
    undo: str = "",
) -> str:
    """Begin a change and print its events until AWS is done; return the stack's status.

    Args:
        console: where lines go.
        cloudformation: the client.
        begin: asks AWS for the change.
        stack: its name.
        stack_id: its id, under which also a deleted stack is found.
        wanted: the statuses that are a success.
        target: the arguments of `poolkit deploy` that name the stack, for the commands that are
            printed after a failure or Ctrl-C.
        total: the number of resources that are to change.
        undo: the command that undoes the change; empty if no command does.

    Raises:
        DeployError: AWS refuses to begin.
        DeploymentFailed: the change failed, or AWS can no longer be asked though it goes on.
        KeyboardInterrupt: after a message that AWS goes on.
    """
    events = StackEvents(cloudformation, stack_id)
    begin()
    began = time.monotonic()
    done: set[str] = set()
    status = ""
    with console.status(f"{stack}: waiting for AWS") as spinner:
        try:
            for _ in pauses(TIME_LIMIT):
                with in_plain_words("asking for the status"):
                    (described,) = cloudformation.describe_stacks(StackName=stack_id)["Stacks"]
                # Read before the events, so that the last of these are not missed.
                status = described["StackStatus"]
                for event in events.new():
                    _print_event(console, event)
                    is_done = event["ResourceStatus"].endswith("_COMPLETE")
                    if is_done and event["ResourceType"] != STACK:
                        done.add(event["LogicalResourceId"])
                seconds = time.monotonic() - began
                spinner.update(f"{stack}: {len(done)} of {total} resources, {seconds:.0f} s")
                if not status.endswith("_IN_PROGRESS"):
                    break
        except (KeyboardInterrupt, DeployError) as error:
            goes_on = (
                f"AWS continues with {stack}.\n"
                f"  follow it: poolkit status {target} --wait\n"
                f"  its events: aws cloudformation describe-stack-events --stack-name {stack}"
            ) + (f"\n  undo it: {undo}" if undo else "")
            if isinstance(error, DeployError):
                raise DeploymentFailed(f"{error}\n{goes_on}") from None
            console.print(f"\nstopped watching. {goes_on}", style="yellow")
            raise
    if status not in wanted:
        raise _failure(cloudformation, stack, status, events.all, target)
    return status


def pauses(limit: float) -> Iterator[None]:
    """Yield until `limit` seconds are over, after pauses that grow from 0.1 to 3 s."""
    end, pause = time.monotonic() + limit, 0.1
    while time.monotonic() < end:
        yield
        time.sleep(pause)
        pause = min(pause * 1.5, 3.0)


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


# -- a failure ------------------------------------------------------------------------------


def _failure(
    cloudformation: Any, stack: str, status: str, events: list[Event], target: str
) -> DeploymentFailed:
    if status.endswith("_IN_PROGRESS"):
        return DeploymentFailed(
            f"{stack} is still {status} after {TIME_LIMIT / 3600:g} hours; AWS continues, "
            f"watching does not. Next: poolkit status {target} --wait"
        )
    cause = first_cause(cloudformation, events)
    if cause is not None:
        message = cause_message(cause)
    else:
        failed = (event for event in events if "FAIL" in event["ResourceStatus"])
        reasons = (event.get("ResourceStatusReason") for event in failed)
        message = next(filter(None, reasons), "AWS names no resource that failed")
    step = next_step(status, target)
    option = {"DELETE_FAILED": "--retain", "UPDATE_ROLLBACK_FAILED": "--skip"}.get(status)
    if option and cause is not None:
        step = (
            f"remove the cause, then {step}; or give it up with {option} "
            + (cause["LogicalResourceId"])
        )
    return DeploymentFailed(
        f"{stack} ended in {status}. First cause: {message}" + (f". Next: {step}" if step else "")
    )


def first_cause(cloudformation: Any, events: list[Event], depth: int = 3) -> Event | None:
    """Return the event that the failure began with, None if no resource failed.

    Resources that were cancelled because of it are ignored. Where a nested stack failed, its
    own events are searched, as far back as the first of `events`: it may have failed before.

    Args:
        cloudformation: the client.
        events: those of this operation, the oldest first.
        depth: how many stacks may be nested in each other.

    Raises:
        DeployError: AWS cannot be asked for a nested stack's events.
    """
    causes = (
        event
        for event in events
        if event["ResourceStatus"].endswith("_FAILED")
        and event["PhysicalResourceId"] != event["StackId"]  # the stack itself
        and not any(text in event.get("ResourceStatusReason", "") for text in _CONSEQUENCES)
    )
    cause = next(causes, None)
    if cause is None or cause["ResourceType"] != STACK:
        return cause
    if depth == 0 or not cause.get("PhysicalResourceId"):
        return cause
    with in_plain_words("reading the nested stack's events"):
        pages = cloudformation.get_paginator("describe_stack_events")
        inside = [
            event
            for page in pages.paginate(StackName=cause["PhysicalResourceId"])
            for event in page["StackEvents"]
            if event["Timestamp"] >= events[0]["Timestamp"]
        ]
    return first_cause(cloudformation, inside[::-1], depth - 1) or cause


def cause_message(event: Event) -> str:
    """Return one line: the resource that failed, and AWS's reason."""
    reason = event.get("ResourceStatusReason") or "AWS gives no reason"
    return (
        f"{event['LogicalResourceId']} ({event['ResourceType']}) "
        f"{event['ResourceStatus']}: {' '.join(reason.split())}"
    )
