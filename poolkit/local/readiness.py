"""Readiness: probes that check from outside whether a process can do its work."""

import http.client
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

# Called again and again until it returns True; its argument is the process's log.
Probe = Callable[[Path], bool]

_ERROR = re.compile(r"error|exception|fatal|failed|cannot", re.IGNORECASE)
_ANSWER_TIMEOUT_S = 2.0


def answers_http(url: str) -> Probe:
    """Return a probe: ready when GET `url`, past any proxy, is answered with status 200."""
    parts = urlsplit(url)
    target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"

    def probe(_: Path) -> bool:
        connection = http.client.HTTPConnection(
            parts.hostname or "", parts.port, timeout=_ANSWER_TIMEOUT_S
        )
        try:
            connection.request("GET", target)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return probe


def has_logged(pattern: str) -> Probe:
    """Return a probe: ready when a line of the log matches the regular expression."""
    compiled = re.compile(pattern, re.MULTILINE)

    def probe(log: Path) -> bool:
        try:
            return compiled.search(log.read_text(errors="replace")) is not None
        except OSError:
            return False

    return probe


def exit_text(status: int) -> str:
    """Return how a process ended, from its exit status as `subprocess` gives it."""
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def end_of(log: Path) -> str:
    """Return one line of a log's end for an error message: the last error, or the last line.

    The last line of a traceback names the exception. Servers add lines about their shutdown
    after the error.
    """
    try:
        lines = log.read_text(errors="replace").splitlines()[-20:]
    except OSError:
        lines = []
    filled = [line.strip() for line in lines if line.strip()]
    if not filled:
        return f"it wrote nothing to {log}"
    line = next((line for line in reversed(filled) if _ERROR.search(line)), filled[-1])
    return f"its log {log} ends: {line}"
