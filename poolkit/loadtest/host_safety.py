"""Whose host is it? A load test of somebody else's is an attack, and a typing error is enough.

What is not this machine has to be agreed to by name, with `--yes-load-this-host`.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from poolkit.errors import ConfigurationError

OPTION = "--yes-load-this-host"


def check_host(
    url: str,
    agreed: bool,  # noqa: FBT001  (the one question there is)
    *,
    option: str = "--host",
) -> None:
    """Refuse a host that is not this machine, unless that was agreed to.

    This machine is `localhost`, 127.0.0.0/8, ::1, and every name all of whose addresses are
    among these.

    Args:
        url: what `--host` was given, `https://api.example.com`.
        agreed: whether `--yes-load-this-host` was given.
        option: where the URL was given, for the message.

    Raises:
        ConfigurationError: the host is another machine and was not agreed to, it does not
            resolve, or there is none in the URL; one line.

    """
    host = _host_of(url, option)
    if host == "localhost":
        return
    elsewhere = [address for address in _addresses(host, option) if not _is_loopback(address)]
    if elsewhere and not agreed:
        at = "" if elsewhere[0] == host else f" ({elsewhere[0]})"
        raise ConfigurationError(
            f"{option}: {host}{at} is not this machine, and a load test can take it down; "
            f"add {OPTION} if it is yours to load"
        )


def _host_of(url: str, option: str) -> str:
    try:
        host = urlsplit(url.strip()).hostname
    except ValueError:
        host = None
    if not host:
        # Not repeated whole: there may be a password in it.
        raise ConfigurationError(
            f"{option}: no host in {_shown(url)!r}; wanted http://HOST[:PORT] or https://HOST[:PORT]"
        )
    return host.rstrip(".")


def _shown(url: str) -> str:
    return url.rpartition("@")[2]


def _addresses(host: str, option: str) -> list[str]:
    """Return the addresses of a host, without its IPv6 scope."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"{option}: {host} does not resolve: {reason}") from None
    return list(dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found))


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback
