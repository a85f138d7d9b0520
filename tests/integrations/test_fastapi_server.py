"""uvicorn's protocol with limits: sizes, slow clients, and requests that are framed oddly."""

import asyncio
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import psutil
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from processes import wait_until

from poolkit.fastapi import RequestLimits, add_problems
from poolkit.fastapi.server import LimitedHttp

GET = b"GET /lengths HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /lengths HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n"
LATE_S = 4.5
"""Longer than a machine that is busy stands still."""
NEXT = b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"


class Patient(LimitedHttp):
    """With times that no test meets, however slow the machine is; a test of one sets that one."""

    header_timeout = 100.0
    body_timeout = 100.0
    linger = 100.0


def application() -> FastAPI:
    app = FastAPI()
    app.state.begun = 0
    app.state.seen = []
    add_problems(app)
    app.add_middleware(RequestLimits)

    @app.api_route("/lengths", methods=["GET", "POST"])
    async def length(request: Request) -> int:
        app.state.begun += 1
        body = await request.body()
        app.state.seen.append((request.headers, len(body)))
        return len(body)

    @app.post("/slow-reader")
    async def slow_reader(request: Request) -> int:
        await asyncio.sleep(LATE_S)
        return len(await request.body())

    @app.get("/slow")
    async def slow() -> StreamingResponse:
        async def pieces():
            yield b"begun"
            await asyncio.sleep(LATE_S)
            yield b"ended"

        return StreamingResponse(pieces())

    return app


@contextmanager
def serving(app: FastAPI, **limits: float) -> Iterator[int]:
    """Serve on a port, with these limits in place of the patient ones."""
    protocol = type("Limited", (Patient,), limits)
    options = {"ws": "none", "log_config": None, "timeout_graceful_shutdown": 30}
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=protocol, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, "the server's start")
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return application()


@pytest.fixture(scope="module")
def port(app) -> Iterator[int]:
    with serving(app) as port:
        yield port


@pytest.fixture(autouse=True)
def no_traceback(caplog) -> Iterator[None]:
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def connected(port: int) -> closing[socket.socket]:
    return closing(socket.create_connection(("127.0.0.1", port), timeout=30))


def read(sock: socket.socket) -> bytes:
    """Read until the server has closed."""
    found = b""
    while True:
        try:
            data = sock.recv(65_536)
        except ConnectionError:
            return found
        if not data:
            return found
        found += data


def answers(port: int, raw: bytes) -> list[int]:
    """Send bytes, and return the statuses of what comes until the server has closed."""
    with connected(port) as sock:
        sock.sendall(raw)
        return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+)", read(sock))]


def chunked(body: bytes, trailers: bytes = b"") -> bytes:
    return b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers)


# -- sizes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        b"X-A: " + b"x" * 70_000 + b"\r\n",
        b"".join(b"X-%d: %s\r\n" % (n, b"x" * 1_000) for n in range(70)),
        b"".join(b"X-%d: x\r\n" % n for n in range(100)),
    ],
    ids=["long", "several", "many"],
)
@pytest.mark.parametrize("piece", [1 << 20, 1_000], ids=["at once", "in pieces"])
def test_headers_are_limited_before_the_application_sees_them(port, headers, piece):
    """One long header, several, or many small ones: 431, in one read or in several."""
    raw = GET + headers + CLOSE + b"\r\n"
    with connected(port) as sock:
        for start in range(0, len(raw), piece):
            sock.sendall(raw[start : start + piece])
        head = read(sock)
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in head


def test_endless_headers_take_no_memory(port):
    """What comes after the refusal is dropped, and soon the connection is cut."""
    process, sent = psutil.Process(), 0
    before = process.memory_info().rss
    with connected(port) as sock:
        sock.sendall(GET)
        try:
            while sent < 200 * 1024 * 1024:
                sent += sock.send(b"X-A: " + b"x" * 65_536 + b"\r\n")
        except OSError:
            pass
    assert sent < 100 * 1024 * 1024
    assert process.memory_info().rss - before < 50 * 1024 * 1024


def test_a_long_url_is_refused(port):
    """It counts with the headers."""
    raw = b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"
    assert answers(port, raw) == [431]


def test_trailers_are_no_headers_and_are_limited(app, port):
    """They come after the checks, so the application must not see them; and they may be endless."""
    trailers = b"X-Forwarded-For: 192.0.2.1\r\n"
    body = b"Transfer-Encoding: chunked\r\n" + CLOSE + b"\r\n"
    app.state.seen.clear()
    assert answers(port, POST + body + chunked(b"abc", trailers)) == [200]
    ((headers, length),) = app.state.seen
    assert (length, "x-forwarded-for" in headers) == (3, False)
    endless = chunked(b"abc")[:-2] + b"X-A: " + b"x" * 600_000
    assert answers(port, POST + body + endless) == [431]


# -- time -----------------------------------------------------------------------------------


def send_until_cut(sock: socket.socket, piece: bytes, pause_s: float) -> None:
    """Send a piece again and again, until the server has closed the connection."""
    limit = time.monotonic() + 60
    sock.settimeout(pause_s)
    while time.monotonic() < limit:
        try:
            sock.sendall(piece)
            if not sock.recv(65_536):
                return
        except TimeoutError:
            continue
        except OSError:
            return
    raise AssertionError("the server does not close the connection")


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n"),
        (GET + b"\r\n" + b"GET / HTTP/1.1\r\n", b"X-A: b\r\n"),
    ],
    ids=["silence", "a line now and then", "after an answer"],
)
def test_slow_headers_end_the_connection(app, first, piece):
    """The time is for all headers together, on a new connection and after an answer."""
    with serving(app, header_timeout=1.0) as port:
        # Before the server's clock can have begun.
        began = time.monotonic()
        with connected(port) as sock:
            sock.sendall(first)
            send_until_cut(sock, piece, 0.2)
        assert time.monotonic() - began > 0.9


@pytest.mark.parametrize("framing", [b"Content-Length: 100\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_slow_body_is_408(app, framing):
    """A body that comes a byte at a time is not waited for."""
    head = POST + framing + b"\r\n" + (b"64\r\n" if b"chunked" in framing else b"")
    with serving(app, body_timeout=1.0) as port, connected(port) as sock:
        began = time.monotonic()
        sock.sendall(head)
        sock.settimeout(0.2)
        found = b""
        # One byte less than the body has.
        for _ in range(99):
            sock.sendall(b"x")
            with suppress(TimeoutError):
                found = sock.recv(65_536)
                break
        assert found.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began > 0.9


def test_a_body_at_a_fair_rate_may_take_longer(app):
    """Each kibibyte gives another second."""
    with serving(app, body_timeout=1.0) as port, connected(port) as sock:
        # More than the server reads at a time: what comes with the headers does not count.
        sock.sendall(POST + CLOSE + b"Content-Length: 600000\r\n\r\n" + b"x" * 500_000)
        time.sleep(1.5)
        sock.sendall(b"x" * 100_000)
        assert read(sock).endswith(b"600000")


@pytest.fixture(scope="module")
def late(app) -> Iterator[int]:
    """Give less time for a body, whatever its size, than the application takes to ask for it."""
    with serving(app, body_timeout=LATE_S - 0.5, min_body_rate=1e9) as port:
        yield port


def test_an_application_that_reads_late_is_not_the_client_s_fault(late):
    """While the server does not read, the body's time does not run."""
    body = b"x" * 900_000
    with connected(late) as sock:
        head = b"POST /slow-reader HTTP/1.1\r\nHost: x\r\n" + CLOSE
        sock.sendall(head + b"Content-Length: 900000\r\n\r\n" + body)
        assert read(sock).endswith(b"900000")


def test_a_client_that_waits_for_100_continue_is_waited_for(late):
    """It sends nothing because nothing has asked for the body yet."""
    with connected(late) as sock:
        head = b"POST /slow-reader HTTP/1.1\r\nHost: x\r\n" + CLOSE
        sock.sendall(head + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"abc")
        assert read(sock).endswith(b"3")


def test_the_rest_of_a_refused_body_is_dropped_for_a_while_only(app):
    """The answer arrives although the client still sends; then the connection ends."""
    with serving(app, linger=1.0) as port, connected(port) as sock:
        began = time.monotonic()
        sock.sendall(POST + b"Content-Length: 2000000000\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")
        send_until_cut(sock, b"x" * 1_000, 0.05)
        assert time.monotonic() - began > 0.9


def test_a_kept_connection_is_reused(app):
    """The limits begin anew with each request."""
    # Longer than a pause of the machine, and shorter than all the requests together.
    with serving(app, header_timeout=4.0) as port, connected(port) as sock:
        for pause_s in (1.5, 1.5, 1.5, 0):
            sock.sendall(GET + b"\r\n")
            assert sock.recv(1_000).startswith(b"HTTP/1.1 200 ")
            time.sleep(pause_s)


# -- framing --------------------------------------------------------------------------------

CHUNKED = b"Transfer-Encoding: chunked\r\n"
ODD = {
    "length and chunked": POST + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunked and length": POST + CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 4\r\n\r\nab",
    "the same length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "a list of lengths": POST + b"Content-Length: 2, 2\r\n\r\nab",
    "a signed length": POST + b"Content-Length: +2\r\n\r\nab",
    "a hexadecimal length": POST + b"Content-Length: 0x2\r\n\r\nab",
    "no length": POST + b"Content-Length: \r\n\r\nab",
    "a huge length": POST + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\nab",
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunked(b"ab"),
    "gzip": POST + b"Transfer-Encoding: gzip\r\n\r\nab",
    "chunked, gzip": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + chunked(b"ab"),
    "chunked twice": POST + CHUNKED + CHUNKED + b"\r\n" + chunked(b"ab"),
    "identity and chunked": POST + b"Transfer-Encoding: identity\r\n" + CHUNKED + b"\r\n",
    "another chunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + chunked(b"ab"),
    "a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + chunked(b"ab"),
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + chunked(b"ab"),
    "bare line feeds": GET.replace(b"\r\n", b"\n") + b"\n",
    "one bare line feed": GET + b"X-A: b\nX-C: d\r\n\r\n",
    "a bare carriage return": GET + b"X-A: b\rX-C: d\r\n\r\n",
    "a folded header": GET + b"X-A: b\r\n c\r\n\r\n",
    "NUL in a header": GET + b"X-A: a\0b\r\n\r\n",
    "NUL in the path": b"GET /a\0b HTTP/1.1\r\nHost: x\r\n\r\n",
    "no Host": b"GET /lengths HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: y\r\n\r\n",
    "HTTP/0.9": b"GET /lengths\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
    "chunks with line feeds": POST + CHUNKED + b"\r\n2\nab\n0\n\n",
    "a negative chunk": POST + CHUNKED + b"\r\n-2\r\nab\r\n0\r\n\r\n",
    "a huge chunk": POST + CHUNKED + b"\r\nffffffffffffffffff\r\nab\r\n0\r\n\r\n",
    "a chunk that is too long": POST + CHUNKED + b"\r\n2\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("raw", ODD.values(), ids=ODD)
def test_a_request_whose_end_is_doubtful_is_refused(port, raw):
    """400 or 501, and the connection ends: what follows is not taken for a request."""
    (status,) = answers(port, raw + NEXT)
    assert status in {400, 501}


def test_a_broken_second_request_does_not_break_the_first_answer(port):
    """Nothing is written into an answer that is on its way."""
    with connected(port) as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        found = sock.recv(1_000)
        sock.sendall(b"nonsense\r\n\r\n")
        found += read(sock)
    assert found.count(b"HTTP/1.1 ") == 1
    assert found.endswith(b"5\r\nended\r\n0\r\n\r\n")


def test_an_upload_that_is_given_up_is_one_line_in_the_log(app, port, caplog):
    """The client's reset is no error of the service."""
    before = app.state.begun
    with caplog.at_level(logging.INFO, logger="poolkit.fastapi"):
        with connected(port) as sock:
            sock.sendall(POST + b"Content-Length: 100\r\n\r\n{")
            wait_until(lambda: app.state.begun > before, "the request to begin")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        wait_until(lambda: [r for r in caplog.records if r.name == "poolkit.fastapi"], "a line")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "POST /lengths" in caplog.text


@pytest.mark.parametrize("rest", [NEXT, b"nonsense\r\n\r\n", b"\0" * 100])
def test_nothing_is_answered_after_connection_close(port, rest):
    """What a client sends after it has asked for the end is not a request (uvicorn#2238)."""
    assert answers(port, GET + CLOSE + b"\r\n" + rest) == [200]


def test_pipelined_requests_are_answered_in_order_however_long_the_first_takes(app):
    """The time for headers does not run while an answer is made (uvicorn#2243)."""
    first = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n"
    with serving(app, header_timeout=LATE_S - 0.5) as port, connected(port) as sock:
        sock.sendall(first + GET + b"\r\n" + GET + CLOSE + b"\r\n")
        found = read(sock)
    assert found.count(b"HTTP/1.1 200 ") == 3
    assert found.index(b"ended") < found.index(b"HTTP/1.1 200 ", 20)
