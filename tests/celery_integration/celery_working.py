"""Real workers of a shop in processes of their own, with real brokers and a real database."""

import json
import secrets
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psycopg2
from celery import Celery
from processes import PATIENCE_S, RunningProcess, is_listening, run_python, wait_until
from prometheus_client.parser import text_string_to_metric_families
from psycopg2.extras import RealDictCursor
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from poolkit.celery import broker_config
from poolkit.local.ports import free_port
from poolkit.tables import dead_letters

FOLDER = Path(__file__).parent
QUICK = {"max_retries": 3, "retry_backoff": 0.2, "retry_backoff_max": 0.5}
PATIENT = {"max_retries": 50}
"""Retries for a task that may fail any number of times before the test, or the machine, lets it pass."""
CONF = {"worker_proc_alive_timeout": 60}
"""By default Celery kills a child that is not up within four seconds, which two busy cores may need."""


def child_pid(backend: dict[str, Any]) -> int:
    """Return the process id in `worker:<host>-<pid>`."""
    return int(backend["application_name"].rpartition("-")[2])


def create_tables(url: str) -> None:
    """Make the shop's table and the table of dead letters."""
    engine = create_engine(url, poolclass=NullPool)
    dead_letters.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id text PRIMARY KEY, item text NOT NULL)")


@dataclass(frozen=True)
class OwnDatabase:
    """The database of a server of the test's own."""

    server: Any

    def execute(self, statement: str) -> list[dict[str, Any]]:
        connection = psycopg2.connect(
            self.server.admin_url(driver=""), cursor_factory=RealDictCursor, connect_timeout=60
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return [dict(row) for row in cursor]
        finally:
            connection.close()


@dataclass
class Site:
    """A queue and a database of one test's own, and the workers started there."""

    database: Any
    broker: dict[str, Any]
    environ: dict[str, str]
    directory: Path
    app: Celery
    workers: list["Worker"] = field(default_factory=list)

    @property
    def queue(self) -> str:
        return str(self.broker["queue"])

    def start(
        self,
        *options: str,
        retries: dict[str, Any] | None = None,
        broker: dict[str, Any] | None = None,
        conf: dict[str, Any] | None = None,
        **environ: str,
    ) -> "Worker":
        """Start `celery -A shop worker` with options, and wait until it is ready."""
        ready_file = self.directory / f"worker{len(self.workers)}.ready"
        variables = {
            "SHOP_READY_FILE": str(ready_file),
            "SHOP_RETRIES": json.dumps(QUICK | (retries or {})),
            "SHOP_BROKER": json.dumps(self.broker | (broker or {})),
            "SHOP_CONF": json.dumps(CONF | (conf or {})),
        }
        worker = Worker(ready_file, options or ("-c", "2"), self.environ | variables | environ)
        self.workers.append(worker)
        worker.wait_until(ready_file.exists, "worker ready")
        return worker

    def send(self, order_id: str) -> str:
        return str(self.app.send_task("shop.take_order", [order_id]).id)

    def orders(self) -> list[str]:
        return [row["id"] for row in self.database.execute("SELECT id FROM orders ORDER BY id")]

    def wait_for_order(self, order_id: str) -> None:
        wait_until(lambda: order_id in self.orders(), f"order {order_id}")

    def wait_for_dead_letter(self) -> dict[str, Any]:
        """Return the one dead letter there is."""
        query = "SELECT * FROM dead_letters"
        rows = wait_until(lambda: self.database.execute(query), "dead letter")
        assert len(rows) == 1
        return rows[0]

    def assert_given_up(self, how: str, *, restart: Callable[[], Any] | None = None) -> None:
        """Send a task that ends its process, and assert that it is one dead letter, exact, in the end.

        Args:
            how: one of `shop_reports.ENDS`.
            restart: starts the worker again, where the task ends the worker itself.
        """
        task_id = self.app.send_task("shop_reports.end_the_process", [how]).id
        self.send("meanwhile")

        def is_found(query: str, expected: int) -> bool:
            if restart is not None and self.workers[-1].process.poll() is not None:
                restart()
            return len(self.database.execute(query)) == expected

        # The worker may be started three times meanwhile, each time within a wait's whole limit.
        limit = PATIENCE_S if restart is None else 3 * PATIENCE_S
        wait_until(lambda: is_found("SELECT 1 FROM dead_letters", 1), "dead letter", limit)
        letter = self.wait_for_dead_letter()
        assert (letter["source"], letter["message_id"]) == ("shop_reports.end_the_process", task_id)
        assert letter["payload"] == {"args": [how], "kwargs": {}}
        assert letter["error_type"] == "poolkit.errors.TaskLost"
        # Three deliveries ran, and ended their process; the fourth is only counted.
        assert letter["attempts"] == 3
        self.send("after")
        wait_until(
            lambda: is_found("SELECT 1 FROM orders", 2),
            lambda: "\n".join([str(self.orders()), *(worker.text for worker in self.workers)]),
        )
        assert self.wait_for_dead_letter()["attempts"] == 3

    @contextmanager
    def locked(self, order_id: str) -> Iterator[None]:
        """Make every insert of this order wait until the block ends."""
        with self.database.connect() as connection:
            connection.autocommit = False
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO orders (id, item) VALUES (%s, 'other')", (order_id,))
            yield
            connection.rollback()


def health_of(ready_file: Path, max_age: float = 30) -> CompletedProcess[str]:
    """Run the health check on a ready file."""
    return run_python("-m", "poolkit.celery.health", ready_file, "--max-age", max_age)


class Worker(RunningProcess):
    """`celery -A shop worker` in a process of its own."""

    def __init__(self, ready_file: Path, options: tuple[str, ...], environ: dict[str, str]) -> None:
        self.ready_file = ready_file
        super().__init__(
            *(sys.executable, "-m", "celery", "-A", "shop", "--quiet", "worker"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat", *options),
            cwd=FOLDER,
            environ=environ,
        )

    def stop(self) -> int:
        """Ask for a warm shutdown and return the exit status."""
        return self.terminate()

    def records(self) -> list[dict[str, Any]]:
        """Return what it logged."""
        return [json.loads(line) for line in self.text.splitlines() if line[:1] == "{"]

    def logged(self, words: str) -> bool:
        return any(words in record["message"] for record in self.records())

    def health(self, *, max_age: float) -> CompletedProcess[str]:
        """Run the health check on its ready file."""
        return health_of(self.ready_file, max_age)

    def received(self, task: str = "") -> int:
        """Return how often it received a task, or one of this name."""
        found = [each["message"] for each in self.records() if " received" in each["message"]]
        return sum(task in message for message in found)

    def slow_orders_begun(self) -> int:
        """Return how many slow orders run or have run.

        A worker that loses its broker drops what it has received but not begun.
        """
        return sum("slow order begins" in record["message"] for record in self.records())

    def succeeded(self) -> int:
        return sum("succeeded" in record["message"] for record in self.records())


@contextmanager
def open_site(
    database: Any, broker: dict[str, Any], environ: dict[str, str], directory: Path
) -> Iterator[Site]:
    """Return a site, and end its workers afterwards."""
    broker = broker | {"queue": broker.get("queue") or f"shop-{secrets.token_hex(4)}"}
    # A machine that stands still is not to look like a database that does.
    environ = {"POOLKIT_CONNECT_TIMEOUT": "60"} | environ
    app = Celery("sender", set_as_current=False)
    app.conf.update(broker_config(**broker))
    site = Site(database, broker, environ, directory, app)
    try:
        yield site
    finally:
        for worker in site.workers:
            worker.kill()
        app.close()


class Scraped:
    """The metrics of a worker, as Prometheus reads them."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/metrics"

    def all(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        with urllib.request.urlopen(self._url, timeout=60) as answer:
            text = answer.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        """Return one figure, or None if there is none."""
        return self.all().get((name, frozenset(labels.items())))


def start_with_metrics(site: Site, *options: str, **more: Any) -> tuple[Worker, Scraped]:
    """Start a worker that serves metrics."""
    port = free_port()
    worker = site.start(*options, SHOP_METRICS_PORT=str(port), **more)
    worker.wait_until(lambda: is_listening(port), "the metrics' port")
    return worker, Scraped(port)


def assert_depth_is_measured_without_age(site: Site) -> None:
    """Assert that the queue's depth has a metric and its age has none, while tasks wait."""
    _, scraped = start_with_metrics(site, "-c", "1")
    queue = {"queue": site.queue}
    wait_until(lambda: scraped("poolkit_queue_depth", **queue) == 0, "an empty queue")
    with site.locked("first"):
        for name in ("first", "second", "third"):
            site.send(name)
        wait_until(lambda: scraped("poolkit_queue_depth", **queue), "tasks that wait")
        assert scraped("poolkit_queue_oldest_age_seconds", **queue) is None
