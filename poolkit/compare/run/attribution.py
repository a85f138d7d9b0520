"""Whose connection it is: the one definition for all figures of a measured target.

On a server of the run's own, targets run one at a time. So every client that connects after a
target was started belongs to it, whatever its name, unless it is the load generator's. A server of
the user's own has other clients. There a connection belongs to the target if it carries the name
of its preset. It also does if a process of the target has the other end of its socket. All others
are not attributed.

An answer is final for a connection: a name may be reset later, as by `RESET ALL` behind a pooler.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, cast

from poolkit.compare.results.target_result import LOAD
from poolkit.local.processes import client_sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from poolkit.activity.server import Backend, Sample
    from poolkit.compare.results.run_folder import By, Owner


class Attributed(NamedTuple):
    """A backend, its owner, and what the owner is known by."""

    backend: Backend
    owner: Owner
    by: By


def pgappname(name: str) -> str:
    """Return the `PGAPPNAME` of a target: libpq names connections by it that have no other name.

    Engines of a preset have names of their own. So this one shows that a connection is the
    target's, and also that its engine is not made from the preset.
    """
    return f"{name}:libpq"


class Attribution:
    """Finds the owner of each backend in the samples of one measurement.

    Args:
        preset: the name of the target's preset; None if it has none, or if another target has it too.
        marks: what the connections of a deployed target are known by, in place of these names.
        pgappname: the value of `PGAPPNAME` in the target's processes.
        is_own_server: whether the run started the server.
        target_pids: returns the first processes of the target; empty for a deployed target.
        load_pids: returns the first processes of the load generator.
        is_running: whether the target runs already; otherwise `begin` is called before its start.
    """

    def __init__(
        self,
        *,
        preset: str | None,
        pgappname: str,
        marks: Sequence[str] = (),
        is_own_server: bool,
        target_pids: Callable[[], Iterable[int]] = tuple,
        load_pids: Callable[[], Iterable[int]] = tuple,
        is_running: bool = False,
    ) -> None:
        self._preset, self._pgappname = preset, pgappname
        self._marks = [mark.partition(":")[::2] for mark in marks]
        self._is_own_server = is_own_server
        self._target_pids, self._load_pids = target_pids, load_pids
        self._may_be_connected = is_running
        self._found: dict[tuple[int, float], tuple[Owner, By]] = {}
        """By pid and start of a backend: pids are used again."""
        self.is_known = is_own_server
        """Whether the target's connections can be counted: on a shared server only after the first
        one that was recognised."""
        self.seen: Counter[Owner] = Counter()
        """The number of connections so far, by owner, without those from before the start."""

    def begin(self, sample: Sample | None) -> None:
        """Start attributing: what is connected now was connected before the target's start."""
        self.seen.clear()
        for backend in sample.backends if sample is not None else ():
            self._found.setdefault((backend.pid, backend.started), ("other", ""))
        self._may_be_connected = True

    def of(self, sample: Sample) -> tuple[Attributed, ...]:
        """Return the backends of a sample with their owners."""
        attributed = []
        for backend in sample.backends:
            identity = (backend.pid, backend.started)
            found = self._found.get(identity)
            if found is None:
                found = self._find(backend)
                # The server shows a new connection a moment before its name.
                if backend.target or backend.state not in ("starting", "unknown"):
                    self._found[identity] = found
                    self.seen[found[0]] += 1
                    self.is_known = self.is_known or found[0] == "target"
            attributed.append(Attributed(backend, *found))
        return tuple(attributed)

    def _find(self, backend: Backend) -> tuple[Owner, By]:
        found: tuple[Owner, By] = ("other", "")
        if backend.target == LOAD:
            found = ("load", "name")
        elif not self._may_be_connected:
            pass
        elif self._marks:
            kind = next((kind for kind, value in self._marks if _has(backend, kind, value)), "")
            if kind:
                found = ("target", cast("By", kind))
        elif self._pgappname and backend.application_name == self._pgappname:
            found = ("target", "name")
        elif self._preset is not None and backend.target == self._preset:
            found = ("target", "preset")
        elif backend.client in client_sockets(self._load_pids()):
            found = ("load", "address")
        elif self._is_own_server:
            found = ("target", "rest")
        elif backend.client in client_sockets(self._target_pids()):
            found = ("target", "address")
        return found


def _has(backend: Backend, kind: str, value: str) -> bool:
    """Return whether a backend has the name, the user or the address of a deployed target."""
    if kind == "user":
        return backend.user == value
    if kind == "address":
        address = backend.client[0] if backend.client is not None else ""
        network = ipaddress.ip_network(value, strict=False)
        return bool(address) and ipaddress.ip_address(address) in network
    # As engines of a preset have it, `web:host-1`; the first half alone names all instances.
    return value in (backend.application_name, backend.target)
