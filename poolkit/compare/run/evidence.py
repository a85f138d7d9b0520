"""What the logs of a target and its load say about failed requests, quoted for the report."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from poolkit.compare.results.run_folder import Evidence
from poolkit.masking import masked

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MOST_LINES = 3
MOST_CHARACTERS = 300
_TAIL_LINES = 400
_TRACEBACK = "Traceback (most recent call last):"
# A line of code in a traceback is indented, and is no message. Neither are the sentences between
# two tracebacks, and SQLAlchemy's link.
_ERROR = re.compile(
    r"(?!The above exception|During handling of|\(Background on)"
    r"\S.*(error|exception|fatal|failed|cannot|denied)",
    re.IGNORECASE,
)


def evidence_of(
    run: Path, load_log: Path, target_logs: Iterable[Path], first_failure: str
) -> Evidence:
    """Return the first exception of the load and the last errors of the target.

    Args:
        run: the run's folder, to which the paths are relative.
        load_log: Locust's log.
        target_logs: the target's logs; the first one that has an error is quoted.
        first_failure: a failed request, in case that the load has no exception.
    """
    logs = list(target_logs)
    found = {log: last_errors(log) for log in logs}
    quoted = next((log for log in logs if found[log]), logs[0])
    return Evidence(
        load_exception=first_exception(load_log) or first_failure,
        load_log=str(load_log.relative_to(run)),
        target_errors=found[quoted],
        target_log=str(quoted.relative_to(run)),
    )


def first_exception(log: Path) -> str:
    """Return the message of the first traceback in a log; empty without one."""
    lines = iter(_lines(log))
    for line in lines:
        if line.endswith(_TRACEBACK):
            # The frames are indented, the message behind them is not.
            return next((_cut(one) for one in lines if one and not one[0].isspace()), "")
    return ""


def last_errors(log: Path) -> tuple[str, ...]:
    """Return the last lines of a log that speak of an error, each once, the latest at the end."""
    errors = [_cut(line) for line in _lines(log)[-_TAIL_LINES:] if _ERROR.match(line)]
    latest = list(dict.fromkeys(reversed(errors)))[:MOST_LINES]
    return tuple(reversed(latest))


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _cut(line: str) -> str:
    text = masked(line.strip())
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."
