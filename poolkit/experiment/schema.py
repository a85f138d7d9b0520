"""The schema of an experiment on a database that is not its own, and its end after a `kill -9`.

While an experiment runs, its observer's connection holds an advisory lock with the schema's number.
So every run can see whether a schema belongs to one that is still in progress. `Custodian` drops the
schema of a killed run; where it could not either, as after a power failure, the next run does.

Run as a module it is the custodian itself.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import psycopg2
from psycopg2 import sql

from poolkit.local.reaper import wait_for_end_of

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMENT = "Made by poolkit experiment, which drops it at its end"
_LOCKS = 1_886_351_468
"""The first of the two keys of the advisory locks; the second is the schema's number."""
_LEFT = r"""
    SELECT nspname FROM pg_namespace AS schema
    WHERE nspname ~ '^poolkit_[0-9a-f]{8}$'
    AND nspowner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
    AND obj_description(oid, 'pg_namespace') = %s
    AND NOT EXISTS (
        SELECT FROM pg_stat_activity WHERE left(application_name, 16) = schema.nspname)
"""
_PATIENCE_S = 30.0


class Schema(NamedTuple):
    """A schema by its name, `poolkit_` and a number of 8 hexadecimal digits."""

    name: str

    @classmethod
    def new(cls) -> Self:
        """Return one that does not exist yet."""
        return cls(f"poolkit_{secrets.token_hex(4)}")

    @property
    def lock(self) -> tuple[int, int]:
        """The keys of its advisory lock."""
        number = bytes.fromhex(self.name.removeprefix("poolkit_"))
        return _LOCKS, int.from_bytes(number, "big", signed=True)

    def creation(self) -> sql.Composed:
        """Return the statements that make it, in one transaction."""
        return sql.SQL("CREATE SCHEMA {name}; COMMENT ON SCHEMA {name} IS {comment}").format(
            name=sql.Identifier(self.name), comment=sql.Literal(_COMMENT)
        )

    def drop(self, *, if_exists: bool = False) -> sql.Composed:
        """Return the statement that drops it with all that is in it."""
        return sql.SQL("DROP SCHEMA {} {} CASCADE").format(
            sql.SQL("IF EXISTS" if if_exists else ""), sql.Identifier(self.name)
        )


def drop_left(ask: Callable[..., list[tuple[Any, ...]]]) -> list[str]:
    """Drop the schemas of this role that ended runs have left, and return their names.

    A schema is one of those if it has the name and the comment, if no connection has its name, and
    if its lock is free.

    Args:
        ask: runs a statement with values, and returns the rows.
    """
    dropped = []
    for (name,) in ask(_LEFT, _COMMENT):
        schema = Schema(name)
        if ask("SELECT pg_try_advisory_lock(%s, %s)", *schema.lock) == [(True,)]:
            try:
                ask(schema.drop(if_exists=True))
                dropped.append(name)
            finally:
                ask("SELECT pg_advisory_unlock(%s, %s)", *schema.lock)
    return dropped


class Custodian:
    """A process that drops a schema if the one that started it is killed.

    Args:
        schema: to be dropped.
        dsn: of its database. It is sent over a pipe, as other users can list arguments.
    """

    def __init__(self, schema: Schema, dsn: str) -> None:
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Ctrl-C does not reach another session.
            start_new_session=True,
            cwd="/",
            env=environ,
        )
        assert self._process.stdin is not None  # noqa: S101  (made with a pipe)
        line = json.dumps({"schema": schema.name, "dsn": dsn})
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """End it: the schema is dropped."""
        try:
            self._process.communicate(b"dismissed", timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def _read_line() -> bytes:
    """Return the first line of standard input, and read nothing after it."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(sys.stdin.fileno(), 1)):
        line += byte
    return line


def _drop(schema: Schema, dsn: str) -> None:
    """Drop the schema of a run that was killed, with the connections that it may still have."""
    connection = psycopg2.connect(dsn, connect_timeout=10)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = '5s'")
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE left(application_name, 16) = %s AND pid <> pg_backend_pid()",
            (schema.name,),
        )
        cursor.execute(schema.drop(if_exists=True))
    connection.close()


def main() -> None:
    """Wait for the end of the process whose pid is the first argument, and drop its schema."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    line = _read_line()
    if not wait_for_end_of(int(sys.argv[1])) or not line:
        return
    order = json.loads(line)
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        # The server may be full for a moment with the connections of the killed run.
        with suppress(psycopg2.Error):
            _drop(Schema(order["schema"]), order["dsn"])
            return
        time.sleep(0.5)


if __name__ == "__main__":
    main()
