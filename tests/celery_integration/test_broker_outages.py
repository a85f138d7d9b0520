"""A broker that goes away, stands still or is demoted, and the worker that goes on afterwards."""

import time
from pathlib import Path

import pytest
import redis
from celery_working import FOLDER, Worker, health_of
from processes import run_python, stopped, wait_until

# Remote control has a connection that notices when Redis goes.
DEAF = {"worker_enable_remote_control": False}


def _keep_on_disk(broker):
    """Let the broker store its queues when it stops, and read them when it starts."""
    with redis.from_url(broker.url) as client:
        client.config_set("save", "3600 1")


def _occupy(site, worker, slots, seconds):
    """Send a slow order for each slot, and wait until each has begun."""
    for number in range(slots):
        site.app.send_task("shop_reports.take_slow_order", [f"busy{number}", seconds])
    wait_until(lambda: worker.slow_orders_begun() == slots, "every slot to be busy")
    time.sleep(1.5)  # a command that waits for the next message, for a second, has ended


def _finish(site, worker, slots):
    """Assert that the worker takes tasks again, and that none was lost or done twice."""
    after = [f"after{number}" for number in range(5)]
    for name in after:
        site.send(name)
    names = sorted([*after, *(f"busy{number}" for number in range(slots))])
    wait_until(lambda: site.orders() == names, lambda: f"{site.orders()}\n{worker.text}")
    wait_until(lambda: worker.succeeded() == len(names), "each task's end")
    assert worker.process.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        *(("-c", "1"), ("-c", "2"), ("-c", "4")),
        *(("-P", "threads", "-c", "2"), ("-P", "solo")),
    ],
    ids=" ".join,
)
def test_worker_with_every_slot_busy_outlives_its_broker_s_absence(own_broker_site, options):
    """Redis is away for longer than the running tasks take; afterwards the worker acknowledges them and takes the next ones."""
    site, broker = own_broker_site
    _keep_on_disk(broker)
    slots = 1 if "solo" in options else int(options[-1])
    worker = site.start(*options, conf=DEAF)
    _occupy(site, worker, slots, seconds=4)
    broker.stop()
    wait_until(lambda: worker.succeeded() == slots, "the running tasks to end")
    time.sleep(1)  # their acknowledgements fail meanwhile
    broker.start()
    _finish(site, worker, slots)
    with redis.from_url(broker.url) as client:
        wait_until(lambda: client.hlen("unacked") == 0, "every acknowledgement")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_running_task_is_not_run_again_when_the_connection_is_cut(own_broker_site, pool):
    """The worker connects again while the task runs, and its message stays where it is."""
    site, broker = own_broker_site
    worker = site.start("-P", pool, "-c", "2")
    _occupy(site, worker, 1, seconds=6)
    with redis.from_url(broker.url) as client:
        # One place is free, so the worker waits for a message, and notices.
        for _ in range(5):
            client.client_kill_filter(_type="normal", skipme=True)
            time.sleep(0.3)
    wait_until(lambda: worker.logged("Connection to broker lost"), "the worker to notice")
    _finish(site, worker, 1)
    assert worker.received("take_slow_order") == 1


@pytest.mark.slow
def test_server_that_closes_idle_connections_loses_no_acknowledgement(own_broker_site):
    """With Redis's setting `timeout`, each connection of a busy worker is closed while its tasks run."""
    site, broker = own_broker_site
    with redis.from_url(broker.url) as client:
        client.config_set("timeout", 1)
    worker = site.start("-c", "2")
    _occupy(site, worker, 2, seconds=5)
    _finish(site, worker, 2)
    assert worker.received("take_slow_order") == 2


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_demoted_redis_is_left_like_one_that_is_away(own_broker_site, pool):
    """A primary that becomes a replica refuses each write; the worker connects again until one takes them."""
    site, broker = own_broker_site
    slots = 1 if pool == "solo" else 2
    worker = site.start("-P", pool, "-c", "2")
    _occupy(site, worker, slots, seconds=4)
    with redis.from_url(broker.url) as client:
        client.replicaof("127.0.0.1", "1")
        wait_until(lambda: worker.succeeded() == slots, "the running tasks to end")
        wait_until(lambda: worker.logged("Connection to broker lost"), "the worker to notice")
        client.config_set("replica-serve-stale-data", "no")  # MASTERDOWN instead of READONLY
        time.sleep(3)
        client.replicaof("NO", "ONE")
        _finish(site, worker, slots)
        wait_until(lambda: client.hlen("unacked") == 0, "every acknowledgement")


@pytest.mark.slow
def test_primary_without_replicas_is_left_like_one_that_is_away(own_broker_site):
    """With `min-replicas-to-write` a primary refuses each write while its replicas are gone."""
    site, broker = own_broker_site
    worker = site.start("-c", "2")
    _occupy(site, worker, 2, seconds=4)
    with redis.from_url(broker.url) as client:
        client.config_set("min-replicas-to-write", 1)
        wait_until(lambda: worker.succeeded() == 2, "the running tasks to end")
        wait_until(lambda: worker.logged("Connection to broker lost"), "the worker to notice")
        time.sleep(3)
        client.config_set("min-replicas-to-write", 0)
        _finish(site, worker, 2)
        wait_until(lambda: client.hlen("unacked") == 0, "every acknowledgement")


@pytest.mark.slow
def test_broker_that_stands_still_is_noticed_and_outlived(own_broker_site):
    """The health check fails with a reason while Redis does not answer, and holds again when it does."""
    site, broker = own_broker_site
    worker = site.start("-c", "2")
    _occupy(site, worker, 2, seconds=4)
    with stopped(broker.pid):
        wait_until(lambda: worker.succeeded() == 2, "the running tasks to end")
        failed = wait_until(
            lambda: (found := worker.health(max_age=10)).returncode and found, "the check"
        )
        assert failed.returncode == 1
        assert "last consumed" in failed.stderr
    _finish(site, worker, 2)
    wait_until(lambda: worker.health(max_age=10).returncode == 0, "the check to hold")


@pytest.mark.slow
def test_tasks_that_wait_for_their_time_outlive_the_broker_s_absence(own_broker_site):
    """Tasks with a countdown are done once, also when Redis is away at their time."""
    site, broker = own_broker_site
    _keep_on_disk(broker)
    worker = site.start("-c", "2")
    for number in range(4):
        site.app.send_task("shop_reports.take_slow_order", [f"busy{number}", 0], countdown=4)
    wait_until(lambda: worker.received() == 4, "the tasks to wait in the worker")
    broker.stop()
    wait_until(lambda: worker.logged("Cannot connect to redis"), "the worker to notice")
    time.sleep(4)
    broker.start()
    _finish(site, worker, 4)


@pytest.mark.slow
def test_worker_waits_for_a_broker_that_is_away_at_the_start(own_broker_site, tmp_path: Path):
    """It has no ready file until it has connected."""
    site, broker = own_broker_site
    broker.stop()
    ready = tmp_path / "first.ready"
    ready.write_text("consuming\n")  # of a worker that was killed
    variables = {"SHOP_READY_FILE": str(ready), "SHOP_BROKER": f'{{"url": "{broker.url}"}}'}
    worker = Worker(ready, ("-c", "1"), site.environ | variables)
    site.workers.append(worker)
    wait_until(lambda: worker.logged("Cannot connect to redis"), "the first attempt")
    failed = health_of(ready)
    assert (failed.returncode, failed.stderr[:23]) == (1, "the worker is not ready")
    broker.start()
    wait_until(lambda: health_of(ready).returncode == 0, "the worker to be ready")


@pytest.mark.slow
def test_worker_that_no_longer_consumes_is_unhealthy_and_ends(own_broker_site):
    """With kombu's own transport the slots never come back; the worker reports that and ends with status 1, and the next one does the tasks."""
    site, broker = own_broker_site
    _keep_on_disk(broker)
    environ = {"SHOP_PLAIN_TRANSPORT": "1", "SHOP_STALL_TIMEOUT": "20"}
    worker = site.start("-c", "2", conf=DEAF, **environ)
    _occupy(site, worker, 2, seconds=4)
    broker.stop()
    wait_until(lambda: worker.succeeded() == 2, "the running tasks to end")
    time.sleep(1)
    broker.start()
    site.send("after")
    # It may fail for another reason before: the broker was away, or the machine stood still.
    wait_until(
        lambda: "1 messages wait" in worker.health(max_age=5).stderr,
        lambda: f"the check\n{worker.text}",
    )
    assert worker.wait() == 1
    assert worker.logged("the worker is stuck and ends: 1 messages wait")
    assert not worker.ready_file.exists()
    site.start("-c", "2")
    site.wait_for_order("after")


@pytest.mark.slow
def test_worker_whose_loop_is_blocked_is_unhealthy_and_ends(own_broker_site):
    """A loop that waits for ever for a connection that leads nowhere runs nothing else; its broker is reachable by another one."""
    site, _broker = own_broker_site
    quick = {"broker": {"visibility_timeout": 3}}
    worker = site.start("-c", "1", **quick, SHOP_STALL_TIMEOUT="12", SHOP_BLOCKS_ITS_LOOP="1")
    site.send("first")
    site.send("second")
    assert worker.wait() == 1
    assert worker.logged("the worker is stuck and ends: the consumer's loop has not run for")
    site.start("-c", "1", **quick)
    wait_until(lambda: site.orders() == ["first", "second"], "both orders")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_worker_with_a_task_that_takes_long_stays_healthy(site, pool):
    """A busy worker with a full queue is no stuck one, whether its loop runs meanwhile or not."""
    url = site.environ["DATABASE_URL"].replace("+psycopg2", "+psycopg")
    worker = site.start("-P", pool, "-c", "1", SHOP_STALL_TIMEOUT="3", DATABASE_URL=url)
    for number in range(2):
        site.app.send_task("shop_reports.take_slow_order", [f"busy{number}", 20])
    for _ in range(3):
        site.send("x")
    wait_until(lambda: "busy0" in site.orders(), "the long task")
    # Of a worker that is taken for a stuck one the file is gone by now.
    assert worker.health(max_age=60).returncode == 0
    wait_until(lambda: worker.succeeded() == 5, "all tasks")
    assert worker.stop() == 0


@pytest.mark.process
def test_health_check_reports_a_missing_and_a_stale_file(tmp_path):
    """Status 1 and one line; the file's content is the reason, unless the worker died while it consumed."""
    file = tmp_path / "ready"
    missing = health_of(file)
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    file.write_text("consuming\n")
    assert health_of(file).returncode == 0
    stale = health_of(file, 0)
    assert stale.returncode == 1
    assert "has ended or stands still" in stale.stderr
    file.write_text("7 messages wait\n")
    assert "7 messages wait" in health_of(file, 0).stderr


@pytest.mark.process
def test_health_check_imports_neither_celery_nor_sqlalchemy():
    """It runs every few seconds beside the worker, so it has to be cheap."""
    code = (
        "import sys; from poolkit.celery.health import main; "
        "print([name for name in ('celery', 'kombu', 'sqlalchemy') if name in sys.modules])"
    )
    assert run_python("-c", code, cwd=FOLDER.parents[1]).stdout.strip() == "[]"
