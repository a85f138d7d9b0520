"""docs/your-own-project.md: what the page shows for each kind of application, done as it says."""

import json
import re
import shlex
import shutil
import sysconfig
import threading
import time
import tomllib
import venv
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import psycopg2
import pytest
from poolkit_command import run_process, succeeded
from processes import ROOT

from poolkit.compare.results.run_folder import Request, RunFolder, SampleRow

pytestmark = [pytest.mark.process, pytest.mark.slow]
PAGE = (ROOT / "docs/your-own-project.md").read_text()
FILE = re.compile(r'^```\w+ title="([\w./]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SHORT = "--quick --pool now --users 3 --duration 2 --warm-up 2 --out run"


class Kind(NamedTuple):
    """An application of tests/strangers, and what is true of its own engine."""

    folder: str
    section: str
    ceilings: dict[str, int | None]
    keeps_connections: bool = True


KINDS = [
    Kind("fastapi_sqlmodel", "FastAPI with SQLModel", {"web": 4 * (5 + 10)}),
    Kind("fastapi_async", "Asynchronous FastAPI", {"web": 3 + 4}),
    Kind("flask_sqlalchemy", "Flask-SQLAlchemy", {"web": 2 * (5 + 10)}),
    Kind("django", "Django", {"web": None}),
    Kind("celery", "Celery", {"worker": 4 * 2}),
    Kind("mangum", "Mangum", {"web": None, "function": 20}, keeps_connections=False),
    Kind("powertools", "Powertools for AWS Lambda", {"function": 10}),
]


def section(title):
    """Return the text below a heading of the page."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@contextmanager
def observed(command):
    """Read pg_stat_activity beside the command; collect (time, number of the target's backends).

    The URL is the target's own, so nothing of poolkit's sampling is used. Backends of the load
    generator, and of the role that samples, are not the target's.
    """
    found, ended = [], threading.Event()

    def observe():
        while not ended.is_set() and not (urls := database_urls(command)):
            time.sleep(0.05)
        connection = psycopg2.connect(urls.pop(), application_name="loadtest:observer")
        connection.autocommit = True
        # The server stops before the command ends.
        with suppress(psycopg2.OperationalError), connection.cursor() as cursor:
            while not ended.wait(0.04):
                before = time.time()
                cursor.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND backend_type = 'client backend' AND usename = current_user"
                    " AND application_name NOT LIKE 'loadtest:%'"
                )
                found.append(((before + time.time()) / 2, cursor.fetchone()[0]))
        connection.close()

    thread = threading.Thread(target=observe)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def database_urls(command):
    """Return what the processes of a run have in DATABASE_URL."""
    urls = set()
    for process in command.children():
        with suppress(psutil.Error):
            urls.add(process.environ().get("DATABASE_URL"))
    return {url for url in urls if url and "//poolkit:" in url}


@pytest.fixture
def project(open_dir, kind):
    """A copy of the application, with an environment of its own that has no poolkit."""
    root = shutil.copytree(ROOT / "tests/strangers" / kind.folder, open_dir / kind.folder)
    venv.create(root / ".venv", symlinks=True, with_pip=False)
    (packages,) = (root / ".venv/lib").glob("python*/site-packages")
    for installed in Path(sysconfig.get_path("purelib")).iterdir():
        if "poolkit" not in installed.name and installed.suffix != ".pth":
            with suppress(FileExistsError):
                (packages / installed.name).symlink_to(installed)
    (root / ".poolkit").mkdir()
    (root / ".poolkit/cache").symlink_to(ROOT / ".poolkit/cache")
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.folder)
def test_the_page_leads_to_true_figures(kind, project, start):
    """init writes the page's settings; figures are the server's; the budget has the real ceiling."""
    succeeded(run_process("init", "--yes", cwd=project), "wrote loadtests/")
    files = dict(FILE.findall(section(kind.section)))
    for name in {"poolkit.toml", "pyproject.toml"} & files.keys():
        written = tomllib.loads((project / name).read_text())
        shown = tomllib.loads(files.pop(name))
        if name == "pyproject.toml":
            written, shown = written["tool"]["poolkit"], shown["tool"]["poolkit"]
        assert written == shown
    for name, text in files.items():
        (project / name).write_text(text)

    command = start("compare", *SHORT.split(), cwd=project)
    with observed(command) as samples:
        command.ends_with(0)
    results = json.loads((project / "run/results.json").read_text())
    assert results["targets"].keys() == {f"{name}@now" for name in kind.ceilings}
    for name, ceiling in kind.ceilings.items():
        found = results["targets"][f"{name}@now"]
        assert not found["partial"]
        # If the machine stalls at the end, scheduled requests are dropped: no failure of the target.
        assert set(found["error_kinds"]) <= {"unsent"}
        assert found["requests"] > found["errors"]
        connections = found["connections"]
        assert connections["ceiling"] == ceiling, connections["ceiling_reason"]
        assert connections["left_over"] == 0
        folder = RunFolder.open(project / "run").target(f"{name}@now")
        window = folder.window()
        if kind.keeps_connections:
            # Both observers look some times a second, so one of them may see the last one later;
            # it stays until the target is stopped.
            inside = most(samples, window.from_, window.to - 1)
            around = most(samples, window.from_ - 0.2, window.stopped)
            assert inside <= connections["peak"] <= around
            assert connections["peak"] >= 1
        else:
            least, opened, most_opened = opened_for_requests(folder)
            assert least <= opened <= most_opened
            assert connections["peak"] <= 3
    check_budget(kind, project)


@pytest.mark.parametrize("kind", KINDS[1:2], ids=lambda kind: kind.folder)
def test_a_wrong_variable_is_explained(kind, project, start):
    """The host does not resolve: status 1, the failed requests, their cause and the log's path."""
    succeeded(run_process("init", "--yes", cwd=project))
    with (project / "pyproject.toml").open("a") as file:
        # The schema is made with the right one.
        file.write('\n[tool.poolkit.targets.web.env]\nDATABASE__HOSTNAME = "db.invalid"\n')
    command = start("compare", *SHORT.split(), cwd=project)
    command.ends_with(1)
    found = json.loads((project / "run/results.json").read_text())["targets"]["web@now"]
    assert found["errors"] == found["requests"] > 0
    assert found["connections"]["peak"] == 0
    assert "such target" not in found["finding"]
    said = "\n".join(command.said)
    assert "gaierror" in found["evidence"]["target_errors"][-1]
    assert f"({Path('run') / found['evidence']['target_log']})" in said


def opened_for_requests(folder):
    """Return the connections opened between two samples, between their bounds: one for each request.

    A sample shows the server at some moment after the sample before it.
    """
    window = folder.window()
    inside = [s for s in folder.rows(SampleRow).rows if window.from_ <= s.time <= window.to]
    requests = folder.rows(Request).rows
    answered = [r for r in requests if not r.error]
    least = sum(inside[1].time <= r.started and r.ended <= inside[-2].time for r in answered)
    most = sum(inside[0].time <= r.ended and r.started <= inside[-1].time for r in requests)
    # One that the server could not count at its begin counts at its end.
    return least - 1, inside[-1].sessions - inside[1].sessions, most


def most(samples, begin, end):
    """Return the largest number of backends between two moments."""
    return max(number for moment, number in samples if begin <= moment <= end)


def check_budget(kind, project):
    """Run the section's `poolkit budget`: it fits, and counts the ceiling that was measured.

    A function counts with its concurrency, a service for each of its instances.
    """
    (line,) = re.findall(r"^poolkit (budget .*)$", section(kind.section), re.MULTILINE)
    answer = run_process(*shlex.split(line), "--json", cwd=project)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (database,) = json.loads(answer.stdout)["databases"]
    (service,) = database["services"]
    instances = 1 if "function" in kind.ceilings else service["instances"]["value"]
    measured = list(kind.ceilings.values())[-1]
    # The threads of gunicorn are the ceiling of Django, which is not measured.
    assert service["running"] / instances == (8 if kind.folder == "django" else measured)
