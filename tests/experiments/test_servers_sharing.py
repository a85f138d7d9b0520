"""How many requests and clients share a few connections, in a pool and behind PgBouncer."""

import re

import pytest
from programs import needs_pgbouncer

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process


def test_requests_that_share_connections_wait_and_are_served(judged):
    """A thousand requests queue for fifty connections, and the server works less for each."""
    verdicts = judged("sharing_connections")
    assert verdicts["4.20"].verdict is Verdict.TRUE
    assert "1000 of 1000 answered over 50 connections" in verdicts["4.20"].measured
    assert verdicts["3.29"].verdict is Verdict.TRUE
    assert verdicts["3.29"].measured.startswith(
        "200 connects for 200 requests without a pool, 50 for 1000 with one;"
    )


def test_a_queue_longer_than_pool_timeout_fails(judged):
    """A pool helps for as long as its queue drains in time."""
    verdicts = judged("sharing_connections", requests=200, pool_size=5, pool_timeout=0.1)
    assert verdicts["4.20"].verdict is Verdict.FALSE


def test_a_pool_without_reuse_saves_no_work(judged):
    """As many connections as requests cost the server the same with and without a pool."""
    verdicts = judged("sharing_connections", requests=40, pool_size=40)
    assert verdicts["3.29"].verdict is Verdict.FALSE


@needs_pgbouncer
def test_many_clients_share_connections_in_transactions(judged):
    """A connected client costs PostgreSQL nothing; one in a transaction holds a connection."""
    verdicts = judged("behind_a_pooler")
    assert verdicts["4.10"].verdict is Verdict.TRUE
    assert verdicts["4.10"].measured.startswith("1000 clients over ")
    assert verdicts["4.18"].verdict is Verdict.DEPENDS
    assert (
        verdicts["4.18"].condition
        == "true for short transactions; false for transactions left open"
    )
    found = re.search(r"(\d+) of 100 clients answered over (\d+)", verdicts["4.18"].measured)
    # All 20 connections, unless a busy machine opens some of them too late.
    assert 0 < int(found[1]) <= int(found[2]) <= 20


@needs_pgbouncer
def test_as_many_connections_as_clients_leave_nothing_to_share(judged):
    """Without more clients than connections each mode serves all."""
    verdicts = judged("behind_a_pooler", clients=10, pool_size=10)
    assert verdicts["4.10"].verdict is Verdict.FALSE
    assert verdicts["4.18"].verdict is Verdict.TRUE
