"""Loading another machine has to be agreed to."""

import pytest

from poolkit.errors import ConfigurationError
from poolkit.loadtest.host_safety import check_host


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000",
        "http://LOCALHOST.",
        "http://127.0.0.1",
        "https://127.8.9.10:8443/base",
        "http://[::1]:8000",
        "http://[::ffff:127.0.0.1]",
        "http://user:secret@127.0.0.1:8000",
        "http://127.1",
        "localhost:50051",
        "127.0.0.1:8000",
        "[::1]:50051",
        "localhost",
        "dns:///localhost:50051",
        "dns://127.0.0.53/localhost:50051",
        "ipv4:127.0.0.1:50051",
        "unix:/run/app.sock",
        "mqtt://localhost",
        "localhost:9092,127.0.0.1:9093",
        "localhost:8000/?next=http://192.0.2.1",
    ],
)
def test_this_machine_needs_no_agreement(url):
    """By name, by any address of the loopback network, written as one likes."""
    check_host(url, False)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://192.0.2.1", "192.0.2.1"),
        ("http://user:secret@198.51.100.7:8000", "198.51.100.7"),
        ("http://[2001:db8::1]/", "2001:db8::1"),
        ("http://10.0.0.5:8000", "10.0.0.5"),
        ("http://0.0.0.0:8000", "0.0.0.0"),
        ("http://127.0.0.1@192.0.2.1/", "192.0.2.1"),
        ("192.0.2.1:50051", "192.0.2.1"),
        ("secret@192.0.2.1", "192.0.2.1"),
        ("dns:///192.0.2.1:50051", "192.0.2.1"),
        ("dns://127.0.0.1/192.0.2.1:50051", "192.0.2.1"),
        ("ws://192.0.2.1/localhost", "192.0.2.1"),
        ("localhost:9092,192.0.2.1:9092", "192.0.2.1"),
    ],
)
def test_another_machine_needs_one(url, host):
    """The line names the host and the option, and no password; agreed to, it passes."""
    with pytest.raises(ConfigurationError, match="add --yes-load-this-host") as refused:
        check_host(url, False)
    said = str(refused.value)
    assert f"--host: {host} is not this machine" in said
    assert "secret" not in said
    assert "\n" not in said
    check_host(url, True)


@pytest.mark.parametrize("agreed", [True, False])
def test_a_host_that_does_not_resolve_is_one_line(agreed):
    """Whether or not it was agreed to."""
    with pytest.raises(ConfigurationError, match=r"^--target web: no-such-host\.invalid does not"):
        check_host("http://no-such-host.invalid", agreed, option="--target web")


@pytest.mark.parametrize(
    "url", ["", "/articles", "http://", "http://[::1", "me:secret@", "localhost:9092,", "dns:///"]
)
def test_a_url_without_a_host_is_refused(url):
    """What is missing is said, and how it is written."""
    with pytest.raises(ConfigurationError, match=r"no host in .*wanted http://HOST") as refused:
        check_host(url, True)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "xn--\udcff"])
def test_a_name_that_cannot_be_one_does_not_resolve(host):
    """Python refuses it before anybody is asked."""
    with pytest.raises(ConfigurationError, match=r"does not resolve|no host"):
        check_host(f"http://{host}.invalid", False)
