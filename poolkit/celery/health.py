"""`python -m poolkit.celery.health FILE`: exit with 0 while a worker consumes, for health checks.

    python -m poolkit.celery.health /tmp/worker-ready --max-age 30

FILE is the one of `ready_file`. The exit status is 1, with a reason, if the worker has not consumed for
longer than the maximum age. It imports neither Celery nor the application, so it takes little time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ("main",)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 the worker consumes, 1 it does not, 2 wrong arguments."""
    parser = argparse.ArgumentParser(prog="python -m poolkit.celery.health", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path, help="the file of `ready_file`")
    parser.add_argument(
        "--max-age",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="the longest time without consuming (default: %(default)g)",
    )
    options = parser.parse_args(arguments)
    try:
        age = time.time() - options.file.stat().st_mtime
        reason = options.file.read_text(encoding="utf-8").strip()
    except OSError as error:
        sys.stderr.write(f"the worker is not ready: {options.file}: {error.strerror}\n")
        return 1
    if age <= options.max_age:
        return 0
    if reason == "consuming":  # what the worker last recorded, before it died or stood still
        reason = "the worker's process has ended or stands still"
    sys.stderr.write(f"the worker last consumed {age:.0f} s ago: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
