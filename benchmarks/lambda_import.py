"""What importing the Lambda function costs, against the libraries it cannot do without.

`python benchmarks/lambda_import.py [--rounds 15]`

Each figure is the CPU time of the import statement alone, in a fresh interpreter; wall time
is shown beside it. The arms take turns. `lambda_handler.app` does more than import: it reads
the settings, makes the engine, which loads SQLAlchemy's PostgreSQL dialect, and registers
the hooks, all of which a cold start pays for.

With bytecode every .pyc file is there, as a deployment package should ship them. Without,
each interpreter compiles everything again and keeps nothing, as in Lambda's read-only code
directory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pairwise import Comparison, compare, machine

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1.25

FLOOR = "floor: sqlalchemy + psycopg2 + aws_lambda_powertools"
ARMS = {
    FLOOR: "import sqlalchemy, psycopg2, aws_lambda_powertools",
    "floor + event_handler": (
        "import sqlalchemy, psycopg2, aws_lambda_powertools, aws_lambda_powertools.event_handler"
    ),
    "floor + event_handler + dialect": (
        "import sqlalchemy, psycopg2, aws_lambda_powertools, aws_lambda_powertools.event_handler\n"
        "import sqlalchemy.dialects.postgresql.psycopg2"
    ),
    "floor, collector off": (
        "import gc; gc.disable()\nimport sqlalchemy, psycopg2, aws_lambda_powertools\ngc.enable()"
    ),
    "lambda_handler.app": "import lambda_handler.app",
    "lambda_handler.app, collector on": (
        "import gc; gc.disable = gc.freeze = lambda: None\nimport lambda_handler.app"
    ),
    "lambda_handler.queue": "import lambda_handler.queue",
}
TIMED = """
import json, time
wall, cpu = time.perf_counter(), time.process_time()
{statements}
print(json.dumps([time.process_time() - cpu, time.perf_counter() - wall]))
"""


def importing(statements, options, walls):
    command = [sys.executable, *options, "-c", TIMED.format(statements=statements)]
    environ = {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": "postgresql://articles:benchmark@127.0.0.1:5432/articles",
    }

    def arm():
        done = subprocess.run(
            command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True
        )
        cpu, wall = json.loads(done.stdout)
        walls.append(wall)
        return cpu

    return arm


def measure(title, options, rounds):
    walls = {name: [] for name in ARMS}
    arms = {name: importing(ARMS[name], options, walls[name]) for name in ARMS}
    cpu = compare(arms, rounds=rounds, warmup=1)
    wall = Comparison(figures={name: figures[1:] for name, figures in walls.items()})
    print(
        f"\n{title}, CPU time, {rounds} rounds\n{cpu.table(baseline=FLOOR, unit='ms', scale=1e3)}"
    )
    print(f"\n{title}, wall time\n{wall.table(baseline=FLOOR, unit='ms', scale=1e3)}")
    ratio = cpu.ratio("lambda_handler.app", to=FLOOR)
    verdict = "kept" if ratio <= LIMIT else "MISSED"
    print(f"\n{title}: lambda_handler.app is {ratio:.3f} x the floor; at most {LIMIT}: {verdict}")
    return ratio <= LIMIT


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="figures for each arm")
    rounds = parser.parse_args().rounds
    print(machine("SQLAlchemy", "psycopg2-binary", "aws-lambda-powertools"))
    kept = measure("With bytecode", [], rounds)
    with tempfile.TemporaryDirectory() as empty:
        # Looked for there and not written there: nothing is ever found.
        options = ["-B", "-X", f"pycache_prefix={empty}"]
        kept &= measure("Without bytecode", options, rounds)
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
