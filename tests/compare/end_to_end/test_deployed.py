"""Targets that were deployed before the run: loaded where they are, and never stopped."""

import contextlib
import csv
import json
import socket
import sys
import threading
import urllib.request
from collections import Counter
from dataclasses import replace

import pytest
from processes import ROOT

from poolkit.compare.plan.targets import targets_of
from poolkit.compare.results.run_folder import ConnectionRow, ProcessRow, RunFolder
from poolkit.compare.run.hosts import LocalHost, RemoteHost
from poolkit.local.processes import Supervisor
from poolkit.local.readiness import HasLogged
from poolkit.local.stack import EmbeddedStack, StackNeeds
from poolkit.project import Project

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]
QUICK = ("--users", "2", "--rate", "5", "--duration", "1", "--warm-up", "1")


@contextlib.contextmanager
def deployed(database, folder, *names, instances=()):
    """Run targets of the kit's own on a database, as deployed ones; yield their URLs.

    `instances` are the second halves of their application names.
    """
    targets = targets_of(Project.find(ROOT))
    needs = StackNeeds(database_url=database.url(""))
    with Supervisor(folder / "log") as supervisor, EmbeddedStack(folder, needs) as stack:
        given = {"environment": "prod", "monitor_url": stack.monitor_url, "stack": stack}
        host = LocalHost(root=ROOT, supervisor=supervisor, logs=folder / "log", **given)
        labelled = [
            (
                replace(targets[name], env={**targets[name].env, "POOLKIT_INSTANCE": instance}),
                instance,
            )
            for name, instance in zip(names, instances, strict=False)
        ]
        labelled = labelled or [(targets[name], name) for name in names]
        yield [host.start(target, 4, label).url for target, label in labelled]
        host.check()


def answers(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        return answer.status == 200


def rows_of(folder, kind):
    with (folder.path / kind.FILE).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_deployed_targets_are_measured_and_left_alone(start, migrated_database, tmp_path):
    """A service and a function, seen by a role that may only watch; both still run afterwards."""
    out = tmp_path / "run"
    with deployed(migrated_database, tmp_path, "web", "lambda_warm") as (web, function):
        command = start(
            "compare",
            *("--target", f"web={web}/", "--target", f"lambda_warm@here={function}"),
            *("--database-url", migrated_database.monitor_url("")),
            *QUICK,
            *("--out", str(out)),
        )
        command.ends_with(0)
        assert answers(f"{web}/readyz")
    assert not any("starting PostgreSQL" in line for line in command.said)
    for name, preset in (("web", "web"), ("lambda_warm@here", "lambda_warm")):
        found = json.loads((out / "results.json").read_text())["targets"][name]
        assert set(found["error_kinds"]) <= {"unsent"}, name
        assert found["requests"] > found["errors"], name
        assert (found["connections"]["ceiling"], found["connections"]["left_over"]) == (None, None)
        folder = RunFolder.open(out).target(name)
        rows = rows_of(folder, ConnectionRow)
        at_once = Counter(row["time"] for row in rows if row["target"] == preset)
        assert 1 <= max(at_once.values()) <= 4, name
        assert {row["role"] for row in rows_of(folder, ProcessRow)} == {"load", "sampler"}
        assert (folder.window().instances, folder.load_report().loop) == (None, "closed")
        plan = RunFolder.open(out).plan()
        (planned,) = [target for target in plan.targets if target.name == name]
        assert (planned.preset, planned.max_connections) == (preset, 100)


@pytest.mark.slow
def test_two_deployments_of_one_service_are_told_apart_or_unknown(
    start, migrated_database, tmp_path
):
    """The marked one has its own connections; those of the other are unknown, neither 0 nor both's."""
    out = tmp_path / "run"
    with deployed(migrated_database, tmp_path, "web", "web", instances=("eu", "us")) as (eu, us):
        command = start(
            "compare",
            *("--target", f"web@eu={eu}", "--connections", "web@eu=name:web:eu"),
            *("--target", f"web@us={us}"),
            *("--database-url", migrated_database.monitor_url("")),
            *QUICK,
            *("--out", str(out)),
        )
        command.ends_with(0)
    assert any("web@us has connections of the same name" in line for line in command.said)
    found = json.loads((out / "results.json").read_text())["targets"]
    rows = rows_of(RunFolder.open(out).target("web@eu"), ConnectionRow)
    owners = {(row["instance"], row["owner"]) for row in rows if row["target"] == "web"}
    assert owners == {("eu", "target"), ("us", "other")}
    own = found["web@eu"]["connections"]
    assert (own["peak"] >= 1, own["uses_preset"], own["ceiling"]) == (True, False, None)
    assert (found["web@us"]["connections"]["peak"], found["web@us"]["connections"]["opened"]) == (
        None,
        None,
    )


def test_a_role_that_may_not_sample_a_deployed_database_gets_the_grant_to_run(
    start, stranger, database
):
    """Before there is any load; nothing is started on this machine either."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=answer_once, args=(server,))
        answering.start()
        command = start(
            "compare",
            *("--target", f"web=http://127.0.0.1:{server.getsockname()[1]}", *QUICK),
            *("--database-url", database.url("")),
            cwd=stranger(),
        )
        assert command.end() == 2
        answering.join()
    assert 'GRANT pg_monitor TO "poolkit"' in command.error
    assert (len(command.errors), command.said) == (1, [])


def answer_once(server):
    connection, _ = server.accept()
    connection.recv(1000)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    connection.close()


@pytest.mark.slow
def test_local_and_deployed_targets_share_a_report(start, migrated_database, broker, tmp_path):
    """The local one on the embedded server, the others on the given one: a worker by its broker."""
    out = tmp_path / "run"
    with (
        deployed(migrated_database, tmp_path, "web") as (web,),
        deployed_worker(migrated_database, tmp_path, broker),
    ):
        command = start(
            "compare",
            *("--targets", "web", "--target", f"web@there={web}"),
            *("--target", f"worker@there={broker.url}"),
            *("--database-url", migrated_database.admin_url("")),
            *("--max-connections", "50", *QUICK, "--out", str(out)),
        )
        command.ends_with(0)
    plan = RunFolder.open(out).plan()
    limits = {target.name: target.max_connections for target in plan.targets}
    assert limits == {"web": 50, "web@there": 100, "worker@there": 100}
    found = json.loads((out / "results.json").read_text())["targets"]
    for name, target in found.items():
        assert set(target["error_kinds"]) <= {"unsent"}, name
        assert target["requests"] > target["errors"], name
    left = {name: target["connections"]["left_over"] for name, target in found.items()}
    assert left == {"web": 0, "web@there": None, "worker@there": None}


@contextlib.contextmanager
def deployed_worker(database, folder, broker):
    """Run the kit's worker on a database and a broker, as a deployed one."""
    worker = targets_of(Project.find(ROOT))["worker"]
    given = {"environment": "prod", "monitor_url": database.url(""), "url": broker.url}
    host = RemoteHost(root=ROOT, logs=folder, supervisor=None, **given)
    with Supervisor(folder / "worker") as supervisor:
        supervisor.start(
            "worker",
            [sys.executable, "-m", "worker"],
            environ=host.environ(worker),
            cwd=ROOT,
            ready=HasLogged(worker.ready),
            timeout_s=100,
        )
        yield
        supervisor.check()
