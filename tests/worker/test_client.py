"""Putting tasks on the queue."""

import pytest
from celery import Celery

from articles.errors import InvalidInput, TooLarge
from worker.client import MAX_ARGUMENT_BYTES, enqueue_ingest


@pytest.fixture
def unreachable() -> Celery:
    """An app whose broker nobody could reach: what is refused is refused before."""
    return Celery("sender", broker="redis://127.0.0.1:1/0", set_as_current=False)


def test_bad_input_is_refused_by_the_sender(unreachable):
    """What the worker would give up is not sent."""
    with pytest.raises(InvalidInput, match="#/title"):
        enqueue_ingest(unreachable, document_id="a", title="", text="x")


def test_message_that_sqs_would_refuse_is_refused_for_every_broker(unreachable):
    """Text that grows too large as a message is refused with the limit in bytes."""
    with pytest.raises(TooLarge) as refused:
        enqueue_ingest(unreachable, document_id="a", title="t", text="\u4e00" * 100_000)
    assert refused.value.limit == MAX_ARGUMENT_BYTES
