"""A web server that answers at once, and stands still for a while now and then.

    python stub_server.py STALL_S EVERY_S

It prints its port. The stall is real: the one thread sleeps, so nothing is accepted, read or
answered meanwhile.
"""

import asyncio
import sys
import time

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Answering(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        *requests, self.buffer = (self.buffer + data).split(b"\r\n\r\n")
        self.transport.write(ANSWER * len(requests))


async def serve(stall_s, every_s):
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Answering, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    due = time.monotonic()
    while True:
        due += every_s
        await asyncio.sleep(due - time.monotonic())
        time.sleep(stall_s)  # noqa: ASYNC251  (that it stops everything is what it is for)


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1]), float(sys.argv[2])))
