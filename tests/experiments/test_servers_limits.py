"""What the limit of a server does to requests, to fleets, and to those who come last."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process


def test_requests_beyond_the_limit_fail_without_a_pool(judged):
    """All requests are served over a few connections, but few over connections of their own."""
    verdicts = judged("requests_without_pool")
    assert {row: each.verdict for row, each in verdicts.items()} == dict.fromkeys(
        ("3.30", "4.3", "4.19"), Verdict.TRUE
    )
    # 20, less 3 reserved.
    assert verdicts["4.3"].measured == "17 of 200 requests served, 183 refused"
    assert "200 over 10 connections" in verdicts["3.30"].measured


def test_a_server_with_room_serves_each_request_without_a_pool(judged):
    """Whether connections run out depends on max_connections."""
    verdicts = judged("requests_without_pool", requests=20, max_connections=60)
    assert {each.verdict for each in verdicts.values()} == {Verdict.FALSE}


def test_a_fleet_needs_more_than_instances_times_pool_size(judged):
    """Overflow, processes, deployments and the reserve each break the simple sum."""
    verdicts = judged("too_many_instances")
    assert verdicts["4.7"].verdict is Verdict.DEPENDS
    assert verdicts["4.7"].condition.startswith("true for 3 instances x 5; false for 3 x 5 with")
    assert verdicts["4.7"].measured == (
        "3 instances x 5: 0 refused; 3 x 5 with the default max_overflow: 29 refused; "
        "3 x 5 in two processes each: 14 refused; 3 x 5 and a fourth while deploying: 4 refused; "
        "3 x 6 with 3 reserved: 2 refused"
    )
    assert verdicts["1.2"].verdict is Verdict.DEPENDS
    assert verdicts["4.29"].verdict is Verdict.TRUE
    assert verdicts["4.29"].measured == "184 of 200 refused on 20"
    assert verdicts["3.26"].verdict is Verdict.TRUE


def test_a_large_server_has_room_for_the_same_fleets(judged):
    """The same pools are no fault where max_connections exceeds their sum."""
    verdicts = judged("too_many_instances", max_connections=120, instances=5)
    assert verdicts["4.7"].verdict is Verdict.TRUE
    assert verdicts["1.2"].verdict is Verdict.TRUE
    assert verdicts["4.29"].verdict is Verdict.FALSE
    assert verdicts["3.26"].verdict is Verdict.FALSE


def test_superusers_and_replicas_need_no_room(judged):
    """A full server refuses ordinary roles; superusers have a reserve, replicas their own limit."""
    verdicts = judged("last_connection")
    assert verdicts["3.5"].verdict is Verdict.TRUE
    assert verdicts["4.17"].verdict is Verdict.TRUE
    assert verdicts["4.8"].verdict is Verdict.DEPENDS
    assert verdicts["4.8"].condition == (
        "true for another application; false for a superuser, a replica"
    )


def test_a_superuser_is_refused_without_a_reserve(judged):
    """superuser_reserved_connections is what lets an administrator in."""
    verdicts = judged("last_connection", reserved=0)
    assert verdicts["4.8"].condition == (
        "true for another application, a superuser; false for a replica"
    )


def test_a_server_with_room_refuses_no_connection(judged):
    """Two pools of ten do not exhaust 60 connections."""
    verdicts = judged("last_connection", max_connections=60)
    assert verdicts["4.17"].verdict is Verdict.FALSE
    assert verdicts["4.8"].verdict is Verdict.FALSE
