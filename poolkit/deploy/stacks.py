"""The stacks that AWS has, and `poolkit status`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.text import Text

from poolkit.deploy.aws import Aws, in_plain_words
from poolkit.deploy.environment import ALL, StackEnvironment
from poolkit.deploy.parameters import Record
from poolkit.deploy.progress import make_console, make_table, pauses, print_table
from poolkit.deploy.recorded import released
from poolkit.deploy.statuses import REVIEW, deploy_command, next_step, status_of
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path


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
    # A deleted stack is found under its id only, as long as AWS remembers it.
    return next((each for each in found if each["StackStatus"] != "DELETE_COMPLETE"), None)


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


# -- poolkit status -------------------------------------------------------------------------

WAIT_LIMIT: Final = 3 * 3600.0
"""Seconds after which `--wait` ends although AWS goes on."""


class StackLine(NamedTuple):
    """One stack of an environment, as `poolkit status` shows it."""

    environment: str
    template: str
    stack: str
    status: str
    """Empty: it is not deployed."""
    condition: str
    means: str
    next: str
    """The command that leads on; empty: there is nothing to do."""
    reason: str = ""
    changed: str = ""
    protected: bool = False
    kept_parameters: tuple[str, ...] = ()
    released: Mapping[str, str] | None = None
    """The images and the package that it runs, for `poolkit deploy --back-to`."""

    @classmethod
    def read(cls, cloudformation: Any, environment: StackEnvironment, template: str) -> StackLine:
        """Return the line of a template's stack. Raises `DeployError`."""
        name = environment.stack_name(template)
        target = f"{template} --environment {environment.name}"
        stack = find_stack(cloudformation, name)
        if stack is None:
            step = deploy_command(target)
            return cls(environment.name, template, name, "", "absent", "it is not deployed", step)
        status = stack["StackStatus"]
        changed = stack.get("LastUpdatedTime") or stack["CreationTime"]
        return cls(
            environment=environment.name,
            template=template,
            stack=name,
            status=status,
            condition=status_of(status).condition,
            means=status_of(status).means,
            next=next_step(status, target),
            reason=stack.get("StackStatusReason", ""),
            changed=f"{changed:%Y-%m-%d %H:%M} UTC",
            protected=bool(stack.get("EnableTerminationProtection")),
            kept_parameters=tuple(sorted(Record.read(cloudformation, stack).kept)),
            released=released(stack),
        )


def print_status(
    environment_name: str | None,
    target: str | None = None,
    *,
    notes: Callable[[Aws, StackEnvironment], Iterable[str]],
    as_json: bool = False,
    wait: bool = False,
) -> int:
    """Print the stacks of one environment, or of all, and return the exit status.

    Args:
        environment_name: None for every environment of the project.
        target: a template's name; None or "all" for every stack.
        notes: returns lines about an environment, such as a database that waits for a reboot.
        as_json: print one JSON document.
        wait: wait first until AWS no longer changes a stack.

    Returns:
        1 if a stack failed, so that the next deployment needs a command of the user first, else 0.

    Raises:
        DeployError: there is no environment, or AWS cannot be asked.
    """
    root, console = Project.find().root, make_console()
    names = [environment_name] if environment_name else _environments(root)
    environments = [StackEnvironment.read(root, name) for name in names]
    if target and not environment_name:
        # Another environment need not have every template.
        having = [each for each in environments if target == ALL or target in each.tables]
        environments = having or environments
    lines: list[StackLine] = []
    for _ in pauses(WAIT_LIMIT):
        lines = [line for each in environments for line in _lines(each, target)]
        if not wait or all(line.condition != "changes" for line in lines):
            break
    remarks = {each.name: list(notes(Aws(each.region), each)) for each in environments}
    if as_json:
        found = {"stacks": [line._asdict() for line in lines], "notes": remarks}
        console.print(json.dumps(found, indent=2), markup=False, highlight=False)
    else:
        table = make_table("stack", "status", "changed", "protected")
        for line in lines:
            table.add_row(line.stack, *status_cells(line), style="" if line.status else "dim")
        print_table(console, table)
        for line in lines:
            if line.status and line.next:
                console.print(f"{line.stack}: {line.means}. Next: {line.next}")
        for text in (text for texts in remarks.values() for text in texts):
            console.print(text, style="yellow")
    return int(any(line.condition == "failed" for line in lines))


def _environments(root: Path) -> list[str]:
    folder = root / "infra" / "environments"
    names = sorted(file.stem for file in folder.glob("*.toml"))
    if not names:
        raise DeployError(f"{folder} must hold one TOML file for each environment; it has none")
    return names


def _lines(environment: StackEnvironment, target: str | None) -> list[StackLine]:
    cloudformation = Aws(environment.region).cloudformation
    templates = environment.every() if target in {None, ALL} else environment.chosen(str(target))
    return [StackLine.read(cloudformation, environment, template) for template in templates]


_STYLES: Final = {"works": "green", "changes": "yellow", "undone": "yellow", "failed": "red"}


def status_cells(line: StackLine) -> tuple[Text, str, str]:
    """Return the status, the time of the last change and the protection of a stack."""
    if not line.status:
        return Text("not deployed"), "", ""
    reason = f" {line.reason}" if line.reason else ""
    status = Text.assemble((line.status, _STYLES[line.condition]), reason)
    return status, line.changed, "yes" if line.protected else "no"
