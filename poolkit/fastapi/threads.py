"""Threads that end what a request has begun: its commit, its rollback, its close."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any

from poolkit.errors import NoThread

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("Threads", "is_lack_of_threads")


class Threads(ThreadPoolExecutor):
    """A ThreadPoolExecutor that does all that it accepts, though no more threads can be started.

    Python's own queues the work before it starts a thread for it. If the system refuses the thread
    (a limit of processes, no memory), `submit` raises and the work stays in the queue: a commit
    may still be made after its client was told that it failed, or a connection is never given
    back. Here one thread is started first, so queued work is always done; the others are started
    as they are needed and as the system permits.
    """

    def __init__(self, count: int) -> None:
        """Start the first thread; there are `count` at most.

        Raises:
            NoThread: the system refuses it.
        """
        super().__init__(count, thread_name_prefix="poolkit")
        self._unfinished: set[Future[Any]] = set()
        self._progressed_at = monotonic()
        try:
            self.submit(int).result()
        except RuntimeError as error:
            self.shutdown(wait=False, cancel_futures=True)
            raise NoThread(f"the first thread could not be started: {error}") from error

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Queue the work, as every executor does."""
        future = super().submit(fn, *args, **kwargs)
        if not self._unfinished:
            self._progressed_at = monotonic()
        self._unfinished.add(future)
        future.add_done_callback(self._finished)
        return future

    def _finished(self, future: Future[Any]) -> None:
        # In this order: once the work is gone, `submit` may set the time in another thread.
        self._progressed_at = monotonic()
        self._unfinished.discard(future)

    @property
    def standstill_s(self) -> float:
        """Seconds in which work was there and none of it ended; 0 if there is none."""
        return monotonic() - self._progressed_at if self._unfinished else 0.0

    # A private method of CPython's, the same in 3.11 to 3.14. `submit` calls it when the work is
    # already in the queue, so its error must not reach the caller once a thread reads the queue.
    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


def is_lack_of_threads(error: BaseException) -> bool:
    """Return whether the system refused to start a thread.

    CPython drops the reason (EAGAIN, ENOMEM) and leaves a bare RuntimeError with this text, in every
    version from 3.11 to 3.14.
    """
    return type(error) is RuntimeError and error.args == ("can't start new thread",)
