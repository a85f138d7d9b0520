"""`poolkit destroy`: stacks removed in the reverse order, after their names were typed."""

from __future__ import annotations

import sys
from typing import Any

import click

from poolkit.deploy.aws import Aws, in_plain_words
from poolkit.deploy.environment import ALL, StackEnvironment
from poolkit.deploy.events import StackEvents
from poolkit.deploy.protection import protected_resources
from poolkit.deploy.stacks import find_stack
from poolkit.deploy.terminal import make_console
from poolkit.deploy.watching import failure, watch
from poolkit.errors import DeployError
from poolkit.project import Project


def destroy(target: str, environment_name: str, *, yes_delete: str | None) -> None:
    """Remove a target's stacks.

    Args:
        target: a template's name, or "all".
        environment_name: whose.
        yes_delete: what would be typed; None asks on the terminal.

    Raises:
        DeployError: not agreed to, protected, or still needed; nothing was removed.
        DeploymentFailed: AWS began and failed; the message has the first cause.
    """
    if yes_delete is None and not sys.stdin.isatty():
        raise DeployError("there is no terminal to type the name on; pass --yes-delete NAME")
    environment = StackEnvironment.read(Project.find().root, environment_name)
    Removal(environment, Aws(environment.region)).run(target, yes_delete)


class Removal:
    """One run of the command."""

    def __init__(self, environment: StackEnvironment, aws: Aws) -> None:
        self._environment = environment
        self._aws = aws
        self._cloudformation = aws.cloudformation
        self._console = make_console()

    def run(self, target: str, yes_delete: str | None) -> None:
        """Check, ask, and remove. Raises as `destroy`."""
        environment = self._environment
        chosen = (environment.every() if target == ALL else environment.chosen(target))[::-1]
        found = {name: self._find(name) for name in chosen}
        stacks = {name: stack for name, stack in found.items() if stack is not None}
        if not stacks:
            self._console.print("nothing to remove: none of the stacks is there")
            return
        self._require_unneeded(chosen)
        for stack in stacks.values():
            self._require_unprotected(stack)
        self._agree(target, [stack["StackName"] for stack in stacks.values()], yes_delete)
        for stack in stacks.values():
            self._remove(stack)

    def _find(self, template: str) -> dict[str, Any] | None:
        return find_stack(self._cloudformation, self._environment.stack_name(template))

    def _require_unneeded(self, chosen: list[str]) -> None:
        for name in chosen:
            for other in self._environment.needed_by(name):
                if other not in chosen and self._find(other) is not None:
                    raise DeployError(
                        f"{self._environment.stack_name(other)} uses outputs of "
                        f"{self._environment.stack_name(name)}; destroy {other} first, or all"
                    )

    def _require_unprotected(self, stack: dict[str, Any]) -> None:
        name = stack["StackName"]
        if stack.get("EnableTerminationProtection"):
            raise DeployError(
                f"{name} is protected against deletion. To lift that: aws cloudformation "
                f"update-termination-protection --no-enable-termination-protection "
                f"--stack-name {name}"
            )
        for protected in protected_resources(self._aws, name):
            raise DeployError(
                f"{name}: {protected} has deletion protection. To lift that, deploy with "
                "DeletionProtection=false in its table of the environment's file"
            )

    def _agree(self, target: str, names: list[str], yes_delete: str | None) -> None:
        wanted = self._environment.family if target == ALL else names[0]
        self._console.print(f"to be removed, in this order: {', '.join(names)}", style="bold red")
        typed = yes_delete
        if typed is None:
            typed = click.prompt(f"Type {wanted} to remove it", default="", show_default=False)
        if typed != wanted:
            raise DeployError(f"wanted the name {wanted}, found {typed!r}; nothing was removed")

    def _remove(self, stack: dict[str, Any]) -> None:
        name, stack_id = stack["StackName"], stack["StackId"]
        events = StackEvents(self._cloudformation, stack_id)
        with in_plain_words(f"removing {name}"):
            self._cloudformation.delete_stack(StackName=stack_id)
        status = watch(
            self._console,
            self._cloudformation,
            stack=name,
            stack_id=stack_id,
            events=events,
            total=0,
            environment=self._environment.name,
        )
        if status != "DELETE_COMPLETE":
            raise failure(self._cloudformation, name, status, events)
        self._console.print(f"{name}: removed", style="bold green")
