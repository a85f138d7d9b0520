"""The distance between an application and its database: a round-trip time, and TLS or none."""

from __future__ import annotations

import difflib
import re
import socket
import statistics
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from poolkit.errors import ConfigurationError
from poolkit.local.network import Network
from poolkit.local.ports import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from poolkit.local.network import ServerTls


class NamedDistance(NamedTuple):
    """A distance that many deployments have, and who measured it."""

    rtt_s: float
    meaning: str
    source: str


NAMED_DISTANCES = {
    "loopback": NamedDistance(0.0, "the same machine", "no network"),
    "same-az": NamedDistance(
        0.0005,
        "two instances in one availability zone of AWS",
        "0.5 ms: flashgrid.io, Latencies between AWS availability zones, March 2023",
    ),
    "cross-az": NamedDistance(
        0.0015,
        "two availability zones of one region",
        "1.5 ms: the same article; AWS promises single-digit milliseconds",
    ),
    "cross-region": NamedDistance(
        0.0624,
        "us-east-1 and us-west-2",
        "62.4 ms: AWS, Monitor Infrastructure Performance using the AWS CLI, p50, October 2022",
    ),
}
JITTER = 0.1
"""Each passage takes up to this share longer or shorter."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*(us|µs|ms|s)?")
_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, None: 1e-3}
_LONGEST_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Distance:
    """A round-trip time in seconds, and whether connections use TLS."""

    rtt_s: float = 0.0
    tls: bool = False
    name: str = ""
    """Of `NAMED_DISTANCES`, if it is one of them."""

    @classmethod
    def parse(cls, text: str, *, tls: bool = False) -> Distance:
        """Return the distance of a name, or of a round-trip time such as `0.5ms`.

        Args:
            text: `same-az`, `cross-az`, `cross-region`, `loopback`, or a duration; a number alone
                is in milliseconds.
            tls: whether connections use TLS.

        Raises:
            ConfigurationError: it is neither, or longer than 5 s.
        """
        if (found := NAMED_DISTANCES.get(text)) is not None:
            return cls(rtt_s=found.rtt_s, tls=tls, name=text if found.rtt_s else "")
        match = _DURATION.fullmatch(text.strip())
        if match is None:
            close = difflib.get_close_matches(text.lower(), NAMED_DISTANCES, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigurationError(
                f"{text!r} is no round-trip time: {hint}give one such as 0.5ms, "
                f"or a name: {', '.join(NAMED_DISTANCES)}"
            )
        rtt_s = float(match[1]) * _UNITS[match[2]]
        if rtt_s > _LONGEST_S:
            raise ConfigurationError(f"a round-trip time of {text} is longer than 5 s")
        return cls(rtt_s=rtt_s, tls=tls)

    @property
    def is_none(self) -> bool:
        """Whether it changes nothing: the loopback address without TLS."""
        return not self.rtt_s and not self.tls

    def __str__(self) -> str:
        rtt = f"{self.rtt_s * 1e3:.3g} ms round trip" if self.rtt_s else "loopback"
        return f"{rtt}{f' ({self.name})' if self.name else ''}, {'TLS' if self.tls else 'no TLS'}"


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """A certificate of this machine's loopback address, and the authority that signed it."""

    server: Path
    """The server's key and certificate chain, as PEM."""
    ca: Path
    """For `sslrootcert` and `sslmode=verify-full`."""


def make_certificates(folder: Path) -> Certificates:
    """Make a certificate for localhost and 127.0.0.1 in a folder; nothing else trusts its authority."""
    import trustme  # noqa: PLC0415  (cryptography takes 100 ms, and most runs have no TLS)

    authority = trustme.CA(organization_name="poolkit")
    found = Certificates(server=folder / "server.pem", ca=folder / "ca.pem")
    certificate = authority.issue_cert("localhost", LOOPBACK)
    found.server.touch(mode=0o600)
    certificate.private_key_and_cert_chain_pem.write_to_path(str(found.server))
    authority.cert_pem.write_to_path(str(found.ca))
    return found


class Way(NamedTuple):
    """A network that makes a distance, and the authority of its certificate if it has TLS."""

    network: Network
    ca: Path | None


@contextmanager
def way_to(
    host: str,
    port: int,
    distance: Distance,
    *,
    traces: bool = False,
    certificates: Certificates | None = None,
    server_tls: ServerTls | None = None,
) -> Iterator[Way]:
    """Open a network of this distance in front of a server.

    Args:
        host: the server's.
        port: the server's.
        distance: that connections through the network have.
        traces: record what passes, for `Network.traces`.
        certificates: for TLS; by default new ones.
        server_tls: how the network speaks TLS to the server, where that has TLS.
    """
    from poolkit.local.processes import owned_folder  # noqa: PLC0415  (every command reads this file)

    with ExitStack() as stack:
        made = certificates if distance.tls else None
        if distance.tls and made is None:
            made = make_certificates(stack.enter_context(owned_folder()))
        network = stack.enter_context(
            Network(
                host,
                port,
                rtt_s=distance.rtt_s,
                jitter=JITTER if distance.rtt_s else 0.0,
                certificate=made.server if made else None,
                server_tls=server_tls,
                traces=traces,
            )
        )
        yield Way(network, made.ca if made else None)


class OwnCost(NamedTuple):
    """What a network's proxy itself adds."""

    added_s: float
    """To the median of a round trip, beyond the distance that it shall make."""
    cpu_s_per_round_trip: float


def own_cost(distance: Distance, rounds: int = 200) -> OwnCost:
    """Measure what a proxy adds to a round trip by itself, on the loopback address.

    A server that returns what it receives is asked directly and through a network of this
    round-trip time, in turn. TLS is left out: its cost is not the proxy's alone.
    """
    with ExitStack() as stack:
        echo = stack.enter_context(socket.create_server((LOOPBACK, 0)))
        threading.Thread(target=_echo, args=(echo,), daemon=True).start()
        port = echo.getsockname()[1]
        network = stack.enter_context(Network(LOOPBACK, port, rtt_s=distance.rtt_s))
        ends = [
            stack.enter_context(socket.create_connection((LOOPBACK, each)))
            for each in (port, network.port)
        ]
        for end in ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _round_trip(end)
        before = network.figures().cpu_s
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for end, found in zip(ends, times, strict=True):
                found.append(_round_trip(end))
        cpu_s = network.figures().cpu_s - before
    direct, through = map(statistics.median, times)
    return OwnCost(through - direct - distance.rtt_s, cpu_s / rounds)


def _round_trip(end: socket.socket) -> float:
    began = time.perf_counter()
    end.sendall(bytes(64))
    end.recv(64)
    return time.perf_counter() - began


def _echo(listening: socket.socket) -> None:
    """Return what each connection sends, until the listening socket is closed."""

    def serve(end: socket.socket) -> None:
        with end, suppress(OSError):
            while data := end.recv(4096):
                end.sendall(data)

    with suppress(OSError):
        while True:
            end, _ = listening.accept()
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(end,), daemon=True).start()
