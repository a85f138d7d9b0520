"""A stack's events: followed while AWS works, and searched for the first cause of a failure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit.deploy.aws import in_plain_words
from poolkit.deploy.change_set import pauses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

Event = dict[str, Any]

TIME_LIMIT: Final = 3 * 3600.0
"""Seconds after which following ends though AWS goes on: a Multi-AZ database takes most of one
hour."""

STACK: Final = "AWS::CloudFormation::Stack"
_CONSEQUENCES: Final = ("cancelled", "The following resource(s) failed")


class StackEvents:
    """The events of one stack from now on."""

    def __init__(self, cloudformation: Any, stack_id: str) -> None:
        self._cloudformation = cloudformation
        self._stack_id = stack_id
        self._seen: set[str] = set()
        self.all: list[Event] = []
        self._skip()

    def _skip(self) -> None:
        self.new()
        self.all.clear()

    def new(self) -> list[Event]:
        """Return the events since the last time, the oldest first. Raises `DeployError`."""
        with in_plain_words("reading the events"):
            found = [*self._unseen()][::-1]
        self._seen |= {event["EventId"] for event in found}
        self.all += found
        return found

    def _unseen(self) -> Iterator[Event]:
        pages = self._cloudformation.get_paginator("describe_stack_events")
        for page in pages.paginate(StackName=self._stack_id):
            for event in page["StackEvents"]:
                if event["EventId"] in self._seen:
                    return
                yield event


def follow(
    cloudformation: Any, stack_id: str, events: StackEvents, show: Callable[[list[Event]], None]
) -> str:
    """Show new events until AWS is done with the stack; return its status.

    Raises:
        DeployError: AWS cannot be asked.
    """
    status = ""
    for _ in pauses(TIME_LIMIT):
        with in_plain_words("asking for the status"):
            (stack,) = cloudformation.describe_stacks(StackName=stack_id)["Stacks"]
        # Asked for before the events, so that the last ones are not missed.
        status = stack["StackStatus"]
        show(events.new())
        if not status.endswith("_IN_PROGRESS"):
            break
    return status


def first_cause(cloudformation: Any, events: list[Event], depth: int = 3) -> Event | None:
    """Return the event that the failure began with, None if no resource failed.

    What was cancelled because of it is passed over. Where a nested stack failed, its own
    events are searched, as far back as the first of `events`: it may have failed before.

    Args:
        cloudformation: the client.
        events: those of this operation, the oldest first.
        depth: how many stacks may be nested in each other.

    Raises:
        DeployError: AWS cannot be asked for a nested stack's events.
    """
    failed = [event for event in events if _is_cause(event)]
    if not failed:
        return None
    nested = failed[0]
    if nested["ResourceType"] != STACK or depth == 0 or not nested.get("PhysicalResourceId"):
        return nested
    inside = _since(events[0]["Timestamp"], _every(cloudformation, nested))
    return first_cause(cloudformation, inside, depth - 1) or nested


def _every(cloudformation: Any, nested: Event) -> list[Event]:
    with in_plain_words("reading the nested stack's events"):
        pages = cloudformation.get_paginator("describe_stack_events")
        found = [
            event
            for page in pages.paginate(StackName=nested["PhysicalResourceId"])
            for event in page["StackEvents"]
        ]
    return found[::-1]


def _since(begin: datetime, events: list[Event]) -> list[Event]:
    return [event for event in events if event["Timestamp"] >= begin]


def _is_cause(event: Event) -> bool:
    is_itself = event["PhysicalResourceId"] == event["StackId"]
    reason = event.get("ResourceStatusReason", "")
    return (
        event["ResourceStatus"].endswith("_FAILED")
        and not is_itself
        and not any(words in reason for words in _CONSEQUENCES)
    )


def in_words(event: Event) -> str:
    """Return one line: what failed, and AWS's reason."""
    reason = event.get("ResourceStatusReason") or "AWS gives no reason"
    return (
        f"{event['LogicalResourceId']} ({event['ResourceType']}) "
        f"{event['ResourceStatus']}: {' '.join(reason.split())}"
    )
