"""The machine of a run, and the versions on both sides: poolkit's and the targets' own."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg2
from psycopg2.extensions import make_dsn

from poolkit.compare.results.run_folder import Machine
from poolkit.local.distance import own_cost

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.compare.plan.targets import Target
    from poolkit.local.stack import EmbeddedStack

_CONNECTS = 15
_OF_POOLKIT = ("poolkit", "awslambdaric", "locust")
_OF_TARGETS = (
    *("sqlalchemy", "psycopg2-binary", "psycopg2", "psycopg", "asyncpg", "sqlmodel"),
    *("fastapi", "flask", "django", "uvicorn", "gunicorn", "celery", "mangum"),
)
_ASK = """
import platform, sys
from importlib import metadata
found = ["Python " + platform.python_version()]
for package in sys.argv[1:]:
    try:
        found.append(package + " " + metadata.version(package))
    except metadata.PackageNotFoundError:
        pass
print(", ".join(found))
"""


def this_machine(postgresql: str, root: Path, targets: Iterable[Target]) -> Machine:
    """Return the machine and the versions, as machine.json has them.

    Args:
        postgresql: the version of the server.
        root: the project's folder.
        targets: those that the run starts.
    """
    pythons = {target.python for target in targets}
    own = Path(sys.executable)
    # What poolkit has installed says nothing about targets in environments of their own.
    packages = (*_OF_POOLKIT, *_OF_TARGETS) if own in pythons or not pythons else _OF_POOLKIT
    versions = {"postgresql": postgresql}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    for python in sorted(pythons - {own}):
        name = str(python.relative_to(root)) if python.is_relative_to(root) else str(python)
        versions[f"{name}:"] = _versions_of(python)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    # This process may be allowed fewer cores than the machine has.
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return Machine(
        cpu=models[0] if models else platform.processor() or platform.machine(),
        cores=len(usable) or os.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=versions,
    )


def with_network(machine: Machine, stack: EmbeddedStack) -> Machine:
    """Return the machine with the distance to its database, and what a connect costs over it."""
    if "database" not in stack.networks or stack.postgres is None:
        return machine
    tls = {name.removeprefix("PG").lower(): text for name, text in stack.environ.items()}
    near = make_dsn(stack.postgres.url(driver=""), sslmode="disable")
    far = make_dsn(stack.database_url, **{"sslmode": "disable", **tls})
    times: dict[str, list[float]] = {near: [], far: []}
    for _ in range(_CONNECTS):
        for address, found in times.items():
            began = time.perf_counter()
            psycopg2.connect(address).close()
            found.append(time.perf_counter() - began)
    return replace(
        machine,
        distance=str(stack.needs.distance),
        proxy_added_ms=round(own_cost(stack.needs.distance).added_s * 1e3, 3),
        connect_ms=round(statistics.median(times[far]) * 1e3, 2),
        loopback_connect_ms=round(statistics.median(times[near]) * 1e3, 2),
    )


def _versions_of(python: Path) -> str:
    """Return the versions in another interpreter's environment, in one text."""
    done = subprocess.run(
        [str(python), "-c", _ASK, *_OF_TARGETS],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout.strip() or "unknown"
