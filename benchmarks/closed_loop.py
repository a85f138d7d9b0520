"""A load generator cheap enough to share two cores with what it measures.

`python benchmarks/closed_loop.py HOST PORT CLIENTS SECONDS` prints one JSON object. Each client
sends its next request when it has the answer to the last (a closed loop). So latencies under
overload are those of the clients that got an answer.
"""

import asyncio
import json
import sys
import time

import uvloop

REQUEST = b"GET /select HTTP/1.1\r\nhost: fleet\r\n\r\n"


class Client(asyncio.Protocol):
    def __init__(self, latencies_ms, failures, stop_at):
        self.latencies_ms, self.failures, self.stop_at = latencies_ms, failures, stop_at
        self.done = asyncio.get_running_loop().create_future()
        self.buffer = b""

    def connection_made(self, transport):
        self.transport = transport
        self.send()

    def send(self):
        self.sent = time.perf_counter()
        self.transport.write(REQUEST)

    def data_received(self, data):
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        now = time.perf_counter()
        self.buffer = b""
        if head.startswith(b"HTTP/1.1 200 ") and body == b"1":
            self.latencies_ms.append((now - self.sent) * 1000)
        else:
            self.failures.append(head.partition(b"\r\n")[0].decode())
        if now < self.stop_at:
            self.send()
        else:
            self.transport.close()

    def connection_lost(self, exc):
        if exc is not None:
            self.failures.append(repr(exc))
        self.done.set_result(None)


async def run(host, port, clients, seconds):
    latencies_ms, failures = [], []
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    made = [
        (
            await loop.create_connection(
                lambda: Client(latencies_ms, failures, started + seconds), host, port
            )
        )[1]
        for _ in range(clients)
    ]
    await asyncio.gather(*(client.done for client in made))
    elapsed = time.perf_counter() - started
    return {
        "elapsed_s": elapsed,
        "latencies_ms": latencies_ms,
        "failures": failures,
        "cpu_share": time.process_time() / elapsed,
    }


if __name__ == "__main__":
    host, port, clients, seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(run(host, int(port), int(clients), float(seconds)))))
