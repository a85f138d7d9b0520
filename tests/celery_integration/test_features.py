"""What Celery's command line offers beside the worker: autoscaling, beat, chords, inspection. What cannot work is refused."""

import json
import sys

import pytest
from celery import chord
from celery_working import FOLDER, PATIENT, open_site
from processes import run_python, started, wait_until

SCHEDULE = {"beat_schedule": {"one": {"task": "shop.take_order", "schedule": 1, "args": ["beat"]}}}


def _environ(site, **variables):
    return site.environ | {"SHOP_BROKER": json.dumps(site.broker)} | variables


def _celery(site, *command, **variables):
    environ = _environ(site, **variables)
    return run_python("-m", "celery", "-A", "shop", *command, cwd=FOLDER, environ=environ)


@pytest.mark.slow
def test_autoscaled_worker_has_a_connection_for_each_task_and_one_less_afterwards(site):
    """Children are added while tasks wait, each with one connection."""
    worker = site.start("--autoscale", "3,1")
    with site.locked("waits"):
        for _ in range(3):
            site.send("waits")
        site.database.wait_for_backends(3, "worker:")
    wait_until(lambda: worker.succeeded() == 3, "3 tasks done")
    assert worker.stop() == 0
    site.database.wait_for_backends(0, "worker:")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["beside the worker", "in the worker"])
def test_beat_sends_tasks_on_schedule(site, place):
    """`celery beat` beside the worker, and `worker --beat`."""
    schedule = ("--schedule", str(site.directory / "schedule"))
    if place == "in the worker":
        worker = site.start("-c", "1", "--beat", *schedule, conf=SCHEDULE)
        wait_until(lambda: worker.succeeded() >= 2, "two scheduled tasks")
        assert worker.stop() == 0
        return
    worker = site.start("-c", "1")
    environ = _environ(site, SHOP_CONF=json.dumps(SCHEDULE))
    command = ("-m", "celery", "-A", "shop", "beat", *schedule)
    with started(sys.executable, *command, cwd=FOLDER, environ=environ):
        wait_until(lambda: worker.succeeded() >= 2, "two scheduled tasks")
    assert site.orders() == ["beat"]


@pytest.mark.slow
def test_chord_is_completed_by_tasks_that_were_tried_again(site):
    """The body runs once after all of the header, also when one of it had to be tried again."""
    backend = {"result_backend": site.broker["url"]}
    site.app.conf.update(backend)
    options = {"conf": backend, "retries": PATIENT, "POOLKIT_STATEMENT_TIMEOUT": "300"}
    worker = site.start("-c", "4", **options)
    header = [site.app.signature("shop.take_order", args=[f"o{n}"]) for n in range(3)]
    body = site.app.signature("shop_reports.count_orders", immutable=True)
    with site.locked("o1"):
        result = chord(header, app=site.app)(body)
        wait_until(lambda: worker.logged("Retry in"), "a retry")
    assert result.get(timeout=60) == 3


def test_chord_without_a_result_backend_is_refused_where_it_is_sent(site):
    """Celery counts the header's tasks in the result backend, so without one the body would never run."""
    header = [site.app.signature("shop.take_order", args=["o1"])]
    with pytest.raises(NotImplementedError, match="result backend"):
        chord(header, app=site.app)(site.app.signature("shop_reports.count_orders"))


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_inspect_reports_the_worker(site, pool):
    """Remote control is on by default with Redis."""
    site.start("-P", pool, "-c", "2")
    wait_until(lambda: "pong" in _celery(site, "inspect", "ping").stdout, "the worker's answer")


@pytest.mark.process
@pytest.mark.parametrize(
    "options",
    [
        ("-c", "16"),
        pytest.param(("--autoscale", "16,1"), marks=pytest.mark.slow),
        pytest.param(("-P", "threads", "-c", "16"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_more_tasks_than_connections_are_refused(site, options):
    """The message has both numbers, whether they come from --concurrency or from --autoscale."""
    site.database.execute(f"ALTER DATABASE {site.database.name} CONNECTION LIMIT 5")
    ended = _celery(site, "worker", *options)
    assert ended.returncode == 1
    assert "need 16 connections, but the server admits 5" in ended.stderr


@pytest.mark.slow
def test_server_of_ten_connections_refuses_sixteen_tasks(broker, new_postgres, tmp_path):
    """`max_connections`, less the places that are reserved for superusers."""
    with new_postgres(max_connections=10) as server:
        environ = {"DATABASE_URL": server.url()}
        with open_site(None, {"url": broker.url}, environ, tmp_path) as site:
            ended = _celery(site, "worker", "-c", "16")
    assert ended.returncode == 1
    assert "need 16 connections, but the server admits 7 (max_connections" in ended.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        (("-P", "threads", "--autoscale", "4,1"), {}, "--autoscale does not work with the pool"),
        (("-E",), {"url": "sqs://", "queue_url": "http://127.0.0.1:1/q"}, "which SQS does not"),
    ],
    ids=["threads cannot grow", "SQS has no events"],
)
def test_options_that_do_not_work_together_are_refused(site, options, changed, message):
    """The worker ends with status 1 and the reason."""
    site.broker = site.broker | changed
    ended = _celery(site, "worker", *options, AWS_REGION="eu-west-3")
    assert ended.returncode == 1
    assert message in ended.stderr
