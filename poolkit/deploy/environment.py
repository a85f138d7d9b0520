"""An environment: which stacks it has, with which parameters, and in which order.

`infra/environments/<name>.toml` has a table for each template and a table `[stack]`:

    [stack]
    name_prefix = "shop"            # stacks are shop-<environment>-<template>, "_" becoming "-"
    region = "eu-central-1"         # default: AWS_REGION or the profile's
    code_bucket = "shop-code"       # where packages and large templates are uploaded
    termination_protection = true   # a stack must be unprotected before it is deleted
    by_name_only = ["loadtest"]     # deployed when it is named, not with "all"

A value `{network.VpcId}` is the output VpcId of the stack of template network.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from poolkit.budget.read.parameters import OUTPUT, find_environment
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.read.parameters import Environment

ALL: Final = "all"
"""As a target: every stack of the environment, but for those that are deployed by name only."""

_STACK_NAME: Final = re.compile(r"[a-zA-Z][-a-zA-Z0-9]{0,127}")
"""AWS CloudFormation API Reference, CreateStack, StackName."""


@dataclass(frozen=True, kw_only=True)
class StackEnvironment:
    """One environment's stacks; `tables` are parameters as text, by template."""

    name: str
    file: Path
    tables: dict[str, dict[str, str]] = field(repr=False)
    prefix: str = "poolkit"
    region: str = ""
    code_bucket: str = ""
    termination_protection: bool = False
    by_name_only: tuple[str, ...] = ()
    """Templates that `all` does not deploy, but removes."""

    @classmethod
    def read(cls, root: Path, name: str) -> StackEnvironment:
        """Read `infra/environments/<name>.toml` of a project.

        Raises:
            BudgetError: there is no such file, or it is broken; file and line are named.
            DeployError: what it says cannot be deployed.
        """
        found = find_environment(name, [root / "infra"])
        stack = tomllib.loads(Path(found.file).read_text(encoding="utf-8")).get("stack", {})
        environment = cls(
            name=name,
            file=Path(found.file),
            tables=_texts(found),
            prefix=found.prefix,
            region=found.region,
            code_bucket=str(stack.get("code_bucket", "")),
            termination_protection=stack.get("termination_protection") is True,
            by_name_only=_names(stack.get("by_name_only", []), found),
        )
        environment.every()
        environment._require_names()
        return environment

    @property
    def family(self) -> str:
        """What the names of all its stacks begin with; AWS takes no underscore in one."""
        return f"{self.prefix}-{self.name}".replace("_", "-")

    def stack_name(self, template: str) -> str:
        """Return what the stack of a template is called."""
        return f"{self.family}-{template.replace('_', '-')}"

    def _require_names(self) -> None:
        for name in map(self.stack_name, self.tables):
            if not _STACK_NAME.fullmatch(name):
                raise DeployError(
                    f"{self.file}: a stack would be called {name!r}, but AWS takes letters, digits "
                    "and hyphens, a letter first, 128 at the most; name_prefix in [stack], the "
                    "file's name and the tables make it up"
                )

    def template_file(self, template: str) -> Path:
        """Return where the template is."""
        return self.file.parent.parent / f"{template}.yaml"

    def chosen(self, target: str) -> list[str]:
        """Return the templates that a target stands for, in the order of deployment.

        Raises:
            DeployError: the environment has no such template.
        """
        if target == ALL:
            return self.order()
        if target not in self.tables:
            known = ", ".join((*self.every(), ALL))
            raise DeployError(f"{self.file} has no table [{target}]; it has {known}")
        return [target]

    def order(self) -> list[str]:
        """Return the templates that `all` deploys, in the order of `every`."""
        return [name for name in self.every() if name not in self.by_name_only]

    def every(self) -> list[str]:
        """Return all templates, each after those it refers to, otherwise as in the file.

        Raises:
            DeployError: templates refer to each other in a circle, or to one without a table.
        """
        ordered: list[str] = []
        while len(ordered) < len(self.tables):
            ready = (
                name
                for name in self.tables
                if name not in ordered and self.needs(name) <= set(ordered)
            )
            following = next(ready, None)
            if following is None:
                rest = [name for name in self.tables if name not in ordered]
                raise DeployError(
                    f"{self.file}: {', '.join(rest)} refer to each other in a circle, so there "
                    "is none to begin with"
                )
            ordered.append(following)
        return ordered

    def needs(self, template: str) -> set[str]:
        """Return the templates whose outputs it refers to. Raises `DeployError`."""
        named = {name for name, _ in self._references(template)}
        for name in sorted(named - self.tables.keys()):
            raise DeployError(
                f"{self.file}: [{template}] refers to {{{name}.…}}, but there is no table [{name}]"
            )
        return named

    def needed_by(self, template: str) -> list[str]:
        """Return the templates that refer to its outputs."""
        return [name for name in self.tables if template in self.needs(name)]

    def lacks(self, template: str, outputs: dict[str, dict[str, str]]) -> list[str]:
        """Return the templates that it refers to an output of that is not there yet.

        Args:
            template: whose references.
            outputs: of each deployed stack, by template.
        """
        references = self._references(template)
        return sorted({other for other, name in references if name not in outputs.get(other, {})})

    def resolved(self, template: str, outputs: dict[str, dict[str, str]]) -> dict[str, str]:
        """Return its parameters with the other stacks' outputs put in.

        Args:
            template: whose.
            outputs: of each deployed stack, by template.

        Raises:
            DeployError: a stack that is referred to is not deployed, or lacks the output.
        """

        def output(match: re.Match[str]) -> str:
            other, name = match.groups()
            if other not in outputs:
                raise DeployError(
                    f"[{template}] in {self.file} refers to {match[0]}, but "
                    f"{self.stack_name(other)} is not deployed; deploy {other} first, or all"
                )
            if name not in outputs[other]:
                there = ", ".join(sorted(outputs[other])) or "none"
                raise DeployError(
                    f"[{template}] in {self.file} refers to {match[0]}, but "
                    f"{self.stack_name(other)} has no such output; it has {there}"
                )
            return outputs[other][name]

        return {k: OUTPUT.sub(output, text) for k, text in self.tables[template].items()}

    def _references(self, template: str) -> Iterator[tuple[str, str]]:
        for text in self.tables[template].values():
            for match in OUTPUT.finditer(text):
                yield match[1], match[2]


def _names(listed: object, found: Environment) -> tuple[str, ...]:
    if not isinstance(listed, list) or not found.tables.keys() >= set(map(str, listed)):
        raise DeployError(
            f"{found.file}: by_name_only in [stack] must be a list of templates that have a table "
            f"here ({', '.join(found.tables)}), not {listed!r}"
        )
    return tuple(listed)


def _texts(found: Environment) -> dict[str, dict[str, str]]:
    return {
        template: {name: _text(given.value) for name, given in table.items()}
        for template, table in found.tables.items()
    }


def _text(value: object) -> str:
    # As CloudFormation's own allowed values are written.
    return str(value).lower() if isinstance(value, bool) else str(value)
