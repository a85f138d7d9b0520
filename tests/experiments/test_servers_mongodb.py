"""The options of MongoDB's pool, against a server that understands enough of its protocol."""

import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pymongo
import pytest
from mongodb_server import mongodb_server

from poolkit.errors import BinaryMissingError
from poolkit.experiment.outcome import Verdict
from poolkit.local import mongodb
from poolkit.local.mongodb import EmbeddedMongoDB

pytestmark = pytest.mark.process


@pytest.fixture
def mongodb_url() -> Iterator[str]:
    """The URL that the experiment gets."""
    with mongodb_server() as server:
        yield server.url


def test_the_options_limit_the_pool(outcome_of):
    """Each acts as documented: the most, the fewest, the idle time and the search for a server."""
    outcome = outcome_of("mongodb_pool", most=6, fewest=2, search_ms=300)
    (judgement,) = outcome.judgements
    assert judgement.verdict is Verdict.TRUE
    (table,) = outcome.tables
    assert dict(table.rows) == {
        "AsyncMongoClient()": "0",
        "one command": table.rows[1][1],
        "a pause": "2",
        "12 queries at once": "6",
        "another pause, median": "2",
    }


def test_connections_that_may_be_idle_for_longer_stay(judged):
    """The claim about maxIdleTimeMS is false where the idle time is longer than the experiment."""
    judgement = judged("mongodb_pool", most=6, fewest=2, max_idle_ms=60_000)["2.26"]
    assert judgement.verdict is Verdict.DEPENDS
    assert judgement.condition.endswith("false for maxIdleTimeMS")


def test_a_mongod_is_started_and_leaves_nothing(tmp_path, servers_folder, monkeypatch):
    """The program on PATH gets a file with its port, and is stopped at the end."""
    # As this test's own account: no other may enter its folder.
    monkeypatch.setattr(EmbeddedMongoDB, "refuses_root", False)
    program = tmp_path / "mongod"
    stand_in = Path(__file__).with_name("mongodb_server.py")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with EmbeddedMongoDB(servers_folder) as server, pymongo.MongoClient(server.url()) as client:
        assert client.admin.command("ping") == {"ok": 1.0}
    assert not list(servers_folder.glob("mongodb-*"))


def test_without_mongod_it_says_how_to_install_it(servers_folder, monkeypatch):
    """The error names the package."""
    monkeypatch.setattr(mongodb, "find_mongodb", lambda: None)
    with pytest.raises(BinaryMissingError, match="mongodb-org-server"):
        EmbeddedMongoDB(servers_folder).start()
    assert not list(servers_folder.glob("mongodb-*"))
