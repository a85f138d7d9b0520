"""Findings: sentences that are there because their facts are."""

from dataclasses import replace

import pytest
from compare.conftest import LONG, hold

from poolkit.compare.report.findings import is_tie, with_findings
from poolkit.compare.results.levels import level_result
from poolkit.compare.results.results import compute
from poolkit.compare.results.run_folder import Request
from poolkit.compare.results.target_result import Interval
from poolkit.compare.results.wording import count, figure, join, milliseconds, percent
from poolkit.thresholds import Threshold, check_all


def findings_of(results):
    """Return the findings by target, with the headline under ''."""
    return {"": results.headline} | {t.name: t.finding for t in results.targets}


@pytest.fixture
def findings(made_up_run):
    return lambda targets, **plan: findings_of(
        with_findings(compute(made_up_run(targets=targets, **plan)))
    )


@pytest.fixture
def of_six(results_of_six):
    return findings_of(results_of_six)


def test_a_connection_for_every_request_is_reported_with_its_cost(of_six):
    """Against the same kind of deployable that kept its connections."""
    finding = of_six["lambda"]
    assert finding.startswith("Opened 399 connections for 399 requests (1.00 per request): every")
    assert "against 5.4 ms for lambda_warm, which kept its connections" in finding


def test_kept_connections_are_counted_against_execution_environments(of_six):
    """One connection per execution environment is the purpose of lambda_warm."""
    finding = of_six["lambda_warm"]
    held = "18 execution environments held 18 connections"
    assert f"{held} and opened none after the warm-up" in finding
    assert "Cold starts are 50 % of the slowest 1 %" in finding


def test_the_finding_of_a_pool_that_kept_its_connections_says_how_many_fit(of_six):
    """It has the peak, the ceiling, and what the server has room for."""
    finding = of_six["web"]
    assert finding.startswith("Kept 9 connections of at most 30 and opened none after the warm-up.")
    assert finding.endswith(
        "There is room for 3 such targets with 30 connections each: "
        "max_connections 100 less 3 reserved by the server."
    )


def test_a_queue_at_the_pool_is_distinguished_from_a_slow_answer(findings, made_up):
    """Both have a long tail; only one has every connection in use."""
    slow = made_up("web", kept=9, busy=2, tail=12, ceiling=30)
    queued = made_up("web_async", kept=4, busy=4, tail=12, ceiling=4)
    finding = findings({"web": slow, "web_async": queued})
    assert "all 4 connections were in use: requests queued for one" in finding["web_async"]
    assert "it did not wait for the pool" in finding["web"]


def test_failures_come_with_their_kinds(findings, made_up):
    """The kinds stand in the order of their numbers, with their meaning."""
    target = made_up("lambda", errors={"429": 30, "unsent": 1})
    finding = findings({"lambda": target})["lambda"]
    kind = "30 x 429 (no execution environment was free)"
    assert f"31 of 400 requests failed (7.8 %): {kind}" in finding
    assert "1 x dropped (never sent)" in finding


def test_an_overloaded_target_shows_what_was_in_time_late_and_never(made_up_run, made_up):
    """Not a number of failed requests alone: most of them only waited for too long."""
    slow = made_up("web", p50=200, capacity=37.0, errors={"unsent": 50, "500": 3})
    (web,) = with_findings(compute(made_up_run(targets={"web": slow}))).targets
    assert web.in_time + web.late + web.never + 3 == web.requests
    assert min(web.in_time, web.late) > 0
    assert (
        f"were answered in time (within 1 s), {web.late:,} late, 50 never and 3 with" in web.finding
    )


def test_the_cause_of_a_failure_of_a_deployed_target_is_not_guessed(made_up_run, made_up):
    """Nor that of a web service's 429; and an unknown ceiling is not "no limit"."""
    deployed = made_up("web", kept=9, ceiling=None, errors={"503": 2, "429": 1})
    results = compute(made_up_run(targets={"web": deployed}))
    (web,) = results.targets
    here = with_findings(results).targets[0].finding
    assert "2 x 503 (no connection or no database was available) and 1 x 429." in here
    elsewhere = replace(results, targets=(replace(web, url="https://example.org"),))
    finding = with_findings(elsewhere).targets[0].finding
    assert "2 x 503 and 1 x 429." in finding
    assert "Nothing limits" not in finding


def test_connections_left_open_are_always_reported(findings, made_up):
    """They are reported beside several other reservations too."""
    target = made_up("lambda", left_over=1, errors={"503": 5}, cpu={"load": 1.0}, partial=True)
    finding = findings({"lambda": target})["lambda"]
    assert "1 connection was left open on the server" in finding
    assert "upper bound" in finding
    assert "Stopped early" in finding


def test_a_saturated_generator_makes_latency_an_upper_bound(findings, made_up):
    """Its own delay is part of the figure."""
    finding = findings({"web": made_up("web", kept=3, cpu={"load": 0.97})})["web"]
    assert "Its latency is an upper bound: the load generator used 0.97 of a core" in finding


def test_overflow_that_is_opened_repeatedly_is_named(findings, made_up):
    """Connections beyond pool_size are closed at checkin."""
    finding = findings({"web": made_up("web", kept=25, per_request=0.2, ceiling=30)})["web"]
    assert "connections beyond pool_size 20 are closed after each use" in finding


def test_a_ceiling_above_the_servers_limit_is_named(findings, made_up):
    """The target fits today, but not once it uses its whole ceiling."""
    finding = findings(
        {"web": made_up("web", kept=3, ceiling=60)}, max_connections=50, usable_connections=47
    )["web"]
    assert "Its ceiling of 60 is more than max_connections 50 less 3" in finding


def test_connections_reserved_by_the_server_are_no_room(findings, made_up):
    """Of 100 the application has 97: 24 times 4, and not 98."""
    finding = findings({"worker": made_up("worker", kept=4, ceiling=4)})["worker"]
    assert "room for 24 such targets with 4 connections each" in finding
    finding = findings({"web": made_up("web", kept=3, ceiling=98)}, name="more")["web"]
    limit = "max_connections 100 less 3 reserved by the server"
    assert f"Its ceiling of 98 is more than {limit}" in finding


def test_with_an_unknown_reserve_the_finding_does_not_mention_room(findings, made_up):
    """Plans of older versions do not have it."""
    finding = findings({"worker": made_up("worker", kept=4, ceiling=4)}, usable_connections=None)
    assert "room" not in finding["worker"]


def test_connections_to_a_pooler_are_not_those_to_the_server(findings, made_up):
    """Both numbers are in the finding."""
    finding = findings({"lambda_proxy": made_up("lambda_proxy", kept=5, pool_opened=400)})
    said = "Connected 400 times to the pooler for 400 requests; "
    assert f"{said}the pooler opened none to the server" in finding["lambda_proxy"]


def test_different_facts_make_different_sentences(of_six):
    """At least five of six targets have sentences of their own."""
    texts = (text for name, text in of_six.items() if name)
    shapes = {"".join(c for c in text if not c.isdigit()) for text in texts}
    assert len(shapes) >= 5


def test_the_headline_has_the_most_and_the_fastest(of_six):
    """A worker has no response time, so it is not ranked; a tie is called one."""
    finding = of_six[""]
    assert "lambda opened 399 connections for 399 requests" in finding
    assert "At p95 web was fastest (7.4 ms, too close to web_async to call)" in finding
    assert "worker took" not in finding


def test_a_doubtful_latency_is_not_ranked(findings, made_up):
    """A target is not called slow for a delay of the load generator."""
    targets = {name: made_up(name, kept=3) for name in ("web", "web_async", "lambda_warm")}
    targets["lambda"] = made_up("lambda", p50=90, per_request=1, cpu={"load": 0.99})
    finding = findings(targets)[""]
    assert "lambda took" not in finding
    assert "Not ranked by latency (the reason is below): lambda." in finding


def test_one_target_has_no_headline(findings, made_up):
    """A headline compares targets."""
    assert findings({"web": made_up("web", kept=2)})[""] == ""


@pytest.mark.parametrize(
    ("a", "b", "tie"),
    [
        ((10.0, (9.0, 11.0)), (20.0, (18.0, 22.0)), False),
        ((10.0, (9.0, 19.0)), (20.0, (18.0, 22.0)), True),
        ((10.0, (10.0, 10.1)), (10.5, (10.4, 10.6)), True),
    ],
)
def test_a_difference_within_the_noise_is_a_tie(a, b, tie):
    """Overlapping intervals, or a difference under 10 %, make a tie."""
    assert is_tie(a[0], b[0], Interval(*a[1]), Interval(*b[1])) is tie
    assert is_tie(b[0], a[0], Interval(*b[1]), Interval(*a[1])) is tie


def test_figures_have_two_significant_digits():
    """No false precision, and no 0 for a small number."""
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


def test_a_short_warm_up_is_distinguished_from_a_slow_target(made_up_run, made_up):
    """Its unanswered requests delay the first ones of the measured time."""
    run = made_up_run(targets={"lambda": made_up("lambda", per_request=1)})
    folder = run.target("lambda")
    begin = folder.window().from_
    rows = [
        replace(row, started=begin + 0.1, latency_ms=(begin + 0.1 - row.due) * 1000 + 5)
        if begin - 2 < row.due < begin + 0.1
        else row
        for row in folder.rows(Request).rows
    ]
    with folder.writer(Request) as write:
        for row in rows:
            write(row)
    (found,) = with_findings(compute(run)).targets
    assert found.backlog == 40
    assert not found.saturated
    assert "The warm-up was too short: 40 requests of it" in found.finding
    broken = check_all([Threshold.parse("http.p95 < 0.001ms")], found.name, found.figures)
    level = level_result(found.step.level, [found], broken)
    assert level.why_not.endswith(
        "the warm-up was too short (--warm-up): its requests were still waiting"
    )


def test_a_growing_queue_is_not_blamed_on_the_warm_up(made_up_run, made_up):
    """A longer warm-up would leave a longer queue."""
    results = compute(made_up_run(targets={"web": made_up("web")}))
    (web,) = results.targets
    queue = replace(web, backlog=40, served=int(0.8 * web.requests))
    finding = with_findings(replace(results, targets=(queue,))).targets[0].finding
    assert "Overloaded: 40 requests of the warm-up still waited" in finding


def test_a_line_that_holds_connections_without_sql_is_named(findings, made_up):
    """With its share of SQL, although most checkouts are short."""
    quick = [hold(f"app/quick.py:{n} in quick", count=1000, spread="-56:1000") for n in range(5)]
    slow = hold("app/mail.py:7 in send", unit="POST /mail", **LONG)
    finding = findings({"web": made_up("web", kept=5, holds=(*quick, slow))})["web"]
    assert "app/mail.py:7 in send (POST /mail) held a connection for" in finding
    assert "SQL ran in 2.0 % of that time" in finding


def test_second_connections_of_one_request_are_named(findings, made_up):
    """They are a deadlock of the pool under load."""
    rows = (hold("app/a.py:1 in a"), hold("app/b.py:2 in b", nested=12))
    finding = findings({"web": made_up("web", kept=5, holds=rows)})["web"]
    assert "12 checkouts were made with another connection" in finding
    assert "app/b.py:2 in b" in finding


def test_a_connection_that_never_came_back_is_named(findings, made_up):
    """Its line has no checkout that is over, so nothing else is known of it."""
    never = hold("app/c.py:3 in c", count=0, spread="", held_s=0.0, busy_s=0.0, out_s=9.0)
    finding = findings({"web": made_up("web", kept=5, holds=(hold("app/a.py:1 in a"), never))})
    assert "A connection of app/c.py:3 in c was still out at the end, for 9.0 s." in finding["web"]


@pytest.mark.parametrize(
    "rows",
    [
        None,
        (),
        (hold("app/a.py:1 in a"),),
        # For long, but in SQL; and not known.
        (hold("app/a.py:1 in a", **{**LONG, "busy_s": 29.0}),),
        (hold("app/a.py:1 in a", **{**LONG, "unseen_s": 30.0, "busy_s": 0.0}),),
    ],
)
def test_nothing_is_said_about_holds_that_are_short_busy_or_unknown(findings, made_up, rows):
    """Unknown is not zero."""
    finding = findings({"web": made_up("web", kept=5, holds=rows)})["web"]
    assert "held a connection" not in finding
    assert "checkout" not in finding
