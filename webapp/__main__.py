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
    from collections.abc import Sequence

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
    options = _parser().parse_args(arguments)
    target = "web_async" if options.asynchronous else "web"
    try:
        web = WebSettings.from_environ(os.environ)
        settings = Settings.from_environ(default_target=target, allowed_targets=(target,))
    except ConfigurationError as error:
        print(f"webapp: {error}", file=sys.stderr)  # noqa: T201  (no logging is set up yet)
        return COULD_NOT_START
    config = _configured(options, web)
    print(_ceiling(settings, options.processes), file=sys.stderr)  # noqa: T201  (the same)
    return _serve(config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m webapp", description=__doc__)
    parser.add_argument(
        "--async", dest="asynchronous", action="store_true", help="asyncpg and one event loop"
    )
    parser.add_argument("--host", help="the address to listen on (WEBAPP_HOST)")
    parser.add_argument("--port", type=_port, help="the port, 0 for any free one (WEBAPP_PORT)")
    parser.add_argument(
        "--processes",
        type=_processes,
        default=1,
        metavar="N",
        help="N processes, each with a pool of its own: N times the connections",
    )
    return parser


def _port(text: str) -> int:
    return _from_command_line(text, 0, HIGHEST_PORT)


def _processes(text: str) -> int:
    return _from_command_line(text, 1, 1_000)


def _from_command_line(text: str, low: int, high: int) -> int:
    try:
        return whole_number(text, low, high)
    except ValueError as error:
        # Of any other error argparse shows the name of the function that raised it.
        raise argparse.ArgumentTypeError(str(error)) from None


def _configured(options: argparse.Namespace, web: WebSettings) -> uvicorn.Config:
    return uvicorn.Config(
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


def _ceiling(settings: Settings, processes: int) -> str:
    preset = settings.preset
    each = preset.max_connections_per_process
    pool = f"{preset.pool_size}+{preset.max_overflow}"
    return (
        f"webapp: {settings.target} in {settings.environment}: at most {processes * each} "
        f"connections ({processes} process{'es' if processes > 1 else ''} x {pool})"
    )


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

    def exit_status(self) -> int:
        """Tell a child that could not start, for which uvicorn stops all of them, from a clean end."""
        failed = any(process.exitcode == STARTUP_FAILURE for process in self.processes)
        return STARTUP_FAILURE if failed else 0


def _announce(config: uvicorn.Config, plug: socket.socket | TransportSocket) -> None:
    # For whoever started this with port 0 and reads its standard output.
    print(f"listening on http://{config.host}:{plug.getsockname()[1]}", flush=True)  # noqa: T201


def _serve(config: uvicorn.Config) -> int:
    # uvicorn ends what is in flight, and then raises the signal again with the handler that
    # was there before: this one, so that a clean end has the exit status 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, lambda *_: None)
    if config.workers > 1:
        processes = _AnnouncingProcesses(config, sockets=[config.bind_socket()])
        processes.run()
        return processes.exit_status()
    _AnnouncingServer(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
