"""`poolkit deploy` of what needs a schema or the application's role: checked, or made first.

The images of web and worker have the migrations, so a task with that image checks the schema. The
function's zip has none. Its code is that of the project, so the schema must have the revision that the
project's migrations end with.

A pooler needs the role only. RDS Proxy logs in when it is created, and CloudFormation fails after 20
minutes without a success.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rich.text import Text

from poolkit.deploy.deployment import Deployment, DeployOptions, require_agreement
from poolkit.deploy.images import IMAGE_PARAMETER
from poolkit.deploy.migrate.command import CODE, POOLERS, Database
from poolkit.deploy.migrate.stack import TEMPLATE, digest_of, require_table
from poolkit.deploy.stacks import find_stack
from poolkit.errors import ConfigurationError, DeployError, DeploymentFailed
from poolkit.migrations import find_scripts
from poolkit.project import Project

if TYPE_CHECKING:
    from poolkit.deploy.change_set import ChangeSet
    from poolkit.deploy.environment import Template

_WITH_MIGRATIONS: Final = ("web", "worker")
"""The templates whose image has the migrations."""


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

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [template.name for template in self.templates]
        if not self.migrate:
            return
        if not {TEMPLATE, *CODE, *POOLERS}.intersection(names):
            raise DeployError(
                f"--migrate is for {', '.join((*CODE, *POOLERS, TEMPLATE))} and all; {names[0]} "
                "needs no schema, so leave it out"
            )
        # With "all", the stack of the migrations comes first. Its image is that of the release.
        if TEMPLATE in names and IMAGE_PARAMETER not in self._given[TEMPLATE]:
            given = (
                self._given[name].get(IMAGE_PARAMETER) for name in _WITH_MIGRATIONS if name in names
            )
            if image := next(filter(None, given), None):
                self._given[TEMPLATE][IMAGE_PARAMETER] = image

    def check(self) -> None:
        """Make every check, the first of the schema too. Raises `DeployError`."""
        super().check()
        names = [template.name for template in self.templates]
        if self.options.plan_only or not (self.migrate or self._is_checked(*names)):
            return
        require_table(self.environment)
        # Refuses IAM tokens beside a pooler before anything is changed.
        _ = self._database.login
        if self.migrate:
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
        """Deploy a stack; after that of the migrations, run them. Raises as `run`."""
        super().deploy_stack(template)
        if not self.migrate or self._is_migrated or self.options.plan_only:
            return
        declined = self.environment.stack_name(template.name) in self._declined
        if template.name == TEMPLATE:
            if declined:
                raise DeployError("the stack of the migrations was not agreed to, so nothing ran")
            self._upgrade()
        elif template.name in (*CODE, *POOLERS) and not declined:
            # Its stack had nothing to change; the schema may be behind nevertheless.
            has_migrations = template.name in _WITH_MIGRATIONS
            self._migrate(self._deployed_image(template) if has_migrations else "")

    def agrees(self, change_set: ChangeSet) -> bool:
        """Return what is answered to the plan. Raises `DeployError`."""
        agreed = super().agrees(change_set)
        if not agreed:
            self._declined.add(change_set.stack)
        return agreed

    def before_change(self, template: Template, values: dict[str, str]) -> None:
        """Refuse code that the schema is behind of, and a pooler without the role.

        Raises:
            DeployError: the schema is behind, there is no role, or neither can be checked.
        """
        is_pooler = template.name in POOLERS
        if TEMPLATE not in self.environment.tables or not (is_pooler or template.name in CODE):
            return
        image = "" if is_pooler else values.get(IMAGE_PARAMETER, "")
        if self.migrate and not self._is_migrated:
            self._migrate(image)
        if not self._is_checked(template.name):
            return
        revisions = () if image or is_pooler else self._heads()
        if not (image or revisions or is_pooler):
            return
        stack, database = self._database.stack, self._database
        if is_pooler and stack.login == database.login:
            self._say("ok", "green", f"role: known to exist for {template.name}")
            return
        if stack.fits(digest_of(image) or " ".join(revisions), database.login):
            self._say("ok", "green", f"schema: known to fit {template.name}")
            return
        try:
            database.check(image or None, revisions=revisions)
        except DeploymentFailed as error:
            with_image = f" --image {image}" if image else ""
            step = f"poolkit migrate -e {self.environment.name}{with_image}"
            raise DeployError(
                f"{self.environment.stack_name(template.name)} was not changed: {error}. "
                + (f"Next: {step}" if self.migrate else f"Pass --migrate, or run: {step}")
            ) from None

    def _is_checked(self, *templates: str) -> bool:
        return (
            self.schema_check
            and TEMPLATE in self.environment.tables
            and any(name in (*CODE, *POOLERS) for name in templates)
        )

    @property
    def _database(self) -> Database:
        return Database(self.environment, self.project, console=self.console)

    def _migrate(self, image: str) -> None:
        """Deploy the stack of the migrations with an image, empty for its own, and upgrade."""
        self._database.deploy(image or None)
        self._upgrade()

    def _deployed_image(self, template: Template) -> str:
        stack = find_stack(self.aws.cloudformation, self.environment.stack_name(template.name))
        found = (stack or {}).get("Parameters", ())
        return next(
            (p["ParameterValue"] for p in found if p["ParameterKey"] == IMAGE_PARAMETER), ""
        )

    def _upgrade(self) -> None:
        """Upgrade the schema once, and create the role if it is not known to exist."""
        database = self._database
        database.upgrade()
        self._changed.append("the database's schema")
        if database.stack.login != database.login:
            database.update_role(iam=False, rotate=False)
        self._is_migrated = True

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
