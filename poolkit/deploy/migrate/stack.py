"""The stack `migrate`: its outputs, and its record of the images that fit the schema.

The record is a parameter of SSM that the stack makes. An image fits when an upgrade or a check with it
has succeeded. It keeps fitting, because a schema is only upgraded; but not to another database, such as
one that was restored. So the record belongs to the owner's secret, which every database has anew.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from poolkit.deploy.aws import in_plain_words
from poolkit.deploy.environment import MIGRATE
from poolkit.deploy.images import IMAGE_PARAMETER
from poolkit.deploy.stacks import find_stack, stack_outputs
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from poolkit.deploy.aws import Aws
    from poolkit.deploy.environment import StackEnvironment

TEMPLATE: Final = MIGRATE
"""The template's name, and its table's."""
KEPT: Final = 30
"""Images in the record; the oldest are forgotten, so that they are checked again."""

_OUTPUTS = ("ClusterName", "TaskDefinitionArn", "SubnetIds", "SecurityGroupIds", "LogGroupName")


def digest_of(image: str) -> str:
    """Return the digest of an image's URI; empty if it is named by a tag."""
    found = re.search(r"@(sha256:[0-9a-f]{64})$", image)
    return found[1] if found else ""


@dataclass
class MigrationStack:
    """The deployed stack of an environment."""

    aws: Aws
    environment: StackEnvironment
    described: dict[str, Any]

    @classmethod
    def find(cls, aws: Aws, environment: StackEnvironment) -> MigrationStack:
        """Return the stack.

        Raises:
            DeployError: the environment has no table for it, or it is not deployed.
        """
        require_table(environment)
        name = environment.stack_name(TEMPLATE)
        stack = find_stack(aws.cloudformation, name)
        if stack is None or not stack_outputs(stack):
            raise DeployError(
                f"{name} is not deployed; run: poolkit migrate --environment {environment.name}"
            )
        found = cls(aws, environment, stack)
        for output in _OUTPUTS:
            if output not in found.outputs:
                raise DeployError(
                    f"{name} has no output {output}; deploy infra/{TEMPLATE}.yaml of this poolkit: "
                    f"poolkit deploy {TEMPLATE} --environment {environment.name}"
                )
        return found

    @cached_property
    def outputs(self) -> dict[str, str]:
        """The outputs by name."""
        return stack_outputs(self.described)

    @cached_property
    def parameters(self) -> dict[str, str]:
        """The parameters by name."""
        found = self.described.get("Parameters", ())
        return {each["ParameterKey"]: each.get("ParameterValue", "") for each in found}

    @property
    def cluster(self) -> str:
        """The ECS cluster."""
        return self.outputs["ClusterName"]

    @property
    def task_definition(self) -> str:
        """The ARN of the task definition, with its revision."""
        return self.outputs["TaskDefinitionArn"]

    @property
    def subnets(self) -> list[str]:
        """The subnets that the task runs in."""
        return self.outputs["SubnetIds"].split(",")

    @property
    def security_groups(self) -> list[str]:
        """The security groups of the task."""
        return self.outputs["SecurityGroupIds"].split(",")

    @property
    def log_group(self) -> str:
        """The log group of the task."""
        return self.outputs["LogGroupName"]

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The task definition as ECS has it."""
        with in_plain_words("reading the task definition"):
            answer = self.aws.client("ecs").describe_task_definition(
                taskDefinition=self.task_definition
            )
        found: dict[str, Any] = answer["taskDefinition"]
        return found

    @property
    def container(self) -> str:
        """The container's name."""
        return str(self.definition["containerDefinitions"][0]["name"])

    @property
    def log_prefix(self) -> str:
        """The beginning of the names of log streams."""
        options = self.definition["containerDefinitions"][0]["logConfiguration"]["options"]
        return str(options["awslogs-stream-prefix"])

    @property
    def image(self) -> str:
        """The image of the task definition."""
        return self.parameters.get(IMAGE_PARAMETER, "")

    # -- the record -------------------------------------------------------------------------

    def fits(self, mark: str, login: str) -> bool:
        """Return whether the schema is known to fit.

        Args:
            mark: the digest of an image, or the heads of a package's migrations.
            login: how the application logs in: password or iam.
        """
        record = self._record
        return bool(mark) and mark in record.get("fits", ()) and record.get("login") == login

    @property
    def login(self) -> str:
        """How the application's role logs in: password or iam; empty if there is no role yet."""
        return str(self._record.get("login", ""))

    def note(self, *, fits: str = "", login: str = "") -> None:
        """Write a success into the record; a refusal only costs another check."""
        record = self._record | {"database": self.parameters.get("DatabaseSecretArn", "")}
        if fits:
            others = [each for each in record.get("fits", ()) if each != fits]
            record["fits"] = [*others, fits][-KEPT:]
        if login:
            record["login"] = login
        if record == self._record or "RecordName" not in self.outputs:
            return
        with in_plain_words("writing the record of the migrations"):
            self.aws.client("ssm").put_parameter(
                Name=self.outputs["RecordName"], Value=json.dumps(record), Overwrite=True
            )
        self.__dict__["_record"] = record

    @cached_property
    def _record(self) -> dict[str, Any]:
        """The record of this database; empty for another one."""
        if "RecordName" not in self.outputs:
            return {}
        with in_plain_words("reading the record of the migrations"):
            answer = self.aws.client("ssm").get_parameter(Name=self.outputs["RecordName"])
        try:
            found = json.loads(answer["Parameter"]["Value"])
        except ValueError:
            return {}
        is_ours = isinstance(found, dict) and found.get("database") == self.parameters.get(
            "DatabaseSecretArn"
        )
        return found if is_ours else {}


def require_table(environment: StackEnvironment) -> None:
    """Check that an environment has the stack. Raises `DeployError`."""
    if TEMPLATE not in environment.tables:
        raise DeployError(
            f"{environment.file} has no table [{TEMPLATE}]; copy it and infra/{TEMPLATE}.yaml "
            "from poolkit's repository"
        )
