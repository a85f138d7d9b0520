"""The cost of importing the Lambda functions, against the libraries that they need.

`python benchmarks/lambda_import.py [--rounds 15]`, figures for each arm.

Each figure is the CPU time of the import statement alone, in a fresh interpreter; wall time
is shown beside it. The arms alternate. The functions' modules do more than import: they read
the settings, make the engine, which loads SQLAlchemy's PostgreSQL dialect, map the models, and register
the hooks. A cold start pays for all of it. They disable the garbage collector meanwhile, which
the floors do not; so there is a floor with the collector disabled, too.

A floor is what such a function imports anyway: SQLAlchemy with its ORM, the driver, Powertools and the
part of it that handles the events. The plain floor has neither the ORM nor that part. Powertools'
Idempotency imports boto3, whether DynamoDB is used or not. The queue's function uses it, so its
floor includes it.

Two arms have the sample's schemas, with msgspec and with pydantic; two more have poolkit's own modules.

With bytecode every .pyc file exists, as in a good deployment package. Without it each
interpreter compiles every module and stores nothing, as in Lambda's read-only code directory.
"""

import json
import os
import subprocess
import sys
import tempfile

from harness import ROOT, compare, machine, read_options

LIMIT = 1.25

PLAIN = "plain floor: sqlalchemy + psycopg2 + aws_lambda_powertools"
FLOOR = "floor: plain floor + sqlalchemy.orm + event_handler"
COLLECTOR_OFF = "floor, collector off"
QUEUE_FLOOR = "queue's floor: plain floor + orm + batch + idempotency, with boto3"
MANGUM_FLOOR = "mangum's floor: sqlalchemy + orm + psycopg2 + mangum"
POWERTOOLS, MANGUM = "floor + poolkit.powertools", "mangum's floor + poolkit.mangum"
APP, QUEUE = "lambda_handler.app", "lambda_handler.queue"
PLAIN_LIBRARIES = "import sqlalchemy, psycopg2, aws_lambda_powertools"
ORM_LIBRARIES = f"{PLAIN_LIBRARIES}, sqlalchemy.orm"
LIBRARIES = f"{ORM_LIBRARIES}, aws_lambda_powertools.event_handler"
MANGUM_LIBRARIES = "import sqlalchemy, sqlalchemy.orm, psycopg2, mangum"
COLLECTING = "import gc; gc.disable = gc.freeze = lambda: None"
ARMS = {
    PLAIN: PLAIN_LIBRARIES,
    FLOOR: LIBRARIES,
    COLLECTOR_OFF: f"import gc; gc.disable()\n{LIBRARIES}\ngc.enable()",
    "floor + dialect": f"{LIBRARIES}, sqlalchemy.dialects.postgresql.psycopg2",
    "floor + models": f"{LIBRARIES}, articles.models",
    "floor + models + schemas with msgspec": f"{LIBRARIES}, articles.models, lambda_handler.schemas",
    "floor + models + schemas with pydantic": f"{LIBRARIES}, articles.models, articles.schemas",
    POWERTOOLS: (
        f"{LIBRARIES}\nfrom poolkit.powertools import ExecutionEnvironment, Resolver, instrument"
    ),
    APP: f"import {APP}",
    f"{APP}, collector on": f"{COLLECTING}\nimport {APP}",
    QUEUE_FLOOR: (
        f"{ORM_LIBRARIES}, aws_lambda_powertools.utilities.batch\n"
        "import aws_lambda_powertools.utilities.idempotency"
    ),
    QUEUE: f"import {QUEUE}",
    MANGUM_FLOOR: MANGUM_LIBRARIES,
    MANGUM: f"{MANGUM_LIBRARIES}, poolkit.mangum",
}
# Each function and module, and the libraries that it needs.
JUDGED = {APP: FLOOR, QUEUE: QUEUE_FLOOR, POWERTOOLS: FLOOR, MANGUM: MANGUM_FLOOR}
TIMED = """
import json, time
wall, cpu = time.perf_counter(), time.process_time()
{statements}
print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]))
"""


def importing(statements, options):
    """Return an arm: the CPU time and the wall time of the import, in seconds."""
    command = [sys.executable, *options, "-c", TIMED.format(statements=statements)]
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": "postgresql://articles:benchmark@127.0.0.1:5432/articles",
    }
    return lambda: json.loads(subprocess.check_output(command, cwd=ROOT, env=environ))


def measure(title, options, rounds):
    """Print the tables of all arms, and whether each function keeps its limit; return that."""
    arms = {name: importing(statements, options) for name, statements in ARMS.items()}
    figures = compare(arms, rounds=rounds)
    cpu, wall = figures.part(0), figures.part(1)
    table = cpu.table(baseline=FLOOR, unit="ms", scale=1e3)
    print(f"\n{title}, CPU time, {rounds} rounds\n{table}")
    print(f"\n{title}, wall time\n{wall.table(baseline=FLOOR, unit='ms', scale=1e3)}\n")
    all_kept = True
    for function, floor in JUDGED.items():
        ratio = cpu.ratio(function, to=floor)
        all_kept = all_kept and ratio <= LIMIT
        print(
            f"{title}: {function} is {ratio:.3f} x its {floor}; at most {LIMIT}: "
            f"{'kept' if ratio <= LIMIT else 'MISSED'}; {cpu.ratio(function, to=PLAIN):.3f} x the plain floor"
        )
    print(f"{title}: {APP} is {cpu.ratio(APP, to=COLLECTOR_OFF):.3f} x the floor, collector off")
    return all_kept


def main():
    rounds = read_options(__doc__, rounds=15).rounds
    print(machine("SQLAlchemy", "psycopg2-binary", "aws-lambda-powertools", "msgspec"))
    kept = measure("With bytecode", [], rounds)
    with tempfile.TemporaryDirectory() as empty:
        # Bytecode is looked for there and never written.
        options = ["-B", "-X", f"pycache_prefix={empty}"]
        kept &= measure("Without bytecode", options, rounds)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
