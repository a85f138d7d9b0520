"""Clients of each driver, and servers of the tests' own."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from driving import DRIVERS, Client, TcpProxy, small_preset
from processes import wait_until

from poolkit.local.accounts import server_account
from poolkit.local.ports import free_port


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    """Each way to reach PostgreSQL; `psycopg_async` is psycopg under asyncio."""
    return str(request.param)


@pytest.fixture
def make_client(driver: str) -> Iterator[Callable[..., Client]]:
    """Make clients of the driver by URL and preset fields; they are closed afterwards."""
    made: list[Client] = []

    def make(url: str, *, options: dict[str, Any] | None = None, **changes: Any) -> Client:
        url = url.replace("+psycopg2", "+" + driver.removesuffix("_async"))
        made.append(Client(small_preset(driver, **changes), url, **(options or {})))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def make_proxy() -> Iterator[Callable[[int], TcpProxy]]:
    made: list[TcpProxy] = []

    def make(port: int) -> TcpProxy:
        made.append(TcpProxy(port))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@dataclass(frozen=True)
class MariaDB:
    port: int

    def url(self, driver: str) -> str:
        return f"mysql+{driver}://poolkit:of-this-test@127.0.0.1:{self.port}/test"


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """Start a MariaDB of the session's own, from the programs on PATH."""
    if not shutil.which("mariadbd") or not shutil.which("mariadb-install-db"):
        pytest.skip("no mariadbd and mariadb-install-db on PATH (Debian: mariadb-server)")
    # Not among pytest's own directories, which each session that starts closes to other accounts.
    home = Path(tempfile.mkdtemp(prefix="poolkit-test-mariadb-"))
    try:
        yield from _mariadb_in(home)
    finally:
        shutil.rmtree(home)


def _mariadb_in(home: Path) -> Iterator[MariaDB]:
    account = server_account()
    data, script = home / "data", home / "init.sql"
    script.write_text(
        "CREATE DATABASE IF NOT EXISTS test;\n"
        "CREATE USER poolkit@'%' IDENTIFIED BY 'of-this-test';\nGRANT ALL ON *.* TO poolkit@'%' WITH GRANT OPTION;\n"
    )
    account.give(home)
    identity = account.credentials()
    made = subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db"],
        **identity, cwd="/", check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    command = [
        *("mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={home}/s"),
        *("--bind-address=127.0.0.1", f"--init-file={script}", f"--pid-file={home}/pid"),
        "--innodb-buffer-pool-size=16M",
    ]
    with (home / "log").open("w+b") as log:
        port, server = _start_mariadb(command, identity, log)
        try:
            yield MariaDB(port)
        finally:
            server.terminate()
            server.wait(100)


def _start_mariadb(
    command: list[str], identity: dict[str, Any], log: BinaryIO
) -> "tuple[int, subprocess.Popen[bytes]]":
    """Start it on a free port; on another if that one was taken meanwhile."""
    while True:
        port = free_port()
        server = subprocess.Popen(
            [*command, f"--port={port}"], **identity, cwd="/", stdout=log, stderr=log
        )
        wait_until(lambda port=port, server=server: _answers(port) or server.poll() is not None)
        if server.poll() is None:
            return port, server
        log.seek(0)
        said = log.read().decode(errors="replace")
        assert "Address already in use" in said, said
        log.truncate(0)


def _answers(port: int) -> bool:
    import pymysql

    try:
        login = {"user": "poolkit", "password": "of-this-test"}
        pymysql.connect(host="127.0.0.1", port=port, **login).close()
    except pymysql.OperationalError:
        return False
    return True
