"""The cost of importing an integration, against the libraries that it serves.

`python benchmarks/integration_imports.py [--rounds 15]`, figures for each arm.

Each figure is the CPU time of the import statement alone, in a fresh interpreter with bytecode. The
arms alternate. A floor is what the application imports anyway: the framework, SQLAlchemy with its ORM
and the driver. The functions' modules, `poolkit.powertools` and `poolkit.mangum`, are in
`lambda_import.py`, because a cold start pays for each import again.
"""

import json
import os
import subprocess
import sys

from harness import ROOT, compare, machine, read_options

LIMIT = 1.25

DATABASE = "sqlalchemy.orm, sqlalchemy.dialects.postgresql.psycopg2, psycopg2"
# The module, and what an application of its kind imports without it.
FLOORS = {
    "poolkit.celery": f"import {DATABASE}; from celery import Celery, Task, signals; import kombu",
}
TIMED = """
import json, time
cpu = time.process_time()
{statements}
print(json.dumps(time.process_time() - cpu))
"""


def importing(statements):
    """Return an arm: the CPU time of the import, in seconds."""
    command = [sys.executable, "-c", TIMED.format(statements=statements)]
    environ = {"PATH": os.environ["PATH"]}
    return lambda: json.loads(subprocess.check_output(command, cwd=ROOT, env=environ))


def main():
    rounds = read_options(__doc__, rounds=15).rounds
    print(machine("SQLAlchemy", "psycopg2-binary", "celery"))
    all_kept = True
    for module, floor in FLOORS.items():
        base = f"{module}'s floor"
        arms = {base: importing(floor), module: importing(f"{floor}; import {module}")}
        figures = compare(arms, rounds=rounds)
        ratio = figures.ratio(module, to=base)
        all_kept = all_kept and ratio <= LIMIT
        print("\n" + figures.table(baseline=base, unit="ms", scale=1e3))
        print(f"at most {LIMIT}: {'kept' if ratio <= LIMIT else 'MISSED'}")
    return 0 if all_kept else 1


if __name__ == "__main__":
    sys.exit(main())
