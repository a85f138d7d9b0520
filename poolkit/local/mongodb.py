"""A private MongoDB, if mongod is installed."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from poolkit.errors import BinaryMissingError, StateDirectoryError
from poolkit.local.loopback_server import LoopbackServer

INSTALL_MONGODB = "install MongoDB, whose packages are MongoDB's own (mongodb-org-server)"


def find_mongodb() -> Path | None:
    """Return MongoDB's server, if it is on PATH."""
    found = shutil.which("mongod")
    return None if found is None else Path(found)


class EmbeddedMongoDB(LoopbackServer):
    """One MongoDB, for as long as it is open.

    A context manager: entering starts it, leaving stops it and removes its data. It listens on the
    loopback address, and asks for no password.

    Args:
        state_dir: where its files go, in a new directory of their own.
        port: the port to listen on; 0 for any free one.
    """

    name: ClassVar[str] = "MongoDB"
    slug: ClassVar[str] = "mongodb"
    start_timeout_s: ClassVar[float] = 60.0
    stop_timeout_s: ClassVar[float] = 30.0

    def url(self) -> str:
        """Return its URL for PyMongo."""
        return f"mongodb://{self.host}:{self.port}"

    def _command(self, directory: Path) -> list[str]:
        program = find_mongodb()
        if program is None:
            raise BinaryMissingError(f"mongod is not on PATH; {INSTALL_MONGODB}")
        # All of its settings are in the file, which `_prepare` writes for the present port.
        return [str(program), "--config", str(directory / "mongod.conf")]

    def _prepare(self, directory: Path) -> bytes:
        data, file = directory / "data", directory / "mongod.conf"
        try:
            data.mkdir(mode=0o700, exist_ok=True)
            file.write_text(
                f"net: {{bindIp: {self.host}, port: {self.port}, "
                "unixDomainSocket: {enabled: false}}\n"
                f"storage: {{dbPath: {json.dumps(str(data))}, "
                "wiredTiger: {engineConfig: {cacheSizeGB: 0.25}}}\n"
            )
            for path in (data, file):
                self.account.give(path)
        except OSError as error:
            raise StateDirectoryError(f"cannot write to {directory}: {error.strerror}") from None
        return b""

    def _is_ready(self, directory: Path) -> bool:
        import pymongo  # noqa: PLC0415  (only who has a MongoDB needs a driver for it)

        with (
            suppress(pymongo.errors.PyMongoError),
            pymongo.MongoClient[dict[str, object]](
                self.url(), serverSelectionTimeoutMS=2000, directConnection=True
            ) as client,
        ):
            client.admin.command("ping")
            return True
        return False
