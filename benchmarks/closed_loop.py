"""A load generator cheap enough to share two cores with what it measures.

`python benchmarks/closed_loop.py URL CLIENTS SECONDS [BODY]` prints one JSON object. Each client
sends its next request when it has the answer to the last (a closed loop). So latencies under
overload are those of the clients that got an answer. A status other than 200, and a body other than
BODY, count as failures.
"""

import asyncio
import json
import subprocess
import sys
import time
from urllib.parse import urlsplit

import uvloop


class Client(asyncio.Protocol):
    def __init__(self, request, wanted, stop_at, latencies_ms, failures):
        self.request, self.wanted, self.stop_at = request, wanted, stop_at
        self.latencies_ms, self.failures = latencies_ms, failures
        self.done = asyncio.get_running_loop().create_future()
        self.buffer = b""

    def connection_made(self, transport):
        self.transport = transport
        self.send()

    def send(self):
        self.sent = time.perf_counter()
        self.transport.write(self.request)

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
        if head.startswith(b"HTTP/1.1 200 ") and (self.wanted is None or body == self.wanted):
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


async def run(url, clients, seconds, wanted):
    target = urlsplit(url)
    request = f"GET {target.path} HTTP/1.1\r\nhost: {target.netloc}\r\n\r\n".encode()
    latencies_ms, failures, made = [], [], []
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    for _ in range(clients):
        client = Client(request, wanted, started + seconds, latencies_ms, failures)
        await loop.create_connection(lambda client=client: client, target.hostname, target.port)
        made.append(client)
    await asyncio.gather(*(client.done for client in made))
    elapsed = time.perf_counter() - started
    return {
        "elapsed_s": elapsed,
        "latencies_ms": latencies_ms,
        "failures": failures,
        "cpu_share": time.process_time() / elapsed,
    }


def load(url, clients, seconds, *body):
    """Run this file in a process of its own, and return its JSON object."""
    words = [url, str(clients), str(seconds), *body]
    return json.loads(subprocess.check_output([sys.executable, __file__, *words]))


if __name__ == "__main__":
    url, clients, seconds, *body = sys.argv[1:]
    wanted = body[0].encode() if body else None
    print(json.dumps(uvloop.run(run(url, int(clients), float(seconds), wanted))))
