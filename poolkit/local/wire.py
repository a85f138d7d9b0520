"""The messages of PostgreSQL's protocol as they pass: what a connect consists of, and when.

The kinds and their letters: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import struct
from typing import NamedTuple

_AUTHENTICATION = {
    0: "authentication ok",
    3: "cleartext password request",
    5: "md5 password request",
    10: "SASL request",
    11: "SASL continue",
    12: "SASL final",
}
_FROM_SERVER = {
    b"E": "error",
    b"K": "backend key",
    b"S": "parameter",
    b"Z": "ready",
    b"N": "notice",
    b"T": "row description",
    b"D": "row",
    b"C": "complete",
    b"1": "parsed",
    b"2": "bound",
    b"t": "parameter description",
    b"n": "no data",
    b"3": "closed",
    b"A": "notification",
}
_FROM_CLIENT = {
    b"p": "password",
    b"Q": "query",
    b"P": "parse",
    b"B": "bind",
    b"D": "describe",
    b"E": "execute",
    b"S": "sync",
    b"C": "close",
    b"H": "flush",
    b"X": "terminate",
}


_LONGEST = 1 << 26
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class Step(NamedTuple):
    """Bytes that one side sent at once."""

    at_s: float
    """When the proxy received them, in seconds since the connection was accepted."""
    by_client: bool
    messages: tuple[str, ...]
    """Such as `("authentication ok", "parameter", "backend key", "ready")`."""
    flights: int
    """How often the client has sent something and then waited, by now: TLS's handshake included,
    TCP's not."""


class Trace(NamedTuple):
    """What passed over one connection."""

    steps: tuple[Step, ...]

    def first(self, message: str) -> Step:
        """Return the first step with a message.

        Raises:
            LookupError: it did not pass.
        """
        for step in self.steps:
            if message in step.messages:
                return step
        raise LookupError(f"no {message!r} passed, but {[step.messages for step in self.steps]}")


class Reader:
    """Names the messages of one side in the bytes of its stream."""

    def __init__(self, *, by_client: bool) -> None:
        self._by_client = by_client
        # A client's first message has a length and no letter, and an answer to SSLRequest is a letter.
        self._has_letter = not by_client
        self._is_first = True
        self._is_foreign = False
        self._rest = b""

    def read(self, data: bytes) -> tuple[str, ...]:
        """Return the names of the messages that are complete now."""
        if self._is_foreign:
            return ()
        data = self._rest + data
        found = []
        if self._is_first and not self._by_client and data == b"N":
            return ("TLS refused",)
        while True:
            letter = int(self._has_letter)
            if len(data) < letter + 4:
                break
            (length,) = struct.unpack_from("!i", data, letter)
            end = letter + length
            if not 4 <= length <= _LONGEST:
                # Another protocol: nothing in it has a name here.
                self._is_foreign = True
            if self._is_foreign or len(data) < end:
                break
            found.append(self._name(data[:end]))
            data = data[end:]
            self._has_letter = self._has_letter or found[-1] == "startup"
            self._is_first = False
        self._rest = b"" if self._is_foreign else data
        return tuple(found)

    def _name(self, message: bytes) -> str:
        if not self._has_letter:
            return "TLS request" if message == _SSL_REQUEST else "startup"
        letter = message[:1]
        if self._by_client:
            return _FROM_CLIENT.get(letter, letter.decode("latin-1"))
        if letter == b"R":
            (code,) = struct.unpack_from("!i", message, 5)
            return _AUTHENTICATION.get(code, f"authentication {code}")
        return _FROM_SERVER.get(letter, letter.decode("latin-1"))


class Recorder:
    """Records what passes over one connection.

    Args:
        began: when it was accepted, on a clock in seconds.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._readers = {True: Reader(by_client=True), False: Reader(by_client=False)}
        self._flights = 0
        self._client_was_last = False
        self._steps: list[Step] = []

    def flight(self, *, by_client: bool) -> None:
        """Record that bytes passed, encrypted or not."""
        self._flights += by_client and not self._client_was_last
        self._client_was_last = by_client

    def pass_on(self, data: bytes, now: float, *, by_client: bool) -> None:
        """Record messages that passed."""
        if messages := self._readers[by_client].read(data):
            self._steps.append(Step(now - self._began, by_client, messages, self._flights))

    def trace(self) -> Trace:
        """Return what has passed so far."""
        return Trace(tuple(self._steps))
