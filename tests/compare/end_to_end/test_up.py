"""`poolkit up`: the whole stack and every target, until Ctrl-C."""

import re
import signal
import urllib.request

import psycopg2
import pytest
from click.testing import CliRunner
from compare.end_to_end.conftest import web

from poolkit.cli import main
from poolkit.local.pgbouncer import find_pgbouncer

pytestmark = [pytest.mark.process, pytest.mark.timeout(300)]

FUNCTION = """
[tool.poolkit.targets.function]
kind = "lambda"
handler = "quick.handler"
preset = "lambda"
"""


def get(url):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        return answer.status


def addresses(command):
    """Return name and address of each line between the stages and the last line."""
    command.wait_until_it_says("Ctrl-C stops everything")
    found = (re.fullmatch(r"  (\S+) +(\S.*)", line) for line in command.said)
    return {match[1]: match[2] for match in found if match}


@pytest.mark.sample
@pytest.mark.slow
def test_every_address_that_is_printed_answers_until_ctrl_c(start):
    """PostgreSQL and the role that watches it, PgBouncer, the broker, each target."""
    names = ["lambda", "web", "worker"] + (["lambda_proxy"] if find_pgbouncer() else [])
    command = start("up", "--targets", ",".join(names))
    shown = addresses(command)
    assert {"PostgreSQL", "monitoring", "broker", *names} <= set(shown)
    for name in ["PostgreSQL", "monitoring"] + (["PgBouncer"] if find_pgbouncer() else []):
        psycopg2.connect(shown[name], connect_timeout=60).close()
    for name in names:
        if name != "worker":
            assert get(f"{shown[name]}/articles?limit=1") == 200, name
    assert "takes tasks" in shown["worker"]
    command.ends_with(0, signal.SIGINT)
    assert (command.said[-1], command.error) == ("stopping", "")


@pytest.mark.slow
def test_ctrl_c_while_it_starts_ends_what_was_started(start, stranger):
    """There are no addresses yet, and no process is left."""
    quick, slow = "def handler(event, context): return {}", "import time; time.sleep(60)"
    command = start("up", cwd=stranger(FUNCTION + web("web", "slow:app"), quick=quick, slow=slow))
    command.wait_until_it_says("starting web")
    command.ends_with(130, signal.SIGINT)
    assert command.error == ""


@pytest.mark.slow
def test_a_target_that_dies_ends_the_rest(start, stranger):
    """One line names it, with exit status 2."""
    command = start("up", cwd=stranger())
    command.wait_until_it_says("Ctrl-C stops everything")
    command.find("uvicorn").kill()
    assert command.end() == 2
    assert command.errors[0].startswith("poolkit: web ended by itself with signal 9")
    assert command.left() == []


@pytest.mark.slow
def test_two_at_once_do_not_disturb_each_other(start, stranger):
    """Each has servers and ports of its own; the end of one is not the other's."""
    project = stranger()
    first, second = start("up", cwd=project), start("up", cwd=project)
    shown = addresses(first), addresses(second)
    assert shown[0]["web"] != shown[1]["web"]
    first.ends_with(0, signal.SIGINT)
    assert get(shown[1]["web"]) == 200
    second.ends_with(0, signal.SIGINT)


@pytest.mark.slow
def test_a_target_that_cannot_run_here_is_announced(monkeypatch, stranger):
    """A line has the reason why it has no address; the other targets are started."""
    proxied = FUNCTION + 'through = "pgbouncer"\n'
    monkeypatch.chdir(stranger(proxied + web("web", "missing:app")))
    monkeypatch.setattr("poolkit.compare.plan.plan.find_pgbouncer", lambda: None)
    answer = CliRunner().invoke(main, ["up"], prog_name="poolkit", catch_exceptions=False)
    assert "function is left out: pgbouncer is not on PATH" in answer.stdout
    assert answer.stderr.startswith("poolkit: web ended with exit status ")
