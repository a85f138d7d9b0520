"""Workers on a real RabbitMQ, started by these tests from the programs of the system's package."""

import json
import re
from contextlib import ExitStack

import pytest
from celery_working import FOLDER, PATIENT, assert_depth_is_measured_without_age, open_site
from kombu import Connection
from processes import run_python, wait_until
from stoppable_brokers import HAS_RABBITMQ, RabbitMQ

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HAS_RABBITMQ, reason="no RabbitMQ (Debian: rabbitmq-server)"),
]


@pytest.fixture(scope="module")
def rabbitmq():
    """Start a RabbitMQ."""
    with RabbitMQ() as broker:
        yield broker


@pytest.fixture
def site(rabbitmq, shop_database, tmp_path):
    """Return a queue on that RabbitMQ, and a database of the test's own."""
    environ = {"DATABASE_URL": shop_database.url()}
    with open_site(shop_database, {"url": rabbitmq.url}, environ, tmp_path) as site:
        yield site
        name = site.queue
        with Connection(rabbitmq.url) as connection:
            connection.channel().queue_delete(name)
            connection.channel().exchange_delete(name)


def test_what_waits_for_its_next_try_keeps_no_other_task_waiting(site):
    """With more failed tasks than the worker takes at once, a good one is done meanwhile."""
    retries = {"retry_backoff": 600, "retry_backoff_max": 600, "max_retries": 20}
    worker = site.start(retries=retries, POOLKIT_STATEMENT_TIMEOUT="300")
    names = [f"locked{number}" for number in range(6)]
    with ExitStack() as locks:
        for name in names:
            locks.enter_context(site.locked(name))
            site.send(name)

        def failed():
            lines = [each["message"] for each in worker.records() if "Retry in" in each["message"]]
            # By the task's id: a wait is random, so one may have failed twice by now.
            return {re.search(r"\[.*?\]", line)[0] for line in lines}

        wait_until(lambda: len(failed()) == len(names), "every locked one to fail once")
        # Several, for one of them may meet the short time limit on a busy machine.
        free = {f"free{number}" for number in range(5)}
        for name in free:
            site.send(name)
        wait_until(lambda: free.intersection(site.orders()), "a good one to be done")


def test_a_retry_comes_back_and_is_done_once(site):
    """Tried again and again while its row is locked, the task succeeds when that is over."""
    worker = site.start(retries=PATIENT, POOLKIT_STATEMENT_TIMEOUT="300")
    with site.locked("d1"):
        site.send("d1")
        wait_until(
            lambda: sum("Retry in" in record["message"] for record in worker.records()) >= 3,
            "the third retry",
        )
    site.wait_for_order("d1")
    assert worker.stop() == 0
    assert not [record for record in worker.records() if "delayed delivery" in record["message"]]
    assert site.database.execute("SELECT * FROM dead_letters") == []


def test_a_killed_worker_s_task_is_redelivered_and_counted(site):
    """SIGKILL in the middle of a task: the next worker gets it, after a wait."""
    first = site.start("-c", "1")
    with site.locked("d1"):
        site.send("d1")
        site.database.wait_for_lock("worker:")
        first.kill()
    site.start()
    site.wait_for_order("d1")
    assert len(site.database.execute("SELECT * FROM orders")) == 1


def test_a_poison_task_ends_in_the_dead_letter_table(site):
    """A task that fails by itself is given up at once, on this broker as on any."""
    site.start()
    site.app.send_task("shop.take_order", [""])
    assert site.wait_for_dead_letter()["attempts"] == 1


def test_queue_s_depth_is_asked_of_rabbitmq(site):
    """The metric of the depth is there; the age is unknown, because looking at a message would take it."""
    assert_depth_is_measured_without_age(site)


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_worker_with_every_slot_busy_outlives_rabbitmq_s_absence(site, rabbitmq, slots):
    """RabbitMQ stops for longer than the running tasks take. It delivers them again, because no acknowledgement reached it, and each leaves one order."""
    worker = site.start("-c", str(slots))
    names = [f"busy{number}" for number in range(slots)]
    for name in names:
        site.app.send_task("shop_reports.take_slow_order", [name, 4])
    wait_until(lambda: worker.slow_orders_begun() == slots, "every slot to be busy")
    with rabbitmq.away():
        wait_until(lambda: worker.succeeded() == slots, "the running tasks to end")
    for number in range(5):
        site.send(f"after{number}")
        names.append(f"after{number}")
    wait_until(lambda: site.orders() == sorted(names), lambda: worker.text)
    wait_until(lambda: worker.health(max_age=10).returncode == 0, "the health check to hold")
    assert worker.stop() == 0


def test_rabbitmq_that_stands_still_is_noticed_and_outlived(site, rabbitmq):
    """The health check of an idle worker fails while RabbitMQ does not answer, and holds again when it does."""
    worker = site.start("-c", "1")
    with rabbitmq.paused():
        wait_until(lambda: worker.health(max_age=10).returncode == 1, "the check to fail")
    site.send("after")
    site.wait_for_order("after")
    wait_until(lambda: worker.health(max_age=10).returncode == 0, "the check to hold")


def test_inspect_reports_the_worker(site):
    """Remote control is on by default with RabbitMQ."""
    site.start()
    environ = site.environ | {"SHOP_BROKER": json.dumps(site.broker)}
    command = ("-m", "celery", "-A", "shop", "inspect", "ping")
    wait_until(
        lambda: "pong" in run_python(*command, cwd=FOLDER, environ=environ).stdout, "the answer"
    )


@pytest.mark.parametrize("how", ["segmentation fault", "out of memory"])
def test_task_that_ends_its_process_is_given_up_on_rabbitmq(site, how):
    """After a bounded number of deliveries it is one dead letter; the tasks beside it are done."""
    site.start()
    site.assert_given_up(how)


@pytest.mark.timeout(900)
def test_task_that_ends_its_worker_is_given_up_on_rabbitmq(site):
    """The supervisor starts the worker again each time, and RabbitMQ delivers again at once."""

    def start():
        # The good tasks beside it may be lost with the worker each time.
        site.start(retries=PATIENT)

    start()
    site.assert_given_up("parent killed", restart=start)
