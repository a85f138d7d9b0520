"""One task on Fargate: started, its log on the terminal as it arrives, its exit status.

Sources: Amazon ECS API Reference, RunTask (`failures`, eventual consistency) and DescribeTasks; Amazon
ECS Developer Guide, "Stopped tasks error messages" (the names before the colon of a reason).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from poolkit.deploy.aws import in_plain_words
from poolkit.deploy.progress import pauses
from poolkit.errors import DeployError, DeploymentFailed
from poolkit.masking import masked, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from poolkit.deploy.aws import Aws
    from poolkit.deploy.migrate.stack import MigrationStack

STARTED_BY: Final = "poolkit"
LOG_DELAY_S: Final = 5.0
"""The longest wait for log lines of a task that has stopped."""

# What to do about the reasons of tasks that never ran, by the name before the colon.
_REMEDIES: Final = {
    "CannotPullContainerError": "check that the image exists, was built for arm64, and that the "
    "stack's ImageRepository names its repository",
    "ResourceInitializationError": "check the VPC endpoints of the network and the roles of the stack",
    "CannotStartContainerError": "check that the image was built for arm64",
    "OutOfMemoryError": "raise Memory of the task definition in infra/migrate.yaml",
}


class TaskEnd(NamedTuple):
    """How a task ended."""

    exit_code: int
    last_line: str
    """The last line of its log, which is the error of a task that failed."""


@dataclass
class Task:
    """A command that runs in a container of the stack's task definition."""

    console: Console
    aws: Aws
    stack: MigrationStack
    command: Sequence[str]
    environ: dict[str, str] = field(default_factory=dict)
    """Variables besides those of the task definition."""
    task_definition: str = ""
    """The stack's if it is empty."""
    _arn: str = field(default="", init=False)
    _token: str = field(default="", init=False)
    _last_line: str = field(default="", init=False)

    def run(self, wait_minutes: float) -> TaskEnd:
        """Start the task and follow it to its end.

        Raises:
            DeployError: ECS refused to start it, so nothing ran.
            DeploymentFailed: it did not start, or still runs after the wait.
            KeyboardInterrupt: after a message that the task goes on.
        """
        self._start()
        try:
            with self.console.status(f"{' '.join(self.command)}: waiting for ECS") as spinner:
                task = self._follow(spinner, wait_minutes)
        except KeyboardInterrupt:
            self.console.print(f"\nstopped watching. {self._goes_on()}", style="yellow")
            raise
        except DeployError as error:
            if isinstance(error, DeploymentFailed):
                raise
            raise DeploymentFailed(f"{error}\n{self._goes_on()}") from None
        (container,) = task["containers"]
        if "exitCode" not in container:
            reason = container.get("reason") or task.get("stoppedReason") or "ECS gives no reason"
            remedy = _REMEDIES.get(reason.partition(":")[0].strip())
            raise DeploymentFailed(
                f"the task did not start: {printable(' '.join(reason.split()))}"
                + (f"; {remedy}" if remedy else "")
            )
        if reason := container.get("reason"):
            remedy = _REMEDIES.get(reason.partition(":")[0].strip(), "")
            self._last_line = f"{reason}; {remedy}" if remedy else reason
        return TaskEnd(int(container["exitCode"]), self._last_line)

    def _start(self) -> None:
        override = {
            "name": self.stack.container,
            "command": list(self.command),
            "environment": [{"name": k, "value": v} for k, v in self.environ.items()],
        }
        with in_plain_words("starting the task"):
            answer = self.aws.client("ecs").run_task(
                cluster=self.stack.cluster,
                taskDefinition=self.task_definition or self.stack.task_definition,
                launchType="FARGATE",
                count=1,
                startedBy=STARTED_BY,
                propagateTags="TASK_DEFINITION",
                networkConfiguration={
                    "awsvpcConfiguration": {
                        "subnets": self.stack.subnets,
                        "securityGroups": self.stack.security_groups,
                        "assignPublicIp": "DISABLED",
                    }
                },
                overrides={"containerOverrides": [override]},
            )
        if not answer["tasks"]:
            failures = [
                f"{each.get('reason', 'no reason')}"
                + (f" ({each['detail']})" if each.get("detail") else "")
                for each in answer.get("failures", ())
            ]
            raise DeployError(f"ECS started no task: {'; '.join(failures) or 'it gives no reason'}")
        self._arn = answer["tasks"][0]["taskArn"]
        self.console.print(f"task {self._id}: {' '.join(self.command)}", style="dim")

    def _follow(self, spinner: Any, wait_minutes: float) -> dict[str, Any]:
        ecs, began, status = self.aws.client("ecs"), time.monotonic(), "PROVISIONING"
        for _ in pauses(wait_minutes * 60):
            with in_plain_words("asking for the task"):
                found = ecs.describe_tasks(cluster=self.stack.cluster, tasks=[self._arn])["tasks"]
            # A task may be unknown for seconds after it was started.
            status = found[0]["lastStatus"] if found else status
            self._print_log()
            seconds = time.monotonic() - began
            spinner.update(f"{' '.join(self.command)}: {status}, {seconds:.0f} s")
            if status == "STOPPED":
                self._print_rest()
                task: dict[str, Any] = found[0]
                return task
        raise DeploymentFailed(
            f"the task is {status} after {wait_minutes:g} minutes.\n{self._goes_on()}"
        )

    def _print_log(self) -> bool:
        """Print the new lines of the log; return whether there were any."""
        from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

        logs, printed = self.aws.client("logs"), False
        while True:
            more = {"nextToken": self._token} if self._token else {}
            with in_plain_words("reading the log"):
                try:
                    page = logs.get_log_events(
                        logGroupName=self.stack.log_group,
                        logStreamName=self._stream,
                        startFromHead=True,
                        **more,
                    )
                except ClientError as error:
                    if error.response["Error"]["Code"] == "ResourceNotFoundException":
                        return printed  # the container has not written a line yet
                    raise
            for event in page["events"]:
                for line in event["message"].splitlines():
                    text = printable(masked(line))
                    self.console.print(text, highlight=False, markup=False)
                    self._last_line = text.strip() or self._last_line
                    printed = True
            is_end = page["nextForwardToken"] == self._token
            self._token = page["nextForwardToken"]
            if is_end or not page["events"]:
                return printed

    def _print_rest(self) -> None:
        """Print what arrives in the log after the task has stopped."""
        end, quiet = time.monotonic() + LOG_DELAY_S, 0
        while time.monotonic() < end and not (quiet >= 2 and self._last_line):
            quiet = 0 if self._print_log() else quiet + 1
            time.sleep(0.5)

    @property
    def _id(self) -> str:
        return self._arn.rpartition("/")[2]

    @property
    def _stream(self) -> str:
        return f"{self.stack.log_prefix}/{self.stack.container}/{self._id}"

    def _goes_on(self) -> str:
        stack = self.stack
        return (
            f"The task continues in AWS.\n"
            f"  follow it: aws logs tail {stack.log_group} --log-stream-names {self._stream} --follow\n"
            f"  its state: aws ecs describe-tasks --cluster {stack.cluster} --tasks {self._id}\n"
            f"  end it: aws ecs stop-task --cluster {stack.cluster} --task {self._id}"
        )
