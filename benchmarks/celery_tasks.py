"""The time of a Celery task that inserts one row: plain SQLAlchemy against `poolkit.celery`.

`python benchmarks/celery_tasks.py [--rounds 400]`, one task of each arm in a round.

All arms are tasks of one worker with one child process, sent in a random order. The figure is the time
that Celery measures for the task. The plain arms make their engine in `worker_process_init`, as
SQLAlchemy's and Celery's documentation advise.

A last line has what `serve_metrics` adds to each task: its receivers of Celery's signals.
"""

import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from celery import Celery, signals
from harness import ROOT, Comparison, machine, postgresql, read_options
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from poolkit.celery import Database, DeliveredTask, broker_config
from poolkit.celery.metrics import serve_metrics
from poolkit.local.broker import EmbeddedBroker

INSERT = text("INSERT INTO orders VALUES (DEFAULT)")
app = Celery("celery_tasks")
database = Database(app)
plain: dict[str, sessionmaker[Session]] = {}

if "BENCHMARK_BROKER" in os.environ:
    app.conf.update(broker_config(os.environ["BENCHMARK_BROKER"]))


@signals.worker_process_init.connect
def make_plain_engines(**_):
    for name, pre_ping in (("pre-ping", True), ("no check", False)):
        engine = create_engine(os.environ["DATABASE_URL"], pool_size=1, pool_pre_ping=pre_ping)
        plain[name] = sessionmaker(engine)


@app.task(name="plain, pool_pre_ping")
def with_pre_ping():
    with plain["pre-ping"].begin() as session:
        session.execute(INSERT)


@app.task(name="plain, no check")
def without_check():
    with plain["no check"].begin() as session:
        session.execute(INSERT)


@app.task(name="poolkit: Database")
def with_database():
    with database.session() as session:
        session.execute(INSERT)


@app.task(name="poolkit: Database, DeliveredTask", base=DeliveredTask)
def with_delivery():
    with database.session() as session:
        session.execute(INSERT)


ARMS = (with_pre_ping, without_check, with_database, with_delivery)


def run(rounds):
    """Run the tasks of every arm, and return the seconds of each by the arm's name."""
    command = (
        sys.executable,
        "-m",
        "celery",
        "-A",
        "celery_tasks",
        "worker",
        "-c",
        "1",
        "-l",
        "INFO",
    )
    for _ in range(rounds):
        for arm in random.sample(ARMS, len(ARMS)):
            arm.delay()
    figures = {arm.name: [] for arm in ARMS}
    worker = subprocess.Popen(
        command,
        cwd=ROOT / "benchmarks",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in worker.stderr:
        if found := re.search(r"Task (.+)\[\S+\] succeeded in ([\d.e-]+)s", line):
            figures[found[1]].append(float(found[2]))
        if sum(map(len, figures.values())) == rounds * len(ARMS):
            break
    worker.terminate()
    worker.communicate()
    return figures


def metrics_microseconds(rounds):
    """Return what the metrics add to a task: the median with their receivers less the one without."""
    with_delivery.push_request(id="x", retries=0, poolkit_sent_at=0.0, delivery_info={})
    named = {"task_id": "x", "task": with_delivery, "args": (), "kwargs": {}}

    def one_task():
        began = perf_counter()
        signals.task_prerun.send(sender=with_delivery, **named)
        signals.task_postrun.send(sender=with_delivery, state="SUCCESS", retval=None, **named)
        return perf_counter() - began

    without = statistics.median(one_task() for _ in range(rounds))
    serve_metrics(app, port=0)  # it opens no port: no worker starts here
    return 1e6 * (statistics.median(one_task() for _ in range(rounds)) - without)


def main():
    rounds = read_options(__doc__, rounds=400).rounds
    print(machine("celery", "SQLAlchemy", "psycopg2-binary"))
    with (
        postgresql(durable=False) as server,
        tempfile.TemporaryDirectory() as folder,
        EmbeddedBroker(Path(folder)) as broker,
    ):
        os.environ |= {"BENCHMARK_BROKER": broker.url, "DATABASE_URL": server.url()}
        app.conf.update(broker_config(broker.url))
        with create_engine(server.url()).begin() as connection:
            connection.execute(text("CREATE TABLE orders (id serial PRIMARY KEY)"))
        figures = run(rounds)
    print(Comparison(figures).table(baseline=with_pre_ping.name))
    print(f"\nserve_metrics: {metrics_microseconds(20_000):.1f} µs per task")


if __name__ == "__main__":
    main()
