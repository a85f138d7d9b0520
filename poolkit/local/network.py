"""A network between a client and a server on this machine: distance, TLS and faults.

On the loopback address a connect costs a fraction of what it costs in a cloud: no round trips, no
TLS. `Network` is a TCP proxy in a process of its own that adds both, and that can fail.

    with Network("127.0.0.1", 5432, rtt_s=0.0005, certificate=certificate) as network:
        psycopg2.connect(host="127.0.0.1", port=network.port, sslmode="require", ...)
        network.go_silent()     # a black hole: nothing passes, nothing is closed
        network.restore()       # what was sent meanwhile arrives

It delays the bytes as they are on the wire, so each protocol pays for its own round trips: TLS for
its handshake, SCRAM for its messages. A TCP handshake is the exception: the kernel completes it
before the proxy hears of it. The proxy then holds back the connection's first bytes for the round
trip that the handshake would have taken.

Run as a module it is the proxy itself. It obeys the lines of its standard input, and ends with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import random
import resource
import select
import selectors
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from poolkit.errors import ProcessEndedError, ServerStartError
from poolkit.local.ports import LOOPBACK, free_port
from poolkit.local.wire import Recorder, Step, Trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: the close is a reset (socket(7))."""
# What a client of PostgreSQL may send before all else (protocol-flow.html, "SSL Session Encryption").
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_GSS_REQUEST = struct.pack("!ii", 8, 80877104)
_CANCEL_CODE = struct.pack("!i", 80877102)
# The server's offer of logins over TLS, and without the one that is bound to its certificate: the
# client sees another certificate, or none (sasl-authentication.html).
_BOUND_LOGIN = b"R\0\0\0\x2a\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"
_LOGIN = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0"
_TLS_HANDSHAKE = b"\x16"
"""The first byte of a client that begins with TLS: `sslnegotiation=direct`."""
_TRIES = 5
_HIGH_WATER = 1 << 20
"""Bytes under way in one direction of a connection, from which on its sender has to wait."""


class ServerTls(NamedTuple):
    """How a proxy speaks TLS to a server that has it, as libpq would."""

    host: str
    """The server's name, as the client knows it."""
    sslmode: str = "require"
    """`verify-ca` checks the certificate, `verify-full` its name too; all else checks nothing."""
    sslrootcert: str = ""
    """The file of the authorities; `system` for those of the system."""
    sslcert: str = ""
    """The client's certificate, if it has one, and its key."""
    sslkey: str = ""

    def context(self) -> ssl.SSLContext:
        """Return the settings of the connections."""
        authorities = "" if self.sslrootcert == "system" else self.sslrootcert
        context = ssl.create_default_context(cafile=authorities or None)
        context.check_hostname = self.sslmode == "verify-full"
        if self.sslmode not in ("verify-ca", "verify-full"):
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["postgresql"])
        if self.sslcert:
            context.load_cert_chain(self.sslcert, self.sslkey or None)
        return context


class NetworkFigures(NamedTuple):
    """What a network's proxy has counted since its start."""

    open: int
    """Connections that have not ended."""
    accepted: int
    """Connections of clients."""
    with_tls: int
    """Those of them that agreed on TLS."""
    without_tls: int
    """Those that asked for none where the proxy has it, without requests to cancel a statement,
    which some versions of libpq never encrypt."""
    failed_tls: int
    """Those that began with TLS and did not agree, such as clients that refuse the certificate."""
    cpu_s: float
    """The CPU time that it has used, in seconds."""


class Network:
    """A proxy in front of one server, in a process of its own; a context manager.

    Entering starts it, leaving ends it with every connection. All methods may be called from any
    thread. Each returns when it has taken effect.

    Args:
        host: the server's.
        port: the server's.
        listen_on: the proxy's own port; 0 for any free one.
        rtt_s: the round-trip time that it adds, in seconds.
        jitter: each passage takes up to this share longer or shorter than half of `rtt_s`.
        certificate: the certificate, with its key, with which it ends TLS in front of a server of
            PostgreSQL that has none; None passes everything on as it is. A client that asks for no
            TLS is passed on as well.
        server_tls: how the proxy speaks TLS to the server; None for the plain protocol, or for what
            the client speaks.
        traces: record the messages of PostgreSQL's protocol that pass, for `traces`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        listen_on: int = 0,
        rtt_s: float = 0.0,
        jitter: float = 0.0,
        certificate: Path | None = None,
        server_tls: ServerTls | None = None,
        traces: bool = False,
    ) -> None:
        self.host = LOOPBACK
        self.port = listen_on
        self._first = {
            "target": [host, port],
            "listen_on": listen_on,
            "rtt_s": rtt_s,
            "jitter": jitter,
            "certificate": None if certificate is None else str(certificate),
            "server_tls": server_tls,
            "keeps_traces": traces,
        }
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C does not reach another session: its parent decides when it ends.
            start_new_session=True,
        )
        try:
            self.port = self._ask(self._first)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            # It ends with its input; what it does not end by then is ended for it.
            with suppress(OSError):
                if self._process.stdin is not None:
                    self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    @property
    def pid(self) -> int:
        """The process of the proxy."""
        return self._process.pid

    @property
    def connections(self) -> int:
        """The number of connections through the proxy that have not ended."""
        return self.figures().open

    def figures(self) -> NetworkFigures:
        """Return what the proxy has counted since its start."""
        return NetworkFigures(*self._do("figures"))

    def check(self) -> None:
        """Check that the proxy still runs.

        Raises:
            ProcessEndedError: it has ended by itself.
        """
        if self._process.poll() is not None:
            raise ProcessEndedError(
                "the proxy that makes the distance to the database has ended by itself"
            )

    def traces(self) -> list[Trace]:
        """Return what passed over each connection since the last call, oldest first."""
        return [
            Trace(tuple(Step(at, by, tuple(names), flights) for at, by, names, flights in steps))
            for (steps,) in self._do("take_traces")
        ]

    def go_silent(self) -> None:
        """Pass nothing on, in both directions, and close nothing: a black hole.

        A new connection is accepted, and stays silent too.
        """
        self._do("go_silent")

    def lose_connections(self) -> None:
        """Silence the present connections for ever; new ones work.

        A firewall or NAT gateway that forgets idle connections does this: both ends believe that
        theirs is open.
        """
        self._do("lose_connections")

    def delay(self, seconds: float) -> None:
        """Pass data on that much later in each direction, in addition to the round-trip time."""
        self._do("delay", seconds)

    def throttle(self, bytes_per_s: float | None) -> None:
        """Pass no more than this on in each direction of a connection; None for no limit."""
        self._do("throttle", bytes_per_s)

    def cut(self) -> None:
        """Reset the present connections; new ones work."""
        self._do("cut")

    def refuse(self) -> None:
        """Reset the present connections, and refuse new ones."""
        self._do("refuse")

    def lead_to(self, host: str, port: int) -> None:
        """Connect new connections to another server; the present ones stay, as after a DNS change."""
        self._do("lead_to", host, port)

    def restore(self) -> None:
        """Pass everything on again, without faults. Lost connections are reset."""
        self._do("restore")

    def _do(self, what: str, *arguments: Any) -> Any:
        """Call a method of `_Proxy` in the proxy's process, and return what it returns."""
        return self._ask({"do": what, "arguments": arguments})

    def _ask(self, request: dict[str, Any]) -> Any:
        with self._lock:
            pipe_in, pipe_out = self._process.stdin, self._process.stdout
            assert pipe_in is not None  # noqa: S101  (made with pipes)
            assert pipe_out is not None  # noqa: S101
            try:
                pipe_in.write(json.dumps(request) + "\n")
                pipe_in.flush()
                line = pipe_out.readline()
            except OSError:
                line = ""
        if not line:
            raise ServerStartError(f"the proxy to {self._first['target']} has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise ServerStartError(f"the proxy to {self._first['target']}: {answer['error']}")
        return answer["found"]


# -- the proxy's own process ---------------------------------------------------------------------


class _FineSelector(selectors.DefaultSelector):
    """A selector that waits for fractions of a millisecond.

    epoll rounds a timeout up to a millisecond, and so does uvloop; the round trip within a data
    centre is half of one. select() does not round, and it can wait for epoll's own descriptor.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0 and hasattr(self, "fileno"):
            select.select([self], [], [], timeout)
            timeout = 0
        return super().select(timeout)


class _Proxy:
    """The listening socket, the connections through it, and what is wrong with the network."""

    def __init__(
        self,
        *,
        target: list[Any],
        listen_on: int,
        rtt_s: float,
        jitter: float,
        certificate: str | None,
        server_tls: list[str] | None,
        keeps_traces: bool,
    ) -> None:
        self.target = target
        self.rtt_s = rtt_s
        self.jitter = jitter
        self.context: ssl.SSLContext | None = None
        if certificate is not None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate)
            self.context.set_alpn_protocols(["postgresql"])
            # As PostgreSQL, which resumes no sessions.
            self.context.num_tickets = 0
        self.server_tls = None if server_tls is None else ServerTls(*server_tls)
        self.server_context = self.server_tls.context() if self.server_tls is not None else None
        self.is_silent = False
        self.extra_s = 0.0
        self.bytes_per_s: float | None = None
        self.accepted = self.with_tls = self.without_tls = self.failed_tls = 0
        self.keeps_traces = keeps_traces
        self.recorders: list[Recorder] = []
        self.links: set[_Link] = set()
        self.lost: set[_Link] = set()
        self.port = listen_on
        self._server: asyncio.Server | None = None

    def passage_s(self) -> float:
        """Return how long the bytes that are sent now are on their way."""
        half = self.rtt_s / 2
        if self.jitter:
            half *= 1 + self.jitter * random.uniform(-1, 1)
        return half + self.extra_s

    async def start(self) -> int:
        """Listen, on a port that no outgoing connection takes while the proxy refuses.

        One of those the kernel could also give to the client that is refused, which would then be
        connected with itself.
        """
        if self.port:
            return await self._listen()
        for _ in range(_TRIES):
            self.port = free_port()
            # Another process may have been quicker.
            with suppress(OSError):
                return await self._listen()
        self.port = 0
        return await self._listen()

    async def _listen(self) -> int:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _End(_Link(self), is_client=True),
            LOOPBACK,
            self.port,
            reuse_address=True,
            backlog=4096,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    # The requests, each under the name of the method of `Network` that makes it.

    async def figures(self) -> NetworkFigures:
        return NetworkFigures(
            open=len(self.links) + len(self.lost),
            accepted=self.accepted,
            with_tls=self.with_tls,
            without_tls=self.without_tls,
            failed_tls=self.failed_tls,
            cpu_s=time.process_time(),
        )

    async def take_traces(self) -> list[Trace]:
        taken, self.recorders = self.recorders, []
        return [recorder.trace() for recorder in taken]

    async def go_silent(self) -> None:
        self.is_silent = True

    async def lose_connections(self) -> None:
        for link in self.links:
            link.is_lost = True
        self.lost |= self.links
        self.links.clear()

    async def delay(self, seconds: float) -> None:
        self.extra_s = seconds

    async def throttle(self, bytes_per_s: float | None) -> None:
        self.bytes_per_s = bytes_per_s

    async def lead_to(self, host: str, port: int) -> None:
        self.target = [host, port]

    async def cut(self) -> None:
        for link in [*self.links, *self.lost]:
            link.reset()
        # A transport closes its socket in the round after it was told to.
        await _rounds()

    async def refuse(self) -> None:
        await self._stop_listening()
        await self.cut()

    async def restore(self) -> None:
        self.is_silent, self.extra_s, self.bytes_per_s = False, 0.0, None
        for link in list(self.lost):
            link.reset()
        for link in list(self.links):
            link.release()
        if self._server is None:
            await self._listen()

    async def _stop_listening(self) -> None:
        """Close the listening socket, when each connection that was accepted has its link.

        Before Python 3.12 a connection that is being accepted while its server closes stays open
        for ever (python/cpython#109564).
        """
        server, self._server = self._server, None
        if server is not None:
            loop = asyncio.get_running_loop()
            for listening in server.sockets:
                loop.remove_reader(listening.fileno())
            await _rounds()
            server.close()


async def _rounds() -> None:
    """Wait until the event loop has done what is ready, and what follows from that."""
    for _ in range(10):
        await asyncio.sleep(0)


class _Stream:
    """One direction of a connection: bytes wait here until they have had their passage."""

    def __init__(
        self, link: _Link, deliver: Callable[[bytes], None], end: Callable[[], None]
    ) -> None:
        self.source: asyncio.Transport | None = None
        self._link = link
        self._deliver = deliver
        self._end = end
        self._waiting: deque[tuple[float, bytes | None]] = deque()
        self._size = 0
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._has_ended = False
        self.is_blocked = False
        """Whether the receiver takes no more at present."""

    def not_before(self, when: float) -> None:
        """Deliver nothing until then, on the event loop's clock."""
        self._last = max(self._last, when)

    def send(self, data: bytes) -> None:
        """Deliver this after its passage, and after all that was sent before."""
        if not self._has_ended:
            self._put(data, len(data))

    def end(self, *, is_reset: bool) -> None:
        """End this direction after all that was sent before."""
        # A transport that has read the end would read it once more if it was resumed.
        self.source = None
        if is_reset or not self._has_ended:
            self._has_ended = True
            self._put(None if is_reset else b"", 0)

    def _put(self, data: bytes | None, size: int) -> None:
        proxy, loop = self._link.proxy, self._link.loop
        passage = proxy.passage_s()
        if proxy.bytes_per_s:
            # The wire is busy with what is before it, and then for its own length.
            self._last = max(self._last, loop.time() + passage) + size / proxy.bytes_per_s
        elif passage or self._last:
            self._last = max(self._last, loop.time() + passage)
        self._waiting.append((self._last, data))
        self._size += size
        if self._size > _HIGH_WATER and self.source is not None and not self._is_paused:
            self._is_paused = True
            self.source.pause_reading()
        self.release()

    def release(self) -> None:
        """Deliver what has had its passage."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        link, waiting = self._link, self._waiting
        while waiting and not self.is_blocked and link.passes():
            arrives, data = waiting[0]
            if arrives and (left := arrives - link.loop.time()) > 0:
                self._timer = link.loop.call_later(left, self.release)
                return
            waiting.popleft()
            if data:
                self._size -= len(data)
                self._deliver(data)
            elif data is None:
                link.reset()
            else:
                self._end()
        if self._is_paused and self._size < _HIGH_WATER // 2 and self.source is not None:
            self._is_paused = False
            self.source.resume_reading()


class _End(asyncio.Protocol):
    """One end of a connection: the client's, or the server's."""

    def __init__(self, link: _Link, *, is_client: bool) -> None:
        self._link = link
        self._is_client = is_client
        self._has_tls = not is_client and link.proxy.server_context is not None
        self._out = link.down if is_client else link.up
        """What this end receives."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (of a TCP connection)
        if self._is_client:
            self._link.client_is_there(transport)
        else:
            self._link.server_is_there(transport)

    def data_received(self, data: bytes) -> None:
        if self._is_client:
            self._link.send_up(data)
        else:
            self._link.from_server(data)

    def eof_received(self) -> bool:
        """Keep the other direction open: a peer that has sent all may wait for the answer."""
        self._link.has_sent_all(is_client=self._is_client)
        return not self._has_tls

    def connection_lost(self, exc: Exception | None) -> None:
        # Without an error it was closed here. TLS was then closed in both directions.
        if exc is not None:
            self._link.was_reset(is_client=self._is_client)
        elif self._has_tls:
            self._link.has_sent_all(is_client=False)

    def pause_writing(self) -> None:
        self._out.is_blocked = True

    def resume_writing(self) -> None:
        self._out.is_blocked = False
        self._out.release()


class _AskForTls(asyncio.Protocol):
    """Ask a server for TLS, and receive its answer of one byte."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (of a TCP connection)
        transport.write(_SSL_REQUEST)

    def data_received(self, data: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(b"")


class _Link:
    """One connection through the proxy."""

    def __init__(self, proxy: _Proxy) -> None:
        self.proxy = proxy
        self.loop = asyncio.get_running_loop()
        self.is_lost = False
        self.up = _Stream(self, self._from_client, self._end_server)
        self.down = _Stream(self, self._to_client, self._end_client)
        self._client: asyncio.Transport | None = None
        self._server: asyncio.Transport | None = None
        self._opening: asyncio.Task[None] | None = None
        self._may_open = False
        self._is_over = False
        self._has_ended_up = self._has_ended_down = False
        """Whether the server has been sent the end of the client's bytes, and the reverse."""
        self._for_server = bytearray()
        ends_tls = proxy.context is not None or proxy.server_context is not None
        self._first: bytes | None = b"" if ends_tls else None
        """What the client has sent so far, until it is clear whether it wants TLS."""
        self._tls: ssl.SSLObject | None = None
        self._recorder: Recorder | None = None
        self._tls_in, self._tls_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._is_agreed = False
        """Whether the TLS handshake is over."""

    def passes(self) -> bool:
        """Return whether the network passes this connection's bytes on."""
        return not self.is_lost and not self.proxy.is_silent

    def client_is_there(self, transport: asyncio.Transport) -> None:
        """Begin, as soon as the handshake of TCP would have reached the server."""
        self._client = self.up.source = transport
        self.proxy.links.add(self)
        self.proxy.accepted += 1
        if self.proxy.keeps_traces:
            self._recorder = Recorder(self.loop.time())
            self.proxy.recorders.append(self._recorder)
        # SYN, SYN-ACK, and the ACK together with the first bytes: one and a half round trips, of
        # which those bytes make the last half themselves.
        handshake = self.proxy.passage_s() * 2
        if handshake:
            self.up.not_before(self.loop.time() + handshake + self.proxy.passage_s())
            self.loop.call_later(handshake * 1.5, self._open)
        else:
            self._open()

    def _open(self) -> None:
        self._may_open = True
        self.release()

    def release(self) -> None:
        """Connect, and deliver, where that waited for the network."""
        if self._may_open and self._opening is None and self.passes() and not self._is_over:
            self._opening = self.loop.create_task(self._connect())
        self.up.release()
        self.down.release()

    async def _connect(self) -> None:
        try:
            if self.proxy.server_context is not None:
                await self._connect_with_tls(self.proxy.server_context)
                return
            await self.loop.create_connection(
                lambda: _End(self, is_client=False), *self.proxy.target
            )
        except OSError:
            self.reset()

    async def _connect_with_tls(self, context: ssl.SSLContext) -> None:
        assert self.proxy.server_tls is not None  # noqa: S101  (it made the context)
        transport, asking = await self.loop.create_connection(_AskForTls, *self.proxy.target)
        if await asking.answer != b"S":
            transport.abort()
            raise ConnectionError("the server has no TLS")
        end = _End(self, is_client=False)
        name = self.proxy.server_tls.host
        secured = await self.loop.start_tls(transport, end, context, server_hostname=name)
        assert secured is not None  # noqa: S101  (None only if the transport was closed)
        end.connection_made(secured)

    def server_is_there(self, transport: asyncio.Transport) -> None:
        """Send what the client has sent meanwhile; it may have left since."""
        self._server = self.down.source = transport
        if self._is_over:
            self._abort(transport)
            return
        self.up.is_blocked = False
        if self._for_server:
            transport.write(bytes(self._for_server))
            self._for_server.clear()
        if self._has_ended_up:
            self._write_eof(transport)
        self.up.release()

    def send_up(self, data: bytes) -> None:
        """Put what the client sent on its way."""
        if self._recorder is not None:
            self._recorder.flight(by_client=True)
        self.up.send(data)

    def from_server(self, data: bytes) -> None:
        """Put what the server sent on its way."""
        if self.proxy.server_context is not None and data.startswith(_BOUND_LOGIN):
            data = data.replace(_BOUND_LOGIN, _LOGIN, 1)
        if self._recorder is not None:
            self._recorder.pass_on(data, self.loop.time(), by_client=False)
        if self._tls is not None and self._is_agreed:
            self._tls.write(data)
            self._send_tls()
        else:
            self.down.send(data)

    def _to_client(self, data: bytes) -> None:
        if self._recorder is not None:
            self._recorder.flight(by_client=False)
        if self._client is not None:
            self._client.write(data)

    def _from_client(self, data: bytes) -> None:
        if self._tls is not None:
            self._decrypt(data)
            return
        if self._first is None:
            self._to_server(data)
            return
        self._first += data
        if self._first.startswith(_GSS_REQUEST):
            self.down.send(b"N")
            self._first = self._first.removeprefix(_GSS_REQUEST)
        if self._first.startswith(_SSL_REQUEST) and self.proxy.context is None:
            self.down.send(b"N")
            self._first = self._first.removeprefix(_SSL_REQUEST)
        if self._first.startswith(_SSL_REQUEST):
            self.down.send(b"S")
            self._begin_tls(self._first.removeprefix(_SSL_REQUEST))
        elif self._first.startswith(_TLS_HANDSHAKE) and self.proxy.context is not None:
            self._begin_tls(self._first)
        elif len(self._first) >= len(_SSL_REQUEST):
            self.proxy.without_tls += self._first[4:8] != _CANCEL_CODE
            self._to_server(self._first)
            self._first = None

    def _begin_tls(self, rest: bytes) -> None:
        assert self.proxy.context is not None  # noqa: S101  (else _first is None)
        self._tls = self.proxy.context.wrap_bio(self._tls_in, self._tls_out, server_side=True)
        if rest:
            self._decrypt(rest)

    def _decrypt(self, data: bytes) -> None:
        assert self._tls is not None  # noqa: S101
        self._tls_in.write(data)
        try:
            if not self._is_agreed:
                self._tls.do_handshake()
                self._is_agreed = True
                self.proxy.with_tls += 1
            while plain := self._tls.read(65_536):
                self._to_server(plain)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            # It has ended TLS, and may keep the socket until the server has done so too.
            self._end_server()
        except ssl.SSLError:
            # The alert names the reason to the client.
            self._send_tls()
            self.down.end(is_reset=False)
            self._end_server()
        self._send_tls()

    def _send_tls(self) -> None:
        if data := self._tls_out.read():
            self.down.send(data)

    def _to_server(self, data: bytes) -> None:
        if self._recorder is not None:
            self._recorder.pass_on(data, self.loop.time(), by_client=True)
        if self._server is not None:
            self._server.write(data)
            return
        self._for_server += data
        if len(self._for_server) > _HIGH_WATER:
            self.up.is_blocked = True

    def has_sent_all(self, *, is_client: bool) -> None:
        """Pass on that one end sends no more, on the same way as the bytes before it."""
        if is_client:
            self.up.end(is_reset=False)
            return
        if self._tls is not None and self._is_agreed:
            # PostgreSQL ends TLS before it closes the socket.
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            self._send_tls()
        self.down.end(is_reset=False)

    def was_reset(self, *, is_client: bool) -> None:
        """Pass on that one end has failed, on the same way as the bytes before it."""
        (self.up if is_client else self.down).end(is_reset=True)

    def _note_failed_tls(self) -> None:
        if self._tls is not None and not self._is_agreed and not self._has_ended_up:
            self.proxy.failed_tls += 1

    def _end_server(self) -> None:
        self._note_failed_tls()
        self._has_ended_up = True
        if self._server is not None:
            self._write_eof(self._server)
        self._close_if_ended()

    def _end_client(self) -> None:
        self._has_ended_down = True
        if self._client is not None:
            self._write_eof(self._client)
        self._close_if_ended()

    @staticmethod
    def _write_eof(transport: asyncio.Transport) -> None:
        if not transport.can_write_eof():  # TLS ends both directions at once
            transport.close()
            return
        # The peer may have reset the connection by now.
        with suppress(OSError):
            transport.write_eof()

    def _close_if_ended(self) -> None:
        if self._has_ended_up and self._has_ended_down:
            for transport in (self._client, self._server):
                if transport is not None:
                    transport.close()
            self._forget()

    def reset(self) -> None:
        """End both ends at once; each peer receives a reset."""
        for transport in (self._client, self._server):
            if transport is not None:
                self._abort(transport)
        self._forget()

    @staticmethod
    def _abort(transport: asyncio.Transport) -> None:
        found = transport.get_extra_info("socket")
        if found is not None:  # else TLS has closed it already
            with suppress(OSError):
                found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def _forget(self) -> None:
        self._is_over = True
        self.proxy.links.discard(self)
        self.proxy.lost.discard(self)


async def _serve() -> None:
    """Obey the lines of standard input until it ends."""
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    proxy: _Proxy | None = None
    while line := await reader.readline():
        try:
            request = json.loads(line)
            if proxy is None:
                proxy = _Proxy(**request)
                found: Any = await proxy.start()
            else:
                found = await getattr(proxy, request["do"])(*request["arguments"])
            answer = {"found": found}
        except (OSError, ValueError) as error:
            answer = {"error": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    if proxy is not None:
        await proxy.refuse()


def _allow_connections() -> None:
    """Raise this process's limit of open files: a connection takes two, and many systems allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        # macOS refuses "unlimited".
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _wake_punctually() -> None:
    """Ask the kernel to wake this process within a microsecond of its time, not within 50."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            # PR_SET_TIMERSLACK, in nanoseconds (prctl(2)).
            ctypes.CDLL(None).prctl(29, ctypes.c_ulong(1_000), 0, 0, 0)


def main() -> None:
    """Run the proxy until its standard input ends."""
    _allow_connections()
    _wake_punctually()
    loop = asyncio.SelectorEventLoop(_FineSelector())
    with suppress(BrokenPipeError):
        loop.run_until_complete(_serve())
    loop.close()


if __name__ == "__main__":
    main()
