"""What engines accept, what their defaults are, and what a full pool shows."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process


def test_printed_lines_about_engines_are_run(judged):
    """Three of the lines are wrong, and the defaults are right except for pool_recycle."""
    verdicts = judged("arguments_and_defaults")
    assert {row: found.verdict for row, found in verdicts.items()} == {
        "1.7": Verdict.TRUE,
        "1.8": Verdict.FALSE,
        "2.4": Verdict.FALSE,
        "3.17": Verdict.TRUE,
        "3.19": Verdict.FALSE,
        "4.26": Verdict.FALSE,
    }
    assert "max_connections" in verdicts["2.4"].measured
    assert "ObjectNotExecutableError" in verdicts["3.19"].measured


def test_an_argument_that_exists_is_accepted(judged):
    """The verdict comes from create_engine itself."""
    assert judged("arguments_and_defaults", argument="max_overflow")["2.4"].verdict is Verdict.TRUE


def test_a_pool_gives_out_both_sizes_together(judged):
    """15 connections of 5 and 10, and psycopg2 its maxconn."""
    verdicts = judged("how_full_is_a_pool")
    assert {row: found.verdict for row, found in verdicts.items()} == {
        "1.12": Verdict.TRUE,
        "2.2": Verdict.TRUE,
        "3.18": Verdict.FALSE,
        "1.35": Verdict.DEPENDS,
        "2.18": Verdict.FALSE,
        "1.36": Verdict.DEPENDS,
    }
    assert (
        "15 by create_engine, 15 by create_async_engine, 5 by psycopg2" in verdicts["3.18"].measured
    )
    assert verdicts["1.35"].condition.endswith("false for overflow()")
    assert "QueuePool limit of size 5 overflow 10 reached" in verdicts["1.36"].measured


def test_without_overflow_pool_size_is_the_limit(judged):
    """pool_size is maxconn for an engine that has no overflow."""
    verdicts = judged("how_full_is_a_pool", pool_size=3, max_overflow=0)
    assert verdicts["3.18"].verdict is Verdict.TRUE
    assert verdicts["1.12"].verdict is Verdict.TRUE
