"""`python -m poolkit.lambda_fleet`: the Lambda fleet as a process of its own."""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from poolkit.errors import LambdaFleetError
from poolkit.lambda_fleet.config import FunctionConfig
from poolkit.lambda_fleet.events import DOORS
from poolkit.lambda_fleet.fleet import FleetServer, new_event_loop


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Print one JSON line with the address when ready.

    Return the exit status: 0 after a signal, 2 if the fleet could not start (one line on stderr).
    """
    parser = argparse.ArgumentParser(
        prog="python -m poolkit.lambda_fleet",
        description="Run one function as AWS Lambda would, behind an HTTP API on loopback.",
    )
    add = parser.add_argument
    add("--handler", required=True, help="module.function, relative to the task root")
    add("--task-root", type=Path, default=Path(), help="directory of the code (default: here)")
    add("--function-name", default="function")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0 takes a free one (default)")
    add("--log-dir", type=Path, required=True, help="one log file per execution environment")
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable of the function; NAME alone passes on the value of this process, "
        "so that a secret stays out of `ps`; may be repeated",
    )
    add("--timeout", type=float, default=30.0, metavar="S", help="of one invoke (default: 30)")
    add("--init-limit", type=float, default=10.0, metavar="S", help="(default: 10)")
    add("--memory", type=int, default=128, metavar="MB", help="the size that the function is told")
    add("--reserved-concurrency", type=int, default=10, metavar="N", help="(default: 10)")
    add("--idle-timeout", type=float, default=600.0, metavar="S", help="(default: 600)")
    add("--freeze", action=argparse.BooleanOptionalAction, default=True)
    add(
        "--shutdown-ms", type=int, default=0, metavar="MS", help="SIGTERM to SIGKILL; 0: no SIGTERM"
    )
    add("--event", choices=tuple(DOORS), default="http", help="of HTTP requests (default: http)")
    add("--throttle-status", type=int, choices=(429, 503), default=429)
    add("--prewarm", type=int, default=0, metavar="N", help="execution environments to start with")
    add("--python", type=Path, default=Path(sys.executable), help="their interpreter")
    options = parser.parse_args(argv)
    try:
        env = {}
        for pair in options.env:
            name, equals, value = pair.partition("=")
            if not equals and name not in os.environ:
                raise LambdaFleetError(f"--env {name}: not set here; give it as {name}=VALUE")  # noqa: TRY301
            env[name] = value if equals else os.environ[name]
        config = FunctionConfig(
            handler=options.handler,
            task_root=options.task_root,
            function_name=options.function_name,
            env=env,
            timeout_s=options.timeout,
            init_limit_s=options.init_limit,
            memory_mb=options.memory,
            reserved_concurrency=options.reserved_concurrency,
            idle_timeout_s=options.idle_timeout,
            freeze=options.freeze,
            shutdown_ms=options.shutdown_ms,
            event=options.event,
            throttle_status=options.throttle_status,
            python=options.python,
        )
        server = FleetServer(config, host=options.host, port=options.port, log_dir=options.log_dir)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_serve(server, options.prewarm))
    except (LambdaFleetError, OSError) as error:
        sys.stderr.write(f"lambda fleet: {error}\n")
        return 2
    return 0


async def _serve(server: FleetServer, prewarm: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        url = await server.open()
        stopped = loop.create_task(stop.wait())
        ready = loop.create_task(server.function.prewarm(prewarm))
        # A signal must not wait for a handler that is still being imported.
        await asyncio.wait((stopped, ready), return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            sys.stdout.write(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
            sys.stdout.flush()
        else:
            ready.cancel()
        await stopped
    finally:
        await server.close()


if __name__ == "__main__":
    sys.exit(main())
