"""Kombu's SQS transport, for a network that fails and for tasks that take less than a second.

This file touches private methods of kombu (5.7). What it changes:

* A poll that meets a reset connection, a timeout or an HTTP 5xx raises in kombu's event loop. The
  worker ends, or it stays and never asks for a message again.
* With every place taken, kombu looks for a free one once a second. So a worker of 3 children does
  3 tasks a second, however short they are.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from kombu.transport import SQS, TRANSPORT_ALIASES
from vine import promise

__all__ = ("install_sqs_transport",)

logger = logging.getLogger(__name__)

# Seconds between looks for a free place: short against a task, 20 callbacks a second against a CPU.
_PLACE_INTERVAL: Final = 0.05
# Seconds until the next poll after one that failed, and after an empty one that did not wait.
_FAILED_INTERVAL: Final = 1.0
_EMPTY_INTERVAL: Final = 1.0
_SHORT_POLL: Final = 0.5  # seconds


class Channel(SQS.Channel):
    """Polls again, soon, after whatever came of the last poll."""

    # Not in the stubs.
    hub: Any
    qos: Any
    _get_bulk_async: Any

    def _schedule_queue(self, queue: str) -> None:
        """Receive messages, or look again when there is a free place for one."""
        if queue not in self._active_queues:
            return
        if not self.qos.can_consume():
            self.hub.call_later(_PLACE_INTERVAL, self._schedule_queue, queue)
            return
        asked_at = time.monotonic()
        ended = promise(self._on_poll_end, (queue, asked_at), on_error=self._on_poll_error)
        try:
            self._get_bulk_async(queue, callback=ended)
        except Exception as error:  # noqa: BLE001  (such as credentials that could not be had)
            self._on_poll_error(queue, asked_at, error)

    def _on_poll_end(self, queue: str, asked_at: float, received: Any = None) -> None:
        # A long poll has waited at SQS. One that did not (`wait_time_seconds` 0, which some set)
        # would be followed by hundreds a second, and each costs.
        if received or time.monotonic() - asked_at > _SHORT_POLL:
            self.hub.call_soon(self._schedule_queue, queue)
        else:
            self.hub.call_later(_EMPTY_INTERVAL, self._schedule_queue, queue)

    def _on_poll_error(self, queue: str, asked_at: float, error: Exception) -> None:
        logger.warning("no messages from SQS, the next poll is in a second: %r", error)
        self.hub.call_later(_FAILED_INTERVAL, self._schedule_queue, queue)

    def _on_messages_ready(self, queue: str, qname: str, messages: Any) -> Any:
        """Deliver what a poll has received; kombu's own takes an empty list for an outage.

        Raises:
            ConnectionError: SQS was not reached, or answered 5xx.
        """
        if isinstance(messages, list):
            raise ConnectionError("SQS was not reached, or answered with an error of its own")
        return super()._on_messages_ready(queue, qname, messages)  # type: ignore[misc]  # not in the stubs


class Transport(SQS.Transport):
    """SQS with the channel above."""

    Channel = Channel


def install_sqs_transport() -> None:
    """Make `sqs://` mean this transport, in this process.

    Call it where the application is made, before the worker connects.
    """
    TRANSPORT_ALIASES.update(sqs=f"{__name__}:{Transport.__name__}")
