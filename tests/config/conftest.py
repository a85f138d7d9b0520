"""Clients of each driver, and servers of the tests' own."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from driving import DRIVERS, Client, TcpProxy, small_preset

from poolkit.local.mariadb import INSTALL_MARIADB, EmbeddedMariaDB, find_mariadb


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


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedMariaDB]:
    """A MariaDB of the session's own, from the programs on PATH."""
    if find_mariadb() is None and not os.environ.get("CI"):
        pytest.skip(INSTALL_MARIADB)
    with EmbeddedMariaDB(tmp_path_factory.mktemp("mariadb")) as server:
        yield server
