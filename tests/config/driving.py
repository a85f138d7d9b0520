"""One way to drive an engine, whatever its driver, and a proxy that falls silent on demand."""

import asyncio
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text

from poolkit.config.presets import EnginePreset, preset

DRIVERS = ("psycopg2", "psycopg", "psycopg_async", "asyncpg")
# For what takes a second or more with each: the drivers of the presets here, the others in the
# slow run.
_OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("psycopg", "psycopg_async")]
PRESETS_DRIVERS = pytest.mark.parametrize("driver", ["psycopg2", "asyncpg", *_OTHERS])


class Client:
    """An engine behind plain calls: `scalar` checks out, executes, commits, checks in."""

    def __init__(self, preset: EnginePreset, url: str, **options: Any) -> None:
        self.preset = preset
        self.runner = asyncio.Runner() if preset.is_async else None
        make = preset.create_async_engine if preset.is_async else preset.create_engine
        self.engine: Any = make(url, **options)
        self.sync_engine = getattr(self.engine, "sync_engine", self.engine)
        self.pings = 0
        self._count_pings()

    def _count_pings(self) -> None:
        dialect = self.sync_engine.dialect
        real_ping = dialect.do_ping

        def do_ping(connection: Any) -> Any:
            self.pings += 1
            return real_ping(connection)

        dialect.do_ping = do_ping

    @property
    def pool(self) -> Any:
        return self.sync_engine.pool

    def run(self, work: Callable[[Any], Any]) -> Any:
        """Call `work` with a connection, synchronous or seen through `run_sync`."""
        if self.runner is None:
            with self.engine.begin() as connection:
                return work(connection)

        async def work_async() -> Any:
            async with self.engine.begin() as connection:
                return await connection.run_sync(work)

        return self.runner.run(work_async())

    def scalar(self, statement: str) -> Any:
        return self.run(lambda connection: connection.execute(text(statement)).scalar())

    def backend(self) -> int:
        return self.scalar("SELECT pg_backend_pid()")

    def start(self) -> int:
        if self.runner is None:
            return self.preset.start(self.engine)
        return self.runner.run(self.preset.start_async(self.engine))

    def listen_connects(self) -> list[Any]:
        opened: list[Any] = []
        event.listen(self.pool, "connect", lambda connection, record: opened.append(connection))
        return opened

    def dispose(self) -> None:
        if self.runner is None:
            self.engine.dispose()
        else:
            self.runner.run(self.engine.dispose())

    def close(self) -> None:
        self.dispose()
        if self.runner is not None:
            self.runner.close()


def small_preset(driver: str, **changes: Any) -> EnginePreset:
    """Return a web preset for the driver, with a pool that a test can fill; a script's if null.

    Its patience is that of a busy machine; a test that shows a limit sets its own.
    """
    target = "web_async" if driver in ("asyncpg", "psycopg_async") else "web"
    target = "script" if changes.get("pool") == "null" else target
    small = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 2, "echo": False}
    patience = {"connect_timeout": 60, "statement_timeout": 60_000}
    return preset(target, "prod").replace(**(small | patience | changes))


def patient_driver(driver: str) -> dict[str, Any]:
    """Return engine options that leave a single connect its time, whatever the preset says."""
    name = "timeout" if driver == "asyncpg" else "connect_timeout"
    return {"connect_args": {name: 60}}


class Clock:
    """The module `time`, as the presets see it, put forward by the pauses, which take no time."""

    def __init__(self) -> None:
        self.pauses = []
        self.ahead = 0.0  # s

    def monotonic(self):
        return time.monotonic() + self.ahead

    def time(self):
        return time.time() + self.ahead

    def sleep(self, dialect, seconds):
        self.pauses.append(seconds)
        self.ahead += seconds


class TcpProxy:
    """Forwards to a port on loopback until told to fall silent, connections still open."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.flowing = threading.Event()
        self.flowing.set()
        self.resumes_for_the_next = False
        self.stopped = False
        self.sockets: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                if self.resumes_for_the_next:
                    self.resume()
                self._in_thread(self._serve, near)

    def _in_thread(self, work: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self.threads.append(thread)
        thread.start()

    def _serve(self, near: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", self.target))
        self.sockets += [near, far]
        self._in_thread(self._forward, far, near)
        self._forward(near, far)

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flowing.wait()
                if self.stopped:
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def fall_silent_until_the_next(self) -> None:
        """Pass nothing on until a client connects anew."""
        self.flowing.clear()
        self.resumes_for_the_next = True

    def resume(self) -> None:
        self.flowing.set()

    def close(self) -> None:
        self.stopped = True
        self.flowing.set()
        for plug in [self.listener, *self.sockets]:
            with contextlib.suppress(OSError):
                plug.shutdown(socket.SHUT_RDWR)
            plug.close()
        for thread in self.threads:
            thread.join(60)


class TlsFront(TcpProxy):
    """Stands before a PostgreSQL without TLS and speaks TLS for it.

    It answers the SSLRequest message (PostgreSQL, 54.2.11), and closes on who does not ask.
    """

    ssl_request = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")

    def __init__(self, port: int, certificate: Path, key: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        self.handshakes = 0
        super().__init__(port)

    def _serve(self, near: socket.socket) -> None:
        # A TLS socket is not for two threads at once, so one waits for both directions.
        with contextlib.suppress(OSError), near:
            if near.recv(8, socket.MSG_WAITALL) != self.ssl_request:
                return
            near.sendall(b"S")
            with (
                self.context.wrap_socket(near, server_side=True) as inner,
                socket.create_connection(("127.0.0.1", self.target)) as far,
            ):
                self.handshakes += 1
                self.sockets += [inner, far]
                while self._pass_on(inner, far):
                    pass

    @staticmethod
    def _pass_on(inner: ssl.SSLSocket, far: socket.socket) -> bool:
        ready = [inner] if inner.pending() else select.select([inner, far], [], [])[0]
        for source in ready:
            data = source.recv(65536)
            if not data:
                return False
            (far if source is inner else inner).sendall(data)
        return True
