"""Queues and databases for workers of a shop, without the sample's tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from celery_working import Site, open_site
from psycopg2.extras import RealDictCursor
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from poolkit.tables import dead_letters


def create_tables(url: str) -> None:
    """Make the shop's table and the table of dead letters."""
    engine = create_engine(url, poolclass=NullPool)
    dead_letters.create(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id text PRIMARY KEY, item text NOT NULL)")


@pytest.fixture
def shop_database(database: Any) -> Any:
    create_tables(database.url())
    return database


@pytest.fixture
def site(broker: Any, shop_database: Any, tmp_path: Path) -> Iterator[Site]:
    """Return a queue and a database of the test's own; workers are started in the test."""
    environ = {"DATABASE_URL": shop_database.url()}
    with open_site(shop_database, {"url": broker.url}, environ, tmp_path) as site:
        yield site


@pytest.fixture
def own_server_site(broker: Any, new_postgres: Any, tmp_path: Path) -> Iterator[Site]:
    """Return a site whose database server the test may stop."""
    with new_postgres() as server:
        create_tables(server.url())
        environ = {"DATABASE_URL": server.url()}
        with open_site(OwnDatabase(server), {"url": broker.url}, environ, tmp_path) as site:
            yield site


@dataclass(frozen=True)
class OwnDatabase:
    """The database of a server of the test's own."""

    server: Any

    def execute(self, statement: str) -> list[dict[str, Any]]:
        connection = psycopg2.connect(
            self.server.admin_url(driver=""), cursor_factory=RealDictCursor, connect_timeout=60
        )
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return [dict(row) for row in cursor]
        finally:
            connection.close()


@pytest.fixture
def own_broker_site(shop_database: Any, tmp_path: Path) -> Iterator[tuple[Site, Any]]:
    """Return a site and its broker, which the test may stop."""
    from poolkit.local.broker import EmbeddedBroker

    with EmbeddedBroker(tmp_path / "broker") as broker:
        environ = {"DATABASE_URL": shop_database.url()}
        with open_site(shop_database, {"url": broker.url}, environ, tmp_path) as site:
            yield site, broker
