"""The names of PostgreSQL's messages in a stream of bytes."""

import struct

import pytest

from poolkit.local.wire import Reader, Recorder

STARTUP = struct.pack("!ii", 8, 196_608)
SSL_REQUEST = struct.pack("!ii", 8, 80_877_103)
READY = b"Z" + struct.pack("!i", 5) + b"I"
AUTHENTICATION_OK = b"R" + struct.pack("!ii", 8, 0)


def test_messages_are_named_however_the_stream_is_cut():
    stream = AUTHENTICATION_OK + READY + READY
    for size in range(1, len(stream) + 1):
        reader = Reader(by_client=False)
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        found = [name for piece in pieces for name in reader.read(piece)]
        assert found == ["authentication ok", "ready", "ready"]


def test_a_client_s_first_message_has_no_letter():
    """Also after it asked for TLS, and was refused."""
    query = b"Q" + struct.pack("!i", 13) + b"SELECT 1\0"
    client, server = Reader(by_client=True), Reader(by_client=False)
    assert client.read(SSL_REQUEST) == ("TLS request",)
    assert server.read(b"N") == ("TLS refused",)
    assert client.read(STARTUP + query) == ("startup", "query")
    assert server.read(AUTHENTICATION_OK) == ("authentication ok",)


@pytest.mark.parametrize("data", [b"\xff" * 64, b"\0" * 64, b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_message_is_passed_over(data):
    """A proxy must not fail because another protocol passes."""
    for by_client in (True, False):
        assert isinstance(Reader(by_client=by_client).read(data), tuple)


def test_a_flight_is_what_a_client_sends_before_it_waits():
    """Two messages in two packets are one flight if no answer came between them."""
    recorder = Recorder(began=10.0)
    for by_client, data in (
        (True, STARTUP),
        (False, AUTHENTICATION_OK),
        (True, READY),
        (True, READY),
    ):
        recorder.flight(by_client=by_client)
        recorder.pass_on(data, 10.5, by_client=by_client)
    trace = recorder.trace()
    assert [step.flights for step in trace.steps] == [1, 1, 2, 2]
    assert trace.first("startup").at_s == 0.5
    with pytest.raises(LookupError, match="no 'error' passed"):
        trace.first("error")
