"""`poolkit smoke`: requests to a service, and what it makes of the responses."""

import ssl
import threading
import time

import pytest
import web_server
import web_service
from poolkit_command import refused, run_here, run_process, succeeded

PATHS = ["/healthz", "/readyz", "/articles"]


def test_probes_and_paths_are_requested_in_order():
    """The two probes first; each path three times in a row."""
    with web_server.serving() as server:
        succeeded(run_here("smoke", server.url, "/articles"), f"ok    {server.url}/articles  200")
        assert server.asked == [path for path in PATHS for _ in range(3)]


def test_a_service_without_probes_is_asked_for_paths_only():
    """A function has no probes; `--times` is the number of responses that a path needs."""
    with web_server.serving() as server:
        succeeded(run_here("smoke", server.url + "/", "--no-probes", "--times", "2", "/x?limit=1"))
        assert server.asked == ["/x?limit=1"] * 2


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"status": 503}, "503"),
        ({"status": 404}, "404"),
        ({"status": 302, "location": "http://other.example.org/"}, "leads to http://other.exa"),
    ],
)
def test_other_statuses_and_redirects_are_failures(answer, shown):
    """Exit status 1, a line for each path, and no redirect is followed."""
    with web_server.serving(**answer) as server:
        done = run_here("smoke", server.url, "/articles", "--timeout", "0")
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert [line.split()[:2] for line in lines] == [["FAIL", server.url + p] for p in PATHS]
        assert all(shown in line for line in lines)
        assert server.asked == PATHS


def test_a_service_may_need_a_moment():
    """A failure is asked again until the time is over, and then needs its answers in a row."""
    with web_server.serving(status=503) as server:

        def heal():
            while not server.asked:
                time.sleep(0.01)
            server.status = 200

        healer = threading.Thread(target=heal)
        healer.start()
        done = run_here("smoke", server.url, "--no-probes", "/articles")
        healer.join()
        succeeded(done, "4 requests")


def test_a_closed_port_is_a_failure():
    """Nothing listens: exit status 1, with the reason of the system."""
    with web_server.serving() as server:
        url = server.url
    done = run_here("smoke", url, "--timeout", "0")
    assert done.returncode == 1
    assert "refused" in done.stdout


@pytest.mark.process
def test_an_untrusted_certificate_ends_the_test_at_once(tmp_path):
    """Another try cannot make it valid: one request for each path, long before the timeout."""
    certificate, key = web_server.self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with web_server.serving(tls=context) as server:
        started = time.monotonic()
        done = run_here("smoke", server.url.replace("http:", "https:"), "--timeout", "100")
        assert time.monotonic() - started < 50
        assert done.returncode == 1
        assert done.stdout.count("(1 requests") == 2
        assert "certificate" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dev.example.org",), "dev.example.org"),
        (("ftp://dev.example.org",), "ftp://dev.example.org"),
        (("https://dev.example.org?x=1",), "https://dev.example.org?x=1"),
        (("https://dev.example.org", "articles"), "articles"),
        (("https://dev.example.org", "/a b"), "/a b"),
        (("https://dev.example.org", "--no-probes"), "PATH"),
    ],
)
def test_wrong_input_is_refused_before_any_request(arguments, message):
    """Exit status 2, and the word that is wrong."""
    refused(run_here("smoke", *arguments), message, lines=1)


def test_a_password_belongs_in_the_variable():
    """A URL with one is refused without showing it; the variable is sent and never printed."""
    error = refused(run_here("smoke", "https://me:geheim@dev.example.org"), "AUTHORIZATION")
    assert "geheim" not in error
    with web_server.serving(status=401) as server:
        done = run_here(
            *("smoke", server.url, "--timeout", "0"), POOLKIT_SMOKE_AUTHORIZATION="Bearer geheim"
        )
        assert "geheim" not in done.stdout + done.stderr
        assert server.headers[0]["Authorization"] == "Bearer geheim"


@pytest.mark.sample
@pytest.mark.process
def test_the_sample_s_web_service_passes(migrated_database):
    """Probes and a request that reads from the database, as a pipeline asks for it."""
    with web_service.serving("webapp.app:app", migrated_database.url(driver="")) as served:
        succeeded(run_process("smoke", served.address, "/articles"), "/readyz  200")
