"""`poolkit status`: every stack of the environments, and how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from poolkit.deploy.aws import Aws
from poolkit.deploy.environment import StackEnvironment
from poolkit.deploy.stacks import DONE, find_stack
from poolkit.deploy.terminal import make_console, make_table, print_table
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table


def print_status(environment_name: str | None) -> None:
    """Print the table, for one environment or for all.

    Raises:
        DeployError: there is no environment, or AWS cannot be asked.
    """
    root = Project.find().root
    table = make_table("stack", "status", "changed", "protected")
    for name in [environment_name] if environment_name else _names(root):
        _add(table, StackEnvironment.read(root, name))
    print_table(make_console(), table)


def _names(root: Path) -> list[str]:
    folder = root / "infra" / "environments"
    names = sorted(file.stem for file in folder.glob("*.toml"))
    if not names:
        raise DeployError(f"{folder} should hold one TOML file for each environment; it holds none")
    return names


def _add(table: Table, environment: StackEnvironment) -> None:
    cloudformation = Aws(environment.region).cloudformation
    for template in environment.every():
        name = environment.stack_name(template)
        stack = find_stack(cloudformation, name)
        if stack is None:
            table.add_row(name, "not deployed", "", "", style="dim")
        else:
            table.add_row(name, *_row(stack))


def _row(stack: dict[str, Any]) -> tuple[Text, str, str]:
    status = stack["StackStatus"]
    style = "green" if status in DONE else "yellow" if status.endswith("_IN_PROGRESS") else "red"
    changed = stack.get("LastUpdatedTime") or stack["CreationTime"]
    reason = f" {stack['StackStatusReason']}" if stack.get("StackStatusReason") else ""
    protected = "yes" if stack.get("EnableTerminationProtection") else "no"
    return Text.assemble((status, style), reason), f"{changed:%Y-%m-%d %H:%M} UTC", protected
