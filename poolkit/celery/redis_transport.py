"""Kombu's Redis transport, for a Redis that is full, restarts or fails over, or a list with garbage in it.

This file touches private methods of kombu's Redis transport (5.2 to 5.7). What it changes:

* A list entry that is no message raises in the middle of the event loop: the worker ends, and
  with it every task it was running. Such an entry has no id and no task, so there is nothing to
  keep: it is logged and dropped.
* A full Redis that refuses to put a message back ends the worker.
* With remote control, a Redis that stops ends the worker: kombu takes its transport apart, and then
  has no address to put messages back to.
* BRPOP removes a message from Redis before the worker has it. Killed, stopped or cut off in that
  moment, the worker loses the message. Here a script moves it to the unacknowledged ones in one
  step, so it comes again after the visibility timeout.
* When every task ends while Redis is away, their acknowledgements fail and kombu counts the tasks
  as unfinished. With no room for another one it never asks Redis again, and so never notices that
  Redis is back.
* When the connection is lost, Celery drops the tasks that wait for their time, and kombu puts back
  those that still run, which then run twice. If Redis is away at that moment it puts back none, and
  tasks that wait for a retry come only after the visibility timeout. Here those that run stay where
  they are, and the others are put back as soon as Redis is there.
* After a failover the demoted primary answers READONLY, or MASTERDOWN until it has a copy; a primary
  that has lost its replicas may answer NOREPLICAS. To kombu that is an error of the command, so the
  worker ends. Here it is a lost connection: the worker connects again, and its name may by then lead
  to the new primary.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from redis import exceptions
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ReadOnlyError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ("install_redis_transport",)

logger = logging.getLogger(__name__)


def _classes(name: str) -> tuple[type[Exception], ...]:
    """Return a class of redis-py in a tuple, which is empty for a version without it."""
    found = getattr(exceptions, name, None)
    return () if found is None else (found,)


_SHOWN = 2_000  # characters
# redis-py 3.5, which kombu 5.2 allows, has neither class; an error then has its code in the text.
_CANNOT_WRITE: Final[tuple[type[Exception], ...]] = ReadOnlyError, *_classes("MasterDownError")
_FULL = _classes("OutOfMemoryError")
# Seconds between two tries at a server that answers, but is not the primary.
_PAUSE = 1.0

# Keys: the index and the hash of unacknowledged messages, then the lists in the order to look in.
# Arguments: the time, then for each list whether its messages are acknowledged. The entry is what
# kombu's QoS.append writes. RPOP comes first, because a full Redis lets a script that has written
# something go on. What is no message of kombu's is returned as it is.
_TAKE: Final = """
for number = 3, #KEYS do
    local item = redis.call('RPOP', KEYS[number])
    if item then
        local ok, message = pcall(cjson.decode, item)
        ok = ok and type(message) == 'table' and type(message.properties) == 'table'
        local properties = ok and message.properties or {}
        local info = properties.delivery_info
        local tag = properties.delivery_tag
        if ARGV[number - 1] == '0' or type(info) ~= 'table' or type(tag) ~= 'string' then
            return {KEYS[number], item, 0}
        end
        local function text(value)
            return type(value) == 'string' and cjson.encode(value) or '""'
        end
        local entry = '[' .. item .. ',' .. text(info.exchange) .. ',' .. text(info.routing_key) .. ']'
        redis.call('ZADD', KEYS[1], ARGV[1], tag)
        redis.call('HSET', KEYS[2], tag, entry)
        return {KEYS[number], item, 1}
    end
end
return false
"""
# Seconds. An idle worker waits at one list; it looks into its others, of other queues and
# priorities, as often as this.
_LONGEST_WAIT: Final = 0.5

_unsettled: dict[str, bool] = {}
"""Messages whose end could not be reported to Redis, and whether to put them back.

Of the process, because a reconnect makes a new channel."""

_dropped: set[str] = set()
"""Messages of lost connections that no task has in hand, until they are put back."""


def _is_full(error: Exception) -> bool:
    """Return whether Redis refused a command because its memory is full."""
    return isinstance(error, _FULL) or str(error).startswith("OOM ")


def _cannot_write(error: Exception) -> bool:
    """Return whether a server refuses every write for now: a replica, or a primary without replicas."""
    # redis-py has no class for these codes of Redis, or has not always had one, and puts words of
    # its own before them.
    codes = "UNBLOCKED", "NOREPLICAS", "MASTERDOWN"
    return isinstance(error, _CANNOT_WRITE) or any(code in str(error) for code in codes)


@contextlib.contextmanager
def _refusal_is_lost_connection() -> Iterator[None]:
    """Wait, and raise a ConnectionError, where a server refuses every write.

    Celery then connects again, at once: hence the wait.
    """
    try:
        yield
    except ResponseError as error:
        if not _cannot_write(error):
            raise
        time.sleep(_PAUSE)
        raise RedisConnectionError(str(error)) from error


def _tags_in_hand() -> set[str]:
    """Return the messages whose tasks are running in this worker, and go on after a reconnect."""
    from celery.worker import state as found  # noqa: PLC0415  (a sender does without it)

    state: Any = found
    # At the end of a worker nothing goes on: what a cold shutdown killed is put back.
    if state.should_stop or state.should_terminate:
        return set()
    return {request.message.delivery_tag for request in tuple(state.active_requests)}


class QoS(redis.QoS):
    """Settles messages later where Redis is away, and leaves them where they are if it is full."""

    channel: Any
    _delivered: Any

    def append(self, message: Any, delivery_tag: str) -> None:
        """Count a message that the worker has taken, and record it in Redis if that was not done."""
        if self.channel.is_recorded:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

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
            # ResponseError: one of a transaction that a replica refused.
            except (*self.channel.connection_errors, ResponseError) as error:
                logger.warning("Redis is away, so a message is acknowledged later: %s", error)
        _unsettled[delivery_tag] = requeue
        # Makes room for the next message; asking for it notices that the connection is gone.
        virtual.QoS.ack(self, delivery_tag)
        return None

    def restore_unacked(self, client: Any = None) -> None:
        """Put the messages of a lost connection back, but those of tasks that are still running."""
        self._flush()  # type: ignore[attr-defined]  # not in the stubs
        _dropped.update(self._delivered.keys() - _unsettled.keys() - _tags_in_hand())
        self._delivered.clear()
        if not self._is_cut_off:
            with contextlib.suppress(*self.channel.connection_errors, ResponseError):
                self._put_dropped_back(client)

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Settle what is left, before the visibility timeout delivers it again.

        kombu calls this after each connect, and then every ten seconds.
        """
        with _refusal_is_lost_connection():
            while _unsettled:
                delivery_tag, requeue = next(iter(_unsettled.items()))
                super().reject(delivery_tag, requeue=requeue)
                _unsettled.pop(delivery_tag, None)
            self._put_dropped_back()
            super().restore_visible(*args, **kwargs)

    def _put_dropped_back(self, client: Any = None) -> None:
        while _dropped:
            delivery_tag = next(iter(_dropped))
            self.restore_by_tag(delivery_tag, client=client)
            _dropped.discard(delivery_tag)

    def restore_by_tag(self, tag: str, *args: Any, **kwargs: Any) -> None:
        """Put an unacknowledged message back, or leave that to the visibility timeout.

        Putting back is one MULTI, which Redis refused as a whole: the message is still among
        the unacknowledged ones. In kombu 5.7 the refusal would end the worker.
        """
        try:
            super().restore_by_tag(tag, *args, **kwargs)
        except ResponseError as error:
            if _cannot_write(error):
                raise
            logger.error("a message comes again only after the visibility timeout: %s", error)  # noqa: TRY400  (the traceback says no more)

    @property
    def _is_cut_off(self) -> bool:
        """Whether kombu has taken the transport apart, so that the channel cannot connect again."""
        transport = self.channel.connection
        return transport is None or transport.client is None


class Channel(redis.Channel):
    """Takes messages so that none is lost on its way, and passes over entries that are not JSON.

    Two commands take turns on the connection that kombu polls. EVAL takes a message, if there is
    one. Otherwise BLMOVE waits: it moves the last entry of a list to where it is, so it removes
    nothing that a worker could fail to receive.
    """

    QoS = QoS

    # Not in the stubs.
    connection_errors: tuple[type[Exception], ...]
    _closing: bool
    _q_for_pri: Any
    _queue_cycle: Any

    is_recorded = False
    """Whether the message being delivered is among the unacknowledged ones in Redis already."""
    _asked = "BRPOP"
    """The command whose reply is awaited."""
    _waits = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Before kombu's, which may begin to consume.
        self._unacknowledged: set[str] = set()
        self._can_take = True
        super().__init__(*args, **kwargs)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:  # noqa: FBT001  (kombu's own)
        """Begin to consume a queue; without acknowledgements nothing is recorded of its messages."""
        (self._unacknowledged.add if no_ack else self._unacknowledged.discard)(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for a message."""
        if not (self._can_take and self.ack_emulation):
            self._asked = "BRPOP"
            super()._brpop_start(timeout or self._longest_wait)  # type: ignore[misc]  # not in the stubs
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        lists = [
            (queue, self._q_for_pri(queue, step))
            for step in self.priority_steps
            for queue in queues
        ]
        keys = [self.unacked_index_key, self.unacked_key, *(key for _, key in lists)]
        keeps = [int(queue not in self._unacknowledged) for queue, _ in lists]
        keys = [f"{self.global_keyprefix}{key}" for key in keys]
        self._ask("EVAL", _TAKE, len(keys), *keys, time.time(), *keeps)

    def _wait(self) -> None:
        """Wait until a list has an entry: that of each queue in turn, without a priority."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        self._waits += 1
        key = f"{self.global_keyprefix}{queues[self._waits % len(queues)]}"
        timeout = min(self._longest_wait, _LONGEST_WAIT)
        self._ask("BLMOVE", key, key, "RIGHT", "RIGHT", timeout)

    @property
    def _longest_wait(self) -> float:
        # 1 is kombu's own default, and before 5.3 the only value.
        return getattr(self, "brpop_timeout", None) or 1

    def _ask(self, command: str, *arguments: Any) -> None:
        self._asked = command
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self.client.connection.send_command(command, *arguments)

    def _brpop_read(self, **options: Any) -> Any:
        """Read what Redis answers, and deliver the message in it."""
        with _dropping_what_is_no_json():
            if self._asked == "BRPOP":
                return super()._brpop_read(**options)  # type: ignore[misc]  # not in the stubs
            found = self._answer()
            if self._asked == "EVAL" and found:
                key, item, is_recorded = found
                queue = key.decode().removeprefix(self.global_keyprefix).rsplit(self.sep, 1)[0]
                self._queue_cycle.rotate(queue)
                self.is_recorded = bool(is_recorded)
                try:
                    self.connection._deliver(json.loads(item.decode()), queue)  # noqa: SLF001
                finally:
                    self.is_recorded = False
                return True
            if (
                self._asked == "EVAL"
                and self._can_take
                and self.active_queues
                and not self._closing
            ):
                self._wait()
        raise Empty

    def _answer(self) -> Any:
        """Return the answer, or None after falling back to BRPOP."""
        try:
            with _refusal_is_lost_connection():
                return self.client.parse_response(self.client.connection, self._asked)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        except ResponseError as error:
            if self._asked == "BLMOVE" and _is_full(error):
                # A full Redis refuses BLMOVE, but lets EVAL take a message: wait here instead.
                time.sleep(_LONGEST_WAIT)
                return None
            is_unknown = isinstance(error, NoPermissionError) or "unknown command" in str(error)
            if not is_unknown:
                raise
            logger.warning(
                "a message that a killed worker has not read is lost, because Redis refuses %s: %s",
                self._asked,
                error,
            )
            self._can_take = False
            return None
        finally:
            self._in_poll = None
            # Since kombu 5.6: the connection is idle, so a new token may be sent.
            getattr(self, "_flush_brpop_reauth", lambda: None)()

    def _queue_bind(self, *args: Any) -> None:
        with _refusal_is_lost_connection():
            super()._queue_bind(*args)  # type: ignore[misc]  # not in the stubs


@contextlib.contextmanager
def _dropping_what_is_no_json() -> Iterator[None]:
    """Raise Empty in place of the error about an entry that is not JSON.

    Raises:
        Empty: it was logged and dropped.
    """
    try:
        yield
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        found = error.doc if isinstance(error, json.JSONDecodeError) else error.object
        _drop(found, error)
        raise Empty from None


class Transport(redis.Transport):
    """Passes over entries that are JSON, but no message, and leaves a server that is no primary."""

    Channel = Channel
    connection_errors = (*redis.Transport.connection_errors, *_CANNOT_WRITE)

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
