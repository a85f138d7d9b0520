"""The connections of the load generator: how many its HTTP clients opened, and how long that took.

A server that closes keep-alive, or a client without it, opens a connection for each request. Then a
latency includes a connect, and the server spends its time on handshakes. Locust shows none of that.
Nothing here imports Locust.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.loadtest.latency.histogram import LatencyHistogram
from poolkit.loadtest.latency.report import figures, ms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FEW_PER_CONNECTION = 2.0
_ENOUGH_REQUESTS = 100
"""With fewer requests, the users' first ones decide how many share a connection."""


class ClientConnects:
    """Connections opened by HTTP clients, and the requests sent over them.

    HttpUser (requests, urllib3) and FastHttpUser (geventhttpclient) are counted, and whatever else
    uses these libraries in a locustfile. Clients of other protocols are not.
    """

    def __init__(self) -> None:
        self.opened = 0
        """Connections opened, TLS ones included."""
        self.tls = 0
        """Those with a TLS handshake."""
        self.failed = 0
        """Connects that raised an error: refused, timed out, a certificate that is not trusted."""
        self.requests = 0
        """Requests sent, redirects and repeated ones included."""
        self.resent = 0
        """How many of these FastHttpUser sent again, since the server had closed the connection
        without an answer. Each such request is one in all other figures, with one latency."""
        self.times = LatencyHistogram()
        """The time of each connect in ms: name resolution, TCP, and the TLS handshake."""

    @property
    def per_connection(self) -> float | None:
        """The mean number of requests over one connection; None without a connection."""
        return self.requests / self.opened if self.opened else None

    def add(self, other: ClientConnects) -> None:
        """Add the counts of another process."""
        self.opened += other.opened
        self.tls += other.tls
        self.failed += other.failed
        self.requests += other.requests
        self.resent += other.resent
        self.times.add(other.times)

    def to_message(self) -> dict[str, Any]:
        """Return the counts for a message from one process to another."""
        times = [number for bucket in self.times.buckets() for number in bucket]
        counts = (self.opened, self.tls, self.failed, self.requests, self.resent)
        return {"counts": counts, "times": times}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> ClientConnects:
        """Return the counts of a message."""
        found = cls()
        found.opened, found.tls, found.failed, found.requests, found.resent = message["counts"]
        found.times.add_buckets(zip(message["times"][::2], message["times"][1::2], strict=True))
        return found

    def to_json(self) -> dict[str, Any] | None:
        """Return the counts for the document; None if no HTTP client was used."""
        if not (self.opened or self.failed or self.requests):
            return None
        each = self.per_connection
        return {
            "connections": self.opened,
            "tls": self.tls,
            "failed": self.failed,
            "requests": self.requests,
            "resent": self.resent,
            "requests_per_connection": None if each is None else round(each, 3),
            "connect_ms": figures(self.times),
            "note": self.note,
        }

    @property
    def note(self) -> str:
        """Why few requests share a connection; empty if many do, or too few were sent."""
        each = self.per_connection
        if each is None or each >= _FEW_PER_CONNECTION or self.requests < _ENOUGH_REQUESTS:
            return ""
        return (
            "few requests share a connection: the server closes it (no keep-alive), "
            "or the users end, or open a session for each request"
        )

    def lines(self) -> Iterator[str]:
        """Yield the lines for the end of a run; none if no HTTP client was used."""
        if self.to_json() is None:
            return
        found, each = figures(self.times), self.per_connection
        parts = [f"{self.opened:,} connections opened"]
        parts += [f"{self.tls:,} of them with TLS"] if self.tls else []
        parts += [f"{self.failed:,} connects failed"] if self.failed else []
        parts += [] if each is None else [f"{each:,.1f} requests each"]
        if self.opened:
            times = ", ".join(f"{name} {ms(found[name])}" for name in ("p50", "p95", "p99", "max"))
            parts.append(f"connect time in ms: {times}")
        yield f"Load generator: {'; '.join(parts)}"
        if self.resent:
            yield (
                f"Load generator: {self.resent:,} of {self.requests:,} requests were sent again by "
                "FastHttpUser, since the server had closed the connection without an answer; each is "
                "one request with one latency in all tables, and a success if it was answered at last"
            )
        if self.note:
            yield f"Load generator: {self.note}"
