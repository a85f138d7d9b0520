"""What shortens the init phase of a Lambda function; this module imports nothing else."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("without_garbage_collection",)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Import inside the block without the garbage collector, which makes the init phase shorter.

        with without_garbage_collection():
            from sqlalchemy import select
            from aws_lambda_powertools import Logger

    The products of an import stay: classes, functions, statements. A search through all of them
    for garbage costs a tenth of the import (`benchmarks/lambda_import.py` has both arms).
    `gc.freeze` then spares the collections during invokes the same search.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
