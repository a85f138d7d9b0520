"""The files that `poolkit init` writes: a `[tool.poolkit]` table and a locustfile, with comments."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from poolkit.init.describe_application import PASSWORD
from poolkit.init.routes import LOGIN, Route, plain_routes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolkit.init.findings import Deployable, Findings
    from poolkit.init.routes import Signup

FIRST_LINE = "# Read by `poolkit compare`. Written by `poolkit init`, to be edited by hand."

GITIGNORE = "# Runs of `poolkit compare`, and its servers.\n*\n"

# A list of 300 paths is no load, and is not read.
_MOST_TASKS = 30

_WHY = {
    "python": "The interpreter of the application; poolkit stays out of it.",
    "directory": "Where it is started, and where the commands below run.",
    "schema": "Makes the schema, once, before the first target starts.",
    "extensions": "Made before that, by the superuser.",
    "postgres_bin": "A server that has them: the embedded one does not.",
    "env": "What the application reads. {{...}} is filled in by `poolkit compare`: {{database_url}},\n"
    "# {{db_host}}, {{db_port}}, {{db_user}}, {{db_password}}, {{db_name}}, {{broker_url}}.",
    "kind": "web | lambda | worker",
    "app": "As uvicorn takes it.",
    "handler": "module.function, as in the template of the function.",
    "event": "The shape of its events: http (payload format 2.0), rest (1.0) or alb.",
    "memory": "MB, as in its template.",
    "timeout": "Seconds of one invoke.",
    "reserved_concurrency": "The most execution environments at once.",
    "ready": "Is awaited before the load: a path that answers 200.",
    "processes": "Processes that hold a pool each.",
    "locustfile": "What its users do.",
    "command": "Its server; {{port}} is chosen by `poolkit compare`.",
}
_OF_A_WORKER = {
    "command": "{{processes}} children run tasks.",
    "processes": "Children that run tasks, each with a connection.",
}


def table_text(findings: Findings, locustfiles: Mapping[str, str], *, prefix: str) -> str:
    """Return the tables as TOML with comments.

    Args:
        findings: of the project.
        locustfiles: the file of each target.
        prefix: `tool.poolkit` in pyproject.toml; empty in poolkit.toml.
    """
    lines = [
        FIRST_LINE,
        *([f"[{prefix}]"] if prefix else []),
    ]
    for key, value in findings.table.items():
        if key != "env":
            lines += [f"# {_WHY[key]}".format(), f"{key} = {toml_value(value)}"]
    lines += [
        f"# seed = {toml_value(list(seed))}  # rows that the load needs, after schema"
        for seed in findings.schema.seeds[:3]
    ]
    dotted = f"{prefix}." if prefix else ""
    if env := findings.table.get("env"):
        lines += ["", f"# {_WHY['env']}".format(), f"[{dotted}env]"]
        origins = {v.name: v.origin for v in findings.variables.database}
        for name, value in env.items():
            comment = f"  # {origins[name]}" if name in origins else ""
            lines.append(f"{_key(name)} = {toml_value(value)}{comment}")
    needs_edit = len(findings.deployables) > 1
    for deployable in findings.deployables:
        table = {**deployable.table, "locustfile": locustfiles[deployable.target]}
        why = {**_WHY, **(_OF_A_WORKER if table["kind"] == "worker" else {})}
        block = [f"[{dotted}targets.{deployable.target}]"]
        for key, value in table.items():
            line, comment = f"{key} = {toml_value(value)}", f"# {why[key].format()}"
            block += [comment, line] if len(line) > 60 else [f"{line}  {comment}"]
        if deployable.target == "worker" and needs_edit:
            block = [
                "# Remove the # of these lines when its locustfile sends your tasks.",
                *(f"# {line}" for line in block),
            ]
        lines += ["", *block]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Return a string, number, list or table of strings as TOML on one line."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(each) for each in value)}]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(k)} = {toml_value(v)}" for k, v in value.items())
        return f"{{ {pairs} }}"
    if isinstance(value, str):
        # A JSON string without escapes of other planes is a TOML basic string.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


# -- locustfiles ------------------------------------------------------------------------------


def locustfile_text(deployable: Deployable, *, command: str = "poolkit init") -> str:
    """Return a locustfile for one target."""
    if deployable.application.framework == "celery":
        return _of_tasks(deployable, command)
    routes, signup = deployable.description.routes, deployable.description.signup
    plain = plain_routes(routes, signup)
    tasks = plain[:_MOST_TASKS]
    # Those that lack the least come first.
    left = sorted(
        (route for route in routes if route not in tasks),
        key=lambda route: (
            len({*route.needs, *route.parameters} - {LOGIN}) + (route.method != "GET")
        ),
    )
    is_form = signup is not None and signup.argument == "form"
    lines = [
        f'"""The load on {deployable.application.name}, written by `{command}`: edit it.',
        "",
        f"Paths are from {deployable.description.origin or 'nowhere'}. `poolkit compare` decides how many",
        "users there are and how often each starts a task; the numbers in @task() are weights.",
        '"""',
        "",
        *(["from uuid import uuid4", ""] if signup else []),
        "from locust import FastHttpUser, between, task",
        *(["", "from poolkit.loadtest import submit_form"] if is_form else []),
        "",
        "",
        "class User(FastHttpUser):",
        "    wait_time = between(0.2, 0.8)  # of `locust` alone; `poolkit compare` sets its own pace",
    ]
    if signup:
        lines += _signup_lines(signup)
    elif any(LOGIN in route.needs for route in left):
        path = json.dumps(deployable.description.login or "/login")
        lines += [
            "",
            "    # Remove the #, and name a user that `seed` makes.",
            "    # def on_start(self) -> None:",
            '    #     user = {"username": "load@example.com", "password": "test"}',
            f"    #     answer = self.client.post({path}, data=user)",
            "    #     token = answer.json()['access_token']",
            '    #     self.client.auth_header = f"Bearer {token}"',
        ]
    names: set[str] = set()
    for route in tasks:
        lines += ["", *(f"    {line}" for line in _task(route, names))]
    if not tasks:
        lines += [
            "",
            "    # No path answers without parameters; `/` may be a 404: take one of those below.",
        ]
        lines += [f"    {line}" for line in _task(Route(method="GET", path="/"), names)]
    if left:
        lines += ["", "    # These need more: remove the #, and fill in what is missing."]
        for route in left[:_MOST_TASKS]:
            lines += [f"    # {line}".rstrip() for line in ("", *_task(route, names))]
        if len(left) > _MOST_TASKS:
            lines += ["    #", f"    # And {len(left) - _MOST_TASKS} more paths."]
    return "\n".join(lines) + "\n"


def _signup_lines(signup: Signup) -> list[str]:
    """Return an `on_start` in which each user makes an account and logs in."""
    lines = [
        "",
        "    def on_start(self) -> None:",
        '        """Make an account for this user, and log in; before its first task."""',
        '        username = f"load{uuid4().hex[:12]}"',
        '        email = f"{username}@example.com"',
        f"        password = {json.dumps(PASSWORD)}",
    ]
    if signup.argument == "form":
        return [
            *lines,
            '        account = {"username": username, "email": email, "password": password}',
            f"        submit_form(self.client, {json.dumps(signup.path)}, account)",
            f"        submit_form(self.client, {json.dumps(signup.login)}, account)",
        ]
    account = ", ".join(
        f'"{key}": {key if key in ("username", "email", "password") else repr(value)}'
        for key, value in signup.fields.items()
    )
    name = "username" if "username" in signup.fields else "email"
    return [
        *lines,
        f"        account = {{{account}}}",
        f"        self.client.post({json.dumps(signup.path)}, {signup.argument}=account)",
        f'        login = {{"username": {name}, "password": password}}',
        f"        answer = self.client.post({json.dumps(signup.login)}, data=login)",
        """        self.client.auth_header = f"Bearer {answer.json()['access_token']}\"""",
    ]


def _task(route: Route, names: set[str]) -> list[str]:
    words = re.sub(r"[\W_]+", "_", route.path).strip("_").lower() or "root"
    name = f"{route.method.lower()}_{words}"
    while name in names:
        name += "_"
    names.add(name)
    path = route.path
    for parameter in route.parameters:
        path = re.sub(r"[{<](?:\w+:)?" + parameter + r"(?::\w+)?[}>]", "1", path, count=1)
    arguments = [json.dumps(path)]
    if route.body or route.method in ("POST", "PUT", "PATCH"):
        arguments.append(route.body or "json={}")
    if route.parameters:
        arguments.append(f"name={json.dumps(route.path)}")
    needs = [*route.needs, *(f"a value of {p}" for p in route.parameters)]
    comment = f"  # needs {', '.join(needs)}" if needs else ""
    return [
        "@task",
        f"def {name}(self) -> None:",
        f"    self.client.{route.method.lower()}({', '.join(arguments)}){comment}",
    ]


_OF_TASKS = '''"""The load on {application}, written by `{command}`: edit it.

A task counts as done when its result is committed: `committed` is a query that returns those of
:keys whose rows are there. Locust runs in poolkit's interpreter, which needs Celery for this file:
`pip install celery redis`.

Tasks: {tasks}
Tables: {tables}
"""

import os
from uuid import uuid4

from celery import Celery
from locust import between, task

from poolkit import loadtest
from poolkit.loadtest import TaskUser

loadtest.register()

# Remove the #, and fill in the table, its key, and the arguments of the task.
#
# class Sender(TaskUser):
#     wait_time = between(0.2, 0.8)
#     committed = "SELECT id FROM {table} WHERE id = ANY(:keys)"
#     needs = (*TaskUser.needs, ("{broker}", "the worker's broker"))
#
#     def on_start(self) -> None:
#         super().on_start()
#         self.celery = Celery(broker=os.environ["{broker}"])
#
#     @task
#     def work(self) -> None:
#         key = str(uuid4())
#         arguments = [{arguments}]
#         self.submit(
#             "{task}",
#             key=key,
#             send=lambda: self.celery.send_task("{task}", args=arguments),
#         )
'''


def _of_tasks(deployable: Deployable, command: str) -> str:
    first, parameters = next(iter(deployable.tasks), ("package.tasks.work", ("key",)))
    tasks = [f"{name}({', '.join(names)})" for name, names in deployable.tasks]
    return _OF_TASKS.format(
        application=deployable.application.name,
        command=command,
        tasks=", ".join(tasks) or "none was found",
        tables=", ".join(deployable.tables) or "none was found",
        table=next(iter(deployable.tables), "results"),
        broker=deployable.broker,
        task=first,
        # The first parameter is most often the key.
        arguments=", ".join(["key", *("..." for _ in parameters[1:])][: len(parameters)]),
    )
