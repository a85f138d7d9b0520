"""Kombu's Redis transport, for a Redis that is full or restarts, or a list with garbage in it.

This file alone touches private methods of kombu (5.2 to 5.7). What it changes:

* A list entry that is no message raises in the middle of the event loop: the worker ends, and
  with it every task it was running. Such an entry has no id and no task, so there is nothing to
  keep: it is logged and dropped.
* A full Redis that refuses to put a message back ends the worker.
* With remote control, a Redis that stops ends the worker: kombu takes its transport apart, and then
  has no address to put messages back to.
* When every task ends while Redis is away, their acknowledgements fail and kombu counts the tasks
  as unfinished. With no room for another one it never asks Redis again, and so never notices that
  Redis is back.
"""

from __future__ import annotations

import json
import logging
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any

from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("install_redis_transport",)

logger = logging.getLogger(__name__)

_SHOWN = 2_000  # characters

_unsettled: dict[str, bool] = {}
"""Messages whose end could not be reported to Redis, and whether to put them back.

Of the process, because a reconnect makes a new channel."""


class QoS(redis.QoS):
    """Settles messages later where Redis is away, and leaves them where they are if it is full."""

    channel: Any

    def ack(self, delivery_tag: str) -> None:
        """Remove a finished message, now or when Redis is back."""
        self._settle(delivery_tag, super().ack)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  (kombu's own)
        """Remove a message or put it back, now or when Redis is back."""
        self._settle(delivery_tag, partial(super().reject, requeue=requeue), requeue=requeue)

    def _settle(
        self, delivery_tag: str, settle: Callable[[str], None], *, requeue: bool = False
    ) -> None:
        if not self._is_cut_off:
            try:
                return settle(delivery_tag)
            except self.channel.connection_errors as error:
                logger.warning("Redis is away, so a message is acknowledged later: %s", error)
        _unsettled[delivery_tag] = requeue
        # Makes room for the next message; asking for it notices that the connection is gone.
        virtual.QoS.ack(self, delivery_tag)
        return None

    def restore_unacked(self, client: Any = None) -> None:
        """Put all messages back, or leave them to the visibility timeout and to tasks still running."""
        if not self._is_cut_off:
            super().restore_unacked(client)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Settle what is left, before the visibility timeout delivers it again.

        kombu calls this after each connect, and then every ten seconds.
        """
        while _unsettled:
            delivery_tag, requeue = next(iter(_unsettled.items()))
            super().reject(delivery_tag, requeue=requeue)
            _unsettled.pop(delivery_tag, None)
        super().restore_visible(*args, **kwargs)

    def restore_by_tag(self, tag: str, *args: Any, **kwargs: Any) -> None:
        """Put an unacknowledged message back, or leave that to the visibility timeout.

        Putting back is one MULTI, which Redis refused as a whole: the message is still among
        the unacknowledged ones. In kombu 5.7 the refusal would end the worker.
        """
        try:
            super().restore_by_tag(tag, *args, **kwargs)
        except ResponseError as error:
            logger.error("a message comes again only after the visibility timeout: %s", error)  # noqa: TRY400  (the traceback says no more)

    @property
    def _is_cut_off(self) -> bool:
        """Whether kombu has taken the transport apart, so that the channel cannot connect again."""
        transport = self.channel.connection
        return transport is None or transport.client is None


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


def install_redis_transport() -> None:
    """Make `redis://` and `rediss://` mean this transport, in this process.

    Call it where the application is made, before the worker connects.
    """
    name = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES.update(redis=name, rediss=name)


def _drop(found: Any, error: Exception) -> None:
    logger.error("dropped an entry that is no message: %s: %.*s", error, _SHOWN, repr(found))
