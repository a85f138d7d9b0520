"""The number of processes that a command line starts, and which command lines do not tell."""

import pytest

from poolkit.budget.model import Overlap, Variable, Workload, known
from poolkit.budget.processes import processes


def count(*command, **variables):
    return processes(started(*command, **variables)).number.value


def started(*command, **variables):
    return Workload(
        name="app",
        platform="container",
        unit="replica",
        where=None,
        instances=known(1, "here"),
        overlap=Overlap(),
        variables={k: Variable(text=text, origin="here") for k, text in variables.items()},
        command=command,
        command_origin="app.yaml:1",
    )


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("dramatiq --processes 4 app", 4),
        ("rq worker-pool -n 4 high", 4),
        ("rq worker high", 1),
        ("taskiq worker app:broker", 2),
        ("locust --locustfile load.py --master", 1),
        ("locust --worker --processes 4", 4),
        ("locust --headless --processes 4", 5),
        ("/usr/local/bin/python3.12 -u -m gunicorn -w 2 app", 2),
        ("tini -- gosu app gunicorn -w 2 app", 2),
        ("doppler run -- gunicorn -w 3 app", 3),
        ("/entrypoint.sh gunicorn -w 3 app", 3),
        ("./wait-for-it.sh db:5432 -- gunicorn -w 4 app", 4),
        ("uv run --frozen python -m celery -A app worker -c 3", 3),
        ("celery -A app worker -B -c 2", 3),
        ("python manage.py migrate", 1),
        ("python manage.py runserver 0.0.0.0:8000", 1),
        ("python -m poolkit db upgrade", 1),
        ("python -m uvicorn app:app --workers 2", 2),
        ("gunicorn -w 4 $APP_MODULE", 4),
        ("uvicorn app:app --port $PORT --workers 2", 2),
    ],
)
def test_known_programs_have_a_number(command, number):
    """So have programs that start a known one and nothing else."""
    assert count(*command.split()) == number


@pytest.mark.parametrize(
    ("command", "is_single"),
    [
        ("alembic upgrade head", True),
        ("celery -A app worker -P threads -c 8", True),
        ("celery -A app beat", True),
        ("celery -A app worker -c 1", False),
        ("gunicorn -w 1 app", False),
    ],
)
def test_a_program_of_one_process_leaves_the_concurrency_unknown(command, is_single):
    """A number of processes that an option gives is a concurrency, one by nature is not."""
    found = processes(started(*command.split()))
    assert (found.number.value, found.is_single) == (1, is_single)


@pytest.mark.parametrize(
    "command",
    [
        "./start.sh",
        "bash start.sh",
        "/entrypoint.sh",
        "/entrypoint.sh webapp",
        "exec ./server --mode test",
        "timeout 30 ./start.sh",
        "./wait-for-it.sh db:5432 -- ./start.sh",
        "supervisord -n",
        "honcho start",
        "npm start",
        "node server.js",
        "python server.py",
        "python -m my_service",
        "--workers 4",
        "? -w 4",
        "gunicorn app",
        "gunicorn -c conf.py app",
        "gunicorn -w 2 app $GUNICORN_OPTS",
        "gunicorn -w 2 app ?",
        "uwsgi app.ini",
        "dramatiq app",
        "locust --processes -1",
        "celery multi start 3 -A app",
        "celery -A app worker",
    ],
)
def test_other_programs_are_unknown(command):
    """A script, a supervisor, a runner or hidden options may start any number of processes."""
    assert count(*command.split()) is None


@pytest.mark.parametrize(
    ("script", "number"),
    [
        ("gunicorn -w 4 app", 4),
        ("alembic upgrade head && exec gunicorn -w 4 app", 4),
        ("alembic upgrade head  # first\ngunicorn -w 4 \\\n  app", 4),
        ("until pg_isready; do sleep 1; done; exec gunicorn -w 4 app >/dev/null 2>&1", 4),
        ("gunicorn -w 2 a:a & uvicorn --workers 3 b:b", 5),
        ("gunicorn -w 2 a:a && true & uvicorn --workers 3 b:b & wait", 5),
        ("gunicorn -w 2 a:a | tee log", 2),
        ("sh -c 'gunicorn -w 6 a:a' & gunicorn -w 1 b:b", 7),
        ("gunicorn --workers ${NUMBER:-5} app", 5),
        ("gunicorn $OPTIONS app", 7),
        ("WEB_CONCURRENCY=8 uvicorn app", None),
        ("export WEB_CONCURRENCY=8; uvicorn app", None),
        ("for i in 1 2 3; do celery -A a worker -c 1 & done; wait", None),
        ("start() { gunicorn -w 2 app; }; start & start", None),
        ("(gunicorn -w 2 app) & ./jobs.sh", None),
        ("gunicorn -w $(nproc) app", None),
        ("gunicorn -w 2 app & ./jobs.sh", None),
        ("gunicorn -w 'two", None),
    ],
)
@pytest.mark.parametrize("shell", [("sh", "-c"), ("/bin/bash", "-euo", "pipefail", "-lc"), ()])
def test_commands_in_the_background_add_up(shell, script, number):
    """Of commands that follow each other, the largest counts."""
    assert count(*shell, script, OPTIONS="-w 7") == number


def test_a_text_in_compose_is_split_and_its_shell_is_looked_into(folder, ceilings):
    """Compose starts no shell of its own, so the text has `sh -c "..."`."""
    for command in ("sh -c 'gunicorn -w 4 app'", "gunicorn -w 4 -b :${PORT} app"):
        folder.write(
            "compose.yaml",
            f"""
            services:
              web:
                image: x
                command: {command}
                environment: {{DATABASE_URL: postgresql://db/app}}
            """,
        )
        budget = folder.budget(max_connections=100, services=("web=20+10",))
        assert (ceilings(budget), budget.verdict) == ({"web": 120}, "does not fit")
