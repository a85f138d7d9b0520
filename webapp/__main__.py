"""`python -m webapp [--async]`: the web service under uvicorn, with sensible options.

One process per container is the default: the platform restarts, counts and scales
containers, and each process has a pool of its own. `--processes N` multiplies pools.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError
from webapp.configuration import HIGHEST_PORT, WebSettings, whole_number

if TYPE_CHECKING:
    import socket
    from asyncio.trsock import TransportSocket
    from collections.abc import Callable, Sequence

_LINE = "%(asctime)s %(levelname)s %(name)s[%(process)d] %(message)s"
LOGGING: Final[dict[str, Any]] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": _LINE}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "WARNING"},
    "loggers": {"uvicorn": {"level": "INFO"}},
}

COULD_NOT_START: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The exit status: 0 after a clean end, 2 for wrong settings or options, 3 where the
        application, or one of several processes, could not start.
    """
    parser = argparse.ArgumentParser(prog="python -m webapp", description=__doc__)
    add = parser.add_argument
    add("--async", dest="asynchronous", action="store_true", help="asyncpg and one event loop")
    add("--host", help="the address to listen on (WEBAPP_HOST)")
    add("--port", type=_number(0, HIGHEST_PORT), help="the port, 0 for any free one (WEBAPP_PORT)")
    add(
        "--processes",
        type=_number(1, 1_000),
        default=1,
        metavar="N",
        help="N processes, each with a pool of its own: N times the connections",
    )
    options = parser.parse_args(arguments)
    target = "web_async" if options.asynchronous else "web"
    try:
        web = WebSettings.from_environ(os.environ)
        settings = Settings.from_environ(default_target=target, allowed_targets=(target,))
    except ConfigurationError as error:
        print(f"webapp: {error}", file=sys.stderr)  # noqa: T201  (no logging is set up yet)
        return COULD_NOT_START
    config = uvicorn.Config(
        "webapp.async_app:app" if options.asynchronous else "webapp.app:app",
        host=options.host or web.host,
        port=web.port if options.port is None else options.port,
        workers=options.processes,
        lifespan="on",
        ws="none",
        log_config=LOGGING,
        access_log=web.access_log,
        server_header=False,
        timeout_keep_alive=web.keep_alive_timeout,
        timeout_graceful_shutdown=web.graceful_timeout,
    )
    # The ceiling at every start: `--processes` multiplies pools, and that is easily forgotten.
    preset, processes = settings.preset, options.processes
    print(  # noqa: T201  (no logging is set up yet)
        f"webapp: {settings.target} in {settings.environment}: at most "
        f"{processes * preset.max_connections_per_process} connections ({processes} "
        f"process{'es' if processes > 1 else ''} x {preset.pool_size}+{preset.max_overflow})",
        file=sys.stderr,
    )
    # uvicorn ends the requests in flight, and then raises the signal again with the handler that
    # was there before: this one, so that a clean end has the exit status 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    if processes > 1:
        supervisor = _AnnouncingProcesses(config, sockets=[config.bind_socket()])
        supervisor.run()
        # uvicorn stops all children if one could not start.
        failed = any(child.exitcode == STARTUP_FAILURE for child in supervisor.processes)
        return STARTUP_FAILURE if failed else 0
    _AnnouncingServer(config).run()
    return 0


def _number(low: int, high: int) -> Callable[[str], int]:
    """Return an argparse type for whole numbers."""

    def parse(text: str) -> int:
        try:
            return whole_number(text, low, high)
        except ValueError as error:
            # argparse shows the message of this error alone.
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


class _AnnouncingServer(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _announce(self.config, self.servers[0].sockets[0])


class _AnnouncingProcesses(Multiprocess):
    _announced = False

    def keep_subprocess_alive(self) -> None:
        super().keep_subprocess_alive()
        if self._announced or self.should_exit.is_set():
            return
        if any(process.is_ready(timeout=1) for process in self.processes):
            _announce(self.config, self.sockets[0])
            self._announced = True


def _announce(config: uvicorn.Config, sock: socket.socket | TransportSocket) -> None:
    # Standard output is for a program that started this with port 0 and needs the real one.
    print(f"listening on http://{config.host}:{sock.getsockname()[1]}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
