"""`submit_form` against pages of a real server."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qsl, urljoin

import pytest
import requests

from poolkit.errors import FormError
from poolkit.loadtest import submit_form

SEARCH = '<form action="/search"><input name="q"></form>'
REGISTER = """
  <form action="" method="post">
    <input type="hidden" name="csrf_token" value="abc">
    <input name="username"><input name="Email_Address" type="email">
    <input type="password" name="password"><input type="password" name="password2">
    <input type="checkbox" name="terms" required><input type="checkbox" name="letter">
    <textarea name="about"></textarea>
    <input type="submit" name="submit" value="Register">
    <button name="other" value="1">Later</button>
  </form>
"""
USER = {"username": "load", "email": "load@example.com", "password": "secret"}


class Pages(BaseHTTPRequestHandler):
    """Serves one page, and answers what is posted with a redirect or the page again."""

    page, is_accepted = "", True

    def do_GET(self):
        self.answer(200, self.page if self.path == "/register" else "<p>welcome</p>")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received = self.path, dict(parse_qsl(body.decode(), keep_blank_values=True))
        self.answer(302 if self.is_accepted else 200, self.page)

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Location", "/home")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments):
        """Print nothing."""


@contextmanager
def served(page, *, is_accepted=True):
    """Serve a page; yield its server, and a client as Locust's, which keeps cookies."""
    handler = type("Page", (Pages,), {"page": page, "is_accepted": is_accepted})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with requests.Session() as session:
        base = f"http://127.0.0.1:{server.server_port}"
        client = SimpleNamespace(
            get=lambda path: session.get(urljoin(base, path)),
            post=lambda path, data, name: session.post(urljoin(base, path), data=data),
        )
        try:
            yield server, client
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def test_a_form_is_filled_in_as_a_browser_does_it():
    """Hidden fields stay, passwords repeat, one button is sent, and the form's own page receives it."""
    with served(SEARCH + REGISTER) as (server, client):
        submit_form(client, "/register", USER)
    assert server.received == (
        "/register",
        {
            "csrf_token": "abc",
            "username": "load",
            "Email_Address": "load@example.com",
            "password": "secret",
            "password2": "secret",
            "terms": "on",
            "about": "",
            "submit": "Register",
        },
    )


def test_the_action_of_a_form_receives_it():
    """A path of its own, relative to the page."""
    with served(REGISTER.replace('action=""', 'action="accounts?next=1"')) as (server, client):
        submit_form(client, "/register", USER)
    assert server.received[0] == "/accounts?next=1"


def test_a_form_that_comes_again_was_not_accepted():
    """The message names the page and its fields, so that the missing one can be given."""
    with (
        served(REGISTER, is_accepted=False) as (_, client),
        pytest.raises(FormError, match=r"/register: the form was not accepted.*password2"),
    ):
        submit_form(client, "/register", USER)


def test_a_page_without_a_form_is_refused():
    """Its status is named."""
    with (
        served("<p>closed</p>") as (_, client),
        pytest.raises(FormError, match=r"/register: wanted a page with a form.*status 200"),
    ):
        submit_form(client, "/register", USER)
