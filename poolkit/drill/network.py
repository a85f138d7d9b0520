"""A TCP proxy whose network can fail: silence, delay, reset, refusal."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from poolkit.local.ports import LOOPBACK, free_port

if TYPE_CHECKING:
    from collections.abc import Coroutine

_CHUNK = 65_536
_TRIES = 5
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: the close is a reset (socket(7))."""


async def _rounds() -> None:
    """Let the event loop do what is ready, and what follows from that."""
    for _ in range(10):
        await asyncio.sleep(0)


class _Link:
    """One connection through the proxy: both its ends, and the gate that its data must pass."""

    def __init__(self, gate: asyncio.Event) -> None:
        self.gate = gate
        self.writers: list[asyncio.StreamWriter] = []

    def reset(self) -> None:
        """End both ends at once; each peer receives a reset."""
        for writer in self.writers:
            with suppress(OSError):
                found: socket.socket | None = writer.get_extra_info("socket")
                if found is not None:
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Network:
    """A proxy on a port of the loopback address, in a thread of its own.

    A context manager: entering starts it, leaving ends it and every connection. All methods may be
    called from any thread; each returns when it has taken effect.

        with Network("127.0.0.1", 5432) as network:
            network.go_silent()     # a black hole: nothing passes, nothing is closed
            network.restore()       # what was sent meanwhile arrives

    Args:
        host: the server's.
        port: the server's.
        listen_on: the proxy's own port; 0 for any free one.
    """

    def __init__(self, host: str, port: int, *, listen_on: int = 0) -> None:
        self.port = listen_on
        self._target = (host, port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="drill network", daemon=True
        )
        self._open: asyncio.Event
        self._delay_s = 0.0
        self._links: set[_Link] = set()
        self._lost: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()

        async def start() -> None:
            self._open = asyncio.Event()
            self._open.set()
            await (self._listen() if self.port else self._listen_on_a_free_port())

        try:
            self._call(start())
        except BaseException:
            self._end_loop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            await self._stop_listening()
            for link in [*self._links, *self._lost]:
                link.reset()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            # A transport closes its socket in the round after it was told to.
            await _rounds()

        self._call(stop())
        self._end_loop()

    @property
    def connections(self) -> int:
        """The number of connections through the proxy that have not ended."""
        return len(self._links) + len(self._lost)

    def go_silent(self) -> None:
        """Pass nothing on, in both directions, and close nothing: a black hole.

        A new connection is accepted, and stays silent too.
        """
        self._do(self._open.clear)

    def lose_connections(self) -> None:
        """Silence the present connections for ever; new ones work.

        A firewall or NAT gateway that forgets idle connections does this: both ends believe that
        theirs is open.
        """

        def lose() -> None:
            silence = asyncio.Event()
            for link in self._links:
                link.gate = silence
            self._lost |= self._links
            self._links.clear()

        self._do(lose)

    def delay(self, seconds: float) -> None:
        """Pass data on that much later, in each direction."""

        def change() -> None:
            self._delay_s = seconds

        self._do(change)

    def cut(self) -> None:
        """Reset the present connections; new ones work."""

        def reset() -> None:
            for link in [*self._links, *self._lost]:
                link.reset()

        self._do(reset)

    def refuse(self) -> None:
        """Reset the present connections, and refuse new ones."""
        self._call(self._stop_listening())
        self.cut()

    def lead_to(self, host: str, port: int) -> None:
        """Connect new connections to another server; the present ones stay, as after a DNS change."""

        def change() -> None:
            self._target = (host, port)

        self._do(change)

    def restore(self) -> None:
        """Pass everything on again, without delay. Lost connections are reset."""

        async def open_again() -> None:
            self._delay_s = 0.0
            self._open.set()
            for link in list(self._lost):
                link.reset()
            if self._server is None:
                await self._listen()

        self._call(open_again())

    async def _stop_listening(self) -> None:
        """Close the listening socket, when each connection that was accepted has its handler.

        Before Python 3.12 a connection that is being accepted while its server closes stays open
        for ever (python/cpython#109564).
        """
        server, self._server = self._server, None
        if server is not None:
            for listening in server.sockets:
                self._loop.remove_reader(listening.fileno())
            await _rounds()
            server.close()

    async def _listen_on_a_free_port(self) -> None:
        """Listen on a port that no outgoing connection takes while the proxy refuses.

        One of those the kernel could also give to the client that is refused, which would then be
        connected with itself.
        """
        for _ in range(_TRIES):
            self.port = free_port()
            # Another process may have been quicker.
            with suppress(OSError):
                await self._listen()
                return
        self.port = 0
        await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._on_connection, LOOPBACK, self.port, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  (a handler runs in one)
        self._tasks.add(task)
        link = _Link(self._open)
        link.writers.append(writer)
        self._links.add(link)
        try:
            await link.gate.wait()
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            link.writers.append(server_writer)
            await asyncio.gather(
                self._pass_on(link, reader, server_writer),
                self._pass_on(link, server_reader, writer),
            )
        except (OSError, asyncio.CancelledError):
            # The server refuses, or the proxy ends: its client sees the same.
            link.reset()
        finally:
            for each in link.writers:
                each.close()
            self._links.discard(link)
            self._lost.discard(link)
            self._tasks.discard(task)

    async def _pass_on(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                await link.gate.wait()
                writer.write(data)
                await writer.drain()
        # An end must not pass a silent network either.
        await link.gate.wait()
        writer.close()

    def _do(self, action: Any) -> None:
        async def run() -> None:
            action()

        self._call(run())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
