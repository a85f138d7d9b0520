"""Tasks of a module that knows no application, and tasks as people write them without poolkit's base."""

import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from celery import shared_task
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from poolkit.celery import Database, DeliveredTask
from poolkit.errors import TemporaryFailure

_kept: list[Any] = []


@shared_task(base=DeliveredTask, bind=True)
def count_orders(self: Any) -> int:
    """Count the orders."""
    from shop import Order

    with Database.of(self.app).session() as session:
        return session.scalar(select(func.count(Order.id)))


@shared_task(bind=True, autoretry_for=(TemporaryFailure,), retry_backoff=True, max_retries=50)
def take_plain_order(self: Any, order_id: str) -> None:
    """Insert an order with Celery's own retries."""
    from shop import Order

    with Database.of(self.app).session() as session:
        session.merge(Order(id=order_id, item="plain"))


@shared_task(bind=True)
def keep_a_session(self: Any) -> None:
    """Open a session and never close it."""
    session = Session(Database.of(self.app).engine)
    session.execute(text("SELECT 1"))
    _kept.append(session)


@shared_task
def sleep(seconds: float) -> None:
    """Take some time."""
    time.sleep(seconds)


@shared_task(base=DeliveredTask, bind=True)
def take_slow_order(self: Any, order_id: str, seconds: float) -> None:
    """Insert an order after some time."""
    from shop import Order

    logging.getLogger(__name__).info("slow order begins")
    time.sleep(seconds)
    with Database.of(self.app).session() as session:
        session.add(Order(id=order_id, item="slow"))


def _exit() -> None:
    raise SystemExit(3)


ENDS: dict[str, Callable[[], Any]] = {
    "segmentation fault": lambda: ctypes.string_at(0),
    "os._exit": lambda: os._exit(3),
    "sys.exit": _exit,
    # As the kernel does to a process when memory runs out.
    "out of memory": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "parent killed": lambda: (os.kill(os.getppid(), signal.SIGKILL), time.sleep(60)),
}
"""How a task may end its process."""


@shared_task(base=DeliveredTask, max_retries=2, retry_backoff=0.2, retry_backoff_max=0.5)
def end_the_process(how: str) -> None:
    """End the process that runs this."""
    ENDS[how]()


@shared_task(base=DeliveredTask)
def run_out_of_memory() -> None:
    """Fail with an error that Celery's parent process takes for its own."""
    raise MemoryError("too large")
