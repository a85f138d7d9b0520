"""The machine that a run was made on, and the versions that took part."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

from poolkit.compare.results.run_folder import Machine

_PACKAGES = (
    "poolkit",
    "sqlalchemy",
    "psycopg2-binary",
    "asyncpg",
    "fastapi",
    "uvicorn",
    "celery",
    "awslambdaric",
    "locust",
)


def describe(postgresql: str) -> Machine:
    """Return what machine.json says; `postgresql` is the server's version."""
    versions = {"postgresql": postgresql, **{p: v for p in _PACKAGES if (v := _version(p))}}
    return Machine(
        cpu=_cpu(),
        cores=_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        os=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=versions,
    )


def _cores() -> int:
    """Return how many cores this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
