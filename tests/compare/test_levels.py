"""Several loads and repeats: sustained or not, the knee, the reference, ties, skipped loads."""

import json
import re
from dataclasses import replace

import pytest

from poolkit.compare.report.findings import load_finding, tied, with_findings
from poolkit.compare.results.files import write_json
from poolkit.compare.results.levels import is_tie_of_repeats, knee_of
from poolkit.compare.results.results import compute, results_json
from poolkit.compare.results.run_folder import Level
from poolkit.compare.results.wording import Spread
from poolkit.errors import RunFolderError
from poolkit.loadtest.open_loop.report import LoopReport
from poolkit.thresholds import METRICS

USERS = tuple(Level(users=number, rate_per_user=2.0) for number in (5, 10, 20))
RATES = tuple(Level(users=10, arrival_rate=rate, max_users=200) for rate in (20.0, 40.0, 80.0))


@pytest.fixture
def results(made_up_run):
    """Return a function from made-up targets to the results of a run at several loads."""

    def of(targets, *, levels=USERS, **plan):
        return with_findings(compute(made_up_run(targets=targets, levels=levels, **plan)))

    return of


def sustained(results, name):
    return [each.level.name for each in results.levels[name] if each.sustained]


def test_figures_have_the_names_of_the_thresholds_metrics(made_up_run):
    """Every metric has its figure, and no figure has another name."""
    (web, *_) = compute(made_up_run()).targets
    assert set(web.figures) == set(METRICS)


def test_a_plain_run_has_one_level_that_is_its_reference(made_up_run):
    """Everything that reads levels can read it too."""
    found = compute(made_up_run())
    assert not found.has_levels
    assert found.reference.name == "20 users"
    assert [len(of) for of in found.levels.values()] == [1] * 6
    assert all(of[0].repeats[0].name == name for name, of in found.levels.items())
    assert found.verdicts == ()


def test_the_highest_load_that_all_targets_sustain_is_the_reference(results, made_up):
    """There they are compared; each of them may sustain more."""
    targets = {"web": made_up("web", kept=3), "lambda": made_up("lambda", p50=20, capacity=25)}
    found = results(targets, thresholds=("http.p95 < 200",))
    assert sustained(found, "web") == ["5 users", "10 users", "20 users"]
    assert sustained(found, "lambda") == ["5 users"]
    assert found.reference.name == "5 users"
    assert {t.step.level.name for t in found.targets} == {"5 users"}
    assert found.headline.startswith(
        "Highest load sustained within the thresholds: 20 users by web; 5 users by lambda. "
        "At 5 users, the highest load that every target sustained:"
    )


@pytest.mark.parametrize("repeat", [1, 3])
def test_a_threshold_can_be_about_the_requests_of_one_name(results, made_up, repeat):
    """In every measurement and over repeats; a name without requests is not known."""
    texts = (
        'http.max{name="GET /articles"} < 60s',
        'http.p50{name="/articles"} < 1',
        "http.p50{name='/x'} < 9",
    )
    found = results({"web": made_up("web")}, thresholds=texts, levels=USERS[:1], repeat=repeat)
    status = {verdict.threshold.text: verdict.status for verdict in found.verdicts}
    assert status == dict(zip(texts, ("passed", "failed", "unknown"), strict=True))
    (unknown,) = [verdict for verdict in found.verdicts if verdict.status == "unknown"]
    assert 'there are: "GET /articles"' in unknown.reason
    assert not any("{" in name for each in found.levels["web"] for name in each.spread)


def test_without_a_load_that_all_targets_sustain_the_lowest_is_the_reference(results, made_up):
    """The finding names the threshold that failed there."""
    found = results({"web": made_up("web", p50=300)}, thresholds=("http.p95 < 200",))
    assert sustained(found, "web") == []
    assert found.reference.name == "5 users"
    (web,) = found.targets
    assert web.load_finding.startswith(
        "Sustained none of the loads within its thresholds. It did not sustain 5 users: http.p95 is "
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"errors": {"503": 20}}, "of the requests failed"),
        ({"cpu": {"load": 0.95}}, "the load generator used 0.95 of a core"),
        ({"partial": True}, "stopped early"),
        ({"aborted_by": "http.p95 < 9 abort"}, "ended early: http.p95 < 9 abort"),
        ({"capacity": 15.0}, "of its load was answered"),
    ],
)
def test_the_reason_why_a_load_is_not_sustained_is_in_the_finding(results, made_up, changes, why):
    """Without thresholds: failures, the generator, an early end, or too little answered."""
    found = results(
        {"web": made_up("web", kept=2)},
        change=lambda step, web: replace(web, **changes) if step.level.users == 20 else web,
    )
    *lower, top = found.levels["web"]
    assert all(each.sustained for each in lower)
    assert not top.sustained
    assert why in top.why_not
    assert f"did not sustain 20 users: {top.why_not}" in found.targets[0].load_finding


@pytest.fixture
def opened(results, made_up):
    """Return a function from connections per request, by round, to the results of two targets."""

    def of(web, web_async):
        rounds = {"web": web, "web_async": web_async}
        return results(
            {name: made_up(name, kept=3) for name in rounds},
            levels=USERS[2:],
            repeat=3,
            change=lambda step, target: replace(
                target, per_request=rounds[step.target][step.repeat - 1]
            ),
        )

    return of


def test_connections_opened_that_differ_less_than_their_rounds_are_a_tie(opened):
    """Neither is ranked; both are shown with the ranges of their rounds."""
    found = opened((0.3, 0.02, 0.5), (0.31, 0.6, 0.1))
    assert found.headline.startswith(
        "The numbers of connections opened are too close to call: web_async 124 connections (40 to 240) "
        "for 400 requests, web 120 connections (8 to 200) for 400 requests."
    )
    web = next(target for target in found.targets if target.name == "web")
    assert web.finding.startswith("Opened 120 connections (8 to 200), one for every 3.3 requests")


def test_connections_opened_that_differ_more_than_their_rounds_are_ranked(opened):
    """By the median of the rounds."""
    found = opened((1.0, 1.0, 0.99), (0.01, 0.02, 0.03))
    assert re.search(
        r"web opened \d+ connections \(39\d to 40\d\) for 400 requests, web_async 8 conn",
        found.headline,
    )


def test_a_threshold_for_errors_replaces_the_limit_of_one_per_cent(results, made_up):
    """With `http.errors < 10%`, a load with 6 % of errors is sustained."""
    targets = {"web": made_up("web", errors={"503": 6})}
    assert sustained(results(targets), "web") == []
    found = results(targets, name="again", thresholds=("http.errors < 10%",))
    assert sustained(found, "web") == ["5 users", "10 users", "20 users"]


def test_every_threshold_is_judged_for_each_target_at_each_load(results, made_up):
    """A threshold that does not apply is not one with an unknown figure."""
    found = results(
        {"web": made_up("web"), "lambda": made_up("lambda", cold=3, url="https://lambda.example")},
        thresholds=("web: http.p95 < 100", "db.left_over == 0", "lambda.cold_starts < 1"),
    )
    statuses = {(v.threshold.metric, v.target, v.load): v.status for v in found.verdicts}
    assert len(statuses) == len(found.verdicts) == 3 + 2 * 6
    assert statuses["http.p95", "web", "5 users"] == "passed"
    assert statuses["db.left_over", "web", "5 users"] == "passed"
    assert statuses["db.left_over", "lambda", "5 users"] == "not applicable"
    assert statuses["lambda.cold_starts", "web", "20 users"] == "not applicable"
    assert statuses["lambda.cold_starts", "lambda", "20 users"] == "passed"


def test_with_repeats_the_median_is_judged_and_the_spread_is_kept(results, made_up):
    """One slow measurement of three fails no threshold."""
    found = results(
        {"web": made_up("web", p50=5)},
        repeat=3,
        thresholds=("http.p95 < 50",),
        change=lambda step, web: replace(web, p50=90) if step.repeat == 2 else web,
    )
    top = found.levels["web"][-1]
    assert top.sustained
    low, median, high = top.spread["http.p95"]
    assert low <= median < 50 < high
    assert top.middle.latency_ms.p95 == median
    assert found.targets[0].spread["http.p95"] == (low, median, high)
    assert "In 3 measurements at 20 users, p95 was from" in found.targets[0].load_finding


def test_for_figures_of_the_worst_moment_the_highest_repeat_counts(results, made_up):
    """Connections left open once fail the threshold, in spite of two clean ends."""
    found = results(
        {"web": made_up("web")},
        repeat=3,
        thresholds=("db.left_over == 0",),
        change=lambda step, web: replace(web, left_over=2) if step.repeat == 3 else web,
    )
    assert [(v.value, v.status) for v in found.verdicts] == [(2, "failed")] * 3


@pytest.mark.parametrize(
    ("a", "b", "tie"),
    [
        ((10, 11, 12), (11.5, 12, 13), True),
        ((10, 10.1, 10.2), (10.3, 10.4, 10.5), False),
        ((10, 11, 15), (15.5, 15.9, 16), True),
        ((10, 11, 12), (30, 31, 32), False),
        ((10, 10, 10), (10, 10, 10), True),
    ],
)
def test_a_difference_within_the_range_of_the_repeats_is_a_tie(a, b, tie):
    """A tie: ranges overlap, or the medians are no further apart than one range is wide."""
    assert is_tie_of_repeats(Spread(*a), Spread(*b)) is tie
    assert is_tie_of_repeats(Spread(*b), Spread(*a)) is tie


def test_targets_with_repeats_are_compared_by_the_repeats_alone(results, made_up):
    """Not by the intervals of one measurement, nor by the rule of ten per cent."""
    found = results(
        {"web": made_up("web", p50=5), "web_async": made_up("web_async", p50=5)}, repeat=2
    )
    a, b = found.targets
    near = {"http.p95": Spread(10.0, 10.1, 10.2)}
    assert not tied(
        replace(a, spread=near), replace(b, spread={"http.p95": Spread(10.5, 10.6, 10.7)}), "p95"
    )
    assert tied(
        replace(a, spread=near), replace(b, spread={"http.p95": Spread(9.0, 11.0, 30.0)}), "p95"
    )


def test_the_knee_is_where_throughput_for_latency_is_highest(results, made_up):
    """In an open loop too: at half of the capacity of the queue that is made up here."""
    found = results({"web": made_up("web", capacity=85.0)}, levels=RATES)
    knee = found.knees["web"]
    assert knee.level.name == "40/s"
    assert knee.answered_per_s == pytest.approx(40, abs=1)
    assert "is at 40/s: 40 requests per second in" in found.targets[0].load_finding


def test_without_a_bend_there_is_no_knee(results, made_up):
    """Power still rises at the highest load, or too few loads are usable."""
    found = results({"web": made_up("web")})
    assert found.knees["web"] is None
    assert "No knee up to 20 users" in found.targets[0].load_finding
    assert knee_of(found.levels["web"][:2]) is None


def test_the_knee_is_not_mentioned_if_a_level_that_ended_early_may_have_it(results, made_up):
    """Two usable loads are left, which is too few."""
    found = results({"web": made_up("web", capacity=85.0)}, levels=RATES[:3])
    *lower, last = found.levels["web"]
    cut = [replace(repeat, partial=True) for repeat in last.repeats]
    levels = (*lower, replace(last, repeats=tuple(cut)))
    finding = load_finding("web", replace(found, levels={"web": levels}, knees={}))
    assert finding
    assert "knee" not in finding


def test_a_bend_as_small_as_noise_is_no_knee(results, made_up):
    """A last load with 5 % less power than the best one shows no knee."""
    levels = results({"web": made_up("web", capacity=85.0)}, levels=RATES).levels["web"]

    def last_with(power):
        *lower, last = levels
        spread = {**last.spread, "http.rate": Spread(*(power,) * 3), "http.mean": Spread(1, 1, 1)}
        return [*lower, replace(last, spread=spread)]

    most = knee_of(levels).power
    assert knee_of(last_with(0.95 * most)) is None
    assert knee_of(last_with(0.85 * most)) == knee_of(levels)


def test_a_load_that_was_never_measured_says_why(results, made_up):
    """Skipped after an early end, or the run was stopped: two different reasons."""
    abort = "http.p95 < 9 abort"

    def change(step, target):
        if step.target == "lambda" and step.level.users == 10:
            return replace(target, aborted_by=abort, partial=True)
        return None if step.level.users == 20 else target

    found = results(
        {"lambda": made_up("lambda"), "web": made_up("web")}, change=change, thresholds=(abort,)
    )
    assert found.levels["lambda"][2].why_not == "skipped, because 10 users ended early"
    assert found.levels["web"][2].why_not == "the run was stopped before its end"
    assert not any(v.ok for v in found.verdicts if v.target == "lambda" and v.load == "10 users")
    assert [a.name for a in found.absent] == ["lambda_pgbouncer"]


def test_a_target_that_was_stopped_before_its_first_load_is_absent(results, made_up):
    """The others are reported."""
    found = results(
        {"web": made_up("web"), "worker": made_up("worker")},
        change=lambda step, target: None if step.target == "worker" else target,
    )
    assert list(found.levels) == ["web"]
    assert found.absent[-1].name == "worker"
    assert found.absent[-1].reason == "the run was stopped before its end"


def test_the_report_of_the_load_generator_decides_whether_it_was_saturated(made_up_run, made_up):
    """Rows that seem late count only without such a report."""
    run = made_up_run(targets={"web": made_up("web", late_ms=80)})
    report = LoopReport(loop="closed", arrivals=400, latest_ms=2.0, users_max=20)
    file = run.target("web").path / "load.json"
    write_json(file, report.to_json())
    (web,) = compute(run).targets
    assert not web.saturated
    assert web.load == report
    assert results_json(compute(run))["targets"]["web"]["load"] == report.to_json()
    late = replace(report, saturated_by="9 arrivals were late: all users wait")
    write_json(file, late.to_json())
    (web,) = compute(run).targets
    assert web.saturated_by == "9 arrivals were late: all users wait"


def test_results_keep_every_measurement_and_no_credentials(results, made_up):
    """The keys are those of a target, for each repeat of each level."""
    url = "https://user:secret@web.example:8443/prod"
    run = results(
        {"web": made_up("web", url=url)}, repeat=2, command=f"poolkit compare --target web={url}"
    )
    found = results_json(run)
    assert "user:secret" not in json.dumps(found)
    assert found["targets"]["web"]["url"] == "https://web.example:8443"
    first = found["levels"]["web"][0]
    assert [repeat["repeat"] for repeat in first["repeats"]] == [1, 2]
    assert (first["name"], first["offered_per_s"], first["held"]) == ("5 users", 10, True)
    assert first["repeats"][0]["connections"]["peak"] is not None
    assert found["targets"]["web"]["level"] == "20 users"


def test_a_broken_threshold_in_a_plan_names_the_file(made_up_run, made_up):
    """The plan was edited by hand."""
    run = made_up_run(targets={"web": made_up("web")}, thresholds=("http.p96 < 3",))
    with pytest.raises(RunFolderError, match=r"plan.json: thresholds, number 1: .*http.p96"):
        compute(run)


def test_a_run_from_before_there_were_levels_is_read(made_up_run, made_up):
    """Its plan had the one load in itself; the schema is the same."""
    run = made_up_run(targets={"web": made_up("web")})
    file = run.path / "plan.json"
    plan = json.loads(file.read_text())
    for new in ("levels", "repeat", "thresholds"):
        del plan[new]
    write_json(file, plan | {"users": 20, "rate_per_user": 2.0, "offered_per_s": 40.0})
    assert compute(run).reference == Level(users=20, rate_per_user=2.0)
