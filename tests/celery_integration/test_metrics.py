"""What a scrape of a real worker shows, while its children die and its broker is away."""

import os
import signal
from typing import Any

import pytest
from celery_working import child_pid, start_with_metrics
from processes import runs, wait_until

from poolkit.celery import stamp_sent_time
from poolkit.local.ports import free_port

TAKE = "shop.take_order"


def test_metrics_are_those_of_all_children(site):
    """One scrape has the pools and the tasks of every child, also of those that have ended."""
    stamp_sent_time()
    _, scraped = start_with_metrics(site, "-c", "2", "--max-tasks-per-child", "2")
    for number in range(6):
        site.send(f"o{number}")
    sent = site.app.send_task(TAKE, [""])
    assert site.wait_for_dead_letter()["message_id"] == sent.id
    ended = {"name": "poolkit_tasks_total", "task": TAKE}
    wait_until(lambda: scraped(**ended, state="SUCCESS") == 6, "6 tasks")
    wait_until(lambda: scraped(**ended, state="FAILURE") == 1, "1 failure")
    assert scraped("poolkit_task_duration_seconds_count", task=TAKE, state="SUCCESS") == 6
    assert scraped("poolkit_task_wait_seconds_count", task=TAKE) == 7
    errors = {"task": TAKE, "state": "FAILURE", "error": "ValueError"}
    assert scraped("poolkit_task_errors_total", **errors) == 1
    assert scraped("poolkit_dead_letters_total", task=TAKE) == 1
    wait_until(lambda: scraped("poolkit_pool_checkouts_total", target="worker") == 7, "7 checkouts")
    assert scraped("poolkit_pool_hold_seconds_count", target="worker") == 7
    with site.locked("waits"):
        site.send("waits")
        wait_until(
            lambda: scraped("poolkit_pool_checked_out", target="worker") == 1, "the connection"
        )


def test_counters_never_decrease_while_children_are_killed(site):
    """Killed in the middle of tasks, children leave their counts; each costs one redelivery."""
    _, scraped = start_with_metrics(site, "-c", "2")
    before: dict[Any, float] = {}
    for number in range(3):
        with site.locked(f"killed{number}"):
            site.send(f"killed{number}")
            victim = site.database.wait_for_lock("worker:")
            pid = child_pid(victim)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: not runs(pid), "the child's end")
        site.wait_for_order(f"killed{number}")
        # Reported, because the child that did it may be killed next.
        for name, labels in (
            ("poolkit_tasks_total", {"state": "SUCCESS"}),
            ("poolkit_task_redeliveries_total", {}),
        ):
            wait_until(
                lambda name=name, labels=labels, number=number: (
                    scraped(name, task=TAKE, **labels) == number + 1
                ),
                name,
            )
        found = scraped.all()
        counters = {
            key: value for key, value in before.items() if key[0].endswith(("_total", "_count"))
        }
        assert {key for key, value in counters.items() if found.get(key, 0) < value} == set()
        before = found


@pytest.mark.slow
def test_files_of_ended_processes_do_not_accumulate(site, tmp_path):
    """Replaced after each task, and killed with their worker, children leave no file, although nobody scrapes."""
    for number in range(2):
        port = str(free_port())
        options = ("-c", "1", "--max-tasks-per-child", "1")
        worker = site.start(*options, SHOP_METRICS_PORT=port, TMPDIR=str(tmp_path))
        for each in range(6):
            site.send(f"o{number}-{each}")
        wait_until(lambda number=number: len(site.orders()) == 6 * (number + 1), "6 orders more")
        wait_until(
            lambda: len(list(tmp_path.glob("poolkit-celery-*/*-*"))) <= 1, "one file of one child"
        )
        assert len(list(tmp_path.glob("poolkit-celery-*"))) == 1
        worker.kill()


@pytest.mark.slow
def test_queue_s_depth_and_age_are_shown_and_absent_while_unknown(own_broker_site):
    """Tasks that wait are counted, with the age of the first; no figure outlives a broker that is away."""
    stamp_sent_time()
    site, broker = own_broker_site
    _, scraped = start_with_metrics(site, "-c", "1")
    queue = {"queue": site.queue}
    wait_until(lambda: scraped("poolkit_queue_depth", **queue) == 0, "an empty queue")
    assert scraped("poolkit_queue_oldest_age_seconds", **queue) == 0
    with site.locked("first"):
        site.send("first")
        site.database.wait_for_lock("worker:")
        for name in ("second", "third", "fourth"):
            site.send(name)
        wait_until(lambda: scraped("poolkit_queue_depth", **queue) == 3, "tasks that wait")
        wait_until(lambda: scraped("poolkit_queue_oldest_age_seconds", **queue) > 1, "their age")
        broker.stop()
        wait_until(lambda: scraped("poolkit_queue_depth", **queue) is None, "no figure")
        assert scraped("poolkit_queue_oldest_age_seconds", **queue) is None
