"""Queues and databases for workers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from processes import ROOT
from psycopg2.extras import RealDictCursor
from working import Site, open_site


@pytest.fixture
def site(broker: Any, migrated_database: Any, tmp_path: Path) -> Iterator[Site]:
    """Return a queue and a database of the test's own; workers are started in the test."""
    environ = {"WORKER_BROKER_URL": broker.url, "DATABASE_URL": migrated_database.url()}
    with open_site(migrated_database, environ, tmp_path) as site:
        yield site


@pytest.fixture
def own_server_site(broker: Any, new_postgres: Any, tmp_path: Path) -> Iterator[Site]:
    """Return a site whose database server the test may stop."""
    from poolkit.alembic import Scripts

    with new_postgres() as server:
        Scripts(ROOT / "articles/migrations").upgrade(server.url())
        environ = {"WORKER_BROKER_URL": broker.url, "DATABASE_URL": server.url()}
        with open_site(OwnDatabase(server), environ, tmp_path) as site:
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
def own_broker_site(migrated_database: Any, tmp_path: Path) -> Iterator[tuple[Site, Any]]:
    """Return a site and its broker, which the test may stop."""
    from poolkit.local.broker import EmbeddedBroker

    with EmbeddedBroker(tmp_path / "broker") as broker:
        environ = {"WORKER_BROKER_URL": broker.url, "DATABASE_URL": migrated_database.url()}
        with open_site(migrated_database, environ, tmp_path) as site:
            yield site, broker
