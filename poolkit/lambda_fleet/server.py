"""The fleet on an event loop: a function behind a listening socket."""

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

from poolkit.errors import LambdaFleetError
from poolkit.lambda_fleet.config import FunctionConfig
from poolkit.lambda_fleet.function import LambdaFunction
from poolkit.lambda_fleet.gateway import CLIENT_LIMITS, Gateway
from poolkit.lambda_fleet.http_protocol import HttpProtocol


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a uvloop where it is installed, else asyncio's own loop."""
    try:
        import uvloop  # noqa: PLC0415 - optional: it has no Windows build
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


LAST_PORT = 65_535


class FleetServer:
    """Serves one function until closed. Everything on the thread that runs the loop."""

    def __init__(self, config: FunctionConfig, *, host: str, port: int, log_dir: Path) -> None:
        self.function = LambdaFunction(config, log_dir)
        self._address = (host, port)
        self._log_dir = log_dir
        self._server: asyncio.Server | None = None
        self._connections: set[HttpProtocol] = set()

    async def open(self) -> str:
        """Make the log directory and listen; return the URL.

        Raises `LambdaFleetError` when that cannot be done.
        """
        gateway = Gateway(self.function)
        host, port = self._address
        # A loop in C would listen on what is left of the number in 16 bits.
        if not 0 <= port <= LAST_PORT:
            raise LambdaFleetError(
                f"port must be 0 to {LAST_PORT}, found {port}; 0 takes a free one"
            )
        _make(self._log_dir)
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: HttpProtocol(gateway.on_request, CLIENT_LIMITS, self._connections),
                host,
                port,
                backlog=1024,
            )
        except OSError as error:
            raise LambdaFleetError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; port 0 takes a free one"
            ) from error
        return _url(self._server.sockets[0].getsockname())

    async def close(self) -> None:
        """End every execution environment, answer what was in flight, and stop listening."""
        if self._server is not None:
            self._server.close()
        await self.function.close()
        for connection in tuple(self._connections):
            connection.close()
        # One turn of the loop for the last answers to be written.
        await asyncio.sleep(0)
        for connection in tuple(self._connections):
            connection.abort()
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 1.0)


def _make(log_dir: Path) -> None:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LambdaFleetError(
            f"cannot make the log directory {log_dir}: {error.strerror or error}; "
            "name one that can be made"
        ) from error


def _url(address: tuple[Any, ...]) -> str:
    host, port = address[:2]
    with contextlib.suppress(OSError):
        socket.inet_pton(socket.AF_INET6, host)
        host = f"[{host}]"
    return f"http://{host}:{port}"
