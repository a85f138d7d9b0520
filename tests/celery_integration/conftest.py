"""Queues and databases for workers of a shop, without the sample's tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery_working import OwnDatabase, Site, create_tables, open_site


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


@pytest.fixture
def own_broker_site(shop_database: Any, tmp_path: Path) -> Iterator[tuple[Site, Any]]:
    """Return a site and its broker, which the test may stop."""
    from poolkit.local.broker import EmbeddedBroker

    with EmbeddedBroker(tmp_path / "broker") as broker:
        environ = {"DATABASE_URL": shop_database.url()}
        with open_site(shop_database, {"url": broker.url}, environ, tmp_path) as site:
            yield site, broker
