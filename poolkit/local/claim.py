"""A claim: the promise that what is started now ends with the process that started it."""

import atexit
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Self

from poolkit.local import leftovers
from poolkit.local.keeper import Keeper

_keeper = Keeper()


class Claim:
    """One started thing of this process, on record until it is released."""

    def __init__(
        self, *, what: str, directory: Path | None = None, stop_signal: int = signal.SIGTERM
    ) -> None:
        self._record = leftovers.new_record(what=what, directory=directory, stop_signal=stop_signal)
        leftovers.write_record(self._record)
        self._at_exit: Callable[[], None] | None = None
        self._released = False
        _keeper.engage()

    @property
    def environ(self) -> dict[str, str]:
        """What a started process must have in its environment to be found by it."""
        return {leftovers.CLAIM_VARIABLE: self._record.token}

    def started(self, pid: int) -> None:
        """Put the first process on record; it must lead a session of its own."""
        self._record = leftovers.with_process(self._record, pid)
        leftovers.write_record(self._record)

    def at_exit(self, stop: Callable[[], None]) -> Self:
        """Call `stop` when this interpreter exits with the claim still held."""
        owner = os.getpid()

        def stop_in_owner() -> None:
            # A fork inherits the exit handlers, but not the server.
            if os.getpid() == owner:
                stop()

        self._at_exit = stop_in_owner
        atexit.register(stop_in_owner)
        return self

    def end_processes(
        self, child: subprocess.Popen[bytes], *, stop_signal: int, grace_s: float
    ) -> None:
        """End `child` and all it left: `stop_signal`, then SIGKILL after `grace_s` seconds."""
        leftovers.end_processes(self._record, grace_s=grace_s, stop_signal=stop_signal, child=child)

    def release(self) -> None:
        """Remove the directory and the record: nothing runs any more. Once is enough."""
        if self._released:
            return
        self._released = True
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
        leftovers.remove_directory(self._record)
        leftovers.forget(self._record)
        _keeper.dismiss()
