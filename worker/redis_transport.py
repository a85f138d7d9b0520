"""Kombu's Redis transport, for a Redis that is full, or a list with entries that are no message.

In kombu 5.7 a list entry that is no message raises in the middle of the event loop: the
worker ends, and with it every task it was running. Such an entry has no id and no task, so there
is nothing to keep: it is logged and dropped. This file alone touches kombu's private methods.
"""

from __future__ import annotations

import json
import logging
from queue import Empty
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from redis.exceptions import ResponseError

logger = logging.getLogger(__name__)

_SHOWN = 2_000  # characters


class QoS(redis.QoS):
    """Leaves a message where it is when a full Redis refuses to put it back."""

    def restore_by_tag(self, tag: str, *args: Any, **kwargs: Any) -> None:
        """Put an unacknowledged message back, or leave that to the visibility timeout.

        Putting back is one MULTI, which Redis refused as a whole: the message is still among
        the unacknowledged ones. In kombu 5.7 the refusal would end the worker.
        """
        try:
            super().restore_by_tag(tag, *args, **kwargs)
        except ResponseError as error:
            logger.error("a message comes again only after the visibility timeout: %s", error)  # noqa: TRY400  (the traceback says no more)


class Channel(redis.Channel):
    """Passes over entries that are not JSON."""

    QoS = QoS

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # not in the stubs
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            found = error.doc if isinstance(error, json.JSONDecodeError) else error.object
            _drop(found, error)
        raise Empty


class Transport(redis.Transport):
    """Passes over entries that are JSON, but no message."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str | None) -> None:
        try:
            super()._deliver(message, queue)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _drop(message, error)


def install() -> None:
    """Make `redis://` and `rediss://` mean this transport, in this process."""
    name = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES.update(redis=name, rediss=name)


def _drop(found: Any, error: Exception) -> None:
    logger.error("dropped an entry that is no message: %s: %.*s", error, _SHOWN, repr(found))
