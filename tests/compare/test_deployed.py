"""Deployed targets: `--target NAME[@LABEL]=URL`, and the checks of their hosts."""

import socket
import ssl
import threading

import click
import pytest
from web_server import self_signed, serving

from poolkit.compare.plan.checks import check_answers
from poolkit.compare.plan.option_types import Connections, DeployedTarget
from poolkit.compare.plan.options import Options
from poolkit.compare.plan.plan import make_plan
from poolkit.compare.plan.targets import Deployed, Target, deployed_of
from poolkit.errors import ConfigurationError


def table(name="web", kind="web", **values):
    return Target(name=name, kind=kind, preset=kind, locustfile="load.py", **values)


TABLES = {"web": table(), "worker": table("worker", "worker")}


def urls(*texts):
    return [DeployedTarget().convert(text, None, None) for text in texts]


def check(url, kind="web", *, agreed=False, **values):
    check_answers(Deployed(target=table("it", kind, **values), url=url), agreed=agreed)


def test_a_target_takes_its_table_and_is_named_after_it():
    """The label is a part of the name, so that one table may be deployed twice."""
    found = urls("web=https://a.example/", "web@eu=https://b.example/prod")
    one, other = deployed_of(found, TABLES)
    assert (one.target.name, one.url) == ("web", "https://a.example")
    assert (other.target.name, other.url) == ("web@eu", "https://b.example/prod")
    assert other.target.preset == TABLES["web"].preset


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["wbe=https://a.x"], r"target 'wbe' is not in pyproject.toml \(did you mean web\?\)"),
        (["web=https://a.example", "web=https://b.example"], "web twice; give each a label"),
    ],
)
def test_an_unknown_or_repeated_name_is_refused(texts, message):
    """One line has what to write instead."""
    with pytest.raises(ConfigurationError, match=message):
        deployed_of(urls(*texts), TABLES)


def marks(*texts):
    return [Connections().convert(text, None, None) for text in texts]


def test_two_labels_of_one_table_are_told_apart_by_what_is_their_own():
    """Without a mark, connections of the shared name belong to neither: unknown, not another's."""
    found = urls("web@eu=https://a.example", "web@us=https://b.example", "worker=redis://c.example")

    def known(*texts):
        plan = make_plan([], Options(), deployed=deployed_of(found, TABLES, marks(*texts)))
        return {one.name: (one.is_known_by_preset, one.marks) for one in plan.record.targets}

    assert known() == {"web@eu": (False, ()), "web@us": (False, ()), "worker": (True, ())}
    eu = "address:10.0.0.0/24"
    assert known(f"web@eu={eu}", "web@us=user:us")["web@eu"] == (False, (eu,))
    # The connections of a marked one may carry the preset's name as well.
    assert known("web@eu=user:eu")["web@us"] == (False, ())


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["web=user:a"], "names web, which is no deployed target of this run"),
        (["web@eu=user:a", "web@us=user:a"], "have the same user a"),
    ],
)
def test_marks_that_tell_no_target_apart_are_refused(texts, message):
    """One line has the target, or what two of them share."""
    found = urls("web@eu=https://a.example", "web@us=https://b.example")
    with pytest.raises(ConfigurationError, match=message):
        deployed_of(found, TABLES, marks(*texts))


@pytest.mark.parametrize("text", ["web@eu", "web@eu=role:a", "web@eu=user:", "web=address:a.b"])
def test_a_mark_of_another_form_is_refused(text):
    """With the forms that there are."""
    with pytest.raises(click.BadParameter, match=r"wanted NAME@LABEL|no IP address"):
        Connections().convert(text, None, None)


@pytest.mark.parametrize("status", [200, 404, 401])
def test_a_host_with_any_answer_but_a_failure_is_accepted(status):
    """The status of a path that the load may never use does not matter; there is one request."""
    with serving(status=status) as server:
        check(f"{server.url}/prod", ready="/readyz")
    assert server.asked == ["/prod/readyz"]


@pytest.mark.parametrize(
    ("status", "location", "message"),
    [
        (503, "", "--target it: / is answered with status 503"),
        (301, "https://elsewhere.example/", "it redirects to https://elsewhere.example, so every"),
    ],
)
def test_an_answer_that_would_spoil_every_request_is_refused(status, location, message):
    """The check comes before the load."""
    with (
        serving(status=status, location=location) as server,
        pytest.raises(ConfigurationError, match=message),
    ):
        check(server.url)


def test_a_redirect_within_the_host_is_accepted():
    """A redirect to the host's own login page, for instance, is an answer."""
    with serving(status=302, location="/login") as server:
        check(server.url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1", "--target it: 127.0.0.1:1 does not answer: Connection refused"),
        ("http://no-such-host.invalid", "--target it: no-such-host.invalid does not resolve"),
        ("ftp://127.0.0.1", "wanted an http:// or https:// URL, found 'ftp://127.0.0.1'"),
        ("127.0.0.1:80", "wanted an http:// or https:// URL"),
        ("http://", "no host in"),
        ("http://127.0.0.1:99999", "--target it: Port out of range"),
        ("http://127.0.0.1/?a=1", "the load adds its paths to the URL"),
        ("http://198.51.100.7", "198.51.100.7 is not this machine, .* add --yes-load-this-host"),
    ],
)
def test_a_url_that_cannot_be_loaded_is_refused(url, message):
    """The error is one line and names the option."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        check(url)
    assert "\n" not in str(caught.value)


def test_a_host_that_does_not_speak_http_is_refused():
    """The port of a database, for instance, is no host to load."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def hang_up():
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"nonsense\n")
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port} does not answer"):
            check(f"http://127.0.0.1:{port}")
        thread.join()


@pytest.mark.process
def test_a_certificate_is_verified(tmp_path, monkeypatch):
    """A self-signed one is refused, unless the machine trusts it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = self_signed(tmp_path)
    context.load_cert_chain(certificate, key)
    with serving(tls=context) as server:
        url = f"https://127.0.0.1:{server.server_port}"
        with pytest.raises(ConfigurationError, match="its certificate is not valid: self-signed"):
            check(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        check(url)


def test_a_worker_s_url_is_its_broker_s():
    """It must answer, and a remote one needs agreement, like any other host."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        check(f"redis://127.0.0.1:{server.getsockname()[1]}/0", "worker")
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:1 does not answer"):
        check("redis://127.0.0.1:1/0", "worker")
    with pytest.raises(ConfigurationError, match="that of its broker, such as redis://"):
        check("127.0.0.1", "worker")
    with pytest.raises(ConfigurationError, match="add --yes-load-this-host"):
        check("sqs://", "worker")
    check("sqs://", "worker", agreed=True)
