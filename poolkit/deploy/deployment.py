"""`poolkit deploy`: checks, plan, agreement, and AWS's progress, stack by stack."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click
from rich.text import Text

from poolkit.deploy import database, preflight
from poolkit.deploy.aws import Aws, in_plain_words, template_argument, upload
from poolkit.deploy.change_set import (
    ChangeSet,
    StackRequest,
    discard,
    execute,
    prepare,
    print_plan,
)
from poolkit.deploy.database import Reboots
from poolkit.deploy.environment import BOOTSTRAP, PREPARED, StackEnvironment, Template
from poolkit.deploy.package.settings import function_package
from poolkit.deploy.progress import make_console, watch_change
from poolkit.deploy.stacks import DONE, deployed_outputs, find_stack, stack_outputs
from poolkit.errors import DeployError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from rich.console import Console

    from poolkit.deploy.preflight import Checked


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """The command line's options."""

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
        KeyboardInterrupt: no longer followed, after a message that AWS goes on.
    """
    require_agreement(yes=options.yes, plan_only=options.plan_only)
    Deployment(options, Project.find()).run()


def require_agreement(*, yes: bool, plan_only: bool) -> None:
    """Check that the plan can be agreed to. Raises `DeployError`."""
    if not (yes or plan_only or sys.stdin.isatty()):
        raise DeployError(
            "there is no terminal to ask for agreement to the plan; pass --yes, "
            "or --plan-only to see the plan alone"
        )


@dataclass
class Deployment:
    """One run of the command."""

    options: DeployOptions
    project: Project
    console: Console = field(default_factory=make_console)
    names: tuple[str, ...] = ()
    """The templates, if not those of the options' target."""

    def __post_init__(self) -> None:
        self.environment = StackEnvironment.read(self.project.root, self.options.environment)
        self.aws = Aws(self.environment.region)
        self.templates = [
            Template.read(name, self.environment.template_file(name))
            for name in self.names or self.environment.chosen(self.options.target)
        ]
        self._waits_for_reboot = False
        self._overrides = _read_parameters(
            self.options.parameters, [template.name for template in self.templates]
        )

    def run(self) -> None:
        """Check everything, then deploy each stack. Raises as `deploy`."""
        self.check()
        for template in self.templates:
            self.deploy_stack(template)

    # -- before anything is changed ---------------------------------------------------------

    def check(self) -> None:
        """Make every check, and print what each found. Raises `DeployError`."""
        options, file = self.options, self.environment.file
        self._print([preflight.check_credentials(self.aws)])
        for template in self.templates:
            values = self._values(template)
            # Before AWS is asked for a certificate of an account that does not exist.
            preflight.check_placeholders(template, values, file)
            # Before the general check, whose message about a missing certificate has less.
            self._print(preflight.check_certificates(self.aws, self.environment, template, values))
            template.require_parameters(values, file)
            preflight.check_alarm_topic(self.environment, template, values)
            if self._takes_code(template):
                self._print([preflight.check_package(self._package(template), template, values)])
        names = {template.name for template in self.templates}
        preflight.check_prepared(self.aws, self.environment, names)
        if options.lint:
            self._print([preflight.check_lint(template.file for template in self.templates)])
        if options.budget:
            self._check_budget()

    def _check_budget(self) -> None:
        """Compare the budget with the template, or with a server that waits for a reboot."""
        limit, name = None, self.environment.name
        allow_unknown = self.options.allow_unknown_budget
        if any(not database.has_database(self.environment, each.name) for each in self.templates):
            limit = database.pending_limit(self.aws, self.environment)
        if limit is not None:
            self._print([preflight.Checked(limit.text, is_shown=False)])
            database.require_known(limit, name, allow_unknown=allow_unknown)
        checked = preflight.check_budget(
            self.project.root,
            name,
            self._overrides,
            allow_unknown=allow_unknown,
            limit=limit,
        )
        self._print([checked])

    def _print(self, checked: Iterable[Checked]) -> None:
        for text, is_shown in checked:
            label = ("ok", "green") if is_shown else ("warning", "yellow")
            self.console.print(Text.assemble(label, f" {text}"))

    def _package(self, template: Template) -> Path:
        return self.options.package or function_package(self.project, template.name)

    def _takes_code(self, template: Template) -> bool:
        # A key in the environment's file is for deploying without this command.
        return "CodeKey" in template.parameters and "CodeKey" not in self._overrides[template.name]

    def _values(self, template: Template) -> dict[str, str]:
        """Return the parameters before other stacks' outputs and the code's key are known."""
        values = self.environment.tables[template.name] | self._overrides[template.name]
        if not self._takes_code(template):
            return values
        bucket = values.get("CodeBucket") or self.environment.code_bucket
        if not bucket:
            raise DeployError(
                f"{self.environment.file}: name the bucket that packages are uploaded to: "
                f"code_bucket in [stack], or CodeBucket in [{template.name}]"
            )
        return values | {"CodeBucket": bucket, "CodeKey": "(uploaded)"}

    # -- one stack --------------------------------------------------------------------------

    def deploy_stack(self, template: Template) -> None:
        """Plan one stack, ask, and execute the plan. Raises as `deploy`."""
        cloudformation, environment = self.aws.cloudformation, self.environment
        needs = environment.needs(template.name)
        outputs = deployed_outputs(cloudformation, environment, needs)
        if self.options.plan_only:
            # Stacks that this run would deploy before this one.
            planned = {each.name for each in self.templates}
            lacking = [n for n in environment.lacks(template.name, outputs) if n in planned]
            if lacking:
                name, first = environment.stack_name(template.name), " and ".join(lacking)
                text = f"\n{name}: can be planned when {first} is deployed"
                self.console.print(text, style="yellow")
                return
        if self._waits_for_reboot and not database.has_database(environment, template.name):
            # The stacks after the database's would use connections that it does not have yet.
            self._check_budget()
        request = self._request(template, outputs)
        change_set = prepare(cloudformation, request)
        reboots = self._reboots(template, request, change_set)
        if change_set is None:
            self.console.print(f"\n{request.name}: nothing to change", style="green")
        elif self._agreed(template, change_set, reboots):
            database.remember_running(self.aws, reboots)
            self._waits_for_reboot = bool(reboots.waiting) and self.options.budget
            watch_change(
                self.console,
                cloudformation,
                lambda: execute(cloudformation, change_set),
                stack=change_set.stack,
                stack_id=change_set.stack_id,
                wanted=DONE,
                environment=environment.name,
                total=len(change_set.changes),
                undo=change_set.undo,
            )
        else:
            self.console.print(f"{request.name}: not changed")
            return
        if not self.options.plan_only:
            self._finish(request.name)

    def _request(self, template: Template, outputs: dict[str, dict[str, str]]) -> StackRequest:
        environment, s3 = self.environment, self.aws.client("s3")
        values = environment.resolved(template.name, outputs) | self._overrides[template.name]
        if self._takes_code(template):
            bucket = values.get("CodeBucket") or self._code_bucket(template)
            package = self._package(template)
            content = package.read_bytes()
            key, is_new = upload(s3, bucket, content, prefix="lambda", ending="zip")
            verb = "uploaded to" if is_new else "already at"
            self.console.print(f"{package.name}: {verb} s3://{bucket}/{key}")
            values |= {"CodeBucket": bucket, "CodeKey": key}
        tags = {"poolkit:template": template.name}
        if template.name != BOOTSTRAP:  # which is of no environment alone
            tags["poolkit:environment"] = environment.name
        bucket = self._code_bucket(template)
        return StackRequest(
            name=environment.stack_name(template.name),
            target=f"{template.name} --environment {environment.name}",
            template=template_argument(s3, bucket, template.file, template.text),
            parameters=values,
            tags=tags,
        )

    def _code_bucket(self, template: Template) -> str:
        """Return the name of the bucket; empty for what is deployed before there is one."""
        environment, bucket = self.environment, self.environment.code_bucket
        if template.name in PREPARED:
            return ""
        needed = environment.stacks_named(bucket)
        outputs = deployed_outputs(self.aws.cloudformation, environment, needed)
        return environment.resolved_text(bucket, outputs, table="stack")

    def _reboots(
        self, template: Template, request: StackRequest, change_set: ChangeSet | None
    ) -> Reboots:
        """Return what the plan reboots; a plan that cannot be completed is discarded."""
        if change_set is None:
            return Reboots()
        try:
            return database.plan_reboots(
                self.aws, self.environment, template, request.parameters, change_set
            )
        except BaseException:
            discard(self.aws.cloudformation, change_set)
            raise

    def _agreed(self, template: Template, change_set: ChangeSet, reboots: Reboots) -> bool:
        """Print the plan and return whether to execute it; otherwise it is discarded."""
        print_plan(self.console, change_set)
        for text in reboots.texts:
            self.console.print(text, style="bold yellow")
        agreed = False
        try:
            database.require_new_names(template, change_set)
            agreed = self.agrees(change_set)
        finally:
            if not agreed:
                discard(self.aws.cloudformation, change_set)
        return agreed

    def agrees(self, change_set: ChangeSet) -> bool:
        """Return what --yes or the terminal answers to the plan.

        Raises:
            DeployError: data would be lost, which needs --allow-data-loss as well.
        """
        lost = change_set.losses
        if self.options.plan_only:
            return False
        if lost and not self.options.allow_data_loss:
            raise DeployError(
                f"{change_set.stack}: {lost[0].logical_id} would lose its data "
                f"({lost[0].kind}); if that is meant, pass --allow-data-loss"
            )
        return self.options.yes or click.confirm("Deploy this?", default=False)

    def _finish(self, name: str) -> None:
        """Protect the stack, if its environment says so, and print its outputs."""
        cloudformation = self.aws.cloudformation
        stack = find_stack(cloudformation, name) or {}
        if self.environment.termination_protection and not stack.get("EnableTerminationProtection"):
            with in_plain_words(f"protecting {name}"):
                cloudformation.update_termination_protection(
                    StackName=name, EnableTerminationProtection=True
                )
        self.console.print(f"{name}: {stack.get('StackStatus')}", style="bold green")
        descriptions = {o["OutputKey"]: o.get("Description", "") for o in stack.get("Outputs", ())}
        for key, value in sorted(stack_outputs(stack).items()):
            if descriptions[key]:
                self.console.print(f"# {descriptions[key]}", style="dim")
            self.console.print(f"{key} = {value}")


def _read_parameters(texts: tuple[str, ...], templates: list[str]) -> dict[str, dict[str, str]]:
    """Return `Name=Value`, or `template.Name=Value`, by template."""
    found: dict[str, dict[str, str]] = {name: {} for name in templates}
    for text in texts:
        name, separator, value = text.partition("=")
        template, dot, parameter = name.rpartition(".")
        if not (parameter and separator):
            raise DeployError(f"--parameter must be Name=Value, not {text!r}")
        if not dot and len(templates) > 1:
            raise DeployError(f"--parameter {text}: name its template: TEMPLATE.{text}")
        if dot and template not in found:
            raise DeployError(f"--parameter {text}: {template} is not deployed here")
        found[template or templates[0]][parameter] = value
    return found


# -- back to where a stack was before its last change ---------------------------------------

_ROLL_BACK: Final[dict[str, Callable[[Any, str], Any]]] = {
    "UPDATE_IN_PROGRESS": lambda client, name: client.cancel_update_stack(StackName=name),
    "CREATE_FAILED": lambda client, name: client.rollback_stack(StackName=name),
    "UPDATE_FAILED": lambda client, name: client.rollback_stack(StackName=name),
    "UPDATE_ROLLBACK_FAILED": lambda client, name: client.continue_update_rollback(StackName=name),
}


def roll_back(target: str, environment_name: str) -> None:
    """Roll a target's stack back, and follow that to its end.

    Raises:
        DeployError: there is no stack, or nothing to undo.
        DeploymentFailed: rolling back failed; the message has the first cause.
    """
    environment = StackEnvironment.read(Project.find().root, environment_name)
    (template, *more) = environment.chosen(target)
    if more:
        raise DeployError("--rollback is for one stack; name its target")
    console = make_console()
    cloudformation = Aws(environment.region).cloudformation
    name = environment.stack_name(template)
    stack = find_stack(cloudformation, name)
    if stack is None:
        raise DeployError(f"there is no stack {name} to roll back")
    status = stack["StackStatus"]
    if status == "CREATE_IN_PROGRESS":
        raise DeployError(
            f"{name} is in CREATE_IN_PROGRESS: it has no earlier state to return to; "
            f"remove it with: poolkit destroy {template} --environment {environment.name}"
        )
    if status not in _ROLL_BACK and "ROLLBACK_IN_PROGRESS" not in status:
        raise DeployError(f"{name} is in {status}: there is no unfinished change to undo")

    def begin() -> None:
        if status in _ROLL_BACK:  # else it is under way
            with in_plain_words(f"rolling {name} back"):
                _ROLL_BACK[status](cloudformation, name)

    ended = watch_change(
        console,
        cloudformation,
        begin,
        stack=name,
        stack_id=stack["StackId"],
        wanted=frozenset({"UPDATE_ROLLBACK_COMPLETE", "ROLLBACK_COMPLETE"}),
        environment=environment.name,
    )
    console.print(f"{name}: {ended}", style="bold green")
