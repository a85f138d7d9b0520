"""Workers as they run: real processes, a real broker, a real PostgreSQL."""

import base64
import json
import os
import secrets
import signal
import threading

import psutil
import pytest
import redis
from processes import wait_until
from working import child_pid

TIMED = {
    "WORKER_TASK_SOFT_TIME_LIMIT": "1",
    "WORKER_TASK_TIME_LIMIT": "2",
    "WORKER_VISIBILITY_TIMEOUT": "3",
    # A task may meet these limits more than once, on a machine that stands still.
    "WORKER_MAX_RETRIES": "50",
}


def test_task_is_done_and_each_child_has_one_connection_which_ends_with_it(site):
    """Many tasks on two children leave their results, over two connections that say whose they are; a warm shutdown closes them."""
    worker = site.start()
    for number in range(30):
        site.enqueue(f"d{number:02}")
    wait_until(lambda: len(site.documents()) == 30, "30 documents")
    backends = site.database.backends("worker:")
    assert 1 <= len(backends) <= 2
    children = set(_children(worker.process.pid))
    assert {child_pid(backend) for backend in backends} <= children
    assert worker.stop() == 0
    site.database.wait_for_backends(0, "worker:")
    assert site.database.abandoned() == 0
    assert not worker.ready_file.exists()


def test_task_delivered_twice_leaves_one_result(site):
    """The same document sent three times is stored once, and no delivery fails."""
    worker = site.start()
    for _ in range(3):
        site.enqueue("twice", text="One. Two.")
    wait_until(lambda: _succeeded(worker) == 3, "three tasks done")
    assert site.documents() == ["twice"]
    assert len(site.database.execute("SELECT * FROM chunks")) == 1


def test_killed_child_costs_one_redelivery(site):
    """A child killed in the middle of a task leaves its task to another child, and no backend."""
    worker = site.start()
    with site.locked("killed"):
        site.enqueue("killed")
        victim = site.database.wait_for_lock("worker:")
        os.kill(child_pid(victim), signal.SIGKILL)
        wait_until(
            lambda: victim["pid"] not in [row["pid"] for row in site.database.backends()],
            "the server to notice that its client is dead",
        )
    site.wait_for_document("killed")
    wait_until(lambda: _succeeded(worker) == 1, "the one success to be logged")


@pytest.mark.slow
def test_killed_worker_costs_one_redelivery(site):
    """A worker killed in the middle of a task, children and all, leaves the task to the next worker."""
    first = site.start()
    with site.locked("killed"):
        site.enqueue("killed")
        victim = site.database.wait_for_lock("worker:")
        first.kill()
    threading.Event().wait(3.2)  # the visibility timeout itself
    site.start(**TIMED)
    site.wait_for_document("killed")
    wait_until(
        lambda: victim["pid"] not in [row["pid"] for row in site.database.backends()],
        "the server to notice that its client is dead",
    )


def test_bad_input_goes_to_the_dead_letters_at_once(site):
    """A document that breaks the contract is recorded with its error and its content, and not tried again."""
    worker = site.start()
    arguments = {"document_id": "not an id", "title": "", "text": "a\0b"}
    sent = site.app.send_task("worker.ingest_document", kwargs=arguments)
    letter = site.wait_for_dead_letter()
    assert letter["source"] == "worker.ingest_document"
    assert letter["message_id"] == sent.id
    assert letter["payload"] == {"args": [], "kwargs": arguments}
    assert letter["error_type"] == "articles.errors.InvalidInput"
    assert "#/id" in letter["error"]
    assert letter["attempts"] == 1
    assert not worker.logged("Retry in")


def test_database_that_is_away_costs_no_task(own_server_site):
    """Tasks and dead letters that meet a stopped database are done when it is back, however often they were tried."""
    site = own_server_site
    worker = site.start(WORKER_MAX_RETRIES="1")
    site.enqueue("before")
    site.wait_for_document("before")
    site.database.server.stop()
    site.enqueue("during")
    site.app.send_task("worker.ingest_document", kwargs={"document_id": "bad"})
    wait_until(lambda: worker.logged("could not be recorded"), "a dead letter that has to wait")
    wait_until(lambda: any(r.get("retries", 0) > 1 for r in worker.records()), "several tries")
    site.database.server.start()

    def kept():
        letters = site.database.execute("SELECT * FROM dead_letters")
        return {row["payload"]["kwargs"]["document_id"]: row["error_type"] for row in letters}

    wait_until(lambda: kept().get("bad") == "builtins.TypeError", "the dead letter")
    # Given up only where the database came back just when that was about to be recorded.
    away = "poolkit.errors.DatabaseUnavailable"
    wait_until(
        lambda: "during" in site.documents() or kept().get("during") == away, "the task's end"
    )


def test_broker_that_restarts_does_not_end_the_worker(own_broker_site):
    """A task that runs while the broker is away is finished, and the worker takes tasks again afterwards."""
    site, broker = own_broker_site
    worker = site.start()
    with site.locked("running"):
        site.enqueue("running")
        site.database.wait_for_lock("worker:")
        broker.stop()
        wait_until(lambda: worker.logged("Cannot connect to redis"), "the worker to notice")
    site.wait_for_document("running")
    broker.start()
    site.enqueue("after")
    site.wait_for_document("after")
    assert worker.process.poll() is None


@pytest.mark.slow
def test_retry_that_the_broker_does_not_take_is_not_lost(own_broker_site):
    """A task that fails while the broker's memory is full stays with the broker and comes again, instead of being dropped."""
    site, broker = own_broker_site
    worker = site.start(**TIMED)
    with redis.from_url(broker.url) as client, site.locked("fails"):
        site.enqueue("fails")
        site.database.wait_for_lock("worker:")
        client.config_set("maxmemory", 1)
        wait_until(lambda: worker.logged("reject requeue=True"), "the refused retry")
        client.config_set("maxmemory", 0)
    site.wait_for_document("fails")
    assert worker.process.poll() is None


def test_backends_terminated_between_tasks_fail_no_task(site):
    """After `pg_terminate_backend` the next task finds a new connection, without a retry."""
    worker = site.start(WORKER_CONCURRENCY="1")
    site.enqueue("first")
    site.wait_for_document("first")
    wait_until(lambda: _succeeded(worker) == 1, "the first task's end")
    (backend,) = site.database.backends("worker:")
    site.database.execute("SELECT pg_terminate_backend(%s)", backend["pid"])
    site.database.wait_for_backends(0, "worker:")
    site.enqueue("second")
    site.wait_for_document("second")
    assert not worker.logged("Retry in")


@pytest.mark.slow
def test_task_that_always_ends_its_child_is_given_up(site):
    """A child that hangs is killed by the hard time limit; after the last retry the task is a dead letter."""
    limits = {
        # Long, so that the task is found while it waits for the lock, also on a slow machine.
        "WORKER_TASK_SOFT_TIME_LIMIT": "5",
        "WORKER_TASK_TIME_LIMIT": "6",
    }
    site.start(**limits, WORKER_MAX_RETRIES="1")
    with site.locked("hangs"):
        sent = site.enqueue("hangs")
        stopped = []
        while len(stopped) < 2:
            hung = site.database.wait_for_lock("worker:")
            if hung["pid"] not in stopped:
                stopped.append(hung["pid"])
                os.kill(child_pid(hung), signal.SIGSTOP)
            wait_until(
                lambda pid=hung["pid"]: pid not in [r["pid"] for r in site.database.backends()],
                "the killed child's backend to end",
            )
        letter = site.wait_for_dead_letter()
    assert letter["message_id"] == sent
    assert letter["error_type"].endswith("WorkerLostError")
    assert letter["attempts"] == 2
    assert site.documents() == []


def test_statement_that_waits_too_long_is_tried_again(site):
    """The server ends a statement at the soft time limit, which psycopg2 would not notice; the task comes again."""
    worker = site.start(**TIMED)
    with site.locked("waits"):
        site.enqueue("waits")
        wait_until(lambda: worker.logged("StatementTimeout"), "a retry")
    site.wait_for_document("waits")


def test_task_whose_tries_are_used_up_is_given_up(site):
    """An operational error that does not pass ends in the dead-letter table after the last try."""
    worker = site.start(POOLKIT_STATEMENT_TIMEOUT="300", WORKER_MAX_RETRIES="1")
    with site.locked("waits"):
        site.enqueue("waits")
        letter = site.wait_for_dead_letter()
    assert letter["error_type"] == "poolkit.errors.StatementTimeout"
    # The letter itself may meet the limit, on a machine that stands still; then it comes again.
    more = sum("could not be recorded" in record["message"] for record in worker.records())
    assert letter["attempts"] == 2 + more


def test_warm_shutdown_finishes_the_running_task(site):
    """SIGTERM takes the ready file away and waits for the running task."""
    worker = site.start()
    with site.locked("running"):
        site.enqueue("running")
        site.database.wait_for_lock("worker:")
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not worker.ready_file.exists(), "the ready file to go")
        assert worker.process.poll() is None
    assert worker.wait() == 0
    assert site.documents() == ["running"]
    site.database.wait_for_backends(0, "worker:")


def test_recycled_children_close_their_connections(site):
    """Children replaced after each task close what they opened and leave no backend behind."""
    worker = site.start(WORKER_MAX_TASKS_PER_CHILD="1", WORKER_LOG_LEVEL="DEBUG")
    site.enqueue("first")
    site.enqueue("second")
    wait_until(lambda: len(site.documents()) == 2, "2 documents")
    site.database.wait_for_backends(0, "worker:")
    assert site.database.abandoned() == 0
    wait_until(lambda: worker.logged("connections are closed"), "the words of a child's end")
    assert worker.process.poll() is None


def test_messages_that_are_no_task_do_not_end_the_worker(site, broker):
    """What is no JSON is dropped; what is a message but no task of ours becomes a dead letter."""
    worker = site.start()
    queue = site.environ["WORKER_QUEUE"]
    with redis.from_url(broker.url) as client:
        for rubbish in (b"no JSON", b"\xff\xfe", b"[]", b"{}", b'"x"'):
            client.lpush(queue, rubbish)
    site.app.send_task("worker.no_such_task", kwargs={"x": 1})
    letter = site.wait_for_dead_letter()
    assert letter["source"] == "worker.no_such_task"
    assert '{"x": 1}' in letter["payload"]
    site.enqueue("after")
    site.wait_for_document("after")
    assert worker.process.poll() is None


def test_malformed_tasks_become_dead_letters(site, broker):
    """A message that names a task but cannot be read as one is kept, whatever is wrong with it."""
    worker = site.start()
    queue = site.environ["WORKER_QUEUE"]
    malformed = {
        "not base64": _message(queue, body="!"),
        "not JSON": _message(queue, "not JSON"),
        "too short": _message(queue, "[1]"),
        "an object": _message(queue, '{"a": 1}'),
        "keywords no object": _message(queue, "[[], 5, {}]"),
        "no moment": _message(queue, "[[], {}, {}]", eta="soon"),
        "retries no number": _message(queue, "[[], {}, {}]", retries="many"),
        "name no string": _message(queue, "[[], {}, {}]", task=["x"]),
        "pickled": _message(queue, "[[], {}, {}]", content_type="application/x-python-serialize"),
    }
    with redis.from_url(broker.url) as client:
        for name, message in malformed.items():
            message["headers"]["id"] = name
            client.lpush(queue, json.dumps(message))

    def kept():
        rows = site.database.execute("SELECT message_id FROM dead_letters")
        return {row["message_id"] for row in rows} >= malformed.keys()

    wait_until(kept, "a dead letter of each")
    assert worker.process.poll() is None
    with redis.from_url(broker.url) as client:
        assert client.llen(queue) == 0


def test_threads_share_one_engine_with_a_connection_each(site):
    """In a worker of threads the pool is as large as the concurrency, and the connections end with it."""
    worker = site.start(WORKER_POOL="threads", WORKER_CONCURRENCY="6")
    with site.locked("waits"):
        for _ in range(6):
            site.enqueue("waits")
        site.database.wait_for_backends(6, "worker:")
    wait_until(lambda: _succeeded(worker) == 6, "6 tasks done")
    assert {child_pid(row) for row in site.database.backends("worker:")} == {worker.process.pid}
    assert worker.stop() == 0
    site.database.wait_for_backends(0, "worker:")
    assert site.database.abandoned() == 0


def _message(queue, arguments="", *, body=None, content_type="application/json", **headers):
    return {
        "body": base64.b64encode(arguments.encode()).decode() if body is None else body,
        "content-type": content_type,
        "content-encoding": "utf-8",
        "headers": {"task": "worker.ingest_document", **headers},
        "properties": {
            "delivery_tag": secrets.token_hex(8),
            "delivery_info": {"exchange": queue, "routing_key": queue},
            "body_encoding": "base64",
        },
    }


def _succeeded(worker):
    return sum("succeeded" in record["message"] for record in worker.records())


def _children(pid):
    return [child.pid for child in psutil.Process(pid).children()]
