"""Workers as they run: real processes, a real broker, a real PostgreSQL."""

import base64
import json
import os
import secrets
import signal
import threading
from typing import Any

import psutil
import pytest
import redis
from celery_working import PATIENT, child_pid
from processes import wait_until

TIMED: dict[str, Any] = {
    "conf": {"task_soft_time_limit": 1, "task_time_limit": 2},
    "broker": {"visibility_timeout": 3},
    # A task may meet these limits more than once, on a machine that stands still.
    "retries": PATIENT,
}


def test_task_is_done_and_each_child_has_one_connection_which_ends_with_it(site):
    """Many tasks on two children leave their results, over two connections that say whose they are; a warm shutdown closes them."""
    worker = site.start()
    for number in range(30):
        site.send(f"d{number:02}")
    wait_until(lambda: len(site.orders()) == 30, "30 orders")
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
        site.send("twice")
    wait_until(lambda: worker.succeeded() == 3, "three tasks done")
    assert site.orders() == ["twice"]


def test_killed_child_costs_one_redelivery(site):
    """A child killed in the middle of a task leaves its task to another child, and no backend."""
    worker = site.start()
    with site.locked("killed"):
        site.send("killed")
        victim = site.database.wait_for_lock("worker:")
        os.kill(child_pid(victim), signal.SIGKILL)
        wait_until(
            lambda: victim["pid"] not in [row["pid"] for row in site.database.backends()],
            "the server to notice that its client is dead",
        )
    site.wait_for_order("killed")
    wait_until(lambda: worker.succeeded() == 1, "the one success to be logged")


@pytest.mark.slow
def test_killed_worker_costs_one_redelivery(site):
    """A worker killed in the middle of a task, children and all, leaves the task to the next worker."""
    first = site.start()
    with site.locked("killed"):
        site.send("killed")
        victim = site.database.wait_for_lock("worker:")
        first.kill()
    threading.Event().wait(3.2)  # the visibility timeout itself
    site.start(**TIMED)
    site.wait_for_order("killed")
    wait_until(
        lambda: victim["pid"] not in [row["pid"] for row in site.database.backends()],
        "the server to notice that its client is dead",
    )


def test_task_that_a_killed_worker_had_not_read_yet_is_not_lost(site, broker):
    """A worker that stands still while Redis answers it, and is then killed, leaves the task to the next one."""
    first = site.start("-c", "1")
    wait_until(broker.waiting_clients, "the worker to wait for a message")
    first.process.send_signal(signal.SIGSTOP)
    site.send("unread")
    wait_until(lambda: not broker.waiting_clients(), "Redis to answer")
    first.kill()
    site.start(**TIMED)
    site.wait_for_order("unread")


def test_a_task_s_own_error_ends_as_a_dead_letter_at_once(site):
    """An error that another try would meet again is recorded with the message, and then fails the task as usual."""
    worker = site.start()
    sent = site.app.send_task("shop.take_order", [""], {"item": "nul \0"})
    letter = site.wait_for_dead_letter()
    assert letter["source"] == "shop.take_order"
    assert letter["message_id"] == sent.id
    assert letter["payload"] == {"args": [""], "kwargs": {"item": "nul \0"}}
    assert letter["error_type"] == "builtins.ValueError"
    assert letter["error"] == "an order needs an id"
    assert letter["attempts"] == 1
    wait_until(lambda: worker.logged("raised unexpected: ValueError"), "Celery's own failure")
    assert not worker.logged("Retry in")


def test_arguments_that_do_not_fit_end_as_a_dead_letter(site):
    """A message of an older sender cannot be tried again; it is kept, not dropped."""
    site.start()
    site.app.send_task("shop.take_order", kwargs={"number": 5})
    assert site.wait_for_dead_letter()["error_type"] == "builtins.TypeError"


def test_error_that_celery_uses_itself_ends_as_a_dead_letter(site):
    """Celery's parent process ends on a MemoryError of a task; here it is recorded like any other error."""
    worker = site.start()
    site.app.send_task("shop_reports.run_out_of_memory")
    assert site.wait_for_dead_letter()["error_type"] == "builtins.MemoryError"
    wait_until(lambda: worker.logged("raised unexpected: TaskGivenUp"), "the task's failure")
    site.send("after")
    site.wait_for_order("after")


def test_database_that_is_away_costs_no_task(own_server_site):
    """Tasks and dead letters that meet a stopped database are done when it is back, however often they were tried."""
    site = own_server_site
    worker = site.start(retries={"max_retries": 1})
    site.send("before")
    site.wait_for_order("before")
    site.database.server.stop()
    site.send("during")
    site.app.send_task("shop.take_order", kwargs={"order_id": ""})
    wait_until(lambda: worker.logged("could not be recorded"), "a dead letter that has to wait")
    wait_until(lambda: any(r.get("retries", 0) > 1 for r in worker.records()), "several tries")
    site.database.server.start()

    def kept():
        letters = site.database.execute("SELECT * FROM dead_letters")
        return {json.dumps(row["payload"]): row["error_type"] for row in letters}

    bad, during = ('{"args": [], "kwargs": {"order_id": ""}}', '{"args": ["during"], "kwargs": {}}')
    wait_until(lambda: kept().get(bad) == "builtins.ValueError", "the dead letter")
    # Given up only where the database came back just when that was about to be recorded.
    away = "poolkit.errors.DatabaseUnavailable"
    wait_until(lambda: "during" in site.orders() or kept().get(during) == away, "the task's end")


def test_broker_that_restarts_does_not_end_the_worker(own_broker_site):
    """A task that runs while the broker is away is finished, and the worker takes tasks again afterwards."""
    site, broker = own_broker_site
    worker = site.start()
    with site.locked("running"):
        site.send("running")
        site.database.wait_for_lock("worker:")
        broker.stop()
        wait_until(lambda: worker.logged("Cannot connect to redis"), "the worker to notice")
    site.wait_for_order("running")
    broker.start()
    site.send("after")
    site.wait_for_order("after")
    assert worker.process.poll() is None


@pytest.mark.slow
def test_retry_that_the_broker_does_not_take_is_not_lost(own_broker_site):
    """A task that fails while the broker's memory is full stays with the broker and comes again, instead of being dropped."""
    site, broker = own_broker_site
    worker = site.start(**TIMED)
    with redis.from_url(broker.url) as client, site.locked("fails"):
        site.send("fails")
        site.database.wait_for_lock("worker:")
        client.config_set("maxmemory", 1)
        wait_until(lambda: worker.logged("reject requeue=True"), "the refused retry")
        client.config_set("maxmemory", 0)
    site.wait_for_order("fails")
    assert worker.process.poll() is None


def test_backends_terminated_between_tasks_fail_no_task(site):
    """After `pg_terminate_backend` the next task finds a new connection, without a retry."""
    worker = site.start("-c", "1")
    site.send("first")
    site.wait_for_order("first")
    wait_until(lambda: worker.succeeded() == 1, "the first task's end")
    (backend,) = site.database.backends("worker:")
    site.database.execute("SELECT pg_terminate_backend(%s)", backend["pid"])
    site.database.wait_for_backends(0, "worker:")
    site.send("second")
    site.wait_for_order("second")
    assert not worker.logged("Retry in")


@pytest.mark.slow
def test_task_that_always_ends_its_child_is_given_up(site):
    """A child that hangs is killed by the hard time limit; after the last retry the task is a dead letter."""
    # Long, so that the task is found while it waits for the lock, also on a slow machine.
    limits = {"task_soft_time_limit": 5, "task_time_limit": 6}
    site.start(conf=limits, retries={"max_retries": 1})
    with site.locked("hangs"):
        sent = site.send("hangs")
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
    assert letter["error_type"].endswith("TaskLost")
    assert letter["attempts"] == 2
    assert site.orders() == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["segmentation fault", "os._exit", "sys.exit", "out of memory"])
def test_task_that_ends_its_process_is_given_up(site, how):
    """After a bounded number of deliveries it is one dead letter; the tasks beside it are done."""
    site.start()
    site.assert_given_up(how)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("options", "how"),
    [
        (("-P", "prefork", "-c", "2"), "parent killed"),
        (("-P", "threads", "-c", "2"), "out of memory"),
        (("-P", "solo"), "os._exit"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1],
)
def test_task_that_ends_its_worker_is_given_up(site, options, how):
    """The supervisor starts the worker again each time, and Redis delivers again after the visibility timeout."""
    # The good tasks beside it may be lost with the worker each time.
    quick = {"broker": {"visibility_timeout": 3}, "retries": PATIENT}

    def start():
        site.start(*options, **quick)

    start()
    site.assert_given_up(how, restart=start)


def test_statement_that_waits_too_long_is_tried_again(site):
    """The server ends a statement at the soft time limit, which psycopg2 would not notice; the task comes again."""
    worker = site.start(**TIMED)
    with site.locked("waits"):
        site.send("waits")
        wait_until(lambda: worker.logged("StatementTimeout"), "a retry")
    site.wait_for_order("waits")


def test_task_whose_tries_are_used_up_is_given_up(site):
    """An operational error that does not pass ends in the dead-letter table after the last try."""
    worker = site.start(retries={"max_retries": 1}, POOLKIT_STATEMENT_TIMEOUT="300")
    with site.locked("waits"):
        site.send("waits")
        letter = site.wait_for_dead_letter()
    assert letter["error_type"] == "poolkit.errors.StatementTimeout"
    # The letter itself may meet the limit, on a machine that stands still; then it comes again.
    more = sum("could not be recorded" in record["message"] for record in worker.records())
    assert letter["attempts"] == 2 + more


def test_warm_shutdown_finishes_the_running_task(site):
    """SIGTERM takes the ready file away and waits for the running task."""
    worker = site.start()
    with site.locked("running"):
        site.send("running")
        site.database.wait_for_lock("worker:")
        worker.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not worker.ready_file.exists(), "the ready file to go")
        assert worker.process.poll() is None
    assert worker.wait() == 0
    assert site.orders() == ["running"]
    site.database.wait_for_backends(0, "worker:")


def test_recycled_children_close_their_connections(site):
    """Children replaced after each task close what they opened and leave no backend behind."""
    worker = site.start("-c", "2", "--max-tasks-per-child", "1", SHOP_LOG_LEVEL="DEBUG")
    site.send("first")
    site.send("second")
    wait_until(lambda: len(site.orders()) == 2, "2 orders")
    site.database.wait_for_backends(0, "worker:")
    assert site.database.abandoned() == 0
    wait_until(lambda: worker.logged("connections are closed"), "the words of a child's end")
    assert worker.process.poll() is None


def test_messages_that_are_no_task_do_not_end_the_worker(site, broker):
    """What is no JSON is dropped; what is a message but no task of ours becomes a dead letter."""
    worker = site.start()
    queue = site.queue
    with redis.from_url(broker.url) as client:
        for rubbish in (b"no JSON", b"\xff\xfe", b"[]", b"{}", b'"x"'):
            client.lpush(queue, rubbish)
    site.app.send_task("shop.no_such_task", kwargs={"x": 1})
    letter = site.wait_for_dead_letter()
    assert letter["source"] == "shop.no_such_task"
    assert '{"x": 1}' in letter["payload"]
    site.send("after")
    site.wait_for_order("after")
    assert worker.process.poll() is None


def test_unreadable_message_is_kept_by_a_worker_of_another_queue(site):
    """A worker that does not consume the default queue sends the dead letter to one that it does."""
    site.start("-c", "1", "-Q", f"{site.queue}-other")
    site.app.send_task("shop.no_such_task", queue=f"{site.queue}-other")
    assert site.wait_for_dead_letter()["source"] == "shop.no_such_task"


def test_malformed_tasks_become_dead_letters(site, broker):
    """A message that names a task but cannot be read as one is kept, whatever is wrong with it."""
    worker = site.start()
    queue = site.queue
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
        wait_until(lambda: client.llen(queue) == 0, "an empty queue")


def test_threads_share_one_engine_with_a_connection_each(site):
    """In a worker of threads the pool is as large as the concurrency, and the connections end with it."""
    worker = site.start("--pool", "threads", "-c", "6")
    with site.locked("waits"):
        for _ in range(6):
            site.send("waits")
        site.database.wait_for_backends(6, "worker:")
    wait_until(lambda: worker.succeeded() == 6, "6 tasks done")
    assert {child_pid(row) for row in site.database.backends("worker:")} == {worker.process.pid}
    assert worker.stop() == 0
    site.database.wait_for_backends(0, "worker:")
    assert site.database.abandoned() == 0


def _message(queue, arguments="", *, body=None, content_type="application/json", **headers):
    return {
        "body": base64.b64encode(arguments.encode()).decode() if body is None else body,
        "content-type": content_type,
        "content-encoding": "utf-8",
        "headers": {"task": "shop.take_order", **headers},
        "properties": {
            "delivery_tag": secrets.token_hex(8),
            "delivery_info": {"exchange": queue, "routing_key": queue},
            "body_encoding": "base64",
        },
    }


def _children(pid):
    return [child.pid for child in psutil.Process(pid).children()]
