"""A web server that answers at once, and stands still for a while now and then.

    python stub_server.py STALL_S EVERY_S

It prints its port. The first stall begins EVERY_S / 4 after the first request. It is real: the one
thread sleeps, so nothing is accepted, read or answered meanwhile. What it stood still besides, because
the machine was busy, it prints too, in seconds.
"""

import asyncio
import sys
import time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LOOK_EVERY_S = 0.02
HICCUP_S = 0.03


class Answering(asyncio.Protocol):
    asked = asyncio.Event()

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.asked.set()
        *requests, self.buffer = (self.buffer + data).split(b"\r\n\r\n")
        self.transport.write(ANSWER * len(requests))


async def serve(stall_s, every_s):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", 0, backlog=4096)
    say(server.sockets[0].getsockname()[1])
    await Answering.asked.wait()
    due = time.monotonic() + every_s / 4
    while True:
        await answer_until(due)
        due = max(due + every_s, time.monotonic())
        began = time.monotonic()
        time.sleep(stall_s)  # noqa: ASYNC251  (that it stops everything is what it is for)
        say_if_late(began + stall_s)


async def answer_until(due):
    while (now := time.monotonic()) < due:
        wake = min(due, now + LOOK_EVERY_S)
        await asyncio.sleep(wake - now)
        say_if_late(wake)


def say_if_late(due):
    late_s = time.monotonic() - due
    if late_s > HICCUP_S:
        say(late_s)


def say(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), float(sys.argv[2])))
