"""The threads that end what a request has begun."""

import threading
import time

from processes import wait_until

from poolkit.fastapi.threads import Threads, is_lack_of_threads


def test_work_that_stands_still_is_noticed_until_it_goes_on():
    """The time counts from the last work that ended, and only while there is work."""
    threads, gate = Threads(2), threading.Event()
    try:
        # The thread that has begun notes a moment later that its first work is over.
        wait_until(lambda: threads.standstill_s == 0, "the first thread to be there")
        waiting = [threads.submit(gate.wait) for _ in range(3)]
        time.sleep(0.2)
        assert threads.standstill_s >= 0.2
        gate.set()
        for each in waiting:
            each.result(30)
        wait_until(lambda: threads.standstill_s == 0, "the work to be over")
    finally:
        gate.set()
        threads.shutdown()


def test_an_error_of_the_program_is_no_lack_of_threads():
    """Only the bare RuntimeError of a thread's start is."""
    assert is_lack_of_threads(RuntimeError("can't start new thread"))
    assert not is_lack_of_threads(RuntimeError("something else"))
    assert not is_lack_of_threads(NotImplementedError("can't start new thread"))
