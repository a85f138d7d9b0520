"""Tasks for drills: an effect that would show if it came twice, and the ways in which a task fails."""

import os
import signal
import time
from typing import Any

from celery import shared_task
from shop import RETRIES, Order
from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert

from poolkit.celery import Database, DeliveredTask


@shared_task(base=DeliveredTask, bind=True, **RETRIES)
def sell(self: Any, order_id: str, seconds: float = 0.0) -> None:
    """Insert an order, and a row that has no key: it is there once if the order's insert decides."""
    with Database.of(self.app).session() as session:
        order = insert(Order).values(id=order_id, item="a pen").on_conflict_do_nothing()
        is_new = session.scalar(order.returning(Order.id)) is not None
        time.sleep(seconds)
        if is_new:
            session.execute(text("INSERT INTO sales VALUES (:id)"), {"id": order_id})


@shared_task(base=DeliveredTask, bind=True, **RETRIES)
def sell_at_the_second_try(self: Any, order_id: str) -> None:
    """Lose the database at the first try, for real."""
    if not self.request.retries:
        with Database.of(self.app).session() as session:
            session.execute(select(func.pg_terminate_backend(func.pg_backend_pid())))
    sell.run(order_id)


@shared_task(base=DeliveredTask, **RETRIES)
def refuse(order_id: str) -> None:
    """Fail by itself, which no other try would change."""
    raise ValueError(f"no such order: {order_id}")


@shared_task(base=DeliveredTask, **RETRIES | {"max_retries": 2})
def crash(order_id: str) -> None:
    """End the process, as the system does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
