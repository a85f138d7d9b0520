"""The figures of a drill from made-up answers."""

from pathlib import Path

import pytest

from poolkit.drill.figures import Answer, AnswerRows, FaultTimes, Write, outcome_of
from poolkit.drill.ground import BARE_NAME
from poolkit.drill.options import DrillOptions
from poolkit.drill.report import as_json, broken_rules, markdown
from poolkit.drill.run import FaultResult, Results

TIMES = FaultTimes(fault="freeze", before=100.0, began=110.0, ended=115.0, until=130.0)


def answers(*failed_at: float, every_s: float = 0.5, failure: str = "503") -> list[Answer]:
    """Answers from 100 to 130, each after 0.1 s; those scheduled at some moments have failed."""
    count = int(30 / every_s)
    moments = [100 + number * every_s for number in range(count)]
    return [Answer(at, at + 0.1, failure if at in failed_at else "") for at in moments]


def test_without_a_failure_a_target_is_back_at_once():
    found = outcome_of("web", answers(), TIMES)
    assert (found.sent, found.failed, found.back_s) == (40, 0, 0.0)
    assert found.first_ok_s == pytest.approx(0.1)
    assert found.longest_s == pytest.approx(0.1)


def test_a_target_is_back_with_the_first_request_after_which_none_fails():
    found = outcome_of("web", answers(112.0, 115.5, 116.0), TIMES)
    assert found.by == {"503": 3}
    assert found.back_s == pytest.approx(1.5)


def test_failures_during_the_fault_do_not_count_for_the_recovery():
    assert outcome_of("web", answers(111.0, 114.5), TIMES).back_s == 0.0


def test_a_target_that_fails_to_the_end_is_never_back():
    late = [100 + number * 0.5 for number in range(24, 60)]
    found = outcome_of("web", answers(*late), TIMES)
    assert (found.back_s, found.first_ok_s) == (None, None)


def test_a_target_that_always_fails_now_and_then_is_back_at_its_level_of_before():
    before = (102.0, 104.0, 106.0, 108.0)  # a fifth
    after = (118.0, 121.0, 124.0, 127.0)
    assert outcome_of("web", answers(*before, *after), TIMES).back_s == 0.0
    assert outcome_of("web", answers(*before, 115.0, 115.5, *after), TIMES).back_s > 0


def test_a_request_under_way_when_the_fault_begins_counts_for_it():
    struck = Answer(109.9, 112.0, "timeout")
    found = outcome_of("web", [*answers(), struck], TIMES)
    assert found.by == {"timeout": 1}
    assert found.longest_s == pytest.approx(2.1)


def test_writes_are_lost_doubled_or_in_doubt_by_the_table():
    writes = [
        Write("web", "a", 111.0, True),
        Write("web", "b", 111.0, True),
        Write("web", "c", 112.0, True),
        Write("web", "d", 112.0, False),
        Write("web", "e", 112.0, False),
        Write("web", "late", 131.0, True),
        Write("other", "f", 112.0, True),
    ]
    found = outcome_of("web", answers(), TIMES, writes=writes, found={"a": 1, "c": 2, "d": 1})
    assert (found.written, found.lost, found.doubled, found.in_doubt) == (3, 1, 1, 1)


def test_without_a_table_the_writes_are_unknown():
    found = outcome_of("web", answers(), TIMES, writes=[Write("web", "a", 111.0, True)])
    assert (found.written, found.lost, found.doubled, found.in_doubt) == (1, None, None, None)


def test_rows_are_read_while_they_grow(tmp_path: Path):
    file = tmp_path / "requests.csv"
    rows = AnswerRows(file, ["web", "bare"])
    rows.update()
    file.write_text(
        "due,started,latency_ms,service_ms,method,name,status,error\n"
        "1.0,1.0,500,500,GET,web /,200,\n"
        "2.0,2.0,10,10,GET,bare /,0,ConnectionResetError\n"
        "3.0,3.0,1"
    )
    rows.update()
    assert rows.by_target == {"web": [Answer(1.0, 1.5, "")], "bare": [Answer(2.0, 2.01, "reset")]}
    with file.open("a") as growing:
        growing.write("0,10,GET,web /,503,503\n")
    rows.update()
    assert rows.by_target["web"][1].failure == "503"


def results(*, target: str, failed_at: tuple[float, ...] = (), leaked: int = 0) -> Results:
    outcome = outcome_of(
        target,
        answers(*failed_at, failure="500"),
        TIMES,
        writes=[Write(target, "a", 111.0, True)],
        found={},
        leaked=leaked,
    )
    return Results(
        options=DrillOptions(faults=()),
        targets=[target],
        faults=[FaultResult(times=TIMES, outcomes=(outcome,))],
        not_run={"crash": "no server"},
    )


def test_each_broken_rule_is_named():
    broken = broken_rules(results(target="web", failed_at=(117.0,), leaked=2))
    assert {each.rule for each in broken} == {"lost", "leaked", "500", "recovery"}


def test_the_bare_application_breaks_no_rule():
    assert broken_rules(results(target=BARE_NAME, failed_at=(117.0,), leaked=2)) == []


def test_the_files_have_every_target_and_what_was_not_run():
    found = results(target="web")
    assert "| freeze | web | 40 | 0 |" in markdown(found)
    assert "crash was not run: no server" in markdown(found)
    assert '"not_run": {\n  "crash": "no server"' in as_json(found)
