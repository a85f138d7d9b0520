"""Broken requests, made at random from good ones, against the services as they are deployed."""

import random
import re
import socket
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import wait_until

pytestmark = pytest.mark.process

SEED = 20_261_127
COUNT = 200
BODY = b'{"title": "Title", "body": "Body"}'
JSON = b"Content-Type: application/json\r\n"
GOOD = [
    b"GET /articles?limit=2 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /articles/1 HTTP/1.1\r\nHost: x\r\nIf-None-Match: *\r\n\r\n",
    b"POST /articles HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s"
    % (JSON, len(BODY), BODY),
    b"POST /articles HTTP/1.1\r\nHost: x\r\n%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    % (JSON, len(BODY), BODY),
    b"PATCH /articles/1 HTTP/1.1\r\nHost: x\r\n" + JSON + b'If-Match: "1"\r\n'
    b'Content-Length: 30\r\n\r\n{"version": 1, "title": "New"}',
    b"GET /documents/a HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
]
PIECES = [
    *(b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b",", b"\xff", b"\x80", b"%00"),
    *(b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n"),
    *(b"Expect: 100-continue\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Host: y\r\n"),
    *(b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"Content-Type: text/plain\r\n"),
    *(b"Content-Encoding: gzip\r\n", b"Range: bytes=0-\r\n", b"Cookie: " + b"a=b; " * 2_000),
    *(b"X: " + b"y" * 70_000 + b"\r\n", b"X: y\r\n" * 150, b"ffffffff\r\n", b"0\r\n\r\n"),
    *(b'"\\ud800"', b"NaN", b"1e999", b"[" * 2_000, b"../", b"?", b"#", b"*", b"http://[::1"),
]


def broken(numbers: random.Random) -> bytes:
    """Return a good request with up to four changes: something put in, left out, doubled or cut."""
    raw = numbers.choice(GOOD)
    for _ in range(numbers.randint(1, 4)):
        start = numbers.randint(0, len(raw))
        end = min(len(raw), start + numbers.randint(0, 20))
        change = numbers.choice(("put in", "put in", "left out", "doubled", "bytes", "cut"))
        if change == "put in":
            # A line at the beginning of a line, more often than anywhere.
            lines = [match.end() for match in re.finditer(b"\r\n", raw)] or [start]
            at = numbers.choice((start, numbers.choice(lines)))
            raw = raw[:at] + numbers.choice(PIECES) + raw[at:]
        elif change == "left out":
            raw = raw[:start] + raw[end:]
        elif change == "doubled":
            raw = raw[:end] + raw[start:]
        elif change == "bytes":
            raw = raw[:start] + numbers.randbytes(end - start) + raw[end:]
        else:
            raw = raw[:end]
    return raw


def statuses(address: str, raw: bytes) -> list[int]:
    """Send bytes; return the statuses of all answers until the server closes the connection."""
    parts = urllib.parse.urlsplit(address)
    found = b""
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as sock:
        try:
            sock.sendall(raw)
            while data := sock.recv(65_536):
                found += data
        except ConnectionError:
            pass
    return [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3}) ", found, re.MULTILINE)]


def test_broken_requests_leave_a_service_that_works(serve, migrated_database):
    """No 500, no traceback, no connection that hangs, and every connection of the pool is back."""
    numbers = random.Random(SEED)
    requests = [broken(numbers) for _ in range(COUNT)]
    # What is cut in the middle is waited for, but not as long as a patient service would.
    options = ("--app-dir", str(Path(__file__).parent), "--timeout-keep-alive", "0")
    limits = {"UVICORN_HTTP": "quick_http:QuickHttp"}
    with serve(migrated_database.url(driver=""), *options, **limits) as served:
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda raw: statuses(served.address, raw), requests))
        wrong = [
            (raw, found)
            for raw, found in zip(requests, answers, strict=True)
            if any(status >= 500 and status != 501 for status in found)
        ]
        assert wrong == []
        # Changes that mean nothing are answered as if they were none, others are refused.
        seen = {status for found in answers for status in found}
        assert {200, 400} <= seen
        assert served.get("/healthz") == 200
        assert served.request("POST", "/articles", BODY)[0] == 201
        wait_until(lambda: served.metric("checked_out") == 0, "the connections to come back")
        assert "Traceback" not in served.process.text
