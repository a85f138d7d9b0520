"""Programs: the options and variables for their number of processes, and those with only one.

Sources: gunicorn, "Settings" (workers: the command line, GUNICORN_CMD_ARGS, the configuration
file, by default ./gunicorn.conf.py, and then WEB_CONCURRENCY, else 1); uvicorn, "Settings"
(--workers: WEB_CONCURRENCY, else 1); Celery, "Workers Guide" (--concurrency: else the number
of processors; --autoscale); uWSGI, "Options"; Sanic, "Worker Manager"; taskiq, "CLI" (2);
Locust, "Configuration" (--processes: the number of workers; a master comes on top without --worker);
`--help` of granian, hypercorn, dramatiq and `rq worker-pool`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Server:
    """A program that starts processes, and the options and variables that set their number."""

    name: str
    options: tuple[str, ...]
    variables: tuple[str, ...]
    default: int | None
    """The number without an option or variable; None: unknown."""
    why: str
    """The origin of the default, or the reason why there is none."""
    files: tuple[str, ...] = ()
    """Options that name a file which may set the number too."""


_BY_PROCESSORS = "starts one for each processor"
_SERVERS = (
    Server(
        "gunicorn",
        ("--workers", "-w"),
        ("WEB_CONCURRENCY",),
        None,
        "gunicorn's default is 1, which a gunicorn.conf.py in the image may change: give --workers",
        files=("--config", "-c"),
    ),
    Server(
        "uvicorn", ("--workers",), ("UVICORN_WORKERS", "WEB_CONCURRENCY"), 1, "uvicorn's default"
    ),
    Server("fastapi", ("--workers",), ("WEB_CONCURRENCY",), 1, "uvicorn's default"),
    Server(
        "hypercorn", ("--workers", "-w"), (), 1, "hypercorn's default", files=("--config", "-c")
    ),
    Server("granian", ("--workers",), ("GRANIAN_WORKERS",), 1, "granian's default"),
    Server("sanic", ("--workers", "-w"), (), 1, "Sanic's default", files=("--fast",)),
    Server(
        "uwsgi",
        ("--processes", "--workers", "-p"),
        ("UWSGI_PROCESSES", "UWSGI_WORKERS"),
        1,
        "uWSGI's default",
        files=("--ini", "--yaml", "--xml", "--json"),
    ),
    Server(
        "celery",
        ("--concurrency", "-c"),
        (),
        None,
        f"Celery {_BY_PROCESSORS}: give --concurrency",
    ),
    Server(
        "dramatiq", ("--processes", "-p"), (), None, f"dramatiq {_BY_PROCESSORS}: give --processes"
    ),
    Server("locust", ("--processes",), ("LOCUST_PROCESSES",), 1, "Locust's default"),
    Server("taskiq", ("--workers", "-w"), (), 2, "taskiq's default"),
)
SERVERS = {server.name: server for server in _SERVERS}

RQ_POOL = Server("rq", ("--num-workers", "-n"), (), 1, "the default of rq worker-pool")

ONE_PROCESS = frozenset(
    {
        *("alembic", "psql", "pg_dump", "pg_restore", "streamlit"),
        *("daphne", "waitress-serve", "arq", "poolkit"),
    }
)
"""Programs that never have more than one process."""

NO_CONNECTION = frozenset(
    {
        *("cd", "export", "set", "unset", "echo", "printf", "sleep", "true", "false", ":", "test"),
        *("[", "[[", "mkdir", "cat", "touch", "rm", "cp", "mv", "chmod", "chown", "umask", "date"),
        *("ulimit", "wait", "trap", "exit", "return", "read", "nc", "curl", "wget", "pg_isready"),
        *("ls", "id", "tee"),
    }
)
"""Programs that open no connection, or close it at once."""

WAITERS = frozenset({"wait-for-it", "wait-for-it.sh", "wait-for", "wait-for.sh", "dockerize"})
"""The same, unless a command to start follows after `--`."""

SHELLS = frozenset({"sh", "bash", "ash", "dash", "zsh"})

WRAPPERS = {
    **dict.fromkeys(("exec", "command", "nohup", "time", "setsid", "nice", "env", "stdbuf"), 0),
    **dict.fromkeys(("tini", "dumb-init", "catatonit", "busybox"), 0),
    **dict.fromkeys(("ddtrace-run", "opentelemetry-instrument"), 0),
    **dict.fromkeys(("gosu", "su-exec", "chpst", "timeout", "newrelic-admin"), 1),
    **dict.fromkeys(("poetry", "pipenv", "uv", "pdm", "hatch", "rye"), 1),
}
"""Programs that start another one, and the number of words before it: `gosu app`, `poetry run`."""

FLASK_ONE = frozenset({"run", "db", "shell", "routes"})
DJANGO_ONCE = frozenset(
    {"migrate", "collectstatic", "check", "createsuperuser", "loaddata", "createcachetable"}
)
CELERY_ONE = frozenset({"beat", "flower", "inspect", "control", "purge", "call", "events"})
ONE_IN_CELERY = frozenset({"threads", "gevent", "eventlet", "solo"})
"""Celery's pools with a single process."""
