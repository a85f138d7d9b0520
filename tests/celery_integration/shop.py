"""A shop's Celery application, written without the sample; the tests set it up by SHOP_* variables."""

import json
import os
import threading

from celery import Celery, signals
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from poolkit.celery import (
    Database,
    DeliveredTask,
    broker_config,
    end_stalled,
    json_logs,
    keep_unreadable,
    ready_file,
)
from poolkit.celery.redis_transport import install_redis_transport
from poolkit.celery.sqs_transport import install_sqs_transport


class Base(DeclarativeBase):
    """The shop's tables."""


class Order(Base):
    """An order; the customer chooses its id."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(primary_key=True)
    item: Mapped[str]


RETRIES = json.loads(os.environ.get("SHOP_RETRIES", "{}"))

if "SHOP_PLAIN_TRANSPORT" not in os.environ:
    install_redis_transport()
install_sqs_transport()
app = Celery("shop", include=["shop_reports"])
app.conf.update(broker_config(**json.loads(os.environ["SHOP_BROKER"])))
app.conf.update(json.loads(os.environ.get("SHOP_CONF", "{}")))
database = Database(app)
keep_unreadable(app, **RETRIES)
if "SHOP_QUERIES_AT_IMPORT" in os.environ:
    with database.session() as early:
        early.execute(text("SELECT 1"))
json_logs(os.environ.get("SHOP_LOG_LEVEL", "INFO"))
if "SHOP_READY_FILE" in os.environ:
    ready_file(app, os.environ["SHOP_READY_FILE"])
if "SHOP_STALL_TIMEOUT" in os.environ:
    end_stalled(app, after=float(os.environ["SHOP_STALL_TIMEOUT"]))
if "SHOP_BLOCKS_ITS_LOOP" in os.environ:
    # A receiver that never returns.
    signals.task_received.connect(lambda **_: threading.Event().wait(), weak=False)
if "SHOP_METRICS_PORT" in os.environ:
    from poolkit.celery.metrics import serve_metrics

    serve_metrics(app, port=int(os.environ["SHOP_METRICS_PORT"]), host="127.0.0.1")


@app.task(base=DeliveredTask, **RETRIES)
def take_order(order_id: str, item: str = "a pen") -> None:
    """Insert an order; delivered twice, it leaves one row."""
    if not order_id:
        raise ValueError("an order needs an id")
    with database.session() as session:
        session.execute(insert(Order).values(id=order_id, item=item).on_conflict_do_nothing())
