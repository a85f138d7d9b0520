"""One thread per connection: admission, one hop for a unit of work, and a deadline.

The thread pools of asyncio and anyio are not enough here, for one reason each. A thread that
waits for a stopped server must not keep the process from ending; theirs are joined at exit. And
such a thread must keep its place until it is done; anyio gives the place of an abandoned thread
to the next job, so the number of threads would have no bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from poolkit.errors import DatabaseUnavailable, PoolExhausted

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit.config.metrics import PoolMetrics

T = TypeVar("T")


class Job(Generic[T]):
    """A piece of work, and the connection that it has checked out, if any."""

    def __init__(self, work: Callable[[], T], answer: asyncio.Future[T]) -> None:
        self.work = work
        self.answer = answer
        self.queued = 0.0  # s
        self._lock = threading.Lock()
        self._socket: int | None = None

    def holds(self, file_descriptor: int | None) -> None:
        """Store the socket of the connection in use, or None when it is given back."""
        with self._lock:
            self._socket = file_descriptor

    def hang_up(self) -> None:
        """End the connection in use, so that the thread that waits for it is freed.

        Shutting a socket down, unlike closing it, is safe while another thread reads it.
        """
        with self._lock, contextlib.suppress(OSError):  # the other side may have been faster
            if self._socket is None:
                return
            sock = socket.socket(fileno=self._socket)
            try:
                sock.shutdown(socket.SHUT_RDWR)
            finally:
                sock.detach()  # the driver closes it


class WorkerThreads:
    """At most `count` threads, started as they are needed; to be used from one event loop.

    Args:
        count: the most threads, and so the most connections in use.
        patience: seconds that work may wait for a thread; the pool's `pool_timeout`.
        deadline: seconds after which the caller gets an error although the job still runs.
        metrics: the wait for a thread counts as part of the wait for a connection.
    """

    def __init__(
        self, count: int, *, patience: float, deadline: float | None, metrics: PoolMetrics
    ) -> None:
        self._count = count
        self._patience = patience
        self._deadline = deadline
        self._metrics = metrics
        self._places = anyio.CapacityLimiter(count)
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._started = 0
        self._loop = asyncio.get_running_loop()
        self._here = threading.local()

    def current_job(self) -> Job[Any] | None:
        """Return the job of the calling thread, if it is one of these threads."""
        return getattr(self._here, "job", None)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread as soon as one is free, and return its result.

        Raises:
            PoolExhausted: no thread became free in time.
            DatabaseUnavailable: the deadline came first; the work may still be done.
        """
        job = Job(work, self._loop.create_future())
        if not self._has_place(job):
            began = perf_counter()
            self._metrics.began_waiting()
            timed_out = admitted = False
            try:
                with anyio.move_on_after(self._patience) as patience:
                    await self._places.acquire_on_behalf_of(job)
                    admitted = True
                timed_out = patience.cancelled_caught and not admitted
            finally:
                if not admitted:
                    self._metrics.gave_up(timed_out=timed_out)
            if not admitted:
                raise PoolExhausted(f"all {self._count} threads were busy for {self._patience:g} s")
            job.queued = perf_counter() - began
        return await self._dispatch(job, self._deadline)

    async def run_now(self, work: Callable[[], T], deadline: float) -> T:
        """As `run`, but raise PoolExhausted rather than wait for a thread."""
        job = Job(work, self._loop.create_future())
        if not self._has_place(job):
            raise PoolExhausted(f"all {self._count} threads are busy")
        return await self._dispatch(job, deadline)

    def close(self) -> None:
        """End each thread after its job, without a wait for a job that never ends."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _has_place(self, job: Job[Any]) -> bool:
        try:
            self._places.acquire_on_behalf_of_nowait(job)
        except anyio.WouldBlock:
            return False
        return True

    async def _dispatch(self, job: Job[T], deadline: float | None) -> T:
        if self._started < self._places.borrowed_tokens:
            name = f"database-{self._started + 1}"
            try:
                threading.Thread(target=self._work, name=name, daemon=True).start()
            except RuntimeError as error:
                # A limit of the operating system. The place is free again for a later try.
                self._places.release_on_behalf_of(job)
                raise PoolExhausted(f"thread {self._started + 1} cannot start: {error}") from error
            self._started += 1
        self._jobs.put(job)
        try:
            async with asyncio.timeout(deadline):
                return await job.answer
        except TimeoutError:
            if not job.answer.cancelled():
                raise  # the work's own
            job.hang_up()
            raise DatabaseUnavailable(f"no answer within {deadline:g} s") from None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._here.job = job
            if job.queued:
                self._metrics.queued(job.queued)
            result, error = None, None
            try:
                result = job.work()
            except BaseException as raised:  # noqa: BLE001  (passed to the caller)
                error = raised
            self._here.job = None
            # Raised by a loop that has ended: then no caller waits any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._finish, job, result, error)
            del job, result, error  # while this thread waits, nothing of a request lives on

    def _finish(self, job: Job[T], result: T, error: BaseException | None) -> None:
        self._places.release_on_behalf_of(job)
        if job.answer.done():
            return  # the deadline came first
        if error is None:
            job.answer.set_result(result)
        else:
            job.answer.set_exception(error)
