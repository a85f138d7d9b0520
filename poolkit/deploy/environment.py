"""An environment: its stacks with their parameters, order and templates.

`infra/environments/<name>.toml` has a table for each template and a table `[stack]`:

    [stack]
    name_prefix = "shop"            # stacks are shop-<environment>-<template>, "_" becoming "-"
    region = "eu-central-1"         # default: AWS_REGION or the profile's
    code_bucket = "shop-code"       # where packages and large templates are uploaded
    termination_protection = true   # a stack must be unprotected before it is deleted
    production = true               # refused without a topic for its alarms
    by_name_only = ["loadtest"]     # deployed when it is named, not with "all"
    tags = {team = "shop"}          # of every stack, from which AWS copies them to the resources
    cloudformation_role = "arn:…"   # CloudFormation works with this role's rights, not the caller's;
                                    # "{access.ExecutionRoleArn}" is the one that poolkit makes
    notification_arns = ["arn:…"]   # SNS topics that get the events of every stack

A value `{network.VpcId}` is the output VpcId of the stack of template network.

`poolkit bootstrap` deploys two templates that are not part of "all". The stack of `bootstrap` is
shared by the environments of an account and a region, and is called <name_prefix>-bootstrap;
`access` has a stack in each environment.
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from poolkit.budget.read.documents import read_documents
from poolkit.budget.read.parameters import OUTPUT, find_environment
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from poolkit.budget.read.documents import Document

MIGRATE: Final = "migrate"
"""The template that upgrades the schema and makes the role that everything else logs in as."""

ALL: Final = "all"
"""As a target: every stack of the environment, except those that are deployed by name only."""

BOOTSTRAP: Final = "bootstrap"
"""The template whose stack all environments of an account and a region share."""

PREPARED: Final = (BOOTSTRAP, "access")
"""The templates that `poolkit bootstrap` deploys; "all" neither deploys nor removes them."""


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
    production: bool = False
    """Whether its alarms must have a topic."""
    by_name_only: tuple[str, ...] = ()
    """Templates that `all` does not deploy, but removes, except those in `PREPARED`."""
    tags: dict[str, str] = field(default_factory=dict)
    cloudformation_role: str = ""
    notification_arns: tuple[str, ...] = ()

    @classmethod
    def read(cls, root: Path, name: str) -> StackEnvironment:
        """Read `infra/environments/<name>.toml` of a project.

        Raises:
            BudgetError: there is no such file, or it is broken; file and line are named.
            DeployError: its stacks cannot be deployed.
        """
        found = find_environment(name, [root / "infra"])
        stack = tomllib.loads(Path(found.file).read_text(encoding="utf-8")).get("stack", {})
        by_name = stack.get("by_name_only", [])
        if not isinstance(by_name, list) or not found.tables.keys() >= set(map(str, by_name)):
            raise DeployError(
                f"{found.file}: by_name_only in [stack] must be a list of templates that have a "
                f"table here ({', '.join(found.tables)}), not {by_name!r}"
            )
        environment = cls(
            name=name,
            file=Path(found.file),
            tables={
                template: {name: _as_text(parameter.value) for name, parameter in table.items()}
                for template, table in found.tables.items()
            },
            prefix=found.prefix,
            region=found.region,
            code_bucket=str(stack.get("code_bucket", "")),
            termination_protection=stack.get("termination_protection") is True,
            production=stack.get("production") is True,
            by_name_only=tuple(by_name),
            tags=_read_tags(found.file, stack),
            cloudformation_role=_read_arn(found.file, stack, "cloudformation_role", ":iam:"),
            notification_arns=_read_topics(found.file, stack),
        )
        environment.every()
        for stack_name in map(environment.stack_name, environment.tables):
            # AWS CloudFormation API Reference, CreateStack, StackName.
            if not re.fullmatch(r"[a-zA-Z][-a-zA-Z0-9]{0,127}", stack_name):
                raise DeployError(
                    f"{found.file}: a stack would be called {stack_name!r}, but AWS allows at most "
                    "128 letters, digits and hyphens, a letter first; its parts are name_prefix "
                    "in [stack], the file's name and the table's"
                )
        return environment

    @property
    def family(self) -> str:
        """The beginning of all its stacks' names; AWS allows no underscore in one."""
        return f"{self.prefix}-{self.name}".replace("_", "-")

    @property
    def fixed_role(self) -> str:
        """The role, if it is no output of a stack; AWS remembers each stack's role."""
        return "" if OUTPUT.search(self.cloudformation_role) else self.cloudformation_role

    def stack_name(self, template: str) -> str:
        """Return the name of a template's stack."""
        if template == BOOTSTRAP:
            return f"{self.prefix}-{BOOTSTRAP}".replace("_", "-")
        return f"{self.family}-{template.replace('_', '-')}"

    def template_file(self, template: str) -> Path:
        """Return the path of a template."""
        return self.file.parent.parent / f"{template}.yaml"

    def chosen(self, target: str) -> list[str]:
        """Return the templates of a target, in the order of deployment.

        Raises:
            DeployError: the environment has no such template.
        """
        if target == ALL:
            left_out = {*self.by_name_only, *PREPARED}
            return [name for name in self.every() if name not in left_out]
        if target not in self.tables:
            known = ", ".join((*self.every(), ALL))
            raise DeployError(f"{self.file} has no table [{target}]; it has {known}")
        return [target]

    def removed_with_all(self) -> list[str]:
        """Return the templates whose stacks `all` removes, in the order of deployment."""
        return [name for name in self.every() if name not in PREPARED]

    def every(self) -> list[str]:
        """Return all templates, each after those it refers to, otherwise as in the file.

        The migrations, and what they refer to, come before the rest: a service or a proxy that is
        created earlier finds no role to log in as.

        Raises:
            DeployError: templates refer to each other in a circle, or to one without a table.
        """
        ordered: list[str] = []
        early = self._leading_to(MIGRATE)
        preferred = sorted(self.tables, key=lambda name: name not in early)
        while len(ordered) < len(self.tables):
            rest = [name for name in preferred if name not in ordered]
            following = next((name for name in rest if self.needs(name) <= set(ordered)), None)
            if following is None:
                raise DeployError(
                    f"{self.file}: {', '.join(rest)} refer to each other in a circle, so "
                    "no stack can be the first"
                )
            ordered.append(following)
        return ordered

    def _leading_to(self, template: str) -> set[str]:
        """Return a template with all that it refers to, directly or not. Raises `DeployError`."""
        found: set[str] = set()
        following = {template} & self.tables.keys()
        while following:
            found |= following
            following = set().union(*map(self.needs, following)) - found
        return found

    def needs(self, template: str) -> set[str]:
        """Return the templates whose outputs it refers to. Raises `DeployError`."""
        named = {other for other, _ in self._references(template)}
        if template not in PREPARED:
            named |= self.stacks_named(self.cloudformation_role)
        for name in sorted(named - self.tables.keys()):
            raise DeployError(
                f"{self.file}: [{template}] refers to {{{name}.…}}, but there is no table [{name}]"
            )
        return named

    def needed_by(self, template: str) -> list[str]:
        """Return the templates that refer to its outputs."""
        return [name for name in self.tables if template in self.needs(name)]

    def lacks(self, template: str, outputs: dict[str, dict[str, str]]) -> list[str]:
        """Return the templates that must be deployed first, because an output is missing.

        Args:
            template: whose references.
            outputs: of each deployed stack, by template.
        """
        references = self._references(template)
        return sorted({other for other, name in references if name not in outputs.get(other, {})})

    def resolved(self, template: str, outputs: dict[str, dict[str, str]]) -> dict[str, str]:
        """Return its parameters with the other stacks' outputs put in.

        Args:
            template: whose parameters.
            outputs: of each deployed stack, by template.

        Raises:
            DeployError: a stack that is referred to is not deployed, or lacks the output.
        """
        return {
            name: self.resolved_text(text, outputs, table=template)
            for name, text in self.tables[template].items()
        }

    def resolved_text(self, text: str, outputs: dict[str, dict[str, str]], *, table: str) -> str:
        """Return a text of a table, with other stacks' outputs put in. Raises as `resolved`."""

        def output(match: re.Match[str]) -> str:
            other, name = match.groups()
            if other not in outputs:
                target = BOOTSTRAP if other in PREPARED else f"deploy {other}"
                raise DeployError(
                    f"[{table}] in {self.file} refers to {match[0]}, but "
                    f"{self.stack_name(other)} is not deployed. Next: poolkit {target} "
                    f"--environment {self.name}"
                )
            if name not in outputs[other]:
                known = ", ".join(sorted(outputs[other])) or "none"
                raise DeployError(
                    f"[{table}] in {self.file} refers to {match[0]}, but "
                    f"{self.stack_name(other)} has no such output; it has {known}"
                )
            return outputs[other][name]

        return OUTPUT.sub(output, text)

    def stacks_named(self, text: str) -> set[str]:
        """Return the templates whose outputs a text names."""
        return {other for other, _ in OUTPUT.findall(text)}

    def _references(self, template: str) -> set[tuple[str, str]]:
        """Return the template and the output of each reference in its parameters."""
        return {found for text in self.tables[template].values() for found in OUTPUT.findall(text)}


@dataclass(frozen=True, kw_only=True)
class Template:
    """One CloudFormation template file."""

    name: str
    file: Path
    text: str = field(repr=False)
    document: Document = field(repr=False)

    @classmethod
    def read(cls, name: str, file: Path) -> Template:
        """Read a template.

        Raises:
            TemplateError: it is broken; file and line are named.
            DeployError: it is missing, or is no template.
        """
        if not file.is_file():
            raise DeployError(f"the template of {name} should be {file}, which is missing")
        documents = read_documents(file)
        if len(documents) != 1 or not isinstance(documents[0].data, dict):
            raise DeployError(f"{file} is not one template: it must be one YAML mapping")
        template = cls(
            name=name, file=file, text=file.read_text(encoding="utf-8"), document=documents[0]
        )
        if not template.section("Resources"):
            raise DeployError(f"{file} declares no Resources")
        return template

    def section(self, name: str) -> dict[str, Any]:
        """Return a section of it, empty if it has none. Raises `DeployError`."""
        found = self.document.data.get(name) or {}
        if not isinstance(found, dict):
            raise DeployError(f"{self.document.where(name)}: {name} must be a mapping")
        return found

    @property
    def parameters(self) -> dict[str, Any]:
        """The declared parameters."""
        return self.section("Parameters")

    def value_of(self, name: str, values: dict[str, str]) -> str:
        """Return a parameter's value, or its default, or the empty text."""
        return str(values.get(name) or (self.parameters.get(name) or {}).get("Default") or "")

    def require_parameters(
        self,
        values: dict[str, str],
        origin: Path,
        *,
        hidden: Collection[str] = (),
        given: Collection[str] = (),
    ) -> None:
        """Check that every value is allowed, and that no parameter lacks one.

        Args:
            values: of the parameters, by name.
            origin: the file that the values come from.
            hidden: parameters that have a value which AWS does not show.
            given: parameters whose value comes from the command line.

        Raises:
            DeployError: names the parameter, its line and where to give it.
        """
        for name, value in values.items():
            where = (
                f"the command line: {self.name}.{name}"
                if name in given
                else f"{origin}: [{self.name}] {name}"
            )
            if name not in self.parameters:
                raise DeployError(
                    f"{where} is no parameter that {self.file} declares; it declares "
                    f"{', '.join(self.parameters) or 'none'}"
                )
            if OUTPUT.search(value) and name in given:
                raise DeployError(
                    f"{where} refers to an output, {value}, which only {origin} can; write it there"
                )
            if OUTPUT.search(value):
                continue  # known when the other stack is deployed
            if problem := _problem(self.parameters[name] or {}, value):
                location = self.document.where("Parameters", name)
                raise DeployError(f"{where} is {value!r}, but {location} {problem}")
        for name, declared in self.parameters.items():
            lacks = name not in values and name not in hidden
            if lacks and "Default" not in (declared or {}):
                location = self.document.where("Parameters", name)
                raise DeployError(
                    f"{location}: parameter {name} has no default and no value; give it in "
                    f"[{self.name}] of {origin}, or with --parameter {name}=…"
                )


def _problem(declared: dict[str, Any], value: str) -> str:
    """Return what a declared parameter allows, as the end of a sentence; empty: it is allowed."""
    allowed = [_as_text(each) for each in declared.get("AllowedValues", ())]
    pattern = declared.get("AllowedPattern", "")
    if (allowed and value not in allowed) or (pattern and not re.fullmatch(pattern, value)):
        return f"allows {pattern or ', '.join(allowed)}"
    if declared.get("Type") == "Number" and math.isnan(_number(value)):
        return "allows numbers"
    for bound, is_beyond in _BOUNDS.items():
        if bound in declared and is_beyond(value, declared[bound]):
            return f"has {bound} {declared[bound]}"
    return ""


def _number(text: str) -> float:
    """Return a number; what is none is within all bounds."""
    try:
        return float(text)
    except ValueError:
        return math.nan


# CloudFormation User Guide, "Parameters": the bounds of numbers, and those of a text's length.
_BOUNDS: Final[dict[str, Callable[[str, Any], bool]]] = {
    "MinValue": lambda value, bound: _number(value) < float(bound),
    "MaxValue": lambda value, bound: _number(value) > float(bound),
    "MinLength": lambda value, bound: len(value) < int(bound),
    "MaxLength": lambda value, bound: len(value) > int(bound),
}


# AWS CloudFormation API Reference, Tag: at most 50 for a stack, two of which are poolkit's.
_MOST_TAGS: Final = 48
_TAG_LETTERS: Final = re.compile(r"[\w\s.:/=+@-]*")


def _read_tags(file: str, stack: dict[str, Any]) -> dict[str, str]:
    tags = stack.get("tags", {})
    if not isinstance(tags, dict) or len(tags) > _MOST_TAGS:
        raise DeployError(f"{file}: tags in [stack] must be a table of at most {_MOST_TAGS} tags")
    found = {name: _as_text(value) for name, value in tags.items()}
    for name, value in found.items():
        is_reserved = name.lower().startswith(("aws:", "poolkit:"))
        if is_reserved or not (_TAG_LETTERS.fullmatch(name) and _TAG_LETTERS.fullmatch(value)):
            raise DeployError(
                f"{file}: the tag {name} = {value!r} in [stack] is refused: letters, digits, "
                "spaces and . : / = + - @ _ are allowed, and no name that begins with aws: or "
                "poolkit:"
            )
    return found


def _read_arn(file: str, stack: dict[str, Any], key: str, service: str) -> str:
    value = stack.get(key, "")
    if isinstance(value, str) and OUTPUT.fullmatch(value):
        return value
    if value and not (isinstance(value, str) and value.startswith("arn:") and service in value):
        raise DeployError(f"{file}: {key} in [stack] must be an ARN with {service}, not {value!r}")
    return str(value)


def _read_topics(file: str, stack: dict[str, Any]) -> tuple[str, ...]:
    topics = stack.get("notification_arns", [])
    # AWS CloudFormation API Reference, CreateChangeSet, NotificationARNs.
    if not isinstance(topics, list) or len(topics) > 5:
        raise DeployError(f"{file}: notification_arns in [stack] must be a list of at most 5 ARNs")
    key = "notification_arns"
    return tuple(_read_arn(file, {key: topic}, key, ":sns:") for topic in topics)


def _as_text(value: object) -> str:
    # As CloudFormation's own allowed values are written.
    return str(value).lower() if isinstance(value, bool) else str(value)
