"""The start of one target: its port, its variables, its readiness; and what is read from it."""

import json
import os
import socket
import urllib.request

import psutil
import psycopg2
import pytest
from programs import needs_pgbouncer

from poolkit.compare.plan.options import Options
from poolkit.compare.plan.plan import make_plan
from poolkit.compare.plan.targets import Target
from poolkit.compare.results.run_folder import InvokeRow, TargetFolder
from poolkit.compare.run import hosts
from poolkit.compare.run.hosts import LocalHost, Running
from poolkit.compare.run.measure import Measurement
from poolkit.errors import ServerStartError
from poolkit.lambda_fleet import FunctionConfig, LambdaFleet
from poolkit.local.pgbouncer import EmbeddedPgBouncer
from poolkit.local.ports import free_port
from poolkit.local.processes import Supervisor
from poolkit.local.stack import EmbeddedStack, StackNeeds

pytestmark = pytest.mark.process

# Answers with its variables: what a deployable sees.
SERVER = """
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(dict(os.environ)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

class Server(http.server.HTTPServer):
    allow_reuse_address = False

Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def host(tmp_path):
    """The host of a project with one small server, on a stack that starts nothing."""
    (tmp_path / "server.py").write_text(SERVER)
    needs = StackNeeds(database_url="postgresql://me:word@127.0.0.1/there")
    with Supervisor(tmp_path / "log") as supervisor, EmbeddedStack(tmp_path, needs) as stack:
        given = {"environment": "prod", "monitor_url": stack.monitor_url, "stack": stack}
        yield LocalHost(root=tmp_path, supervisor=supervisor, logs=tmp_path / "log", **given)


def web(**values):
    command = ("{python}", "server.py", "{port}")
    return Target(
        **{"name": "web", "kind": "web", "preset": "web", "locustfile": "-", "command": command}
        | values
    )


def variables_of(started):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(started.url, timeout=60) as answer:
        return json.load(answer)


def test_a_target_gets_its_preset_its_database_and_its_own_variables(host):
    """The deployable reads the plan's values; placeholders are filled in."""
    seen = variables_of(host.start(web(processes=3, env={"N": "{processes}"}), 1))
    assert seen["POOLKIT_TARGET"] == "web"
    assert seen["POOLKIT_ENVIRONMENT"] == "prod"
    assert seen["DATABASE_URL"] == "postgresql://me:word@127.0.0.1/there"
    assert seen["N"] == "3"


def test_a_target_reads_the_database_from_variables_of_its_own(host):
    """An application's own settings need no edit: parts of the URL, and any driver's scheme."""
    env = {
        "PGURL": "{database_url:asyncpg}",
        "SERVER": "{db_host}:{db_port}",
        "LOGIN": "{db_user}/{db_password}",
        "NAME": "{db_name}",
    }
    seen = variables_of(host.start(web(env=env), 1))
    assert {name: seen[name] for name in env} == {
        "PGURL": "postgresql+asyncpg://me:word@127.0.0.1/there",
        "SERVER": "127.0.0.1:5432",
        "LOGIN": "me/word",
        "NAME": "there",
    }


def test_a_target_runs_in_its_own_environment_and_folder(host, bare_python, tmp_path):
    """As in its activated environment: interpreter, PATH, working directory, imports."""
    (tmp_path / "backend").mkdir()
    (tmp_path / "backend" / "server.py").write_text(SERVER)
    (tmp_path / "server.py").unlink()
    command = ("python", "server.py", "{port}")
    target = web(python=bare_python, directory=tmp_path / "backend", command=command)
    seen = variables_of(host.start(target, 1))
    assert seen["VIRTUAL_ENV"] == str(bare_python.parents[1])
    assert seen["PATH"].startswith(str(bare_python.parent))
    # Behind it is the file that reads the engines of the target's processes.
    assert seen["PYTHONPATH"].split(os.pathsep)[1:] == [str(tmp_path / "backend")]


@needs_pgbouncer
def test_a_pooler_keeps_no_connection_of_a_stopped_target(host, postgres, database, tmp_path):
    """They would count as the next target's; a target without the pooler does not restart it."""
    with EmbeddedPgBouncer(postgres, tmp_path) as pooler:
        host.stack.pgbouncer = pooler
        client = psycopg2.connect(pooler.url(database.name, ""), connect_timeout=60)
        with client, client.cursor() as cursor:
            cursor.execute("SELECT 1")
        client.close()
        host.release(web())
        assert len(database.backends()) == 1
        host.release(web(through="pgbouncer"))
        database.wait_for_backends(0)
        host.stack.pgbouncer = None


def test_settings_of_the_shell_do_not_reach_a_target(host, monkeypatch):
    """A run would measure other settings than its report names; other variables are passed on."""
    monkeypatch.setenv("POOLKIT_POOL_SIZE", "1")
    monkeypatch.setenv("DATABASE_SECRET_ARN", "arn:of:another")
    monkeypatch.setenv("PGHOST", "production")
    monkeypatch.setenv("UVICORN_MINE", "kept")
    seen = variables_of(host.start(web(), 1))
    assert "POOLKIT_POOL_SIZE" not in seen
    assert "DATABASE_SECRET_ARN" not in seen
    assert "PGHOST" not in seen
    assert seen["UVICORN_MINE"] == "kept"


def test_a_port_that_was_taken_meanwhile_is_replaced_by_another(host, monkeypatch):
    """Between finding a free port and binding it, another process may be quicker."""
    # Bound, but without a listener: the readiness probe is refused and does not wait.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        first = [taken.getsockname()[1]]
        monkeypatch.setattr(hosts, "free_port", lambda: first.pop() if first else free_port())
        assert variables_of(host.start(web(), 1))
    assert not first, "the taken port was tried"


def test_a_target_that_ends_for_another_reason_is_not_tried_again(host, monkeypatch):
    """One start, one line, with the last error of its log."""
    asked = []
    monkeypatch.setattr(hosts, "free_port", lambda: asked.append(1) or free_port())
    with pytest.raises(ServerStartError, match=r"web ended with exit status 1 .*SyntaxError"):
        host.start(web(command=("{python}", "-c", "broken(")), 1)
    assert len(asked) == 1


# -- what a measurement reads ---------------------------------------------------------------


FUNCTION = Target(
    name="f", kind="lambda", preset="lambda", locustfile="load.py", handler="app.handler"
)
DROPPED = "invokes.csv lacks 6 of the oldest invokes, which the fleet no longer has; the counts include them"


@pytest.fixture
def fleet(tmp_path):
    """A fleet that keeps few records."""
    (tmp_path / "app.py").write_text("def handler(event, context): return 1")
    config = FunctionConfig(
        handler="app.handler", task_root=tmp_path, timeout_s=100, init_limit_s=100, records_kept=5
    )
    with LambdaFleet(config, log_dir=tmp_path / "logs") as running:
        yield running


@pytest.mark.parametrize(("invokes", "warnings"), [(6, []), (12, [DROPPED])])
def test_records_that_the_fleet_has_dropped_are_reported(fleet, tmp_path, invokes, warnings):
    """The window has a warning, and the file still has the cold start."""
    for _ in range(invokes):
        fleet.invoke({})
    plan = make_plan([FUNCTION], Options())
    (step,) = plan.steps()
    folder = TargetFolder(tmp_path)
    measurement = Measurement(step, Options(), host=None, folder=folder)
    process = psutil.Process(os.getpid())  # a placeholder: only None has a meaning
    measurement._read_fleet(Running(target=FUNCTION, url=fleet.url, process=process))
    assert measurement.state.warnings == warnings
    assert [row.cold for row in folder.rows(InvokeRow).rows] == [True, *[False] * 5]
