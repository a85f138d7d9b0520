"""Every status of a stack: what it means, and the command that leads on from it.

One table for `poolkit status`, `deploy`, `destroy` and `--rollback`. The rules are AWS's:

- An update needs a stack whose last operation ended in `_COMPLETE`, and `ROLLBACK_COMPLETE` is the
  exception: its creation was undone, so there is nothing to update (User Guide, "Understand stack
  creation events" and "Update stacks").
- DeleteStack is refused while an update or a rollback runs ("cannot be deleted while in status").
  While a stack is being created it is accepted.
- CancelUpdateStack is for `UPDATE_IN_PROGRESS` only, RollbackStack for `CREATE_FAILED` and
  `UPDATE_FAILED`, ContinueUpdateRollback for `UPDATE_ROLLBACK_FAILED` (API Reference).
- RetainResources of DeleteStack is for `DELETE_FAILED` only (API Reference).
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from poolkit.deploy.environment import PREPARED
from poolkit.errors import DeployError

REVIEW: Final = "REVIEW_IN_PROGRESS"
"""The status of a stack that exists in a change set only."""

DONE: Final = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE", "IMPORT_COMPLETE"})
"""Statuses of a stack whose last change succeeded."""

_DEPLOY: Final = "poolkit deploy {target}"
_ROLL_BACK: Final = "poolkit deploy {target} --rollback"
_DESTROY: Final = "poolkit destroy {target}"
_LIFT: Final = "poolkit destroy {target} --lift-protection"
_WAIT: Final = "poolkit status {target} --wait"

Condition = Literal["works", "changes", "undone", "failed"]


class Status(NamedTuple):
    """One status: its meaning, and for each command what to run instead of it.

    A command that is empty here is accepted in this status. Where AWS is at work the step is to
    wait, because that is right also if AWS has ended since.
    """

    condition: Condition
    """`undone`: the last change failed, and the stack works as before it. `failed`: a command of
    the user is needed before the next deployment."""
    means: str
    next: str = ""
    """What `poolkit status` names; empty: there is nothing to do."""
    deploy: str = ""
    roll_back: str = _DEPLOY
    destroy: str = ""


_FINISHED: Final = "there is no unfinished change to undo; to return to a version, deploy that"

STATUSES: Final[dict[str, Status]] = {
    "CREATE_IN_PROGRESS": Status(
        "changes",
        "it is being created",
        next=_WAIT,
        deploy=_WAIT,
        roll_back=_DESTROY,
    ),
    "CREATE_FAILED": Status(
        "failed",
        "its creation failed, and what was made is still there",
        next=_DESTROY,
        deploy=_DESTROY,
        roll_back="",
    ),
    "CREATE_COMPLETE": Status("works", "it was created"),
    "ROLLBACK_IN_PROGRESS": Status(
        "changes",
        "its creation failed, and what was made is being removed",
        next=_WAIT,
        deploy=_WAIT,
        roll_back="",
        destroy=_WAIT,
    ),
    "ROLLBACK_FAILED": Status(
        "failed",
        "its creation failed, and so did removing what was made; often that is protected",
        next=_LIFT,
        deploy=_LIFT,
        roll_back=_LIFT,
    ),
    "ROLLBACK_COMPLETE": Status(
        "failed",
        "its creation failed and was undone, so there is nothing to update; remove it, then "
        "deploy it again",
        next=_DESTROY,
        deploy=_DESTROY,
        roll_back=_DESTROY,
    ),
    "DELETE_IN_PROGRESS": Status(
        "changes",
        "it is being removed",
        next=_DESTROY,
        deploy=_DESTROY,
        roll_back=_DESTROY,
    ),
    "DELETE_FAILED": Status(
        "failed",
        "its deletion failed; remove what its events name, or leave it in the account with "
        "--retain NAME",
        next=_DESTROY,
        deploy=_DESTROY,
        roll_back=_DESTROY,
    ),
    "DELETE_COMPLETE": Status("works", "it was removed", next=_DEPLOY),
    "UPDATE_IN_PROGRESS": Status(
        "changes",
        "it is being updated; --rollback cancels that",
        next=_WAIT,
        deploy=_WAIT,
        roll_back="",
        destroy=_WAIT,
    ),
    "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS": Status(
        "changes",
        "it was updated, and replaced resources are being removed",
        next=_WAIT,
        deploy=_WAIT,
        roll_back=_WAIT,
        destroy=_WAIT,
    ),
    "UPDATE_COMPLETE": Status("works", "it was updated"),
    "UPDATE_FAILED": Status(
        "failed",
        "its update failed, and what was changed is still so",
        next=_ROLL_BACK,
        deploy=_ROLL_BACK,
        roll_back="",
    ),
    "UPDATE_ROLLBACK_IN_PROGRESS": Status(
        "changes",
        "its update failed and is being undone",
        next=_WAIT,
        deploy=_WAIT,
        roll_back="",
        destroy=_WAIT,
    ),
    "UPDATE_ROLLBACK_FAILED": Status(
        "failed",
        "an update failed, and so did undoing it; repair what its events name, or skip that with "
        "--skip NAME",
        next=_ROLL_BACK,
        deploy=_ROLL_BACK,
        roll_back="",
    ),
    "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS": Status(
        "changes",
        "its update was undone, and new resources are being removed",
        next=_WAIT,
        deploy=_WAIT,
        roll_back="",
        destroy=_WAIT,
    ),
    "UPDATE_ROLLBACK_COMPLETE": Status(
        "undone",
        "its last update failed and was undone; it is as before",
        next=_DEPLOY,
    ),
    REVIEW: Status("works", "it was planned and never created", next=_DEPLOY),
    "IMPORT_IN_PROGRESS": Status(
        "changes",
        "resources are being imported",
        next=_WAIT,
        deploy=_WAIT,
        roll_back=_WAIT,
        destroy=_WAIT,
    ),
    "IMPORT_COMPLETE": Status("works", "resources were imported"),
    "IMPORT_ROLLBACK_IN_PROGRESS": Status(
        "changes",
        "an import failed and is being undone",
        next=_WAIT,
        deploy=_WAIT,
        roll_back=_WAIT,
        destroy=_WAIT,
    ),
    "IMPORT_ROLLBACK_FAILED": Status(
        "failed",
        "an import failed, and so did undoing it; AWS accepts its removal only. Resources with "
        "DeletionPolicy Retain stay in the account",
        next=_LIFT,
        deploy=_LIFT,
        roll_back=_LIFT,
    ),
    "IMPORT_ROLLBACK_COMPLETE": Status(
        "undone",
        "an import failed and was undone; it is as before",
        next=_DEPLOY,
    ),
}
"""Every status that CloudFormation has for a stack."""


def status_of(name: str) -> Status:
    """Return the row of a status; AWS may have added one since."""
    if name in STATUSES:
        return STATUSES[name]
    if name.endswith("_IN_PROGRESS"):
        return Status("changes", "it is being changed", _WAIT, _WAIT, _WAIT, _WAIT)
    return Status("failed", "this version of poolkit does not know the status", next=_DESTROY)


def require_accepted(
    stack: dict[str, Any], command: Literal["deploy", "roll_back", "destroy"], target: str
) -> None:
    """Check that a command is accepted in a stack's status.

    Args:
        stack: as `find_stack` returns it.
        command: the field of its row in the table.
        target: the arguments of `poolkit deploy` that name it.

    Raises:
        DeployError: names the status, its meaning and the command to run instead.
    """
    name, status = stack["StackName"], stack["StackStatus"]
    row = status_of(status)
    instead: str = getattr(row, command)
    if not instead:
        return
    means = row.means
    if command == "roll_back" and row.condition in {"works", "undone"}:
        means = _FINISHED
    raise DeployError(f"{name} is in {status}: {means}. Next: {_command(instead, target)}")


def next_step(status: str, target: str) -> str:
    """Return the command that leads on from a status, empty if there is nothing to do."""
    return _command(status_of(status).next, target)


def deploy_command(target: str) -> str:
    """Return the command that deploys a target, which is another one for what all others need."""
    return _command(_DEPLOY, target)


def _command(text: str, target: str) -> str:
    template, _, rest = target.partition(" ")
    if text == _DEPLOY and template in PREPARED:
        return f"poolkit bootstrap {rest}"
    return text.format(target=target)
