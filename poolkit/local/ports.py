"""Free ports of the loopback address."""

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST = 20_000
"""Browsers refuse 10080 and some below it; well-known services are rarer above."""


def free_port() -> int:
    """Return a TCP port of the loopback address that is unused at this moment.

    Another process may bind it before the caller does, so a server that cannot bind it needs
    another one. On Linux it is below the ports that the kernel gives to outgoing connections:
    a server that stops and starts again finds its port free, even where its clients tried to
    connect meanwhile.
    """
    below = _first_outgoing_port()
    for port in random.sample(range(_LOWEST, below), 100) if below > _LOWEST + 100 else ():
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        chosen: int = probe.getsockname()[1]
        return chosen


def _first_outgoing_port() -> int:
    """Return the lowest port that the kernel gives to an outgoing connection; 0 if unknown."""
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
        return int(text.split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        # As servers do: lingering connections of an earlier server do not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True
