"""The load: Locust in a process of its own, its rows in a file that grows while it runs."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from math import ceil
from typing import TYPE_CHECKING

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from poolkit.compare.results.run_folder import Level

LONGER_WARM_UP_S = 8.0
"""Seconds by which a warm-up may grow while requests still wait for cold starts."""
_LIST_TIMEOUT_S = 60
_ANSWER_GRACE_S = 15
"""Seconds that a request in flight has after the end; what has no answer by then is counted
as unanswered."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much load a target gets, and where the rows go. Times are in seconds.

    Locust starts without a host, and waits until `begin` names one: it takes a second to
    start, which a target needs too.
    """

    locustfile: Path
    level: Level
    warm_up_s: float
    duration_s: float
    requests: Path

    @property
    def command(self) -> list[str]:
        """The command line of Locust."""
        users = self.level.users
        plugin = find_spec("poolkit.loadtest.compare_plugin")
        assert plugin is not None  # noqa: S101  (it is a module of this package)
        return [
            *(sys.executable, "-m", "locust", "--headless", "--only-summary"),
            *("-f", f"{plugin.origin},{self.locustfile}"),
            *("--users", str(users)),
            *("--spawn-rate", f"{self._spawn_rate:.3f}"),
            # A bound: whoever measures ends the load earlier. Locust knows whole seconds.
            *("--run-time", str(ceil(self.warm_up_s + LONGER_WARM_UP_S + self.duration_s) + 5)),
            *("--stop-timeout", str(_ANSWER_GRACE_S)),
            # Failed requests are results, not a failure of the run.
            *("--exit-code-on-error", "0"),
        ]

    @property
    def _spawn_rate(self) -> float:
        """Users per second: all are there after half of the warm-up, or stand ready at once."""
        users = self.level.users
        return users if self.level.is_open else max(1.0, users / max(0.5, self.warm_up_s / 2))

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables that direct the plugin."""
        level = self.level
        rates = {"POOLKIT_LOAD_RATE": str(level.rate_per_user)}
        if level.is_open:
            rates = {
                "POOLKIT_LOAD_ARRIVAL_RATE": str(level.arrival_rate),
                "POOLKIT_LOAD_ARRIVALS": level.arrivals,
                "POOLKIT_LOAD_MAX_USERS": str(level.max_users),
            }
        return {
            "POOLKIT_LOAD_REQUESTS": str(self.requests),
            "POOLKIT_LOAD_HOST": str(self._host_file),
            **rates,
        }

    def begin(self, host: str) -> None:
        """Let Locust begin, on this URL.

        Raises:
            OSError: the folder of the rows cannot be written to.
        """
        # Whole or not there at all: Locust looks for it all the time.
        partial = self._host_file.with_suffix(".partial")
        partial.write_text(host, encoding="utf-8")
        partial.replace(self._host_file)

    @property
    def _host_file(self) -> Path:
        return self.requests.with_suffix(".host")


def check_locustfiles(files: Iterable[Path], root: Path) -> None:
    """Import each locustfile once, so that a mistake in it is found before anything starts.

    Raises:
        ConfigurationError: one does not import, or has no user class; the message quotes
            Python's last line.
    """
    with ExitStack() as ending:
        listing = [(file, _list_users(file, root, ending)) for file in sorted(set(files))]
        for file, process in listing:
            _check_listed(file, process)


def _list_users(file: Path, root: Path, ending: ExitStack) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "locust", "-f", str(file), "--list"],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ending.enter_context(process)
    # After a mistake in another file, or Ctrl-C, nobody reads what this one says.
    ending.callback(process.kill)
    return process


def _check_listed(file: Path, process: subprocess.Popen[str]) -> None:
    try:
        listed, errors = process.communicate(timeout=_LIST_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"locustfile {file} cannot be used: it did not import within {_LIST_TIMEOUT_S} s"
        ) from None
    if process.returncode:
        said = (errors or listed).strip().splitlines()
        last = said[-1] if said else f"exit status {process.returncode}"
        raise ConfigurationError(f"locustfile {file} cannot be used: {last}")
    if not listed.partition("Available Users:")[2].strip():
        raise ConfigurationError(f"locustfile {file} cannot be used: no user class in it")
