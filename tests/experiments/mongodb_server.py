"""A server that understands as much of MongoDB's protocol as a test of a client's pool needs.

It answers `hello`, `buildInfo`, `ping`, `find`, `insert`, `drop` and `endSessions`, in OP_MSG, and a
first `hello` in OP_QUERY. A find with `{"$where": "sleep(300) || true"}` takes 300 ms. As a program it
takes mongod's `--config FILE`, of which it reads the port.
"""

import re
import socketserver
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bson

OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
MORE_TO_COME = 2
HELLO = {
    "version": "(a stand-in for its protocol)",
    "helloOk": True,
    "isWritablePrimary": True,
    "ismaster": True,
    "maxBsonObjectSize": 16 * 2**20,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "logicalSessionTimeoutMinutes": 30,
    "minWireVersion": 0,
    "maxWireVersion": 21,
    "readOnly": False,
    "ok": 1.0,
}


class Connection(socketserver.StreamRequestHandler):
    """One client's connection, in a thread of its own."""

    server: "Server"

    def handle(self) -> None:
        while header := self.rfile.read(16):
            length, request, _, code = struct.unpack("<iiii", header)
            body = self.rfile.read(length - 16)
            if code == OP_QUERY:
                after_name = body.index(b"\0", 4) + 1
                command = bson.decode_all(body[after_name + 8 :])[0]
                answer = struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(self.answer(command))
                self.send(request, OP_REPLY, answer)
            elif code == OP_MSG:
                (flags,) = struct.unpack("<I", body[:4])
                answer = self.answer(command_of(body[4:]))
                if not flags & MORE_TO_COME:
                    self.send(request, OP_MSG, b"\0\0\0\0\0" + bson.encode(answer))
            else:
                raise ValueError(f"unknown operation {code}")

    def send(self, request: int, code: int, body: bytes) -> None:
        self.wfile.write(struct.pack("<iiii", 16 + len(body), 0, request, code) + body)

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(command))
        stored = (
            self.server.collections.setdefault((command.get("$db"), command[name]), [])
            if (isinstance(command[name], str))
            else []
        )
        match name.lower():
            case "hello" | "ismaster" | "buildinfo":
                return HELLO
            case "ping" | "endsessions" | "killcursors":
                return {"ok": 1.0}
            case "insert":
                stored += command["documents"]
                return {"n": len(command["documents"]), "ok": 1.0}
            case "find":
                pause = re.match(r"sleep\((\d+)\)", command["filter"].get("$where", ""))
                time.sleep(int(pause[1]) / 1e3 if pause and stored else 0)
                name = f"{command['$db']}.{command['find']}"
                cursor = {"firstBatch": stored, "id": bson.Int64(0), "ns": name}
                return {"cursor": cursor, "ok": 1.0}
            case "drop":
                stored.clear()
                return {"ok": 1.0}
        return {"ok": 0.0, "code": 59, "errmsg": f"no such command: '{name}'"}


def command_of(sections: bytes) -> dict[str, Any]:
    """Return a command with the documents that stand in sections of their own."""
    command: dict[str, Any] = {}
    while sections:
        kind, rest = sections[0], sections[1:]
        (length,) = struct.unpack("<i", rest[:4])
        part, sections = rest[:length], rest[length:]
        if kind == 0:
            command = {**bson.decode(part), **command}
        else:
            end = part.index(b"\0", 4)
            command[part[4:end].decode()] = bson.decode_all(part[end + 1 :])
    return command


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    # A burst of connections waits here, as at a mongod.
    request_queue_size = 128

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Connection)
        self.collections: dict[tuple[Any, str], list[Any]] = {}

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.server_address[1]}"


@contextmanager
def mongodb_server() -> Iterator[Server]:
    """Serve on any free port."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    port = re.search(r"port: (\d+)", Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    assert port is not None
    with Server(int(port[1])) as server:
        server.serve_forever()
