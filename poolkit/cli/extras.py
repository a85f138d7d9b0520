"""The packages that a command needs beyond those of the extra `cli`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from poolkit.errors import PoolkitError, how_to_install

_MODULES = {
    # Those whose import comes late are here too: a report must not fail after minutes of load.
    "loadtest": ("psutil", "locust", "altair", "jinja2", "vl_convert", "httptools"),
    "experiments": ("psutil", "altair", "jinja2", "vl_convert", "asyncpg", "psycopg", "pymysql"),
    "infra": ("yaml", "boto3"),
    "rehearse": ("yaml", "boto3", "moto", "samtranslator"),
}


def require(extra: str) -> None:
    """Check that the packages of an extra are installed.

    Raises:
        PoolkitError: one is missing; the line says how to install the extra.
    """
    for module in _MODULES[extra]:
        if find_spec(module) is None:
            raise PoolkitError(f"{module} is missing; install it with: {how_to_install(extra)}")


def require_posix(command: str) -> None:
    """Check that the system is not Windows, which lacks modules that a command imports.

    Raises:
        PoolkitError: this is Windows.
    """
    if sys.platform == "win32":
        raise PoolkitError(
            f"poolkit {command} does not run on Windows: it needs the processes and terminals of "
            "Unix; run it on Linux or macOS, or in WSL 2"
        )
