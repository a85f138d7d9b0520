"""`poolkit deploy` of code that needs a schema: checked, or upgraded first.

The images of web and worker have the migrations, so a task with that image checks the schema. The
function's zip has none. Its code is that of the project, so the schema must have the revision that the
project's migrations end with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from poolkit.deploy.deployment import Deployment, DeployOptions, require_agreement
from poolkit.deploy.migrate.command import CODE, Database
from poolkit.deploy.migrate.stack import TEMPLATE, MigrationStack, digest_of
from poolkit.deploy.stacks import find_stack, stack_outputs
from poolkit.errors import ConfigurationError, DeployError, DeploymentFailed
from poolkit.migrations import find_scripts
from poolkit.project import Project

if TYPE_CHECKING:
    from poolkit.deploy.change_set import ChangeSet
    from poolkit.deploy.environment import Template

PROXY: Final = "EnableProxy"
"""The parameter of a database's template that puts RDS Proxy before it."""


def deploy(options: DeployOptions, *, migrate: bool = False, schema_check: bool = True) -> None:
    """Deploy a target, whose code the schema must not be behind of.

    Args:
        options: the command line's.
        migrate: upgrade the schema first, and create the application's role if there is none.
        schema_check: False: do not look at the schema.

    Raises:
        DeployError: it was refused before that stack was changed.
        DeploymentFailed: AWS began and failed; the message has the first cause.
        KeyboardInterrupt: no longer followed, after a message that AWS goes on.
    """
    require_agreement(yes=options.yes, plan_only=options.plan_only)
    release = Release(options, Project.find(), migrate=migrate, schema_check=schema_check)
    release.run()


@dataclass
class Release(Deployment):
    """A deployment that looks at the schema before it changes what runs code."""

    migrate: bool = False
    schema_check: bool = True
    _is_migrated: bool = field(default=False, init=False)
    _declined: set[str] = field(default_factory=set, init=False)
    _without_proxy: list[tuple[Template, dict[str, str]]] = field(default_factory=list, init=False)
    """Templates whose proxy waits for the role, with the parameters that they get then."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.migrate and "ImageUri" not in self._given.get(TEMPLATE, {"ImageUri": ""}):
            # The migrations are those of the code that is deployed.
            given = [self._given[name].get("ImageUri") for name in CODE if name in self._given]
            if image := next(filter(None, given), None):
                self._given[TEMPLATE]["ImageUri"] = image

    def check(self) -> None:
        """Make every check, the first of the schema too. Raises `DeployError`."""
        super().check()
        names = [template.name for template in self.templates]
        if self.options.plan_only or not (self.migrate or self._is_checked(*names)):
            return
        if self.migrate:
            if TEMPLATE not in self.environment.tables:
                self._database.stack  # noqa: B018 - names what is missing
            _ = self._database.login
            return
        name = self.environment.stack_name(TEMPLATE)
        if find_stack(self.aws.cloudformation, name) is None:
            raise DeployError(
                f"{name} is not deployed, so the database has no schema and no role for the "
                "application; pass --migrate, or deploy network and database first and run: "
                f"poolkit migrate -e {self.environment.name}; poolkit db role "
                f"-e {self.environment.name}"
            )

    def deploy_stack(self, template: Template) -> None:
        """Deploy a stack; after that of the migrations, run them. Raises as `deploy`."""
        super().deploy_stack(template)
        if template.name == TEMPLATE and self.migrate and not self.options.plan_only:
            if self.environment.stack_name(TEMPLATE) in self._declined:
                raise DeployError("the stack of the migrations was not agreed to, so nothing ran")
            self._upgrade()

    def values_for_now(
        self, template: Template, stack: dict[str, Any] | None, values: dict[str, str]
    ) -> dict[str, str]:
        """Return the parameters, without a new RDS Proxy while the application's role is missing.

        CloudFormation waits until a proxy has logged in to its database, and fails after 20 minutes.
        The proxy logs in as the application's role.
        """
        if template.value_of(PROXY, values) != "true" or TEMPLATE not in self.environment.tables:
            return values
        parameters = (stack or {}).get("Parameters", ())
        has_proxy = {"ParameterKey": PROXY, "ParameterValue": "true"} in [
            {name: each.get(name) for name in ("ParameterKey", "ParameterValue")}
            for each in parameters
        ]
        if has_proxy or self._has_role:
            return values
        self._without_proxy.append((template, values))
        later = (
            "after --migrate has created that role"
            if self.migrate
            else f"by deploying {template.name} again, after: poolkit db role -e "
            f"{self.environment.name}"
        )
        self.console.print(
            f"\n{self.environment.stack_name(template.name)}: RDS Proxy logs in as the "
            f"application's role, which is missing; {PROXY} is turned on {later}",
            style="yellow",
        )
        return values | {PROXY: "false"}

    @property
    def _has_role(self) -> bool:
        """Whether the application's role is known to exist."""
        stack = find_stack(self.aws.cloudformation, self.environment.stack_name(TEMPLATE))
        if stack is None or not stack_outputs(stack):
            return False
        return bool(MigrationStack(self.aws, self.environment, stack).login)

    def _turn_proxies_on(self) -> None:
        """Deploy what waited for the role; the plan was agreed to without it."""
        while self._without_proxy:
            template, values = self._without_proxy.pop()
            name = self.environment.stack_name(template.name)
            self.console.print(f"{name}: the role exists; turning {PROXY} on", style="bold")
            self._change(template, find_stack(self.aws.cloudformation, name), values, agreed=True)

    def agrees(self, change_set: ChangeSet) -> bool:
        """Return what is answered to the plan. Raises `DeployError`."""
        agreed = super().agrees(change_set)
        if not agreed:
            self._declined.add(change_set.stack)
        return agreed

    def before_change(self, template: Template, values: dict[str, str]) -> None:
        """Refuse code that the schema is behind of.

        Raises:
            DeployError: it is behind, or cannot be checked.
        """
        if template.name not in CODE or TEMPLATE not in self.environment.tables:
            return
        image = values.get("ImageUri", "")
        if self.migrate and not self._is_migrated:
            self._database.deploy(image or None)
            self._upgrade()
        if not self._is_checked(template.name):
            return
        revisions = () if image else self._heads()
        if not image and not revisions:
            return
        stack, database = self._database.stack, self._database
        if stack.fits(digest_of(image) or " ".join(revisions), database.login):
            self._say("ok", "green", f"schema: known to fit {template.name}")
            return
        try:
            database.check(image or None, revisions=revisions)
        except DeploymentFailed as error:
            with_image = f" --image {image}" if image else ""
            raise DeployError(
                f"{self.environment.stack_name(template.name)} was not changed: {error}. Pass --migrate, or run: poolkit migrate "
                f"-e {self.environment.name}{with_image}"
            ) from None

    def _is_checked(self, *templates: str) -> bool:
        return (
            self.schema_check
            and TEMPLATE in self.environment.tables
            and any(name in CODE for name in templates)
        )

    @property
    def _database(self) -> Database:
        return Database(self.environment, self.project, console=self.console)

    def _upgrade(self) -> None:
        """Upgrade the schema once, and create the role if it is not known to exist."""
        database = self._database
        database.upgrade()
        if database.stack.login != database.login:
            database.update_role(iam=False, rotate=False)
        self._is_migrated = True
        self._turn_proxies_on()

    def _heads(self) -> tuple[str, ...]:
        """Return the revisions that the project's migrations end with; none if unknown."""
        table = self.environment.tables[TEMPLATE]
        name = table.get("Migrations") or self.project.table.get("migrations")
        reason = "the project names no migrations"
        if name:
            try:
                return tuple(sorted(find_scripts(str(name), self.project).heads()))
            except ConfigurationError as error:
                reason = str(error)
        self._say("warning", "yellow", f"schema: not checked for the function, because {reason}")
        return ()

    def _say(self, label: str, style: str, text: str) -> None:
        self.console.print(Text.assemble((label, style), f" {text}"))
