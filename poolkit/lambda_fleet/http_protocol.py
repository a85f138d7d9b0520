"""HTTP/1.1 on an asyncio transport, for the front door and for the Runtime API.

It does one request at a time per connection, in order, with whole bodies and one write per
response. A web framework here would cost more than the rest of an invoke.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple

import httptools

# Seconds that a client may go on sending after its request was refused.
DISCARD_S = 5.0

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_BODYLESS = frozenset({204, 304})


class Request(NamedTuple):
    """One complete request. The header names and the request target are as the client sent them."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    http_version: str


class Limits(NamedTuple):
    """The most bytes of a request line with its headers, and of a body."""

    head: int
    body: int


def response(
    status: int, body: bytes, headers: bytes = b"content-type: application/json\r\n"
) -> bytes:
    """Return a whole response. `headers` are complete lines, without Content-Length."""
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status
    if status in _BODYLESS:
        return b"%s%s\r\n" % (line, headers)
    return b"%s%scontent-length: %d\r\n\r\n%s" % (line, headers, len(body), body)


def message(status: int, text: str) -> bytes:
    """Return a response in the shape of API Gateway's own errors."""
    return response(status, b'{"message":"%s"}' % text.encode())


class HttpProtocol(asyncio.Protocol):
    """Parses requests and passes each to `on_request`, which calls `respond` once per request."""

    def __init__(
        self,
        on_request: Callable[["HttpProtocol", Request], None],
        limits: Limits,
        connections: set["HttpProtocol"],
    ) -> None:
        self._on_request = on_request
        self._limits = limits
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self.peer = ""
        """The peer's IP address; empty if the peer had gone before the connection was accepted."""
        self._busy = False
        self._head_only = False
        self._last = False
        self._refused = False
        self.on_message_begin()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register with the server."""
        # asyncio and uvloop both set TCP_NODELAY on the sockets they accept.
        self._transport = transport  # type: ignore[assignment]  # always a stream transport
        self.peer = str((transport.get_extra_info("peername") or ("",))[0])
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the peer; a late response is dropped."""
        self._transport = None
        self._waiting.clear()
        self._connections.discard(self)

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes."""
        if self._in_head and not self._refused:
            self._head_size += len(data)
            if self._head_size > self._limits.head + self._limits.body:
                # A header without an end never reaches on_headers_complete.
                self._refuse(431, "Request Header Fields Too Large")
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Not offered. The request itself is already on its way to an answer.
            self._last = True
        except httptools.HttpParserError:
            self._last = True
            if self._transport is None:
                return
            if not self._busy and not self._refused:
                self._transport.write(message(400, "Bad Request"))
            if not self._busy or self._refused:
                self._transport.close()

    def eof_received(self) -> bool:
        """Keep a half-closed connection open until the request in progress is answered."""
        self._last = True
        return self._busy

    # httptools calls these

    def on_message_begin(self) -> None:
        """Start a new request."""
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_size = 0
        self._head_size = 0
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """Take a piece of the request target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Refuse a request that is too large before its body is sent."""
        self._in_head = False
        size = len(self._target) + sum(len(n) + len(v) for n, v in self._headers)
        if size > self._limits.head:
            self._refuse(431, "Request Header Fields Too Large")
            return
        for name, value in self._headers:
            lowered = name.lower()
            if lowered == b"content-length" and int(value) > self._limits.body:
                self._refuse(413, "Request Entity Too Large")
                return
            if lowered == b"expect" and value.lower() == b"100-continue" and self._transport:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self._refused:
            return
        self._body_size += len(body)
        if self._body_size > self._limits.body:
            self._refuse(413, "Request Entity Too Large")
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Start on the request, or queue it behind the one in progress."""
        if self._refused:
            self.close()
            return
        self._last = self._last or not self._parser.should_keep_alive()
        request = Request(
            self._parser.get_method(),
            self._target,
            self._headers,
            self._body[0] if len(self._body) == 1 else b"".join(self._body),
            self._parser.get_http_version(),
        )
        if self._busy:
            self._waiting.append(request)
            if self._transport:
                self._transport.pause_reading()
        else:
            self._start(request)

    # answering

    def respond(self, data: bytes) -> None:
        """Send one whole response; do nothing if the peer has gone."""
        self._busy = False
        transport = self._transport
        if transport is None or self._refused:
            return
        if self._head_only:
            data = data[: data.index(b"\r\n\r\n") + 4]
        transport.write(data)
        if self._waiting:
            self._start(self._waiting.popleft())
            if not self._waiting:
                transport.resume_reading()
        elif self._last:
            transport.close()

    def close(self) -> None:
        """Close after the written bytes are sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _start(self, request: Request) -> None:
        self._busy = True
        self._head_only = request.method == b"HEAD"
        self._on_request(self, request)

    def _refuse(self, status: int, text: str) -> None:
        """Respond now, then discard the rest of the request.

        A close with unread input resets the connection, and the client would never see the reason.
        """
        self._refused = True
        self._body.clear()
        if self._transport is None:
            return
        head, _, body = message(status, text).partition(b"\r\n\r\n")
        self._transport.write(head + b"\r\nconnection: close\r\n\r\n" + body)
        asyncio.get_running_loop().call_later(DISCARD_S, self.abort)
