"""Each of Celery's pools, and applications as people have them: engines before forks, plain tasks, results."""

import socket

import pytest
from celery_working import FOLDER, child_pid
from processes import run_python, wait_until

NOWHERE = "postgresql://u:p@127.0.0.1:1/x"


@pytest.mark.parametrize(
    "options",
    [
        ("--pool", "prefork", "-c", "2"),
        ("--pool", "threads", "-c", "3"),
        ("--pool", "solo"),
    ],
    ids=lambda options: options[1],
)
def test_plain_and_shared_tasks_run_in_each_pool(site, options):
    """Tasks with Celery's own retries, and shared tasks of a module that knows no application."""
    worker = site.start(*options)
    for number in range(6):
        site.app.send_task("shop_reports.take_plain_order", [f"o{number}"])
    wait_until(lambda: len(site.orders()) == 6, "6 orders")
    site.app.send_task("shop_reports.count_orders")
    wait_until(lambda: worker.succeeded() == 7, "7 tasks done")
    assert worker.stop() == 0
    site.database.wait_for_backends(0, "worker:")
    assert site.database.abandoned() == 0


@pytest.mark.slow
def test_child_processes_may_be_spawned(site):
    """Where a child is a fresh interpreter, as on macOS, it makes its engine as well, with one connection."""
    worker = site.start("--pool", "prefork", "-c", "2", conf={"worker_pool_start_method": "spawn"})
    for number in range(6):
        site.send(f"o{number}")
    wait_until(lambda: len(site.orders()) == 6, "6 orders")
    assert 1 <= len(site.database.backends("worker:")) <= 2
    assert worker.stop() == 0
    site.database.wait_for_backends(0, "worker:")


@pytest.mark.slow
def test_greenlets_run_with_a_driver_that_lets_them_switch(site):
    """Tasks of a gevent pool wait for one lock at the same time, on psycopg's connections."""
    url = site.environ["DATABASE_URL"].replace("+psycopg2", "+psycopg")
    worker = site.start("--pool", "gevent", "-c", "4", DATABASE_URL=url)
    with site.locked("waits"):
        for _ in range(4):
            site.send("waits")
        site.database.wait_for_backends(4, "worker:")
    wait_until(lambda: worker.succeeded() == 4, "4 tasks done")


def _start_in_vain(site, *options, **environ):
    variables = site.environ | {"SHOP_BROKER": f'{{"url": "{site.broker["url"]}"}}'} | environ
    command = ("-m", "celery", "-A", "shop", "worker", *options)
    return run_python(*command, cwd=FOLDER, environ=variables)


@pytest.mark.process
def test_greenlets_that_the_driver_would_block_are_refused(site):
    """With psycopg2 one statement would stop all tasks of the worker."""
    ended = _start_in_vain(site, "--pool", "gevent")
    assert ended.returncode == 1
    assert "the pool 'gevent' does not run with psycopg2" in ended.stderr


@pytest.mark.process
def test_worker_without_a_database_does_not_start(site):
    """Missing settings, and with POOLKIT_FAIL_FAST a database that is away, end the worker before it takes a task."""
    ended = _start_in_vain(site, DATABASE_URL="")
    assert ended.returncode == 1
    assert "the worker does not start: set exactly one of DATABASE_URL" in ended.stderr
    ended = _start_in_vain(site, DATABASE_URL=NOWHERE, POOLKIT_FAIL_FAST="true")
    assert ended.returncode == 1
    assert "the worker does not start: the database is not available" in ended.stderr


def test_engine_used_before_the_fork_is_no_child_s(site):
    """An application that queries the database while it is imported: each child has a connection of its own, and the parent keeps its own."""
    worker = site.start("-c", "2", SHOP_QUERIES_AT_IMPORT="1")
    for number in range(20):
        site.send(f"o{number:02}")
    wait_until(lambda: worker.succeeded() == 20, "20 tasks done")
    pids = [child_pid(backend) for backend in site.database.backends("worker:")]
    assert len(pids) == len(set(pids)) <= 3
    assert not [record for record in worker.records() if record["level"] == "ERROR"]
    assert worker.stop() == 0
    site.database.wait_for_backends(0, "worker:")


@pytest.mark.slow
def test_children_start_while_the_database_does_not_answer(site):
    """Celery replaces a child that is not up within a limit, so a child does not connect at its start."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/x"
        options = ("-c", "1", "--max-tasks-per-child", "1")
        # Of Celery's own four seconds a machine that stands still may take more.
        conf = {"worker_proc_alive_timeout": 10}
        worker = site.start(*options, conf=conf, DATABASE_URL=url, POOLKIT_PREWARM="1")
        for seconds in (0, 13):
            site.app.send_task("shop_reports.sleep", [seconds])
        wait_until(lambda: worker.succeeded() == 2, "two tasks without the database")
    assert "UP message" not in worker.text


def test_session_that_a_task_leaves_open_is_reported(site):
    """The log names the task that keeps its child's only connection."""
    worker = site.start("-c", "1")
    site.app.send_task("shop_reports.keep_a_session")
    wait_until(
        lambda: worker.logged("task shop_reports.keep_a_session has ended and still holds"),
        "the report",
    )


def test_result_backend_has_the_result_and_the_error(site):
    """A task that is given up fails for its caller as well, after its dead letter was recorded."""
    site.app.conf.update(result_backend=site.broker["url"])
    site.start(conf={"result_backend": site.broker["url"]})
    counted = site.app.send_task("shop_reports.count_orders")
    assert counted.get(timeout=60) == 0
    failed = site.app.send_task("shop.take_order", [""])
    with pytest.raises(ValueError, match="an order needs an id"):
        failed.get(timeout=60)
    assert site.wait_for_dead_letter()["message_id"] == failed.id


def test_tasks_that_end_while_redis_is_away_are_acknowledged_later(own_broker_site):
    """With every child busy and Redis away until all are done, the worker takes tasks again, and none runs twice."""
    site, broker = own_broker_site
    worker = site.start("-c", "2")
    for name in ("o1", "o2"):
        site.app.send_task("shop_reports.take_slow_order", [name, 3])
    wait_until(lambda: worker.slow_orders_begun() == 2, "both to begin")
    broker.stop()
    wait_until(lambda: worker.succeeded() == 2, "both to end")
    broker.start()
    site.send("after")
    site.wait_for_order("after")
    assert worker.process.poll() is None
    assert worker.received() == 3
