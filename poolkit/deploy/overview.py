"""`poolkit status`: every stack of the environments, and how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from poolkit.deploy.aws import Aws
from poolkit.deploy.environment import StackEnvironment
from poolkit.deploy.stacks import DONE, find_stack
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from pathlib import Path


def print_status(environment_name: str | None) -> None:
    """Print the table, for one environment or for all.

    Raises:
        DeployError: there is no environment, or AWS cannot be asked.
    """
    root = Project.find().root
    table = Table("stack", "status", "changed", "protected", box=None, pad_edge=False)
    for name in [environment_name] if environment_name else _names(root):
        _add(table, StackEnvironment.read(root, name))
    Console(highlight=False, soft_wrap=True).print(table)


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


def _row(stack: dict[str, Any]) -> tuple[str, str, str]:
    status = stack["StackStatus"]
    style = "green" if status in DONE else "yellow" if status.endswith("_IN_PROGRESS") else "red"
    changed = stack.get("LastUpdatedTime") or stack["CreationTime"]
    reason = f" {stack['StackStatusReason']}" if stack.get("StackStatusReason") else ""
    protected = "yes" if stack.get("EnableTerminationProtection") else "no"
    return f"[{style}]{status}[/]{reason}", f"{changed:%Y-%m-%d %H:%M} UTC", protected
