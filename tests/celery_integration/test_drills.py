"""Faults at random, from a fixed seed, while tasks are sent: an independent log says what came of each."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from celery_working import OwnDatabase, Site, Worker, create_tables, open_site
from processes import CACHE, wait_until
from stoppable_brokers import HAS_RABBITMQ, RabbitMQ, Sqs, Valkey, paused

from poolkit.local.postgres import EmbeddedPostgres

SEED, TASKS = 1, 1200
WORKERS, CHILDREN = 2, 3
PAUSE_S = 2.0
# Every fault, in an order that the seed decides.
FAULTS = (
    *("a child killed",) * 4,
    *("a worker killed",) * 3,
    "a worker stopped",
    "the broker restarted",
    "the broker crashed",
    *("the broker paused",) * 2,
    "the database restarted",
    "the database crashed",
    "the database paused",
    "the server full",
)
# The kinds of tasks and how many of a thousand they are.
KINDS = {"sell": 920, "sell_at_the_second_try": 50, "refuse": 20, "crash": 10}
GOOD = ("sell", "sell_at_the_second_try")
QUICK = {
    # Only tasks that crash are given up: those that faults hit may need any number of tries.
    "retries": {"max_retries": 1000, "retry_backoff": 0.2, "retry_backoff_max": 1},
    "conf": {"imports": ["shop_drill"], "task_soft_time_limit": 8, "task_time_limit": 10},
}


class Sender(threading.Thread):
    """Sends the tasks, and keeps what the broker has acknowledged apart from what it has not."""

    def __init__(self, site: Site, tasks: list[tuple[str, str, float]]) -> None:
        super().__init__(daemon=True)
        self.site = site
        self.tasks = tasks
        self.attempts = 0
        self.acknowledged: dict[str, str] = {}
        self.uncertain: dict[str, str] = {}
        self.end = threading.Event()

    def run(self) -> None:
        for name, kind, seconds in self.tasks:
            arguments = [name, seconds] if kind == "sell" else [name]
            try:
                self.site.app.send_task(f"shop_drill.{kind}", arguments, task_id=name)
                self.acknowledged[name] = kind
            except Exception:  # noqa: BLE001  (each broker has its own)
                self.uncertain[name] = kind
            self.attempts += 1
            if self.end.wait(0.04):
                return


@dataclass
class Outcome:
    """What went wrong, by the names of the tasks; empty is right."""

    lost: set[str] = field(default_factory=set)
    """Acknowledged, with neither an order nor a dead letter."""
    doubled: set[str] = field(default_factory=set)
    """With more or fewer rows than one for its order, or with both ends."""
    wrong_end: set[str] = field(default_factory=set)
    """A good task given up, or a bad one done."""
    never_sent: set[str] = field(default_factory=set)
    left_in_the_broker: int = 0
    workers_that_ended: list[str] = field(default_factory=list)


class Drill:
    """A broker, a database and workers, with a method for each fault."""

    def __init__(self, site: Site, broker: Any, server: EmbeddedPostgres) -> None:
        self.site = site
        self.broker = broker
        self.server = server
        self.random = random.Random(SEED)
        self.running: list[Worker] = []
        self.ended: list[str] = []

    def keep_workers(self) -> None:
        """Replace workers that have ended, as an orchestrator does."""
        for worker in list(self.running):
            if (status := worker.process.poll()) is not None:
                self.ended.append(f"exit status {status}: {worker.text[-3000:]}")
                self.running.remove(worker)
        while len(self.running) < WORKERS:
            # Each on a host of its own, as far as the broker knows.
            options = ("-c", str(CHILDREN), "-n", f"drill{len(self.site.workers)}@%h")
            self.running.append(self.site.start(*options, **QUICK))

    def cause(self, fault: str) -> None:
        getattr(self, fault.removeprefix("the ").removeprefix("a ").replace(" ", "_"))()
        self.keep_workers()

    def outcome(self, sender: Sender) -> Outcome:
        """Wait until every acknowledged task has come to an end, as long as any does; compare the logs."""
        ended: set[str] = set()

        def ends() -> set[str]:
            self.keep_workers()
            return {*self.site.orders(), *self._dead_letters()} & sender.acknowledged.keys()

        while len(ended) < len(sender.acknowledged):
            before = len(ended)
            with suppress(AssertionError):
                wait_until(lambda before=before: len(ends()) > before)
            ended = ends()
            if len(ended) == before:
                break
        with suppress(AssertionError):
            wait_until(lambda: not self.broker.left())
        orders, letters = set(self.site.orders()), self._dead_letters()
        rows = self.site.database.execute("SELECT order_id FROM sales")
        sales = Counter(row["order_id"] for row in rows)
        sent = sender.acknowledged | sender.uncertain
        good = {name for name, kind in sent.items() if kind in GOOD}
        return Outcome(
            lost=sender.acknowledged.keys() - orders - letters.keys(),
            doubled={name for name in orders | sales.keys() if sales[name] != 1}
            | (orders & letters.keys())
            | {name for name, count in letters.items() if count > 1},
            wrong_end=(orders - good) | (letters.keys() & good),
            never_sent=(orders | letters.keys()) - sent.keys(),
            left_in_the_broker=self.broker.left(),
            workers_that_ended=self.ended,
        )

    def _dead_letters(self) -> Counter[str]:
        rows = self.site.database.execute("SELECT message_id FROM dead_letters")
        return Counter(row["message_id"] for row in rows)

    def child_killed(self) -> None:
        children = [
            child for worker in self.running for child in psutil.Process(worker.pid).children()
        ]
        if children:
            with suppress(psutil.NoSuchProcess):
                self.random.choice(children).kill()

    def worker_killed(self) -> None:
        worker = self.running.pop(self.random.randrange(len(self.running)))
        worker.kill()

    def worker_stopped(self) -> None:
        worker = self.running.pop(self.random.randrange(len(self.running)))
        assert worker.stop() == 0, worker.text[-3000:]

    def broker_restarted(self) -> None:
        self.broker.restart()

    def broker_crashed(self) -> None:
        self.broker.crash()

    def broker_paused(self) -> None:
        with self.broker.paused():
            time.sleep(PAUSE_S)

    def database_restarted(self) -> None:
        self.server.restart()

    def database_crashed(self) -> None:
        self.server.kill()
        self.server.start()

    def database_paused(self) -> None:
        with paused(self.server.pid):
            time.sleep(PAUSE_S)

    def server_full(self) -> None:
        """Take every connection there is, and those of the workers as well."""
        with ExitStack() as held:
            self._fill(held)
            self.site.database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE starts_with(application_name, 'worker:')"
            )
            self._fill(held)
            time.sleep(PAUSE_S)

    def _fill(self, held: ExitStack) -> None:
        with suppress(psycopg2.OperationalError):
            while True:
                held.callback(psycopg2.connect(self.server.url(driver="")).close)


def _tasks(generator: random.Random) -> list[tuple[str, str, float]]:
    kinds = generator.choices(list(KINDS), list(KINDS.values()), k=TASKS)
    return [
        (f"{number:05}-{kind}", kind, generator.choice((0, 0, 0.02, 0.1)))
        for number, kind in enumerate(kinds)
    ]


@contextmanager
def _drilled(broker: Any, directory: Path) -> Iterator[tuple[Drill, Sender]]:
    with (
        broker,
        EmbeddedPostgres(directory / "postgres", cache_dir=CACHE, max_connections=25) as server,
    ):
        create_tables(server.url())
        database = OwnDatabase(server)
        with psycopg2.connect(server.url(driver="")) as connection:
            connection.cursor().execute("CREATE TABLE sales (order_id text NOT NULL)")
        connection.close()
        environ = {"DATABASE_URL": server.url(), "POOLKIT_CONNECT_TIMEOUT": "5", **broker.environ}
        with open_site(database, broker.settings, environ, directory) as site:
            drill = Drill(site, broker, server)
            sender = Sender(site, _tasks(random.Random(SEED)))
            try:
                yield drill, sender
            finally:
                sender.end.set()


BROKERS: dict[str, Callable[[Path], Any]] = {
    "valkey": Valkey,
    "sqs": lambda directory: Sqs(),
    "rabbitmq": lambda directory: RabbitMQ(),
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", BROKERS)
def test_no_task_is_lost_or_doubled(name: str, data_path: Path) -> None:
    """Whatever is killed, restarted, paused or full: each acknowledged task has its effect once, or its dead letter."""
    if name == "rabbitmq" and not HAS_RABBITMQ:
        pytest.skip("no RabbitMQ (Debian: rabbitmq-server)")
    with _drilled(BROKERS[name](data_path / "broker"), data_path) as (drill, sender):
        drill.keep_workers()
        sender.start()
        faults = drill.random.sample(FAULTS, len(FAULTS))
        for number, fault in enumerate(faults, 1):
            # At the same task in each run, however fast the machine is.
            due = TASKS * number // (len(faults) + 1)
            wait_until(lambda due=due: sender.attempts >= due, f"{due} tasks sent")
            drill.cause(fault)
        wait_until(lambda: sender.attempts == TASKS, "every task sent")
        outcome = drill.outcome(sender)
    assert outcome == Outcome()
    # Not for want of tasks: only an outage of the broker leaves a send without an answer, and how
    # long RabbitMQ takes to start again is the machine's affair.
    assert len(sender.acknowledged) > TASKS / 2
