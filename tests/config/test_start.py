"""Prewarming, and failing at start when asked to."""

import pytest
from sqlalchemy.exc import DBAPIError


def test_prewarming_opens_so_many(database, make_client):
    """The connections are held together, so that they are as many different ones."""
    client = make_client(database.url(), pool_size=3, prewarm=3)
    assert client.start() == 3
    assert len(database.backends("web")) == 3
    assert (client.pool.checkedin(), client.pool.checkedout()) == (3, 0)


def test_without_prewarming_the_start_opens_nothing(database, make_client):
    """The default costs no connection before the first request."""
    client = make_client(database.url())
    assert client.start() == 0
    assert database.backends("web") == []


def test_fail_fast_asks_the_database_once(database, make_client):
    """With `fail_fast` a good start has made sure of one connection."""
    assert make_client(database.url(), fail_fast=True).start() == 1


def test_without_a_database_fail_fast_is_an_error(make_client):
    """The start ends with the driver's error instead of the first request."""
    client = make_client("postgresql+psycopg2://me:x@127.0.0.1:1/d", fail_fast=True)
    with pytest.raises((DBAPIError, OSError), match=r"refused|Connect call failed"):
        client.start()


def test_without_a_database_prewarming_alone_is_no_error(make_client):
    """A service may start before its database does."""
    client = make_client("postgresql+psycopg2://me:x@127.0.0.1:1/d", prewarm=2)
    assert client.start() == 0
