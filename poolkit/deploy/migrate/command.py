"""`poolkit migrate` and `poolkit db role -e`."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from poolkit.deploy.aws import Aws, in_plain_words
from poolkit.deploy.deployment import Deployment, DeployOptions
from poolkit.deploy.environment import StackEnvironment
from poolkit.deploy.images import IMAGE_PARAMETER
from poolkit.deploy.migrate.stack import TEMPLATE, MigrationStack, digest_of, require_table
from poolkit.deploy.migrate.task import Task, TaskEnd
from poolkit.deploy.progress import make_console
from poolkit.errors import DeployError, DeploymentFailed
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

CODE: Final = ("lambda", "managedfunction", "webfunction", "web", "worker")
"""The templates whose code needs the schema, and logs in as the application's role."""
POOLERS: Final = ("proxy", "pgbouncer")
"""The templates that log in as the application's role when they are created."""

_DB: Final = ("python", "-m", "poolkit", "db")
_NOT_REGISTERED: Final = frozenset(
    {"taskDefinitionArn", "revision", "status", "requiresAttributes", "compatibilities"}
    | {"registeredAt", "registeredBy", "deregisteredAt", "deleteRequestedAt"}
)


def migrate(
    environment_name: str,
    *,
    image: str | None = None,
    check: bool = False,
    wait_minutes: float = 60,
) -> None:
    """Upgrade the schema of an environment with the migrations of an image, or check it.

    Args:
        environment_name: the environment's.
        image: the image with its digest or tag; None is the stack's.
        check: change nothing; fail while the schema is behind the image.
        wait_minutes: how long to follow the task.

    Raises:
        DeployError: it was refused before anything ran.
        DeploymentFailed: the task failed, did not start or still runs.
        KeyboardInterrupt: no longer followed, after a message that the task goes on.
    """
    database = Database.of(environment_name, wait_minutes=wait_minutes)
    if check:
        database.check(image)
    else:
        database.deploy(image)
        database.upgrade()


def update_role(environment_name: str, *, iam: bool, rotate: bool, wait_minutes: float) -> None:
    """Create or update the application's role of an environment, by a task in its VPC.

    Raises:
        DeployError, DeploymentFailed, KeyboardInterrupt: as `migrate`.
    """
    Database.of(environment_name, wait_minutes=wait_minutes).update_role(iam=iam, rotate=rotate)


@dataclass
class Database:
    """The database of an environment, as the tasks of its stack `migrate` reach it."""

    environment: StackEnvironment
    project: Project
    wait_minutes: float = 60
    console: Console = field(default_factory=make_console)

    def __post_init__(self) -> None:
        self.aws = Aws(self.environment.region)

    @classmethod
    def of(cls, environment_name: str, *, wait_minutes: float) -> Database:
        """Return the database of an environment of the project. Raises `DeployError`."""
        project = Project.find()
        environment = StackEnvironment.read(project.root, environment_name)
        return cls(environment, project, wait_minutes)

    @property
    def stack(self) -> MigrationStack:
        """The deployed stack. Raises `DeployError`."""
        return MigrationStack.find(self.aws, self.environment)

    @property
    def login(self) -> str:
        """How the deployables of the environment log in: password or iam.

        Raises:
            DeployError: they do not agree, and PostgreSQL's role can have one login only.
        """
        return login_of(self.environment)

    def deploy(self, image: str | None) -> None:
        """Deploy the stack, with another image if one is given.

        The plan is shown and not asked about: nothing in the stack serves anyone.
        """
        options = DeployOptions(
            target=TEMPLATE,
            environment=self.environment.name,
            yes=True,
            lint=False,
            budget=False,
            parameters=(f"{IMAGE_PARAMETER}={image}",) if image else (),
        )
        require_table(self.environment)
        Deployment(options, self.project, self.console).run()

    def upgrade(self) -> None:
        """Upgrade the schema with the stack's image. Raises as `migrate`."""
        stack = self.stack
        self._require(self._run(stack, "upgrade"), "upgrade")
        self._note(stack, fits=digest_of(stack.image))
        if not stack.login:
            self.console.print(
                "The application's role is not known to exist; run: poolkit db role "
                f"--environment {self.environment.name}"
            )

    def check(self, image: str | None = None, *, revisions: Sequence[str] = ()) -> None:
        """Check that the schema is not behind, and that the application's role can log in.

        Args:
            image: whose migrations count; None is the stack's.
            revisions: those that the schema must have, instead of the latest of the image.

        Raises:
            DeploymentFailed: it is behind, or the task failed.
        """
        stack = self.stack
        words = [word for each in revisions for word in ("--revision", each)]
        with self._definition(stack, image or stack.image) as definition:
            ended = self._run(stack, "check", *words, task_definition=definition)
        self._require(ended, "check")
        self._note(
            stack, fits=" ".join(revisions) or digest_of(image or stack.image), login=self.login
        )

    def update_role(self, *, iam: bool, rotate: bool) -> None:
        """Create or update the application's role. Raises as `migrate`."""
        wanted = self.login
        if iam and wanted != "iam":
            raise DeployError(
                f"{self.environment.file}: with --iam the role refuses passwords, but the "
                'deployables use one; set DatabaseAuthentication = "iam" in '
                f"{', '.join(f'[{name}]' for name in CODE if name in self.environment.tables)}"
            )
        if rotate and wanted == "iam":
            raise DeployError(
                f"{self.environment.name} logs in with IAM tokens: nothing to --rotate"
            )
        words = [
            word for word, is_on in (("--iam", wanted == "iam"), ("--rotate", rotate)) if is_on
        ]
        stack = self.stack
        self._require(self._run(stack, "role", *words), "role")
        self._note(stack, login=wanted)

    def _note(self, stack: MigrationStack, *, fits: str = "", login: str = "") -> None:
        """Record what the task did; without the record it is only checked once more."""
        try:
            stack.note(fits=fits, login=login)
        except DeployError as error:
            self.console.print(f"warning: not recorded: {error}", style="yellow", markup=False)

    def _run(
        self, stack: MigrationStack, subcommand: str, *words: str, task_definition: str = ""
    ) -> TaskEnd:
        environ = {}
        # The image has no pyproject.toml; the environment's file goes before the project's own.
        name = self.project.table.get("migrations")
        if name and "Migrations" not in self.environment.tables[TEMPLATE]:
            environ["POOLKIT_MIGRATIONS"] = str(name)
        task = Task(
            self.console,
            self.aws,
            stack,
            (*_DB, subcommand, *words),
            environ,
            task_definition,
        )
        return task.run(self.wait_minutes)

    def _require(self, ended: TaskEnd, what: str) -> None:
        if ended.exit_code:
            raise DeploymentFailed(
                f"db {what} failed with exit status {ended.exit_code}: "
                f"{ended.last_line.removeprefix('poolkit: ') or 'its log is empty'}"
            )
        self.console.print(f"db {what}: done", style="bold green")

    @contextmanager
    def _definition(self, stack: MigrationStack, image: str) -> Iterator[str]:
        """Yield a task definition with an image: the stack's own, or a revision for this run."""
        container = stack.definition["containerDefinitions"][0]
        if image == container["image"]:
            yield stack.task_definition
            return
        ecs = self.aws.client("ecs")
        kept = {k: v for k, v in stack.definition.items() if k not in _NOT_REGISTERED}
        kept["family"] = f"{stack.definition['family']}-check"
        kept["containerDefinitions"] = [container | {"image": image}]
        with in_plain_words("registering a task definition for the check"):
            made = ecs.register_task_definition(**kept)["taskDefinition"]["taskDefinitionArn"]
        try:
            yield made
        finally:
            # The task has ended, or goes on without it; its result counts, not what is left over.
            try:
                with in_plain_words(f"removing the task definition {made}"):
                    ecs.deregister_task_definition(taskDefinition=made)
            except DeployError as error:
                self.console.print(f"warning: {error}", style="yellow", markup=False)


def login_of(environment: StackEnvironment) -> str:
    """Return how the deployables of an environment log in: password or iam.

    A role that may use IAM tokens cannot use a password on RDS. PgBouncer has the password only, and
    RDS Proxy logs in to the database with it.

    Raises:
        DeployError: they do not agree, or a pooler needs the password.
    """
    found = {
        name: environment.tables[name].get("DatabaseAuthentication", "secret")
        for name in CODE
        if name in environment.tables
    }
    proxied = {
        name
        for name in found
        if "proxy" in environment.tables[name].get("DatabaseHost", "").lower()
    }
    direct = {kind for name, kind in found.items() if name not in proxied}
    if "iam" not in direct:
        return "password"
    if len(direct) > 1 or proxied or "pgbouncer" in environment.tables:
        others: list[str] = [
            name for name, kind in found.items() if kind != "iam" or name in proxied
        ]
        others += ["pgbouncer"] if "pgbouncer" in environment.tables else []
        raise DeployError(
            f"{environment.file}: {', '.join(sorted(set(found) - set(others)))} would log in with IAM "
            f"tokens and {', '.join(others)} with the password of the same role, which RDS refuses; "
            "use one of the two everywhere"
        )
    return "iam"
