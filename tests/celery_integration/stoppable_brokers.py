"""Brokers of a test's own, which it may stop, kill and pause: Valkey, RabbitMQ, and SQS by moto."""

import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import boto3
import psutil
import redis
from kombu import Connection
from processes import RunningProcess, is_listening, started, wait_until

from poolkit.local.broker import EmbeddedBroker
from poolkit.local.network import Network
from poolkit.local.ports import free_port

# Not the script on PATH: Debian's changes to the account of the machine's own broker.
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
HAS_RABBITMQ = RABBITMQ.exists() and shutil.which("epmd") is not None
VISIBILITY_S = 12
"""Seconds: more than the longest task of a drill and its longest wait together."""


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """Let a process and all below it stand still until the block ends."""
    found = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in found:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


class Valkey:
    """A Valkey whose queue survives it."""

    environ: Mapping[str, str] = MappingProxyType({})

    def __init__(self, directory: Path) -> None:
        self._server = EmbeddedBroker(directory, durable=True)
        self.queue = f"shop-{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What `broker_config` is called with."""
        return {
            "url": self._server.url,
            "queue": self.queue,
            "visibility_timeout": VISIBILITY_S,
        }

    def restart(self) -> None:
        self._server.restart()

    def crash(self) -> None:
        self._server.kill()
        self._server.start()

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return paused(self._server.pid)

    def left(self) -> int:
        """Return the number of messages that are waiting or unacknowledged."""
        with redis.from_url(self._server.url) as client:
            return int(client.llen(self.queue)) + int(client.hlen("unacked"))


class RabbitMQ:
    """A RabbitMQ on loopback, with a port mapper and a folder of its own."""

    environ: Mapping[str, str] = MappingProxyType({})

    def __init__(self) -> None:
        self.queue = f"shop-{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="poolkit-test-rabbitmq-")
            )
            self._port, distribution, mapper = free_port(), free_port(), free_port()
            config = Path(folder, "rabbitmq.conf")
            # No limit by memory or disk: what a busy machine has free is not tested here.
            config.write_text(
                f"listeners.tcp.1 = 127.0.0.1:{self._port}\n"
                "vm_memory_high_watermark.relative = 0.9\ndisk_free_limit.absolute = 1MB\n"
            )
            self._environ = {
                "HOME": folder,
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "ERL_EPMD_PORT": str(mapper),
                "RABBITMQ_NODENAME": f"poolkit-test-{os.getpid()}@localhost",
                "RABBITMQ_DIST_PORT": str(distribution),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
                "RABBITMQ_MNESIA_BASE": f"{folder}/data",
                "RABBITMQ_LOG_BASE": f"{folder}/log",
                "RABBITMQ_PID_FILE": f"{folder}/pid",
                "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
                "RABBITMQ_CONFIG_FILE": str(config),
                "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            }
            # A port mapper that RabbitMQ starts itself would outlive it.
            epmd = stack.enter_context(started("epmd", environ=self._environ))
            epmd.wait_until(lambda: is_listening(mapper), "the port mapper")
            self._start()
            stack.callback(lambda: self._end(signal.SIGTERM))
            self._ends = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def _start(self) -> None:
        self._server = RunningProcess(RABBITMQ, environ=self._environ, new_session=True)
        self._server.wait_for("completed with")

    def _end(self, number: int) -> None:
        if self._server.process.poll() is None:
            self._server.signal_group(number)
        self._server.wait()

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    @property
    def settings(self) -> dict[str, Any]:
        """What `broker_config` is called with."""
        return {"url": self.url, "queue": self.queue}

    def restart(self) -> None:
        with self.away():
            pass

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Stop it until the block ends."""
        self._end(signal.SIGTERM)
        try:
            yield
        finally:
            self._start()

    def crash(self) -> None:
        self._end(signal.SIGKILL)
        self._start()

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return paused(self._server.pid)

    def left(self) -> int:
        """Return the number of messages that are waiting."""
        with Connection(self.url) as connection:
            return int(connection.channel().queue_declare(self.queue, passive=True).message_count)


class Sqs:
    """moto's SQS behind a network that fails: moto keeps its queues in memory."""

    def __init__(self) -> None:
        self.queue = f"shop-{secrets.token_hex(4)}"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            port = free_port()
            server = stack.enter_context(
                started(sys.executable, "-m", "moto.server", "-p", str(port))
            )
            server.wait_until(lambda: is_listening(port), "moto")
            self._pid = server.pid
            self._network = stack.enter_context(Network("127.0.0.1", port))
            self.environ = {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._network.port}",
                "AWS_ACCESS_KEY_ID": "testing",
                "AWS_SECRET_ACCESS_KEY": "testing",
                "AWS_REGION": "eu-central-1",
                "AWS_DEFAULT_REGION": "eu-central-1",
            }
            before = {name: os.environ.get(name) for name in self.environ}
            os.environ.update(self.environ)
            stack.callback(_restore, before)
            self._client = boto3.client("sqs")
            stack.callback(self._client.close)
            created = self._client.create_queue(
                QueueName=self.queue, Attributes={"VisibilityTimeout": str(VISIBILITY_S)}
            )
            self._url = created["QueueUrl"]
            self._ends = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What `broker_config` is called with."""
        return {
            "url": "sqs://",
            "queue": self.queue,
            "queue_url": self._url,
            "visibility_timeout": VISIBILITY_S,
        }

    def restart(self) -> None:
        self._network.refuse()
        wait_until(lambda: not self._network.connections, "every connection to end")
        self._network.restore()

    def crash(self) -> None:
        self._network.cut()

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return paused(self._pid)

    def left(self) -> int:
        """Return the number of messages that are waiting or unacknowledged."""
        kinds = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        found = self._client.get_queue_attributes(QueueUrl=self._url, AttributeNames=list(kinds))
        return sum(int(found["Attributes"][kind]) for kind in kinds)


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
