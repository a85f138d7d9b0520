"""Queues and databases for workers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from working import Site, open_site


@pytest.fixture
def site(broker: Any, migrated_database: Any, tmp_path: Path) -> Iterator[Site]:
    """Return a queue and a database of the test's own; workers are started in the test."""
    with open_site(migrated_database, broker.url, tmp_path) as site:
        yield site
