"""Findings: sentences that are there because their facts are."""

from dataclasses import replace

import pytest

from poolkit.compare.report.findings import is_tie, with_findings
from poolkit.compare.results.levels import level_result
from poolkit.compare.results.results import compute
from poolkit.compare.results.run_folder import Request
from poolkit.compare.results.target_result import Interval
from poolkit.compare.results.wording import count, figure, join, milliseconds, percent
from poolkit.thresholds import Threshold, check_all


@pytest.fixture
def findings(made_up_run):
    """Give a function from made-up targets to findings by name, the headline under ''."""

    def find(targets=None, **plan):
        results = with_findings(compute(made_up_run(targets=targets, **plan)))
        return {"": results.headline} | {t.name: t.finding for t in results.targets}

    return find


def test_a_connection_for_every_request_is_said_with_its_price(findings):
    """Against the same kind of deployable that kept its connections."""
    said = findings()["lambda"]
    assert said.startswith("Opened 399 connections for 399 requests (1.00 per request): every")
    assert "against 5.4 ms for lambda_warm, which kept its connections" in said


def test_kept_connections_are_counted_against_execution_environments(findings):
    """What lambda_warm is for, in its own words."""
    said = findings()["lambda_warm"]
    assert "18 execution environments held 18 connections and opened none after the warm-up" in said
    assert "Cold starts are 50 % of the slowest 1 %" in said


def test_a_pool_that_kept_its_connections_says_how_many_fit(findings):
    """Peak, ceiling, and what the server has room for."""
    said = findings()["web"]
    assert said.startswith("Kept 9 connections of at most 30 and opened none after the warm-up.")
    assert said.endswith(
        "There is room for 3 such targets with 30 connections each: "
        "max_connections 100 less 3 reserved by the server."
    )


def test_a_queue_at_the_pool_is_told_from_a_slow_answer(findings, made_up):
    """Both have a long tail; only one has every connection in use."""
    slow = made_up("web", kept=9, busy=2, tail=12, ceiling=30)
    queued = made_up("web_async", kept=4, busy=4, tail=12, ceiling=4)
    said = findings({"web": slow, "web_async": queued})
    assert "all 4 connections were in use: requests queued for one" in said["web_async"]
    assert "it did not wait for the pool" in said["web"]


def test_failures_come_with_their_kinds(findings, made_up):
    """By number and by what they mean."""
    target = made_up("lambda", errors={"429": 30, "unsent": 1})
    said = findings({"lambda": target})["lambda"]
    assert "31 of 400 requests failed (7.8 %): 30 x 429 (no execution environment was free)" in said
    assert "1 x dropped (never sent)" in said


def test_why_something_elsewhere_failed_is_not_guessed(made_up_run, made_up):
    """Nor a web service's 429 anywhere; and a ceiling that cannot be seen is not called none."""
    deployed = made_up("web", kept=9, ceiling=None, errors={"503": 2, "429": 1})
    results = compute(made_up_run(targets={"web": deployed}))
    (web,) = results.targets
    here = with_findings(results).targets[0].finding
    assert "2 x 503 (no connection or no database was available) and 1 x 429." in here
    elsewhere = replace(results, targets=(replace(web, url="https://example.org"),))
    said = with_findings(elsewhere).targets[0].finding
    assert "2 x 503 and 1 x 429." in said
    assert "Nothing limits" not in said


def test_connections_left_over_are_never_left_out(findings, made_up):
    """However much else there is to say."""
    target = made_up("lambda", left_over=1, errors={"503": 5}, cpu={"load": 1.0}, partial=True)
    said = findings({"lambda": target})["lambda"]
    assert "1 connection was left open on the server" in said
    assert "upper bound" in said
    assert "Stopped early" in said


def test_a_saturated_generator_makes_latency_an_upper_bound(findings, made_up):
    """What it waits itself is in the figure."""
    said = findings({"web": made_up("web", kept=3, cpu={"load": 0.97})})["web"]
    assert "Its latency is an upper bound: the load generator used 0.97 of a core" in said


def test_overflow_that_is_opened_again_and_again_is_named(findings, made_up):
    """What is above pool_size is closed at checkin."""
    said = findings({"web": made_up("web", kept=25, per_request=0.2, ceiling=30)})["web"]
    assert "connections beyond pool_size 20 are closed after each use" in said


def test_a_ceiling_above_the_servers_limit_is_named(findings, made_up):
    """It fits today and not on the day when all of it is used."""
    said = findings(
        {"web": made_up("web", kept=3, ceiling=60)}, max_connections=50, usable_connections=47
    )["web"]
    assert "Its ceiling of 60 is more than max_connections 50 less 3" in said


def test_what_the_server_keeps_for_itself_is_no_room(findings, made_up):
    """Of 100 the application has 97: 24 times 4, and not 98."""
    said = findings({"worker": made_up("worker", kept=4, ceiling=4)})["worker"]
    assert "room for 24 such targets with 4 connections each" in said
    said = findings({"web": made_up("web", kept=3, ceiling=98)}, name="more")["web"]
    assert (
        "Its ceiling of 98 is more than max_connections 100 less 3 reserved by the server" in said
    )


def test_without_the_reserve_nothing_is_said_about_room(findings, made_up):
    """A run of an older version does not know it."""
    said = findings({"worker": made_up("worker", kept=4, ceiling=4)}, usable_connections=None)
    assert "room" not in said["worker"]


def test_a_pooler_is_told_from_the_server(findings, made_up):
    """Connections to the one are not connections to the other."""
    said = findings({"lambda_proxy": made_up("lambda_proxy", kept=5, pool_opened=400)})
    assert (
        "Connected 400 times to the pooler for 400 requests; the pooler opened none to the server"
        in (said["lambda_proxy"])
    )


def test_different_facts_make_different_sentences(findings):
    """No two of six targets are told the same."""
    said = findings()
    del said[""]
    shapes = {"".join(c for c in text if not c.isdigit()) for text in said.values()}
    assert len(shapes) >= 5


def test_the_headline_has_the_most_and_the_fastest(findings):
    """A worker answers nobody, so it is not in the race; a tie is called one."""
    said = findings()[""]
    assert "lambda opened 399 connections for 399 requests" in said
    assert "At p95 web was fastest (7.4 ms, too close to web_async to call)" in said
    assert "worker took" not in said


def test_a_doubtful_latency_is_not_ranked(findings, made_up):
    """Nobody is called slow for what the load generator did."""
    targets = {name: made_up(name, kept=3) for name in ("web", "web_async", "lambda_warm")}
    targets["lambda"] = made_up("lambda", p50=90, per_request=1, cpu={"load": 0.99})
    said = findings(targets)[""]
    assert "lambda took" not in said
    assert "Not ranked by latency (the reason is below): lambda." in said


def test_one_target_has_no_headline(findings, made_up):
    """There is nothing to compare it with."""
    assert findings({"web": made_up("web", kept=2)})[""] == ""


@pytest.mark.parametrize(
    ("a", "b", "tie"),
    [
        ((10.0, (9.0, 11.0)), (20.0, (18.0, 22.0)), False),
        ((10.0, (9.0, 19.0)), (20.0, (18.0, 22.0)), True),
        ((10.0, (10.0, 10.1)), (10.5, (10.4, 10.6)), True),
    ],
)
def test_what_the_noise_explains_is_a_tie(a, b, tie):
    """Overlapping intervals, or a difference under 10 %."""
    assert is_tie(a[0], b[0], Interval(*a[1]), Interval(*b[1])) is tie
    assert is_tie(b[0], a[0], Interval(*b[1]), Interval(*a[1])) is tie


def test_figures_have_the_digits_they_deserve():
    """Neither 4.18237 ms nor 0 for something."""
    assert [figure(x) for x in (0, 0.004, 0.999, 4.18, 9.96, 41.8, 4180)] == [
        *("0", "0.004", "1.0", "4.2", "10", "42", "4,180")
    ]
    assert [milliseconds(x) for x in (0.42, 999, 1000, 61_000)] == [
        *("0.42 ms", "999 ms", "1.0 s", "61 s")
    ]
    assert [percent(x) for x in (0, 0.00001, 0.0123, 0.1, 1)] == [
        *("0 %", "under 0.1 %", "1.2 %", "10 %", "100 %")
    ]
    assert (count(1, "request"), count(2000, "request")) == ("1 request", "2,000 requests")
    assert [join(list(x)) for x in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


def test_a_warm_up_that_was_too_short_is_told_from_a_slow_target(made_up_run, made_up):
    """What it left undone makes the first requests of the window late."""
    run = made_up_run(targets={"lambda": made_up("lambda", per_request=1)})
    folder = run.target("lambda")
    begin = folder.window().from_
    rows = [
        replace(row, started=begin + 0.1, latency_ms=(begin + 0.1 - row.due) * 1000 + 5)
        if begin - 2 < row.due < begin + 0.1
        else row
        for row in folder.rows(Request).rows
    ]
    with folder.writer(Request) as out:
        for row in rows:
            out.write(row)
    (found,) = with_findings(compute(run)).targets
    assert found.backlog == 40
    assert not found.saturated
    assert "The warm-up was too short: 40 requests of it" in found.finding
    broken = check_all([Threshold.parse("http.p95 < 0.001ms")], found.name, found.figures)
    level = level_result(found.step.level, [found], broken)
    assert level.why_not.endswith(
        "the warm-up was too short (--warm-up): its requests were still waiting"
    )


def test_a_queue_that_grows_is_no_warm_up_that_was_too_short(made_up_run, made_up):
    """A longer one would leave more behind."""
    results = compute(made_up_run(targets={"web": made_up("web")}))
    (web,) = results.targets
    queue = replace(web, backlog=40, served=int(0.8 * web.requests))
    said = with_findings(replace(results, targets=(queue,))).targets[0].finding
    assert "Overloaded: 40 requests of the warm-up still waited" in said
