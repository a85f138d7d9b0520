"""`poolkit deploy`: preflight, plan, agreement, and AWS followed at its work, stack by stack."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click
from rich.text import Text

from poolkit.deploy import preflight
from poolkit.deploy.aws import Aws
from poolkit.deploy.change_set import ChangeSet, StackRequest, discard, execute, prepare
from poolkit.deploy.environment import StackEnvironment
from poolkit.deploy.events import StackEvents
from poolkit.deploy.package_settings import function_package
from poolkit.deploy.plan import losses, print_plan
from poolkit.deploy.stacks import DONE, deployed_outputs, find_stack, stack_outputs
from poolkit.deploy.template import Template
from poolkit.deploy.terminal import make_console
from poolkit.deploy.uploads import template_argument, upload_code
from poolkit.deploy.watching import failure, watch
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console

    from poolkit.deploy.preflight import Checked


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """What the command line says."""

    target: str
    environment: str
    yes: bool = False
    plan_only: bool = False
    allow_data_loss: bool = False
    lint: bool = True
    budget: bool = True
    allow_unknown_budget: bool = False
    parameters: tuple[str, ...] = ()
    """`Name=Value` for the one template that is deployed, or `template.Name=Value`."""
    package: Path | None = None
    """The function's zip; default: where `poolkit package lambda` puts it."""


def deploy(options: DeployOptions) -> None:
    """Deploy a target.

    Raises:
        DeployError: it was refused before anything was changed.
        DeploymentFailed: AWS began and failed; the message has the first cause.
        KeyboardInterrupt: followed no longer; what goes on has been printed.
    """
    if not (options.yes or options.plan_only or sys.stdin.isatty()):
        raise DeployError(
            "there is no terminal to ask for agreement to the plan; pass --yes, "
            "or --plan-only to see the plan alone"
        )
    Deployment(options, Project.find()).run()


@dataclass
class Deployment:
    """One run of the command."""

    options: DeployOptions
    project: Project
    console: Console = field(default_factory=make_console)

    def __post_init__(self) -> None:
        self.environment = StackEnvironment.read(self.project.root, self.options.environment)
        self.aws = Aws(self.environment.region)
        self.templates = [
            Template.read(name, self.environment.template_file(name))
            for name in self.environment.chosen(self.options.target)
        ]
        names = [template.name for template in self.templates]
        self._given = _read_parameters(self.options.parameters, names)

    def run(self) -> None:
        """Check everything, then deploy each stack. Raises as `deploy`."""
        self._preflight()
        for template in self.templates:
            self._deploy(template)

    # -- before anything is changed ---------------------------------------------------------

    def _preflight(self) -> None:
        self._say([preflight.check_credentials(self.aws)])
        for template in self.templates:
            given = self._parameters(template)
            # Before AWS is asked for a certificate of nobody's account.
            preflight.check_placeholders(template, given, self.environment.file)
            # Before the general check, which would say less of a missing certificate.
            self._say(preflight.check_certificates(self.aws, self.environment, template, given))
            template.require_parameters(given, self.environment.file)
            if self._takes_code(template):
                self._say([preflight.check_package(self._package, template, given)])
        if self.options.lint:
            self._say([preflight.check_lint(template.file for template in self.templates)])
        if self.options.budget:
            root, name = self.project.root, self.environment.name
            allowed = self.options.allow_unknown_budget
            checked = preflight.check_budget(root, name, self._given, allow_unknown=allowed)
            self._say([checked])

    def _say(self, checked: Iterable[Checked]) -> None:
        for said, is_shown in checked:
            word = ("ok", "green") if is_shown else ("warning", "yellow")
            self.console.print(Text.assemble(word, f" {said}"))

    @property
    def _package(self) -> Path:
        return self.options.package or function_package(self.project)

    def _takes_code(self, template: Template) -> bool:
        # A key in the environment's file is for deploying without this command.
        return "CodeKey" in template.parameters and "CodeKey" not in self._given[template.name]

    def _parameters(self, template: Template) -> dict[str, str]:
        """Return the parameters as they are written, the code's key as a placeholder."""
        own = self.environment.tables[template.name] | self._given[template.name]
        if not self._takes_code(template):
            return own
        bucket = own.get("CodeBucket") or self.environment.code_bucket
        if not bucket:
            raise DeployError(
                f"{self.environment.file}: name the bucket that packages are uploaded to: "
                f"code_bucket in [stack], or CodeBucket in [{template.name}]"
            )
        return own | {"CodeBucket": bucket, "CodeKey": "(uploaded)"}

    # -- one stack --------------------------------------------------------------------------

    def _deploy(self, template: Template) -> None:
        needs = self.environment.needs(template.name)
        outputs = deployed_outputs(self.aws.cloudformation, self.environment, needs)
        if self.options.plan_only and (lacks := self._lacks(template, outputs)):
            name = self.environment.stack_name(template.name)
            self.console.print(f"\n{name}: planned once {lacks} is deployed", style="yellow")
            return
        request = self._request(template, outputs)
        change_set = prepare(self.aws.cloudformation, request)
        if change_set is None:
            self.console.print(f"\n{request.name}: nothing to change", style="green")
        elif self._agreed(change_set):
            self._execute(change_set)
        else:
            self.console.print(f"{request.name}: left as it was")
            return
        if not self.options.plan_only:
            self._protect(request.name)
            self._print_outputs(request.name)

    def _lacks(self, template: Template, outputs: dict[str, dict[str, str]]) -> str:
        """Return which stacks a plan waits for, because this run would deploy them before it."""
        planned = {each.name for each in self.templates}
        lacking = self.environment.lacks(template.name, outputs)
        return " and ".join(name for name in lacking if name in planned)

    def _request(self, template: Template, outputs: dict[str, dict[str, str]]) -> StackRequest:
        environment = self.environment
        given = environment.resolved(template.name, outputs) | self._given[template.name]
        if self._takes_code(template):
            bucket = given.get("CodeBucket") or environment.code_bucket
            given |= {"CodeBucket": bucket, "CodeKey": self._upload(bucket)}
        s3 = self.aws.client("s3")
        return StackRequest(
            name=environment.stack_name(template.name),
            target=f"{template.name} --environment {environment.name}",
            template=template_argument(s3, environment.code_bucket, template, s3.meta.region_name),
            parameters=given,
            tags={"poolkit:environment": environment.name, "poolkit:template": template.name},
        )

    def _upload(self, bucket: str) -> str:
        key, is_new = upload_code(self.aws.client("s3"), bucket, self._package)
        verb = "uploaded to" if is_new else "already at"
        self.console.print(f"{self._package.name}: {verb} s3://{bucket}/{key}")
        return key

    def _agreed(self, change_set: ChangeSet) -> bool:
        print_plan(self.console, change_set)
        try:
            agreed = self._ask(change_set)
        except BaseException:
            discard(self.aws.cloudformation, change_set)
            raise
        if not agreed:
            discard(self.aws.cloudformation, change_set)
        return agreed

    def _ask(self, change_set: ChangeSet) -> bool:
        lost = losses(change_set)
        if self.options.plan_only:
            return False
        if lost and not self.options.allow_data_loss:
            raise DeployError(
                f"{change_set.stack}: {lost[0].logical_id} would lose its data "
                f"({lost[0].kind}); if that is meant, pass --allow-data-loss"
            )
        return self.options.yes or click.confirm("Deploy this?", default=False)

    def _execute(self, change_set: ChangeSet) -> None:
        cloudformation = self.aws.cloudformation
        events = StackEvents(cloudformation, change_set.stack_id)
        execute(cloudformation, change_set)
        status = watch(
            self.console,
            cloudformation,
            stack=change_set.stack,
            stack_id=change_set.stack_id,
            events=events,
            total=len(change_set.changes),
            environment=self.environment.name,
            undo=change_set.undo,
        )
        if status not in DONE:
            raise failure(cloudformation, change_set.stack, status, events)

    def _protect(self, name: str) -> None:
        stack = find_stack(self.aws.cloudformation, name) or {}
        if self.environment.termination_protection and not stack.get("EnableTerminationProtection"):
            self.aws.protect(name)

    def _print_outputs(self, name: str) -> None:
        stack = find_stack(self.aws.cloudformation, name) or {}
        self.console.print(f"{name}: {stack.get('StackStatus')}", style="bold green")
        descriptions = {o["OutputKey"]: o.get("Description", "") for o in stack.get("Outputs", ())}
        for key, value in sorted(stack_outputs(stack).items()):
            if descriptions[key]:
                self.console.print(f"# {descriptions[key]}", style="dim")
            self.console.print(f"{key} = {value}")


def _read_parameters(words: tuple[str, ...], templates: list[str]) -> dict[str, dict[str, str]]:
    """Return `Name=Value`, or `template.Name=Value`, by template."""
    found: dict[str, dict[str, str]] = {name: {} for name in templates}
    for word in words:
        name, separator, value = word.partition("=")
        template, dot, parameter = name.rpartition(".")
        if not (parameter and separator):
            raise DeployError(f"--parameter must be Name=Value, not {word!r}")
        if not dot and len(templates) > 1:
            raise DeployError(f"--parameter {word}: say of which template: TEMPLATE.{word}")
        if dot and template not in found:
            raise DeployError(f"--parameter {word}: {template} is not deployed here")
        found[template or templates[0]][parameter] = value
    return found
