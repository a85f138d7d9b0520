"""What makes the init phase shorter."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Keep the garbage collector from running inside the block, and from what was made there.

    What an import makes stays: classes, functions, statements. Looking through all of it for
    garbage costs an eighth of the import (`benchmarks/lambda_import.py` has both arms).
    `gc.freeze` then spares collections during invokes the same walk.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
