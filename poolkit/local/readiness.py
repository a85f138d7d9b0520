"""Readiness: probes that check from outside whether a process can do its work."""

import http.client
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from poolkit.errors import NotReadyError

# Called again and again until it returns True; its argument is the process's log.
Probe = Callable[[Path], bool]
Note = Callable[[str], None]

HEALTH_PATHS = ("/healthz", "/health", "/readyz")
"""Tried in this order, then /, where a target names no path."""
QUOTED_LINES = 5
_ERROR = re.compile(r"error|exception|fatal|failed|cannot", re.IGNORECASE)
_ANSWER_TIMEOUT_S = 2.0
_PAUSE_S = 0.1
"""Between two requests to a server that answers, but is not ready."""
_WRONG_PATH_S = 2.0
"""A path that is answered with 404 or a redirect for this long is the wrong one."""
_FAILING_S = 10.0
"""The same for 500: an application whose handler raises does not recover by waiting."""


def _silent(_: str) -> None:
    """Report nothing."""


class Answer(NamedTuple):
    """The status of a response, and the target of a redirect."""

    status: int
    location: str


class Readiness(ABC):
    """A probe that names what it waits for and what it has seen last."""

    awaited = ""
    """Completes "waiting for"."""
    last = ""
    """The last thing it has seen, for the error; empty for nothing."""

    @abstractmethod
    def __call__(self, log: Path) -> bool:
        """Return whether the process is ready.

        Raises:
            NotReadyError: it answers in a way that waiting does not change.
        """


class AnswersHttp(Readiness):
    """Ready when GET `url` is answered with a status from 200 to 299, past any proxy.

    Args:
        url: loopback or not; its path is the one to ask for.
        note: is called with each new kind of answer that is not the awaited one.
    """

    def __init__(self, url: str, note: Note = _silent) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._target = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        self._note = note
        self._status = 0
        self._since = 0.0
        self.awaited = f"GET {url} to answer 200"

    def __call__(self, log: Path) -> bool:
        """Ask once."""
        answer = _answer(self._address, self._target)
        if answer is None:
            return False
        status, location = answer
        if 200 <= status < 300:
            return True
        self.last = f"GET {self._target} was answered with {status}"
        self.last += f", a redirect to {location}" if 300 <= status < 400 else ""
        if status != self._status:
            self._status, self._since = status, time.monotonic()
            self._note(f"{self.last}; still waiting")
        for_s = time.monotonic() - self._since
        if 300 <= status < 500 and for_s > _WRONG_PATH_S:
            advice = "set `ready` to a path that answers 200 without login and without a redirect"
            raise NotReadyError(f"{self.last}; {advice}")
        # 503 is how a server says that it is not ready yet.
        if status >= 500 and status != 503 and for_s > _FAILING_S:
            raise NotReadyError(f"{self.last} for {_FAILING_S:g} s")
        time.sleep(_PAUSE_S)
        return False


class ServesHttp(Readiness):
    """Ready when one of the usual health paths answers 200, or when / is served at all.

    For a target that names no path. A health path that answers 5xx is a server that is not ready
    yet. One that only ever answers 5xx at / is taken as it is after some seconds: it may need rows
    that the load inserts.

    Args:
        url: of the server, without a path.
        note: is called with the answer that was taken for readiness.
    """

    def __init__(self, url: str, note: Note = _silent) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port or 80)
        self._note = note
        self._answers_since = 0.0
        paths = ", ".join(HEALTH_PATHS)
        self.awaited = (
            f"{url} to answer 200 at one of {paths}, or to serve / (set `ready` to name one)"
        )

    def __call__(self, log: Path) -> bool:
        """Ask for every path once."""
        is_starting = False
        for path in HEALTH_PATHS:
            answer = _answer(self._address, path)
            if answer is None:
                return False
            if 200 <= answer.status < 300:
                self._note(f"ready: GET {path} was answered with {answer.status}")
                return True
            if answer.status >= 500:
                self.last = f"GET {path} was answered with {answer.status}"
                is_starting = True
        answer = _answer(self._address, "/")
        if answer is None or is_starting:
            time.sleep(_PAUSE_S)
            return False
        self.last = f"GET / was answered with {answer.status}"
        self._answers_since = self._answers_since or time.monotonic()
        if answer.status < 500 or time.monotonic() - self._answers_since > _FAILING_S:
            self._note(f"taken as ready: {self.last}")
            return True
        time.sleep(_PAUSE_S)
        return False


class HasLogged(Readiness):
    """Ready when a line of the log matches the regular expression."""

    def __init__(self, pattern: str) -> None:
        self._compiled = re.compile(pattern, re.MULTILINE)
        self.awaited = f"a line of its log that matches {pattern}"

    def __call__(self, log: Path) -> bool:
        """Read the log."""
        try:
            return self._compiled.search(log.read_text(errors="replace")) is not None
        except OSError:
            return False


class TakesTasks(HasLogged):
    """Ready when a worker waits for tasks at the embedded broker, or has logged `ready.`.

    Celery logs `ready.` at the level INFO, and its default is WARNING. Every worker that waits for
    tasks of a Redis list or stream does so with a blocking command, which the server shows.

    Args:
        waiting_clients: returns the broker's clients that are in such a command; without a broker
            of the run's own the log alone decides.
    """

    def __init__(self, waiting_clients: Callable[[], frozenset[int]] | None) -> None:
        super().__init__(r"ready\.")
        self._waiting_clients = waiting_clients or frozenset
        self._others = self._waiting_clients()
        if waiting_clients is not None:
            self.awaited = "the worker to take tasks from the broker"
        else:
            self.awaited += (
                ", as Celery writes at --loglevel INFO (set `ready` to a pattern of your worker)"
            )

    def __call__(self, log: Path) -> bool:
        """Read the log, and ask the broker."""
        return super().__call__(log) or bool(self._waiting_clients() - self._others)


def _answer(address: tuple[str, int], target: str) -> Answer | None:
    """Send one request; None if there is no answer."""
    connection = http.client.HTTPConnection(*address, timeout=_ANSWER_TIMEOUT_S)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
    except (OSError, http.client.HTTPException):
        return None
    else:
        return Answer(response.status, response.headers.get("Location", ""))
    finally:
        connection.close()


def exit_text(status: int) -> str:
    """Return how a process ended, from its exit status as `subprocess` gives it."""
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def end_of(log: Path) -> str:
    """Return one line of a log's end for an error message: the last error, or the last line.

    The last line of a traceback names the exception. Servers add lines about their shutdown
    after the error.
    """
    filled = _last_lines(log, 20)
    if not filled:
        return f"it wrote nothing to {log}"
    line = next((line for line in reversed(filled) if _ERROR.search(line)), filled[-1])
    return f"its log {log} ends: {line.strip()}"


def last_lines_of(log: Path) -> str:
    """Return the last lines of a log for an error message, indented below its path."""
    filled = _last_lines(log, QUOTED_LINES)
    if not filled:
        return f"it wrote nothing to {log}"
    return f"its log {log} ends:" + "".join(f"\n  {line}" for line in filled)


def _last_lines(log: Path, number: int) -> Sequence[str]:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    return [line.rstrip() for line in lines if line.strip()][-number:]
