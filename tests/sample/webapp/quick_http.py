"""The server's protocol with times that a test can wait for."""

from poolkit.fastapi.server import LimitedHttp


class QuickHttp(LimitedHttp):
    header_timeout = 1.0
    body_timeout = 1.0
    linger = 0.5
