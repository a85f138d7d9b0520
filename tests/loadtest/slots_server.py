"""A web server of known capacity: so many requests at once, each of which takes so long.

    python slots_server.py SLOTS SERVICE_S

It prints its port. It never answers more than SLOTS / SERVICE_S requests a second; the others wait in
their order.
"""

import asyncio
import contextlib
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def serve(slots, service_s):
    free = asyncio.Semaphore(slots)

    async def answer(reader, writer):
        # A load generator that ends leaves requests behind.
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                async with free:
                    await asyncio.sleep(service_s)
                writer.write(ANSWER)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
