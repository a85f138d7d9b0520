"""The results of a short real run of the targets, as equalities and bounds.

The counts are the server's own for the whole run, warm-up included, so nothing has to be
guessed about what was in flight at the borders of the measured time.
"""

import csv
import json

import pytest

from poolkit.compare.results.run_folder import InvokeRow, Request, RunFolder, SampleRow
from poolkit.config.presets import preset
from poolkit.local.pgbouncer import find_pgbouncer

# The first test waits for the whole run, which a busy machine may take its time for.
pytestmark = [pytest.mark.sample, pytest.mark.process, pytest.mark.timeout(600)]
USERS = 6
# So low that a busy machine keeps up: if none of the requests of the measured time was answered, since
# those before them were still waiting, a target counts as failed.
RATE = 2
PROXY = ["lambda_proxy"] if find_pgbouncer() else []
OF_EACH_KIND = ["lambda", "lambda_warm", "web", "worker"]
EVERY = ["lambda", "lambda_warm", *PROXY, "web", "web_async", "worker"]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(OF_EACH_KIND, id="of-each-kind"),
        pytest.param(EVERY, id="every", marks=pytest.mark.slow),
    ],
)
def command(request, start, tmp_path_factory):
    """Run targets once, for 3 s each, and keep what the command said."""
    out = tmp_path_factory.mktemp("short") / "run"
    options = f"--users {USERS} --rate {RATE} --duration 3 --warm-up 1 --out {out}"
    # Without --targets it takes those of pyproject.toml, in their order.
    chosen = [] if request.param is EVERY else ["--targets", ",".join(request.param)]
    command = start("compare", *chosen, *options.split())
    for name in request.param:
        command.wait_until_it_says(rf"^{name}: ")
    assert command.end() == 0, command.error
    command.out, command.targets = out, request.param
    return command


@pytest.fixture(scope="module")
def results(command):
    return json.loads((command.out / "results.json").read_text())


def whole_run(command, name):
    """Return a target's window, its rows, and the connections of the whole run."""
    target = RunFolder.open(command.out).target(name)
    window = target.window()
    with (target.path / Request.FILE).open() as file:
        rows = list(csv.DictReader(file))
    return window, rows, window.sessions_after - window.sessions_before


def peak(command, name):
    target = RunFolder.open(command.out).target(name)
    with (target.path / SampleRow.FILE).open() as file:
        return max(int(row["backends"]) for row in csv.DictReader(file))


def test_every_target_was_measured_without_a_failure(command, results):
    """All targets answered every request of the measured time, at the same load."""
    assert sorted(results["targets"]) == sorted(command.targets)
    for name, target in results["targets"].items():
        # If the machine stalls at the end, scheduled requests are dropped: no failure of the targets.
        assert set(target["error_kinds"]) <= {"unsent"}, name
        assert target["requests"] > target["errors"], name
        assert target["offered_per_s"] == pytest.approx(USERS * RATE, rel=0.5), name
        assert not target["partial"], name


def test_with_null_pool_every_request_opens_a_connection(command):
    """`lambda`: connections opened equal invokes of the handler, each of which asks the database.

    The first execution environment's init phase touches no database. Of the requests that
    Locust cut off as it ended, some had reached the function: the fleet's list has those.
    """
    invokes = [row for row in _invokes(command, "lambda") if row["status"] == "ok"]
    _, rows, opened = whole_run(command, "lambda")
    assert opened == len(invokes)
    answered = sum(row["error"] == "" for row in rows)
    cut_off = sum(row["error"] == "unanswered" for row in rows)
    assert answered <= opened <= answered + cut_off
    assert cut_off <= USERS


def test_lambda_warm_opens_one_connection_for_each_execution_environment(command):
    """Each keeps its connection for life, so both numbers are equal."""
    window, rows, opened = whole_run(command, "lambda_warm")
    used = {row["execution_environment"] for row in _invokes(command, "lambda_warm")}
    assert opened == len(used) <= USERS
    assert len(used) <= window.execution_environments
    assert peak(command, "lambda_warm") == opened
    assert len(rows) > 3 * opened


def _invokes(command, name):
    path = RunFolder.open(command.out).target(name).path / InvokeRow.FILE
    with path.open() as file:
        return list(csv.DictReader(file))


def test_web_stays_under_its_pool_and_overflow(command):
    """No more connections than there are users at once, and never more than the pool allows."""
    for name in {"web", "web_async"}.intersection(command.targets):
        _, _, opened = whole_run(command, name)
        chosen = preset(name, "prod")
        # The readiness probe is a user too, and may have been the first to open one.
        assert 1 <= opened <= USERS + 1, name
        assert peak(command, name) <= chosen.pool_size + chosen.max_overflow, name


def test_the_worker_opens_one_connection_for_each_of_its_children(command):
    """Four children, four connections, and two others that are no task's.

    The worker opens one at its start, to read how many the server admits, and closes it. The other
    is the load generator's, which looks for results.
    """
    _, _, opened = whole_run(command, "worker")
    assert opened <= 4 + 2
    assert peak(command, "worker") <= 4


def test_behind_a_pooler_connections_stay_below_those_of_the_function_alone(command):
    """`lambda_proxy` connects for every request too, but to the pooler; few reach the server."""
    if "lambda_proxy" not in command.targets:
        pytest.skip("a part of the slow run of every target, where there is a pgbouncer")
    _, rows, opened = whole_run(command, "lambda_proxy")
    assert 1 <= opened <= USERS
    assert peak(command, "lambda_proxy") <= USERS
    assert len(rows) > 5 * opened


def test_no_connection_is_left_after_a_target(command):
    """The server was asked after each of them was stopped."""
    run = RunFolder.open(command.out)
    left_over = {name: run.target(name).window().left_over for name in command.targets}
    assert left_over == dict.fromkeys(command.targets, 0)


def test_no_process_and_no_port_is_left(command):
    assert len(command.seen.processes) > 10, "there was something to see"
    assert len(command.seen.ports) > 2
    assert command.left() == []


def test_the_run_folder_has_what_is_documented(command):
    """The files of docs/results.md are there, and no others."""
    files = {str(f.relative_to(command.out)) for f in command.out.rglob("*") if f.is_file()}
    expected = {"plan.json", "machine.json", "results.json", "report.html"}
    rows = ["window.json", "load.json"]
    rows += [
        f"{kind}.csv"
        for kind in ("requests", "connections", "samples", "processes", "holds", "pools")
    ]
    for name in command.targets:
        expected |= {f"targets/{name}/{row}" for row in rows}
        expected |= {f"targets/{name}/invokes.csv"} if name.startswith("lambda") else set()
    assert {f for f in files if not f.startswith(("log/", "charts/"))} == expected
    assert any(f.startswith("charts/") for f in files)


def test_the_terminal_shows_table_findings_and_where_the_report_is(command):
    """A line for each target, a finding for each, and the path of the page."""
    said = "\n".join(command.said)
    for name in command.targets:
        assert sum(line.startswith(f"{name} ") for line in command.said) >= 1, name
    assert f"Report: {command.out / 'report.html'}" in said
    assert command.error == ""
