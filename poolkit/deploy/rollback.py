"""`poolkit deploy --rollback`: an unfinished change undone, or an earlier image deployed again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from poolkit.deploy.aws import Aws, in_plain_words
from poolkit.deploy.environment import ALL, StackEnvironment
from poolkit.deploy.images import IMAGE_PARAMETER, ImageName
from poolkit.deploy.parameters import Record
from poolkit.deploy.progress import make_console, watch_change
from poolkit.deploy.stacks import find_stack
from poolkit.deploy.statuses import REVIEW, require_accepted
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable

UNFINISHED: Final = "unfinished"
"""The value of `--rollback` without one."""
PREVIOUS: Final = "previous"

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")

_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "UPDATE_IN_PROGRESS": lambda client, **names: client.cancel_update_stack(**names),
    "CREATE_FAILED": lambda client, **names: client.rollback_stack(**names),
    "UPDATE_FAILED": lambda client, **names: client.rollback_stack(**names),
    "UPDATE_ROLLBACK_FAILED": lambda client, **names: client.continue_update_rollback(**names),
}
"""The call that begins a rollback, by status; in any other one it is under way."""

_WANTED: Final = frozenset(
    # RollbackStack deletes a stack that never had a stable state (API Reference).
    {"UPDATE_ROLLBACK_COMPLETE", "ROLLBACK_COMPLETE", "DELETE_COMPLETE"}
)


def roll_back(target: str, environment_name: str, *, skip: tuple[str, ...] = ()) -> None:
    """Undo the unfinished change of a target's stack, and follow that to its end.

    Args:
        target: a template's name.
        environment_name: the environment's.
        skip: resources that stay as they are when a rollback that failed is continued.

    Raises:
        DeployError: there is no stack, nothing to undo, or a resource cannot be skipped.
        DeploymentFailed: rolling back failed; the message has the first cause.
    """
    environment, template = _one_stack(target, environment_name)
    cloudformation = Aws(environment.region).cloudformation
    name = environment.stack_name(template)
    stack = find_stack(cloudformation, name)
    if stack is None:
        raise DeployError(f"there is no stack {name} to roll back")
    target = f"{template} --environment {environment.name}"
    require_accepted(stack, "roll_back", target)
    status = stack["StackStatus"]
    names: dict[str, Any] = {"StackName": stack["StackId"]}
    if environment.fixed_role and status != "UPDATE_IN_PROGRESS":
        names["RoleARN"] = environment.fixed_role
    if skip:
        _require_skippable(cloudformation, stack, skip)
        names["ResourcesToSkip"] = list(skip)

    def begin() -> None:
        if status in _CALLS:
            with in_plain_words(f"rolling {name} back"):
                _CALLS[status](cloudformation, **names)

    console = make_console()
    ended = watch_change(
        console,
        cloudformation,
        begin,
        stack=name,
        stack_id=stack["StackId"],
        wanted=_WANTED,
        target=target,
    )
    console.print(f"{name}: {ended}", style="bold green")
    if skip:
        console.print(
            f"{', '.join(skip)}: no longer as the template says; repair before the next deployment",
            style="yellow",
        )


def _require_skippable(cloudformation: Any, stack: dict[str, Any], skip: tuple[str, ...]) -> None:
    """Check the rules of ResourcesToSkip (API Reference, ContinueUpdateRollback)."""
    if stack["StackStatus"] != "UPDATE_ROLLBACK_FAILED":
        raise DeployError(
            f"--skip is for a stack in UPDATE_ROLLBACK_FAILED; {stack['StackName']} is in "
            f"{stack['StackStatus']}"
        )
    with in_plain_words(f"reading the resources of {stack['StackName']}"):
        pages = cloudformation.get_paginator("list_stack_resources")
        failed = [
            each["LogicalResourceId"]
            for page in pages.paginate(StackName=stack["StackId"])
            for each in page["StackResourceSummaries"]
            if each["ResourceStatus"] == "UPDATE_FAILED"
        ]
    # NestedStack.Resource names a resource of another stack, whose state is not asked for.
    for name in (each for each in skip if "." not in each and each not in failed):
        raise DeployError(
            f"--skip {name}: it is not in UPDATE_FAILED; "
            f"{', '.join(failed) or 'no resource of this stack'} can be skipped"
        )


def earlier_image(target: str, environment_name: str, wanted: str) -> str:
    """Return the URI of an image that a target's stack is to run again.

    Args:
        target: a template's name.
        environment_name: the environment's.
        wanted: `previous`, or a digest of the same repository.

    Raises:
        DeployError: there is no stack, it runs no image, or no earlier one is known.
    """
    environment, template = _one_stack(target, environment_name)
    if wanted != PREVIOUS and not _DIGEST.fullmatch(wanted):
        raise DeployError(
            f"--rollback takes {PREVIOUS!r}, a digest (sha256: and 64 hexadecimal digits) or no "
            f"value, not {wanted!r}"
        )
    cloudformation = Aws(environment.region).cloudformation
    name = environment.stack_name(template)
    stack = find_stack(cloudformation, name)
    if stack is None or stack["StackStatus"] == REVIEW:
        raise DeployError(
            f"{name} is not deployed, so it has no earlier image. Next: poolkit deploy {template} "
            f"--environment {environment.name}"
        )
    record = Record.read(cloudformation, stack)
    now = record.values.get(IMAGE_PARAMETER, "")
    if not now:
        raise DeployError(
            f"{name} has no parameter {IMAGE_PARAMETER}, so there is no image to return to; "
            "deploy the earlier version of its code"
        )
    if wanted != PREVIOUS:
        return f"{ImageName.parse(now).without_version}@{wanted}"
    known = [each for each in record.images.get(IMAGE_PARAMETER, ()) if each != now]
    if not known:
        raise DeployError(
            f"{name} runs {now}, and no earlier image is known; give one by its digest: "
            f"poolkit deploy {template} --environment {environment.name} --rollback sha256:…"
        )
    return known[0]


def _one_stack(target: str, environment_name: str) -> tuple[StackEnvironment, str]:
    environment = StackEnvironment.read(Project.find().root, environment_name)
    if target == ALL:
        raise DeployError("--rollback is for one stack; name its target")
    (template,) = environment.chosen(target)
    return environment, template
