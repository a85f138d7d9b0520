"""The pools of SQLite."""

from processes import ROOT

from poolkit.experiment.outcome import Verdict


def test_one_connection_for_all_threads_is_for_memory_alone(outcome_of):
    """In memory no other pool finds the table; on a file a reader undoes the writer's work."""
    outcome = outcome_of("sqlite_pools", threads=3, rows=4)
    verdicts = {judgement.row: judgement for judgement in outcome.judgements}
    assert verdicts["1.27"].verdict is Verdict.TRUE
    assert verdicts["1.28"].verdict is Verdict.FALSE
    assert verdicts["1.28"].measured == (
        "of 4 committed rows StaticPool lost 4 with 3 threads, 0 with one; QueuePool lost 0 with 3"
    )
    assert verdicts["1.34"].condition == "true for one thread; false for 3 threads"
    assert verdicts["1.29"].condition == "true for memory; false for file"
    (table,) = outcome.tables
    connects = {row[:2]: int(row[3]) for row in table.rows}
    assert connects["file", "StaticPool"] == 1
    assert connects["file", "QueuePool"] == 3
    assert connects["file", "NullPool"] > 10


def test_for_one_thread_every_pool_of_a_file_does(judged):
    """Its one connection loses nothing, and in memory QueuePool works too."""
    verdicts = judged("sqlite_pools", threads=1, rows=4)
    assert verdicts["1.27"].verdict is Verdict.FALSE
    assert verdicts["1.28"].verdict is Verdict.TRUE
    assert verdicts["1.34"].verdict is Verdict.TRUE


def test_the_page_has_the_experiment_s_numbers(outcome_of):
    """The table of docs/sqlite.md is that of a run, without the pool whose numbers depend on chance."""
    (table,) = outcome_of("sqlite_pools").tables
    page = (ROOT / "docs/sqlite.md").read_text()
    rows = [f"| {' | '.join(row)} |" for row in table.rows if row[1] != "SingletonThreadPool"]
    assert len(rows) == 6
    assert "\n".join(rows[:3]) in page
    assert "\n".join(rows[3:]) in page
