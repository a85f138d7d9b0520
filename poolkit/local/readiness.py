"""Readiness: how to see from outside that a process can do its work."""

import http.client
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from poolkit.errors import NotReadyError, ServerStartError
from poolkit.local.directories import last_lines
from poolkit.local.owned_process import OwnedProcess
from poolkit.local.ports import is_listening

# Asked again and again until it says True; it is given the process's log.
Probe = Callable[[Path], bool]

_POLL_S = 0.05
_ERROR = re.compile(r"error|exception|fatal|failed|cannot", re.IGNORECASE)
_ANSWER_TIMEOUT_S = 2.0


def answers_http(url: str) -> Probe:
    """Ready when GET `url` is answered with status 200, without any proxy between."""
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


def accepts_tcp(port: int) -> Probe:
    """Ready when the loopback port accepts connections."""
    return lambda _: is_listening(port)


def has_logged(pattern: str) -> Probe:
    """Ready when a line of the log matches the regular expression."""
    compiled = re.compile(pattern, re.MULTILINE)

    def probe(log: Path) -> bool:
        try:
            return compiled.search(log.read_text(errors="replace")) is not None
        except OSError:
            return False

    return probe


def satisfies(condition: Callable[[], bool]) -> Probe:
    """Ready when `condition` returns True."""
    return lambda _: condition()


def wait_until_ready(
    process: OwnedProcess, probe: Probe, *, name: str, log: Path, timeout_s: float
) -> None:
    """Ask the probe until it says True.

    Raises:
        NotReadyError: it did not within `timeout_s` seconds.
        ServerStartError: the process ended first.

    """
    deadline = time.monotonic() + timeout_s
    while not probe(log):
        if (status := process.exit_status) is not None:
            raise ServerStartError(
                f"{name} ended with {exit_words(status)} before it was ready; {end_of(log)}"
            )
        if time.monotonic() > deadline:
            raise NotReadyError(f"{name} was not ready after {timeout_s:g} s; {end_of(log)}")
        time.sleep(_POLL_S)


def exit_words(status: int) -> str:
    """Say how a process ended, from its exit status as `subprocess` gives it."""
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def end_of(log: Path) -> str:
    """Quote one line of a log's end for an error message: the last error, or the last line.

    The last line of a traceback is what matters in it; servers go on to say that they stop.
    """
    said = [line.strip() for line in last_lines(log, count=20).splitlines() if line.strip()]
    if not said:
        return f"it wrote nothing to {log}"
    told = next((line for line in reversed(said) if _ERROR.search(line)), said[-1])
    return f"its log {log} ends: {told}"
