"""The deployables that the behaviour suite runs over; another one joins by one line."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from behaviour.face import Face

FACES = {
    "web": "behaviour.web_face:open_web_face",
    "web_async": "behaviour.web_face:open_web_async_face",
    "lambda": "behaviour.lambda_face:open_face",
}
# A busy machine may let a server stand still for longer than a deployable would bear with it.
PATIENT = {
    "POOLKIT_CONNECT_TIMEOUT": "60",
    "POOLKIT_POOL_TIMEOUT": "60",
    "POOLKIT_STATEMENT_TIMEOUT": "90000",
}


@contextmanager
def opened(name: str, database_url: str, **environ: str) -> Iterator[Face]:
    """Open a face by its name; what more it needs to know is in `environ`."""
    module, function = FACES[name].split(":")
    open_face = getattr(importlib.import_module(module), function)
    with open_face(database_url, **(PATIENT | environ)) as face:
        yield face
