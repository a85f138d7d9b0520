"""Tasks of ECS that really run, as processes on this machine, against a PostgreSQL of this machine.

moto's RunTask runs nothing, and its tasks succeed by themselves. Here a task goes the way of a Fargate
task: its image is looked for in ECR, its subnets in EC2 and its log group in CloudWatch Logs. Then its
command runs, with the variables of the task definition and of the overrides.

The database that a task's variables name is a database of one PostgreSQL server, whose owner logs in
with the secret that RDS has made, may create roles and is no superuser, as on RDS.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.ecr.models import ecr_backends
from moto.ecs.exceptions import InvalidParameterException
from moto.ecs.models import TaskDefinition
from moto.ecs.responses import EC2ContainerServiceResponse
from moto.logs.models import logs_backends
from moto.secretsmanager.models import secretsmanager_backends

_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com/"
    r"(?P<repository>[^:@]+)(?::(?P<tag>[^@]+))?(?:@(?P<digest>sha256:[0-9a-f]+))?"
)
_RUNS = frozenset({"PROVISIONING", "PENDING", "RUNNING"})


class LocalTasks:
    """The tasks of an account.

    Args:
        gate: starts work in a thread.
        postgres: a function that returns the running server (`EmbeddedPostgres`).
        project: the code that every image has: the working directory, and the first of PYTHONPATH.
        variables: those that lead a process to the account.
    """

    def __init__(self, gate, postgres, project, variables):
        self.project = Path(project)
        self.variables = variables
        self.failures = []
        """What RunTask answers instead of starting a task, as AWS without capacity does."""
        self.image_variables = {}
        """Variables that an image has of its own, by its URI."""
        self.tasks = {}
        self._gate, self._postgres = gate, postgres
        self._lock, self._databases = threading.Lock(), {}

    def fill(self, monkeypatch):
        """Replace moto's calls."""

        def run_task(response):
            return ActionResult(self._run(response))

        def describe_tasks(response):
            found = [self._find(each) for each in response._get_param("tasks", [])]
            tasks = [json.loads(json.dumps(each.state)) for each in found if each]
            return ActionResult({"tasks": tasks, "failures": []})

        def stop_task(response):
            task = self._find(response._get_param("task"))
            if task is None:
                raise InvalidParameterException("The referenced task was not found.")
            task.stop(response._get_param("reason") or "Task stopped by user")
            return ActionResult({"task": task.state})

        for name, action in {
            "run_task": run_task,
            "describe_tasks": describe_tasks,
            "stop_task": stop_task,
        }.items():
            monkeypatch.setattr(EC2ContainerServiceResponse, name, action)
        monkeypatch.setattr(TaskDefinition, "update_from_cloudformation_json", _update_definition)

    def end(self):
        """Stop what still runs."""
        for task in self.tasks.values():
            if task.state["lastStatus"] in _RUNS:
                task.stop("the account is closed")

    def _find(self, name):
        return self.tasks.get(str(name).rpartition("/")[2])

    def _run(self, response):
        backend = response.ecs_backend
        cluster = backend._get_cluster(response._get_param("cluster", "default"))
        definition = backend.describe_task_definition(response._get_param("taskDefinition"))
        network = response._get_param("networkConfiguration") or {}
        configuration = network.get("awsvpcConfiguration", {})
        if not configuration.get("subnets"):
            raise InvalidParameterException(
                "Network Configuration must be provided when networkMode 'awsvpc' is specified."
            )
        ec2 = ec2_backends[response.current_account][response.region]
        for subnet in configuration["subnets"]:
            try:
                ec2.get_subnet(subnet)
            except Exception:  # noqa: BLE001 - moto's own error, whose code is EC2's
                raise InvalidParameterException(
                    f"Error retrieving subnet information for [{subnet}]: The subnet ID "
                    f"'{subnet}' does not exist"
                ) from None
        if self.failures:
            return {"tasks": [], "failures": self.failures}
        overrides = response._get_param("overrides") or {}
        (override,) = overrides.get("containerOverrides") or [{}]
        place = response.current_account, response.region
        task = _Task(self, cluster, definition, override, place)
        self.tasks[task.id] = task
        self._gate.start(task.run)
        return {"tasks": [json.loads(json.dumps(task.state))], "failures": []}

    def database(self, variables, account, region):
        """Return the variables that lead to a database of the local server, made if it is missing."""
        if "DATABASE_HOST" not in variables:
            return variables
        arn = variables["DATABASE_SECRET_ARN"]
        secret = secretsmanager_backends[account][region].get_secret_value(arn, None, "AWSCURRENT")
        owner = json.loads(secret["SecretString"])
        with self._lock:
            server = self._postgres()
            key = variables["DATABASE_HOST"], variables["DATABASE_NAME"]
            if key not in self._databases:
                self._databases[key] = f"{key[1]}_{len(self._databases)}"
            _make_database(server, self._databases[key], owner["username"], owner["password"])
        kept = {k: v for k, v in variables.items() if not k.startswith("DATABASE_SSL")}
        return kept | {
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(server.port),
            "DATABASE_SSLMODE": "prefer",
            "DATABASE_NAME": self._databases[key],
        }


def _make_database(server, name, owner, password):
    import psycopg2
    from psycopg2 import sql

    url = server.admin_url(driver="")
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for role in (owner, "rds_iam"):
                cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
                if cursor.fetchone() is None:
                    cursor.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
            cursor.execute(
                sql.SQL("ALTER ROLE {} LOGIN CREATEROLE CREATEDB PASSWORD %s").format(
                    sql.Identifier(owner)
                ),
                [password],
            )
            cursor.execute(
                sql.SQL("GRANT rds_iam TO {} WITH ADMIN OPTION").format(sql.Identifier(owner))
            )
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
            if cursor.fetchone() is None:
                cursor.execute(
                    sql.SQL("CREATE DATABASE {} OWNER {}").format(
                        sql.Identifier(name), sql.Identifier(owner)
                    )
                )
    finally:
        connection.close()


class _Task:
    def __init__(self, tasks, cluster, definition, override, place):
        self.id = uuid.uuid4().hex
        self._tasks, (self._account, self._region) = tasks, place
        self._container = definition.container_definitions[0]
        self._override = override
        self._process = None
        arn = f"arn:aws:ecs:{place[1]}:{place[0]}:task/{cluster.name}/{self.id}"
        self.state = {
            "taskArn": arn,
            "clusterArn": cluster.arn,
            "taskDefinitionArn": definition.arn,
            "lastStatus": "PROVISIONING",
            "desiredStatus": "RUNNING",
            "launchType": "FARGATE",
            "containers": [
                {
                    "containerArn": f"{arn}/container",
                    "taskArn": arn,
                    "name": self._container["name"],
                    "image": self._container["image"],
                    "lastStatus": "PENDING",
                }
            ],
        }

    def run(self):
        """Go through the states of a task; what fails here ends it, as a container that cannot start."""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - else the task would never end
            self._end("TaskFailedToStart", f"CannotStartContainerError: {error!r}")

    def _run(self):
        self.state["lastStatus"] = "PENDING"
        reason = self._missing_image() or self._missing_group()
        if reason:
            self._end("TaskFailedToStart", reason)
            return
        command = self._override.get("command") or self._container["command"]
        options = self._container["logConfiguration"]["options"]
        group = options["awslogs-group"]
        stream = f"{options['awslogs-stream-prefix']}/{self._container['name']}/{self.id}"
        logs = logs_backends[self._account][self._region]
        logs.create_log_stream(group, stream)
        words = [sys.executable if word == "python" else word for word in command]
        self._process = subprocess.Popen(
            words,
            cwd=self._tasks.project,
            env=self._environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.state["lastStatus"] = self.state["containers"][0]["lastStatus"] = "RUNNING"
        for line in self._process.stdout:
            event = {"timestamp": int(time.time() * 1000), "message": line.rstrip("\n")}
            logs.put_log_events(group, stream, [event])
        self._process.stdout.close()
        code = self._process.wait()
        # As a shell reports a signal.
        self.state["containers"][0]["exitCode"] = code if code >= 0 else 128 - code
        self._end("EssentialContainerExited", "Essential container in task exited")

    def stop(self, reason):
        """End the process."""
        self.state |= {"stopCode": "UserInitiated", "stoppedReason": reason}
        if self._process is not None:
            self._process.terminate()

    def _end(self, code, reason):
        self.state["containers"][0]["lastStatus"] = "STOPPED"
        self.state.setdefault("stopCode", code)
        self.state.setdefault("stoppedReason", reason)
        self.state |= {"desiredStatus": "STOPPED", "lastStatus": "STOPPED"}

    def _environ(self):
        named = {
            each["name"]: str(each["value"]) for each in self._container.get("environment", ())
        }
        named |= {each["name"]: each["value"] for each in self._override.get("environment", ())}
        named |= self._tasks.image_variables.get(self._container["image"], {})
        variables = self._tasks.database(named, self._account, self._region)
        project = str(self._tasks.project)
        machine = {
            name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ
        }
        own = {"PYTHONPATH": project, "PYTHONUNBUFFERED": "1"}
        return machine | own | self._tasks.variables | variables

    def _missing_image(self):
        found = _IMAGE.fullmatch(self._container["image"])
        if not found:
            return ""
        where = {"imageTag": found["tag"] or "latest"}
        if found["digest"]:
            where = {"imageDigest": found["digest"]}
        try:
            ecr = ecr_backends[found["account"]][found["region"]]
            answer = ecr.batch_get_image(found["repository"], found["account"], [where])
            is_there = bool(answer["images"])
        except Exception:  # noqa: BLE001 - no repository of that name
            is_there = False
        if is_there:
            return ""
        return (
            "CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to "
            f"resolve ref {self._container['image']}: {self._container['image']}: not found"
        )

    def _missing_group(self):
        group = self._container["logConfiguration"]["options"]["awslogs-group"]
        if group in logs_backends[self._account][self._region].groups:
            return ""
        return (
            "ResourceInitializationError: failed to validate logger args: create stream has been "
            "retried 1 times: failed to create Cloudwatch log stream: ResourceNotFoundException: The "
            "specified log group does not exist."
        )


def _update_definition(
    original_resource, new_resource_name, cloudformation_json, account_id, region_name
):
    """Register another revision, spelt as ECS has it; moto keeps the spelling of CloudFormation."""
    from moto.ecs.models import ecs_backends

    made = TaskDefinition.create_from_cloudformation_json(
        new_resource_name, cloudformation_json, account_id, region_name
    )
    same = ("family", "container_definitions", "volumes")
    backend = ecs_backends[account_id][region_name]
    if all(getattr(made, name) == getattr(original_resource, name) for name in same):
        backend.deregister_task_definition(made.arn)
        return original_resource
    backend.deregister_task_definition(original_resource.arn)
    return made
