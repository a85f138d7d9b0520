"""A redirect to another host ends there: the application does not decide what a test loads."""

import http.server
import threading
from contextlib import contextmanager

import pytest

from poolkit.errors import RedirectRefused
from poolkit.loadtest.host_safety import check_redirect

pytestmark = pytest.mark.process

LOCUSTFILE = """
from locust import {base}, constant, task
from poolkit import loadtest

loadtest.register({arguments})

class Visitor({base}):
    wait_time = constant(0.05)

    @task
    def visit(self):
        self.client.get("/away")
        self.client.post("/away", data="x")
        self.client.get("/moved")
"""


@contextmanager
def serving(address, redirects):
    """Run a web server that redirects some paths; yields its URL and its list of requests."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen.append(self.path)
            target = redirects.get(self.path)
            self.send_response(307 if target else 200)
            if target:
                self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer((address, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{address}:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("base", ["HttpUser", "FastHttpUser"])
@pytest.mark.parametrize("is_allowed", [False, True])
def test_another_host_is_loaded_only_if_the_locustfile_names_it(locust, tmp_path, base, is_allowed):
    arguments = "redirects_to=('127.0.0.2',)" if is_allowed else ""
    file = tmp_path / "visit.py"
    file.write_text(LOCUSTFILE.format(base=base, arguments=arguments))
    redirects = {}
    with (
        serving("127.0.0.2", {}) as (other, loaded),
        serving("127.0.0.1", redirects) as (url, seen),
    ):
        port = url.rpartition(":")[2]
        redirects |= {"/away": f"{other}/x", "/moved": f"http://localhost:{port}/here"}
        run = locust("-f", str(file), "--headless", "--host", url, "-u", "1", "-t", "10m")
        # The only user comes there after the two that lead away.
        run.wait_until(lambda: "/here" in seen, "the redirect that stays")
        assert run.stop() == (0 if is_allowed else 1), run.text
    assert bool(loaded) is is_allowed
    assert ("127.0.0.2, which is not the host under load" in run.text) is not is_allowed


@pytest.mark.parametrize(
    ("from_host", "to_host", "is_refused"),
    [
        ("shop.example", "shop.example", False),
        ("shop.example", "SHOP.example.", False),
        ("localhost", "127.0.0.1", False),
        ("127.0.0.1", "::1", False),
        ("shop.example", "login.example", True),
        ("shop.example", "www.shop.example", True),
        ("127.0.0.1", "169.254.169.254", True),
        ("shop.example", "localhost", True),
        ("shop.example", None, True),
    ],
)
def test_a_host_is_the_same_by_its_name(from_host, to_host, is_refused):
    if is_refused:
        with pytest.raises(RedirectRefused):
            check_redirect(from_host, to_host)
    else:
        check_redirect(from_host, to_host)
