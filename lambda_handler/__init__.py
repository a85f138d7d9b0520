"""Deployable 1: the articles API and the ingest queue as AWS Lambda functions.

    app.py                    `lambda_handler.app.handler`: HTTP, made in the init phase
    queue.py                  `lambda_handler.queue.handler`: SQS, made in the init phase
    events.py                 the service that sent an event, and the request or messages in it
    http_api.py               the endpoints of `articles.api` behind Powertools' resolvers
    ingest_queue.py           a batch of SQS messages, each ingested once or given up
    idempotency.py            Powertools' Idempotency on PostgreSQL
    execution_environment.py  the engine, from the init phase to SIGTERM or a snapshot
    telemetry.py              Powertools' Logger and Metrics
    configuration.py          the `LAMBDA_*` variables

Only app.py and queue.py read the environment and make an engine when they are imported.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import inside the block without the garbage collector, which makes the init phase shorter.

    The products of an import stay: classes, functions, statements. A search through all of them
    for garbage costs an eighth of the import (`benchmarks/lambda_import.py` has both arms).
    `gc.freeze` then spares the collections during invokes the same search.

    It stands here because a module that imports anything would be imported too early.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
