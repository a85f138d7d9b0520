"""A web server inside the test's process, for what is loaded or checked over HTTP."""

import contextlib
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from processes import PATIENCE_S, run


class WebServer(ThreadingHTTPServer):
    """Answers every GET with one status at once, except while `opened` is cleared.

    `asked` has the paths that were asked for, `headers` what came with them, and `moments` when, by
    the monotonic clock; `held` has those that had to wait. One that is asked for at the moment of
    clearing may yet be answered.
    """

    daemon_threads = True
    # With five, a sixth user would wait for a second each time that this process stands still.
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.location = 200, ""
        self.statuses: dict[str, int] = {}
        """Of single paths, without a query."""
        self.opened = threading.Event()
        self.opened.set()
        self.asked: list[str] = []
        self.held: list[str] = []
        self.moments: list[float] = []
        self.headers: list[Mapping[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        self.server.moments.append(time.monotonic())
        self.server.headers.append(self.headers)
        self.server.asked.append(self.path)
        if not self.server.opened.is_set():
            self.server.held.append(self.path)
            self.server.opened.wait(PATIENCE_S)
        path = self.path.partition("?")[0]
        self.send_response(self.server.statuses.get(path, self.server.status))
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(
    *, status: int = 200, location: str = "", tls: ssl.SSLContext | None = None
) -> Iterator[WebServer]:
    """Serve on a free port, over TLS if there is a context for it."""
    with WebServer() as server:
        server.status, server.location = status, location
        if tls is not None:
            server.handle_error = lambda *_: None  # a client that does not trust it hangs up
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.opened.set()
            server.shutdown()
            thread.join()


def self_signed(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """Make a certificate of no known authority for 127.0.0.1; return its file and its key's."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    made = run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", f"/CN={name}"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
    )
    assert made.returncode == 0, made.stderr
    return certificate, key
