"""The check that a host may be loaded: a load test of another's machine is an attack.

A typing error is enough for that. So any host but this machine needs the agreement of
`--yes-load-this-host`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from poolkit.errors import ConfigurationError, RedirectRefused

OPTION = "--yes-load-this-host"
_THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
UNIX_SOCKET = "unix"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://|(?:dns|ipv4|ipv6):(?!\d+$)")
"""gRPC's own names need no slashes. A host may also have such a name: `dns:53`."""

redirect_hosts: set[str] = set()
"""Further hosts to which a redirect is followed: those of `register(redirects_to=...)`."""


def check_redirect(from_host: str | None, to_host: str | None) -> None:
    """Refuse a redirect that would load another host than the one that was agreed to.

    The application decides where it redirects to, such as a login service of another company. The
    names of this machine are one host, and a port is no other host.

    Raises:
        RedirectRefused: the host is another one, and not in `redirect_hosts`.
    """
    hosts = [(host or "").lower().rstrip(".") for host in (from_host, to_host)]
    if hosts[0] == hosts[1] or set(hosts) <= _THIS_MACHINE or hosts[1] in redirect_hosts:
        return
    raise RedirectRefused(
        f"not followed: a redirect from {hosts[0]} to {hosts[1]}, which is not the host under "
        f"load; write loadtest.register(redirects_to=({hosts[1]!r},)) if it is yours to load"
    )


def check_host(
    url: str,
    agreed: bool,  # noqa: FBT001
    *,
    option: str = "--host",
    agreement: str = OPTION,
) -> None:
    """Refuse a host that is not this machine, unless the user agreed to it.

    This machine is `localhost`, 127.0.0.0/8, ::1, and every name all of whose addresses are
    among these.

    Args:
        url: the value of `--host`, such as `https://api.example.com`.
        agreed: whether the option of the agreement was given.
        option: where the URL was given, for the message.
        agreement: the option by which the user agrees, for the message.

    Raises:
        ConfigurationError: the host is another machine and was not agreed to, it does not
            resolve, or the URL has none; one line.
    """
    names = host_names(url)
    if not names or not all(names):
        # Without the part before the @, which may contain a password.
        raise ConfigurationError(
            f"{option}: no host in {url.rpartition('@')[2]!r}; "
            "wanted http://HOST[:PORT], https://HOST[:PORT], or HOST:PORT for other clients"
        )
    for name in names:
        if name not in ("localhost", UNIX_SOCKET):
            _check_name(name, agreed, option=option, agreement=agreement)


def host_names(url: str) -> list[str]:
    """Return the names of the hosts in the value of `--host`; an empty one if it has none.

    Clients other than HTTP have no scheme (`localhost:50051`), one of gRPC's names
    (`dns:///localhost:50051`, `unix:/run/app.sock`), or several hosts (`kafka-1:9092,kafka-2:9092`).
    """
    text = url.strip()
    if text.startswith(("unix:", "unix-abstract:")):
        return [UNIX_SOCKET]
    matched = _SCHEME.match(text)
    rest = text[matched.end() :] if matched else text
    if matched and matched[1] == "dns" and rest.count("/"):
        rest = rest.partition("/")[2]  # after the DNS server, which is usually left out
    addresses = re.split(r"[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
    names = []
    for address in addresses.split(","):
        try:
            name = urlsplit(f"//{address}").hostname or ""
        except ValueError:
            name = ""
        names.append(name.rstrip("."))
    return names


def _check_name(host: str, agreed: bool, *, option: str, agreement: str) -> None:  # noqa: FBT001
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigurationError(f"{option}: {host} does not resolve: {reason}") from None
    remote = []
    for *_, address in found:
        # An IPv6 address may have a scope behind a %, and may stand for an IPv4 address.
        parsed = ipaddress.ip_address(str(address[0]).partition("%")[0])
        if not (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback:
            remote.append(str(parsed))
    if remote and not agreed:
        at = "" if remote[0] == host else f" ({remote[0]})"
        raise ConfigurationError(
            f"{option}: {host}{at} is not this machine, and a load test can take it down; "
            f"add {agreement} if it is yours to load"
        )
