"""`poolkit deploy`: checks, plan, agreement, and AWS's progress, stack by stack."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import click
from rich.text import Text

from poolkit.deploy import database, images, preflight
from poolkit.deploy.aws import Aws, content_key, in_plain_words, template_argument, upload
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
from poolkit.deploy.parameters import (
    Chosen,
    Record,
    choose,
    is_masked,
    read_images,
    read_overrides,
    read_resets,
)
from poolkit.deploy.preflight import Checked
from poolkit.deploy.progress import make_console, watch_change
from poolkit.deploy.stacks import deployed_outputs, find_stack, stack_outputs
from poolkit.deploy.statuses import DONE, REVIEW, require_accepted
from poolkit.errors import DeployError, DeploymentFailed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console

    from poolkit.project import Project

PROTECTION: Final = "DeletionProtection"
"""The parameter that protects a stack's database or load balancer against deletion."""


@dataclass(frozen=True, kw_only=True)
class DeployOptions:
    """The command line's options."""

    target: str
    environment: str
    yes: bool = False
    plan_only: bool = False
    allow_data_loss: bool = False
    allow_new_name: bool = False
    lint: bool = True
    budget: bool = True
    allow_unknown_budget: bool = False
    parameters: tuple[str, ...] = ()
    """`Name=Value` for the one template that is deployed, or `template.Name=Value`."""
    images: tuple[str, ...] = ()
    """An image's URI for the one template that is deployed, or `template=URI`."""
    reset_parameters: tuple[str, ...] = ()
    """`Name`, or `template.Name`: parameters of earlier command lines that are taken back."""
    package: Path | None = None
    """The function's zip; default: where `poolkit package lambda` puts it."""


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
        self._changed: list[str] = []
        names = [template.name for template in self.templates]
        given = read_overrides(self.options.parameters, names)
        given_images = read_images(self.options.images, names)
        self._given = {name: given[name] | given_images[name] for name in names}
        self._reset = read_resets(self.options.reset_parameters, names)
        self._chosen: dict[str, Chosen] = {}
        self._resolved_images: dict[tuple[str, str], str] = {}

    def run(self) -> None:
        """Check everything, then deploy each stack.

        Raises:
            DeployError: it was refused before anything was changed.
            DeploymentFailed: AWS began and failed; the message has the first cause.
            KeyboardInterrupt: no longer followed, after a message that AWS goes on.
        """
        self.check()
        for template in self.templates:
            try:
                self.deploy_stack(template)
            except DeployError as error:
                if isinstance(error, DeploymentFailed) or not self._changed:
                    raise
                # Something was changed already, which is another exit status than a refusal's.
                before = " and ".join(self._changed)
                raise DeploymentFailed(f"{error}\nchanged before that: {before}") from None

    # -- before anything is changed ---------------------------------------------------------

    def check(self) -> None:
        """Make every check, and print what each found. Raises `DeployError`."""
        options, file = self.options, self.environment.file
        self._print([preflight.check_credentials(self.aws)])
        for template in self.templates:
            self._chosen[template.name] = self._choose(template)
            values = self._values(template)
            # Before AWS is asked for a certificate of an account that does not exist.
            preflight.check_placeholders(template, values, file)
            # Before the general check, whose message about a missing certificate has less.
            self._print(preflight.check_certificates(self.aws, self.environment, template, values))
            shown = {name: value for name, value in values.items() if not is_masked(value)}
            template.require_parameters(
                shown,
                file,
                hidden=values.keys() - shown.keys(),
                given=self._chosen[template.name].values,
            )
            preflight.check_alarm_topic(self.environment, template, values)
            preflight.check_task_sizes(template, values, file)
            if self._takes_code(template):
                self._print([preflight.check_package(self._package(template), template, values)])
        names = {template.name for template in self.templates}
        preflight.check_prepared(self.aws, self.environment, names)
        if not options.plan_only:  # a plan may be wanted before an image is there
            for template in self.templates:
                self._check_images(template)
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
            {name: chosen.values for name, chosen in self._chosen.items()},
            allow_unknown=allow_unknown,
            limit=limit,
        )
        self._print([checked])

    def _choose(self, template: Template) -> Chosen:
        """Return the parameters of this and of earlier command lines. Raises `DeployError`."""
        name, cloudformation = template.name, self.aws.cloudformation
        stack = find_stack(cloudformation, self.environment.stack_name(name))
        if stack is not None:
            require_accepted(stack, "deploy", f"{name} --environment {self.environment.name}")
        chosen = choose(
            Record.read(cloudformation, stack),
            template=name,
            file=self.environment.file,
            declared=template.parameters,
            table=self.environment.tables[name],
            given=self._given[name],
            reset=self._reset[name],
        )
        has_provider = preflight.PROVIDER in self.environment.tables[name] | chosen.values
        if name == BOOTSTRAP and preflight.PROVIDER in template.parameters and not has_provider:
            found = preflight.github_provider(self.aws, stack)
            chosen = chosen._replace(given=chosen.given | {preflight.PROVIDER: found})
        return chosen

    def _print(self, checked: Iterable[Checked]) -> None:
        for text, is_shown in checked:
            label = ("ok", "green") if is_shown else ("warning", "yellow")
            self.console.print(Text.assemble(label, f" {text}"))

    def _package(self, template: Template) -> Path:
        return self.options.package or function_package(self.project, template.name)

    def _takes_code(self, template: Template) -> bool:
        # A key in the environment's file is for deploying without this command.
        return "CodeKey" in template.parameters and "CodeKey" not in self._given[template.name]

    def _values(self, template: Template) -> dict[str, str]:
        """Return the parameters before other stacks' outputs and the code's key are known."""
        values = self.environment.tables[template.name] | self._chosen[template.name].values
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
        """Plan one stack, ask, and execute the plan. Raises as `run`."""
        cloudformation, environment = self.aws.cloudformation, self.environment
        needs = environment.needs(template.name)
        outputs = deployed_outputs(cloudformation, environment, needs)
        if self.options.plan_only:
            # Stacks that this run would deploy before this one.
            planned = {each.name for each in self.templates}
            lacking = [n for n in environment.lacks(template.name, outputs) if n in planned]
            if lacking:
                name, others = environment.stack_name(template.name), " and ".join(lacking)
                verb = "is" if len(lacking) == 1 else "are"
                text = f"\n{name}: can be planned when {others} {verb} deployed"
                self.console.print(text, style="yellow")
                return
        if self._waits_for_reboot and not database.has_database(environment, template.name):
            # The stacks after the database's would use connections that it does not have yet.
            self._check_budget()
        name = environment.stack_name(template.name)
        stack = find_stack(cloudformation, name)
        is_new = stack is None or stack["StackStatus"] == REVIEW
        values = self._resolved(template, outputs)
        # What is protected from its creation on cannot be removed when that fails: the stack would
        # end in ROLLBACK_FAILED. So it is protected after the first success.
        protects = is_new and template.value_of(PROTECTION, values) == "true"
        first = values | {PROTECTION: "false"} if protects else values
        done = self._change(template, stack, first, protected_later=protects)
        if done == "executed" and protects:
            self.console.print(f"{name}: created; turning {PROTECTION} on", style="bold")
            protected = values | {PROTECTION: "true"}
            self._change(template, find_stack(cloudformation, name), protected, agreed=True)
        if done != "declined" and not self.options.plan_only:
            self._finish(name)

    def _change(
        self,
        template: Template,
        stack: dict[str, Any] | None,
        values: dict[str, str],
        *,
        protected_later: bool = False,
        agreed: bool = False,
    ) -> Literal["executed", "unchanged", "declined"]:
        """Plan a stack with these parameters, ask and execute; return what was done.

        Args:
            template: of the stack.
            stack: as it is now, None if there is none.
            values: of the parameters.
            protected_later: the plan says that protection follows.
            agreed: the plan needs no agreement, because it completes one that was agreed to.
        """
        cloudformation = self.aws.cloudformation
        request = self._request(template, stack, values)
        change_set = prepare(cloudformation, request)
        self._print_parameters(template, stack, values, protected_later=protected_later)
        reboots = self._reboots(template, request, change_set)
        if change_set is None:
            self.console.print(f"\n{request.name}: nothing to change", style="green")
            return "unchanged"
        if not (agreed or self._agreed(template, values, change_set, reboots)):
            self.console.print(f"{request.name}: not changed")
            return "declined"
        database.remember_running(self.aws, reboots)
        self._waits_for_reboot = bool(reboots.waiting) and self.options.budget
        watch_change(
            self.console,
            cloudformation,
            lambda: execute(cloudformation, change_set),
            stack=change_set.stack,
            stack_id=change_set.stack_id,
            wanted=DONE,
            target=change_set.target,
            total=len(change_set.changes),
            undo=change_set.undo,
        )
        if change_set.stack not in self._changed:
            self._changed.append(change_set.stack)
        return "executed"

    def _check_images(self, template: Template) -> None:
        """Check the images that are known before any stack is changed. Raises `DeployError`.

        An image that depends on a stack of this deployment is checked with that stack.
        """
        environment = self.environment
        values = environment.tables[template.name] | self._chosen[template.name].values
        for parameter in images.image_parameters(template):
            texts = {
                name: template.value_of(name, values)
                for name in (parameter, *images.repository_parameters(template))
            }
            named = {name for text in texts.values() for name in environment.stacks_named(text)}
            if not texts[parameter] or is_masked(texts[parameter]) or not named <= {*PREPARED}:
                continue
            outputs = deployed_outputs(self.aws.cloudformation, environment, named)
            known = values | {
                name: environment.resolved_text(text, outputs, table=template.name)
                for name, text in texts.items()
            }
            self._resolve_image(template, parameter, known[parameter], known)

    def _resolve_image(
        self, template: Template, parameter: str, given: str, values: dict[str, str]
    ) -> str:
        """Return an image by digest, the same one whenever this run asks. Raises `DeployError`."""
        images.require_pullable(self.aws, given, template, parameter, values)
        architecture = images.architecture_of(template, parameter, values)
        key = (given, architecture)
        if key not in self._resolved_images:
            resolved = images.resolve(
                self.aws, given, template=template.name, architecture=architecture
            )
            shown = Checked(f"image: {resolved.uri}")
            if resolved.warning:
                shown = Checked(f"image: {resolved.warning}", is_shown=False)
            self._print([shown])
            self._resolved_images[key] = resolved.uri
        return self._resolved_images[key]

    def _resolved(self, template: Template, outputs: dict[str, dict[str, str]]) -> dict[str, str]:
        """Return the parameters as they are deployed: outputs, images and code put in."""
        environment, s3 = self.environment, self.aws.client("s3")
        values = environment.resolved(template.name, outputs) | self._chosen[template.name].values
        for parameter in images.image_parameters(template):
            given = template.value_of(parameter, values)
            if given and not is_masked(given):
                values[parameter] = self._resolve_image(template, parameter, given, values)
        if self._takes_code(template):
            bucket = values.get("CodeBucket") or self._of_stack(
                self.environment.code_bucket, template
            )
            package = self._package(template)
            content = package.read_bytes()
            if self.options.plan_only:  # a plan needs the key, and no right to write there
                key = content_key(content, prefix="lambda", ending="zip")
            else:
                key, is_new = upload(s3, bucket, content, prefix="lambda", ending="zip")
                verb = "uploaded to" if is_new else "already at"
                self.console.print(f"{package.name}: {verb} s3://{bucket}/{key}")
            values |= {"CodeBucket": bucket, "CodeKey": key}
        return values

    def _request(
        self, template: Template, stack: dict[str, Any] | None, values: dict[str, str]
    ) -> StackRequest:
        environment, name = self.environment, template.name
        record = self._chosen[name].record.with_images(
            {each: values[each] for each in images.image_parameters(template) if each in values}
        )
        text = record.put_into(template.text, template.file)
        bucket = self._of_stack(self.environment.code_bucket, template)
        tags = environment.tags | {"poolkit:template": name}
        if name != BOOTSTRAP:  # which is of no environment alone
            tags["poolkit:environment"] = environment.name
        return StackRequest(
            name=environment.stack_name(name),
            target=f"{name} --environment {environment.name}",
            template=template_argument(self.aws.client("s3"), bucket, template.file, text),
            parameters=values,
            tags=tags,
            role=self._of_stack(environment.cloudformation_role, template),
            topics=environment.notification_arns,
        )

    def _print_parameters(
        self,
        template: Template,
        stack: dict[str, Any] | None,
        values: dict[str, str],
        *,
        protected_later: bool,
    ) -> None:
        """Print the parameters that change, and those that are kept from the command line."""
        chosen, name = self._chosen[template.name], template.name
        stack_name = self.environment.stack_name(name)
        before = chosen.record.values if stack is not None else {}
        secret = {
            each for each, found in template.parameters.items() if (found or {}).get("NoEcho")
        }
        changes = [
            f"  {each}: {before[each] or '(empty)'} -> {values[each] or '(empty)'}"
            for each in sorted(values)
            if each in before and before[each] != values[each] and each not in secret
        ]
        if changes:
            self.console.print(f"\n{stack_name}: parameters that change", style="bold")
            for line in changes:
                self.console.print(line, markup=False)
        if chosen.kept:
            self.console.print(
                f"\n{stack_name}: parameters kept from an earlier command line; to take the "
                "file's: --reset-parameter NAME",
                style="bold",
            )
            for each, value in sorted(chosen.kept.items()):
                in_file = self.environment.tables[name].get(each, "not given")
                shown, in_file = ("****", "not shown") if each in secret else (value, in_file)
                self.console.print(f"  {each} = {shown}  (the file: {in_file})", markup=False)
        if protected_later:
            self.console.print(
                f"\n{stack_name}: {PROTECTION} is turned on after the stack is created",
                style="bold",
            )

    def _of_stack(self, text: str, template: Template) -> str:
        """Return a value of [stack] with outputs put in; empty before there are any."""
        if template.name in PREPARED:
            return ""
        outputs = deployed_outputs(
            self.aws.cloudformation, self.environment, self.environment.stacks_named(text)
        )
        return self.environment.resolved_text(text, outputs, table="stack")

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

    def _agreed(
        self,
        template: Template,
        values: dict[str, str],
        change_set: ChangeSet,
        reboots: Reboots,
    ) -> bool:
        """Print the plan and return whether to execute it; otherwise it is discarded."""
        print_plan(self.console, change_set)
        for text in reboots.texts:
            self.console.print(text, style="bold yellow")
        agreed = False
        try:
            database.require_new_names(template, change_set)
            if self.agrees(change_set):
                self.before_change(template, values)
                agreed = True
        finally:
            if not agreed:
                discard(self.aws.cloudformation, change_set)
        return agreed

    def before_change(self, template: Template, values: dict[str, str]) -> None:
        """Check what can be checked only now; `poolkit deploy` checks the schema here.

        Args:
            template: of the stack.
            values: of its parameters, to which was agreed.

        Raises:
            DeployError: the stack must not be changed.
        """

    def agrees(self, change_set: ChangeSet) -> bool:
        """Return what --yes or the terminal answers to the plan.

        Raises:
            DeployError: data or a public name would be lost, which needs --allow-data-loss or
                --allow-new-name as well.
        """
        lost = change_set.losses
        if self.options.plan_only:
            return False
        if lost and not self.options.allow_data_loss:
            raise DeployError(
                f"{change_set.stack}: {lost[0].logical_id} would lose its data "
                f"({lost[0].kind}); if that is meant, pass --allow-data-loss"
            )
        renamed = change_set.new_names
        if renamed and not self.options.allow_new_name:
            raise DeployError(
                f"{change_set.stack}: {renamed[0].logical_id} would get another public name or "
                f"address ({renamed[0].kind}); if that is meant, pass --allow-new-name"
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
