"""The cost of importing each integration, against the libraries that an application has anyway.

`python benchmarks/integration_imports.py [--rounds 15]`, figures for each module.

The floor of a module is its framework, SQLAlchemy's engine and the driver: what the same
application would import without poolkit. Each figure is the CPU time of the imports alone in a
fresh interpreter, with bytecode. The arms alternate. The functions' own import path, which a cold
start pays for, is `benchmarks/lambda_import.py`.
"""

import json
import os
import subprocess
import sys

from harness import ROOT, compare, machine, read_options

BASE = "import sqlalchemy, sqlalchemy.dialects.postgresql.psycopg2, psycopg2"
FLOORS = {
    "poolkit.alembic": "import alembic.command, alembic.config, sqlalchemy.orm",
    "poolkit.attached": "",
    "poolkit.celery": "import celery.app.task, celery.signals, kombu, sqlalchemy.orm",
    "poolkit.django": "import django.db, django.http, django.urls, django.views.defaults",
    "poolkit.fastapi": "import fastapi, starlette.concurrency, sqlalchemy.ext.asyncio, prometheus_client",
    "poolkit.flask": "import flask, sqlalchemy.orm, prometheus_client",
    "poolkit.flask_sqlalchemy": "import flask, flask_sqlalchemy, sqlalchemy.orm",
}
TIMED = """
import json, time
began = time.process_time()
{statements}
print(json.dumps(time.process_time() - began))
"""


def importing(*statements):
    """Return an arm: the CPU time of the statements, in seconds."""
    source = TIMED.format(statements="\n".join(filter(None, statements)))
    command = [sys.executable, "-c", source]
    environ = {"PATH": os.environ["PATH"]}
    return lambda: json.loads(subprocess.check_output(command, cwd=ROOT, env=environ))


def main():
    rounds = read_options(__doc__, rounds=15).rounds
    print(
        machine("SQLAlchemy", "psycopg2-binary", "alembic", "celery", "django", "fastapi", "flask")
    )
    arms = {}
    for module, floor in FLOORS.items():
        arms[f"floor of {module}"] = importing(BASE, floor)
        arms[module] = importing(BASE, floor, f"import {module}")
    figures = compare(arms, rounds=rounds)
    print(f"\n{'module':28}{'floor':>10}{'with it':>10}{'ratio':>8}   CPU time, {rounds} rounds")
    for module in FLOORS:
        floor = f"floor of {module}"
        before, after = figures.median(floor) * 1e3, figures.median(module) * 1e3
        ratio = figures.ratio(module, to=floor)
        print(f"{module:28}{before:7.0f} ms{after:7.0f} ms{ratio:7.2f}x")
    return 0


if __name__ == "__main__":
    sys.exit(main())
