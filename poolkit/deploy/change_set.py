"""Change sets: what a deployment would do, before it does it."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from poolkit.deploy.aws import in_plain_words
from poolkit.deploy.stacks import REVIEW, find_stack, require_changeable
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Iterator

CAPABILITIES: Final = ("CAPABILITY_IAM", "CAPABILITY_NAMED_IAM", "CAPABILITY_AUTO_EXPAND")
"""Roles are made, and the SAM transform is run; the plan shows the former."""

TIME_LIMIT: Final = 300.0
"""Seconds that AWS may take to compute a change set."""

_NOTHING: Final = ("didn't contain changes", "No updates are to be performed")

Kind = Literal["add", "modify", "replace", "may replace", "remove", "import"]


class Change(NamedTuple):
    """What would happen to one resource."""

    kind: Kind
    logical_id: str
    type: str
    because: str
    """Which properties change; empty where AWS does not tell."""


@dataclass(frozen=True, kw_only=True)
class StackRequest:
    """A stack as it should be."""

    name: str
    target: str
    """The words after `poolkit deploy` that stand for it."""
    template: dict[str, str] = field(repr=False)
    """TemplateBody or TemplateURL."""
    parameters: dict[str, str]
    tags: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class ChangeSet:
    """A change set that AWS has computed and nobody has executed."""

    stack: str
    target: str
    """The words after `poolkit deploy` that stand for it."""
    stack_id: str
    id: str
    is_new: bool
    changes: tuple[Change, ...]

    @property
    def undo(self) -> str:
        """The command that undoes its execution; a new stack has nothing to go back to."""
        if self.is_new:
            return f"poolkit destroy {self.target}"
        return f"poolkit deploy {self.target} --rollback"


def prepare(cloudformation: Any, request: StackRequest) -> ChangeSet | None:
    """Have AWS compute what a deployment would do; None if nothing would change.

    Raises:
        DeployError: the stack cannot be changed now, or AWS refuses the template or a
            parameter. Nothing is left behind then.
    """
    stack = find_stack(cloudformation, request.name)
    if stack is not None:
        require_changeable(stack, request.target)
    is_new = stack is None or stack["StackStatus"] == REVIEW
    made = _create(cloudformation, request, is_new=is_new)
    if made is None:
        return None
    described = ChangeSet(
        stack=request.name,
        target=request.target,
        stack_id=made["StackId"],
        id=made["Id"],
        is_new=is_new,
        changes=(),
    )
    try:
        pages = _wait(cloudformation, described)
    except BaseException:
        discard(cloudformation, described)
        raise
    if pages is None:
        discard(cloudformation, described)
        return None
    changes = [
        _change(each["ResourceChange"]) for page in pages for each in page.get("Changes", ())
    ]
    return ChangeSet(**vars(described) | {"changes": tuple(changes)})


def discard(cloudformation: Any, change_set: ChangeSet) -> None:
    """Remove a change set, and the stack that was there for its sake alone."""
    with in_plain_words(f"discarding the plan of {change_set.stack}"):
        cloudformation.delete_change_set(ChangeSetName=change_set.id)
        if change_set.is_new:
            cloudformation.delete_stack(StackName=change_set.stack_id)


def execute(cloudformation: Any, change_set: ChangeSet) -> None:
    """Let AWS begin. Raises `DeployError` when it does not."""
    with in_plain_words(f"beginning with {change_set.stack}"):
        cloudformation.execute_change_set(
            ChangeSetName=change_set.id, StackName=change_set.stack_id
        )


def _create(cloudformation: Any, request: StackRequest, *, is_new: bool) -> dict[str, Any] | None:
    try:
        with in_plain_words(f"planning {request.name}"):
            made: dict[str, Any] = cloudformation.create_change_set(
                StackName=request.name,
                ChangeSetName=f"poolkit-{uuid.uuid4().hex}",
                ChangeSetType="CREATE" if is_new else "UPDATE",
                Capabilities=list(CAPABILITIES),
                Parameters=_pairs(request.parameters, "ParameterKey", "ParameterValue"),
                Tags=_pairs(request.tags, "Key", "Value"),
                **request.template,
            )
    except DeployError as error:
        if _is_nothing(str(error)):
            return None
        raise
    return made


def _pairs(values: dict[str, str], key: str, value: str) -> list[dict[str, str]]:
    return [{key: name, value: text} for name, text in sorted(values.items())]


def _is_nothing(reason: str) -> bool:
    return any(words in reason for words in _NOTHING)


def _wait(cloudformation: Any, change_set: ChangeSet) -> list[dict[str, Any]] | None:
    """Return the pages of the finished change set, None if it holds no change."""
    for _ in pauses(TIME_LIMIT):
        with in_plain_words(f"planning {change_set.stack}"):
            pages = list(_pages(cloudformation, change_set))
        status, reason = pages[0]["Status"], pages[0].get("StatusReason", "")
        if status == "CREATE_COMPLETE":
            return pages
        if status == "FAILED":
            if _is_nothing(reason):
                return None
            raise DeployError(f"AWS cannot plan {change_set.stack}: {reason}")
    raise DeployError(f"AWS has not planned {change_set.stack} within {TIME_LIMIT:.0f} s")


def _pages(cloudformation: Any, change_set: ChangeSet) -> Iterator[dict[str, Any]]:
    token: dict[str, str] = {}
    while True:
        page = cloudformation.describe_change_set(
            ChangeSetName=change_set.id, StackName=change_set.stack_id, **token
        )
        yield page
        if not page.get("NextToken"):
            return
        token = {"NextToken": page["NextToken"]}


def pauses(limit: float) -> Iterator[None]:
    """Give turns, at first quickly and then every 3 s, until `limit` seconds are over."""
    end, pause = time.monotonic() + limit, 0.1
    while time.monotonic() < end:
        yield
        time.sleep(pause)
        pause = min(pause * 1.5, 3.0)


def _change(found: dict[str, Any]) -> Change:
    targets = [detail.get("Target", {}) for detail in found.get("Details", ())]
    names = {target.get("Name") or target.get("Attribute") for target in targets}
    return Change(
        kind=_kind(found),
        logical_id=found["LogicalResourceId"],
        type=found["ResourceType"],
        because=", ".join(sorted(name for name in names if name)),
    )


def _kind(found: dict[str, Any]) -> Kind:
    action, replacement = found["Action"], found.get("Replacement")
    if action == "Modify":
        kinds: dict[Any, Kind] = {"True": "replace", "Conditional": "may replace"}
        return kinds.get(replacement, "modify")
    others: dict[str, Kind] = {"Add": "add", "Remove": "remove", "Import": "import"}
    # "Dynamic": AWS knows only while it executes.
    return others.get(action, "may replace")
