"""uvicorn's HTTP protocol with limits of its own: for headers, for slow clients, for odd framing.

    uvicorn app:app --http poolkit.fastapi.server:LimitedHttp
    UVICORN_HTTP=poolkit.fastapi.server:LimitedHttp uvicorn app:app

uvicorn hands a request to the application when its headers are complete. Until then nothing limits
their size or their time: a client that sends one line every ten seconds keeps its connection for
ever, and one that sends 200 MiB of headers takes as much memory. A proxy in front of the service
usually has such limits; a service that can be reached without one needs these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from poolkit.problems import MEDIA_TYPE, Problem, status_problem

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ("LimitedHttp",)

# What the next byte of a connection belongs to.
_BETWEEN, _HEADERS, _BODY, _REFUSED = range(4)

_BAD_REQUEST: Final = status_problem(400, "this request is not well-formed HTTP/1.1")
_TOO_SLOW: Final = status_problem(408, "the body came too slowly; send it again")
_MAX_DROPPED: Final = 1_048_576


class LimitedHttp(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with limits. A subclass sets others.

    | attribute | limit | answer |
    |---|---|---|
    | `max_header_bytes` | request line and headers, in bytes | 431 |
    | `max_header_count` | the number of headers | 431 |
    | `header_timeout` | seconds until the headers are complete | the connection is closed |
    | `body_timeout` | seconds for a body, and one more for each `min_body_rate` bytes of it | 408 |
    | `linger` | seconds in which the rest of a body is dropped after its answer | closed |

    A request that httptools refuses, one without a Host or with several, and trailers longer than
    `max_header_bytes` are answered with 400. Trailers never become headers of the request. While
    the application does not read a body, its time does not run.

    It uses private parts of uvicorn's protocol, and was written for uvicorn 0.54.
    """

    max_header_bytes = 65_536
    max_header_count = 100
    header_timeout = 10.0
    body_timeout = 20.0
    min_body_rate = 1_024
    linger = 5.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._part = _BETWEEN
        # Bytes since the request began or, in a body, since the last byte of content.
        self._unbounded = 0
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._refusal = _BAD_REQUEST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._limit_time(self.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    # -- what the parser finds --------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._part = _HEADERS
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        headers = self.headers
        if self._unbounded > self.max_header_bytes:
            size = len(self.url) + sum(len(name) + len(value) for name, value in headers)
            if size > self.max_header_bytes:
                self._raise(431, f"the headers may have {self.max_header_bytes} bytes at most")
        if len(headers) > self.max_header_count:
            self._raise(431, f"there may be {self.max_header_count} headers at most")
        version = self.parser.get_http_version()
        hosts = [name for name, _ in headers].count(b"host")
        if version not in {"1.0", "1.1"} or hosts > 1 or (version == "1.1" and not hosts):
            self._raise(400, "a request has one Host, and is one of HTTP/1.1 or 1.0")
        self._part = _BODY
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            # uvicorn would append the trailers to the list that the application has.
            self.headers = []

    def on_body(self, body: bytes) -> None:
        self._unbounded = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part = _BETWEEN
        super().on_message_complete()

    def _raise(self, status: int, detail: str) -> None:
        self._refusal = status_problem(status, detail)
        # httptools turns it into its own error, for which uvicorn calls `send_400_response`.
        raise ValueError(detail)

    # -- bytes and time ---------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._unbounded += len(data)
        if self._part == _REFUSED:
            if self._unbounded > _MAX_DROPPED:
                self.transport.abort()
            return
        was = self._part
        super().data_received(data)
        part = self._part
        if part == _BETWEEN:
            self._unbounded = 0
            if self._timer is not None:
                self._stop_timer()
        elif part == _REFUSED:
            pass
        elif self._unbounded > self.max_header_bytes:
            # In a body these are trailers, or the extensions of chunks.
            detail = f"the headers may have {self.max_header_bytes} bytes at most"
            self._refuse(status_problem(431, detail))
        elif part == _HEADERS and (was != _HEADERS or self._timer is None):
            self._limit_time(self.header_timeout)
        elif part == _BODY and was != _BODY:
            self._limit_time(self.body_timeout)
        elif part == _BODY and not self.cycle.response_complete:
            self._deadline += len(data) / self.min_body_rate

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._part == _BODY and self.cycle.response_complete:
            # The client may still send what nobody reads. A close at this moment could destroy
            # the answer on its way (RFC 9112, 9.6).
            self._limit_time(self.linger)

    def _limit_time(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._on_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_time(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        rest = self._deadline - self.loop.time()
        cycle: RequestResponseCycle | None = self.cycle
        is_reading = self._part == _BODY and cycle is not None and not cycle.response_complete
        if (
            cycle is not None
            and is_reading
            and (self.flow.read_paused or cycle.waiting_for_100_continue)
        ):
            # The client waits for the application, not the other way round.
            self._limit_time(self.body_timeout)
        elif rest > 0.001:
            self._timer = self.loop.call_later(rest, self._on_time)
        elif is_reading:
            self._refuse(_TOO_SLOW)
        elif cycle is None or cycle.response_complete or self._part != _HEADERS:
            self.transport.close()
        else:
            # The rest of a second request is missing while the first one is being answered.
            cycle.keep_alive = False

    # -- refusals ---------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def _refuse(self, problem: Problem) -> None:
        """Answer for the application, and close the connection."""
        is_body, self._part, self._unbounded = self._part == _BODY, _REFUSED, 0
        self._stop_timer()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not is_body:
                # An earlier request is being answered. Nothing may be written into its answer; the
                # connection is closed after it.
                cycle.keep_alive = False
                return
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started or self.pipeline:
                self.transport.close()
                return
        body = problem.body()
        head = [STATUS_LINE[problem.status]]
        for name, value in self.server_state.default_headers:
            head += [name, b": ", value, b"\r\n"]
        head.append(
            f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n".encode()
        )
        self.transport.write(b"".join([*head, body]))
        if self.transport.can_write_eof():
            # A close while the client sends would destroy the answer on its way.
            self.transport.write_eof()
            self._limit_time(self.linger)
        else:
            self.transport.close()
