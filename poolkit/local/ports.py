"""Free ports of the loopback address."""

import os
import random
import socket
from collections import deque
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOWEST = 20_000
"""Browsers refuse 10080 and some below it; well-known services are rarer above."""
_SHARES = 16
"""The parts of the range, of which each process takes the one of its pid."""
_given: deque[int] = deque(maxlen=50)
"""The latest ports of this process."""


def free_port() -> int:
    """Return a TCP port of the loopback address that is unused at this moment.

    Another process may bind it before the caller does, so a server that cannot bind it needs
    another one. On Linux it is below the ports that the kernel gives to outgoing connections:
    a server that stops and starts again finds its port free, even where its clients tried to
    connect meanwhile.
    """
    try:
        settings = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    except OSError:
        settings = "0 0"  # not Linux
    # Processes that look at the same moment mostly look at other ports, and one process is not
    # given a port again before its server had time to bind it.
    below = range(_LOWEST + os.getpid() % _SHARES, int(settings.split()[0]), _SHARES)
    for port in random.sample(below, min(100, len(below))):
        if port not in _given and is_free(port):
            _given.append(port)
            return port
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        chosen: int = probe.getsockname()[1]
        return chosen


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
