"""What sessions hold, and how connections are lost, blocked and left dirty."""

import pytest

from poolkit.experiment.outcome import Verdict

pytestmark = pytest.mark.process

TRUE, FALSE, DEPENDS = Verdict.TRUE, Verdict.FALSE, Verdict.DEPENDS


def rows(verdicts, verdict):
    return {row for row, judgement in verdicts.items() if judgement.verdict is verdict}


def test_a_session_holds_its_connection_from_its_first_query_to_the_end_of_the_transaction(judged):
    """It takes none before, and a query alone does not give it back."""
    verdicts = judged("what_a_session_holds")
    assert rows(verdicts, TRUE) == {"0.1", "0.2", "0.3", "0.16", "0.26"}
    assert rows(verdicts, FALSE) == {"0.4", "0.5", "0.23", "0.24", "0.40"}
    assert rows(verdicts, DEPENDS) == {"0.25"}
    assert verdicts["0.4"].measured == "1 out after the query, 1 after the Python work"


def test_a_session_that_commits_after_its_query_holds_nothing_while_python_works(judged):
    """What the texts say of a query is true of a query with its commit."""
    verdicts = judged("what_a_session_holds", after_query="commit")
    assert rows(verdicts, TRUE) >= {"0.4", "0.5", "0.23", "0.24", "0.25", "0.40"}


def test_a_session_borrows_a_connection_when_it_has_sql_to_send(judged):
    """At its begin it has none; the flush of a commit has some."""
    verdicts = judged("what_a_transaction_holds")
    assert rows(verdicts, TRUE) == {"0.37"}
    assert verdicts["0.36"].condition == "true for engine.begin(); false for Session.begin()"
    assert verdicts["0.17"].condition == (
        "true for a session that has only added; false for a session that has queried before"
    )


def test_a_commit_with_nothing_to_send_borrows_no_connection(judged):
    """Neither does a flush, so the session holds nothing in its transaction."""
    verdicts = judged("what_a_transaction_holds", objects=0)
    assert rows(verdicts, FALSE) == {"0.17", "0.37"}


def test_pools_end_the_transaction_of_a_returned_connection(judged):
    """Its next user sees nothing of it, unless the pool is told to leave connections alone."""
    verdicts = judged("open_transaction_returned")
    for row in ("4.22", "4.33"):
        assert verdicts[row].condition == (
            "true for raw_connection() with reset_on_return=None; false for pools as they are made"
        )
    assert verdicts["4.22"].measured.startswith("in 1 of 8 ways")
    assert verdicts["4.23"].verdict is DEPENDS
    assert verdicts["4.23"].measured == "6 of 8 rows lost without a commit, 0 with one"


def test_a_rollback_before_the_return_leaves_the_next_user_a_clean_connection(judged):
    """In every pool, whatever it does with what comes back."""
    verdicts = judged("open_transaction_returned", before_return="rollback")
    assert rows(verdicts, FALSE) == {"4.22", "4.33"}


def test_a_dependency_must_commit_and_its_close_rolls_back(judged):
    """Without the commit a successful request leaves nothing; the rollback may be left out."""
    verdicts = judged("get_db")
    assert verdicts["2.9"].verdict is TRUE
    assert verdicts["2.23"].condition == "true for the commit; false for the rollback"


def test_a_dependency_ends_nothing_if_each_statement_commits(judged):
    """In AUTOCOMMIT the rows of a failed request stay."""
    verdicts = judged("get_db", isolation_level="AUTOCOMMIT")
    assert verdicts["2.9"].verdict is FALSE


def test_a_global_session_keeps_its_connection_old_objects_and_a_failed_transaction(judged):
    """What it loads again is fresh, and it loses what a request at the same time rolls back."""
    verdicts = judged("session_per_request", sessions=100)
    assert verdicts["2.12"].condition.endswith("; false for stale data that is loaded again")
    assert verdicts["2.10"].verdict is TRUE
    assert "1 row kept with a session each, 0 with one for all" in verdicts["2.10"].measured
    assert verdicts["0.34"].verdict is TRUE
    assert verdicts["0.34"].measured.startswith("0 connections opened")


def test_a_global_session_that_commits_after_each_request_is_fresh(judged):
    """And it holds nothing; yet two requests at the same time still share a transaction."""
    verdicts = judged("session_per_request", sessions=100, after_request="commit")
    assert verdicts["2.12"].verdict is FALSE
    assert verdicts["2.10"].verdict is TRUE


def test_a_forgotten_session_comes_back_at_a_garbage_collection(judged):
    """Unless something still refers to it; `with` and `finally` return its connection at once."""
    verdicts = judged("leaks", pool_size=3)
    assert verdicts["1.39"].verdict is TRUE
    assert verdicts["1.51"].condition == (
        "true for the time before a garbage collection, a session that something still refers to; "
        "false for the time after it"
    )
    assert verdicts["1.51"].measured.startswith("never closed: 3 out, 0 after gc")


def test_leak_detection_names_the_line_that_borrowed(outcome_of):
    """In a table, and the stack in a note."""
    outcome = outcome_of("leaks", pool_size=1)
    ((where, _, _),) = outcome.tables[-1].rows
    assert where.endswith("in never_closed")
    assert "in never_closed" in outcome.notes[0]


def test_a_session_that_commits_leaks_nothing(judged):
    """A commit returns the connection of a session that is never closed."""
    assert rows(judged("leaks", pool_size=3, after_query="commit"), FALSE) == {"1.39", "1.51"}


def test_a_connection_that_is_not_put_back_is_lost_to_psycopg2s_pool(judged):
    """A garbage collection does not help."""
    verdicts = judged("putconn_forgotten", maxconn=3)
    assert rows(verdicts, TRUE) == {"3.25", "4.30"}
    assert verdicts["4.30"].measured == (
        "putconn after a query that fails: 3 out, 3 after gc; putconn in a finally: 0 out, 0 after gc"
    )


def test_a_putconn_after_a_query_that_succeeds_loses_nothing(judged):
    """Only the failure skips it."""
    verdicts = judged("putconn_forgotten", maxconn=3, query="SELECT 1")
    assert rows(verdicts, FALSE) == {"4.30"}


def test_a_dependency_leaks_like_a_session_made_by_hand_unless_it_has_a_finally(judged):
    """What closes a session after a failure is the `finally`, not the dependency."""
    verdicts = judged("leaking_dependencies", pool_size=2)
    assert verdicts["2.21"].condition == (
        "true for a dependency with async with; false for a dependency without finally"
    )
    assert verdicts["2.22"].condition == (
        "true for a session closed at the end; false for a session closed in finally"
    )
    assert "by hand, never closed: 2 out, 2 killed" in verdicts["2.21"].measured


def test_handlers_that_succeed_leak_only_what_they_never_close(judged):
    """Then a close at the end is as good as one in a `finally`."""
    verdicts = judged("leaking_dependencies", pool_size=2, handler="succeeds")
    assert verdicts["2.21"].verdict is TRUE
    assert verdicts["2.22"].verdict is FALSE


def test_connections_that_are_held_during_something_slow_are_missing_elsewhere(judged):
    """More requests than connections wait for each other, and some in vain."""
    verdicts = judged("held_while_slow", pool_size=3, requests=12)
    assert rows(verdicts, TRUE) == {"0.35", "4.31"}


def test_a_pool_as_large_as_the_requests_may_be_held(judged):
    """Then a slow call delays no other request."""
    verdicts = judged("held_while_slow", pool_size=12, requests=12)
    assert rows(verdicts, FALSE) == {"0.35", "4.31"}
