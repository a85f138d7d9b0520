"""The figures of a run, checked against raw rows written down by hand."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from compare.conftest import EVERY_TARGET, FROM, LONG, TO, hold, request
from processes import ROOT

from poolkit.compare.report.findings import with_findings
from poolkit.compare.report.write import write_report
from poolkit.compare.results.results import compute, results_json
from poolkit.compare.results.run_folder import ConnectionRow, Evidence, Request
from poolkit.compare.results.target_result import Latency, Moment, idle_seconds, percentile
from poolkit.loadtest.latency.counters import LatenciesAtLeast
from poolkit.loadtest.latency.histogram import LatencyHistogram


def latency_of(values):
    return Latency.of(LatenciesAtLeast(LatencyHistogram.of(values)))


def about(*latencies_ms):
    """To the three digits that a histogram has."""
    return pytest.approx(latencies_ms, rel=0.001)


def target_of(run, name):
    return named(compute(run), name)


def named(results, name):
    """Return the same variables as a list in YAML, whose items have these two keys."""
    return next(target for target in results.targets if target.name == name)


@pytest.fixture
def web_run(made_up_run):
    """Return a function that makes a run of the web target alone, for a test to change."""
    return lambda **plan: made_up_run(targets={"web": EVERY_TARGET["web"]}, **plan)


@pytest.fixture
def web_of(web_run):
    """Return a function from requests, with times after the warm-up, to the web target's figures."""

    def of(*requests):
        run = web_run()
        write_requests(run.target("web"), requests)
        return target_of(run, "web")

    return of


def answered(number):
    return [request(FROM + n / 10, 50) for n in range(number)]


def write_requests(folder, requests):
    with folder.writer(Request) as write:
        for each in requests:
            write(each)


@pytest.mark.parametrize(
    ("p", "value"), [(50, 500), (90, 900), (95, 950), (99, 990), (99.9, 999), (100, 1000), (0, 1)]
)
def test_a_percentile_is_the_nearest_rank(p, value):
    """Of 1 to 1000, the 99.9th percentile is 999, not what binary fractions make of it."""
    assert percentile(list(range(1, 1001)), p) == value


def test_a_percentile_is_always_a_value_that_occurred():
    """Nothing is interpolated."""
    values = sorted(random.Random(7).expovariate(1) for _ in range(137))
    assert all(percentile(values, p) in values for p in range(101))


@pytest.mark.parametrize("number", [1, 2, 3, 20, 1000])
def test_the_interval_holds_the_percentile(number):
    """Also for so few values that it is the whole range."""
    latency = latency_of(float(n) for n in range(number))
    assert latency.p50_interval[0] <= latency.p50 <= latency.p50_interval[1]
    assert latency.p95_interval[0] <= latency.p95 <= latency.p95_interval[1]


def test_the_interval_holds_the_true_percentile_about_95_times_in_100():
    """Checked on a distribution whose p95 is known: 1 - e^-x = 0.95."""
    chance = random.Random(1)
    held = 0
    for _ in range(300):
        latency = latency_of(chance.expovariate(1) for _ in range(400))
        low, high = latency.p95_interval
        held += low <= 2.9957 <= high
    assert held / 300 > 0.92


def test_only_requests_scheduled_in_the_measured_time_count(web_of):
    """Requests of the warm-up and of the time after are in no figure."""
    inside = [request(FROM, 10), request(FROM + 5, 20), request(TO - 0.001, 30)]
    web = web_of(request(FROM - 0.001, 9000), *inside, request(TO, 9000))
    assert web.requests == 3
    assert (web.latency_ms.p50, web.latency_ms.max) == about(20, 30)
    assert web.requests_per_s == pytest.approx(3 / (TO - FROM))


def test_a_latency_that_is_not_known_says_why(web_run):
    """Every request failed: the threshold does not pass, and its line has the reason."""
    run = web_run(thresholds=("http.p95 < 200",))
    write_requests(run.target("web"), [request(FROM, 10, error="404")])
    (verdict,) = compute(run).verdicts
    assert verdict.status == "unknown"
    assert "http.p95 is not known (no request was answered without an error)" in verdict.message


def test_answers_after_the_load_has_ended_are_no_throughput(web_of):
    """A growing queue was not sustained: answers while the load drains do not count."""
    late = [request(TO - 1, 3000)] * 5
    web = web_of(request(FROM - 2, 3000), request(FROM, 10), *late)
    assert (web.requests, web.errors, web.served) == (6, 0, 2)
    assert web.requests_per_s == pytest.approx(2 / (TO - FROM))


def test_failed_requests_count_but_do_not_flatter_the_latency(web_of):
    """A 429 after 1 ms is no fast answer: it has a summary of its own."""
    failed = [request(FROM + 1, 1, "429"), request(FROM + 2, 30_000, "TimeoutError")]
    web = web_of(*answered(8), *failed)
    assert (web.requests, web.errors, web.error_kinds) == (10, 2, {"429": 1, "TimeoutError": 1})
    assert (web.latency_ms.p50, web.latency_ms.max) == about(50, 50)
    assert web.error_latency_ms.max == pytest.approx(30_000, rel=0.001)


def test_a_request_without_an_answer_took_at_least_as_long_as_it_had_waited(web_of):
    """A target that dies in the middle must not show only the latencies before its death."""
    cut_off = [request(FROM + 1, 30_000, "unanswered"), request(FROM + 2, 1, "unsent")]
    web = web_of(*answered(8), *cut_off)
    assert (web.latency_ms.p50, web.latency_ms.p95) == about(50, 30_000)
    assert (web.latency_ms.max, web.latency_ms.mean) == about(30_000, (8 * 50 + 30_001) / 10)
    assert web.service_ms.max == pytest.approx(50, rel=0.001)
    assert web.errors == 2


def test_a_request_that_the_end_cut_off_at_once_lowers_no_latency(web_of):
    """It would have taken longer, by an unknown time."""
    web = web_of(*answered(8), *[request(FROM + 1, 1, "unanswered")] * 9)
    assert (web.latency_ms.p50, web.latency_ms.mean, web.latency_ms.max) == about(50, 50, 50)


def test_without_any_request_there_is_no_latency(web_run):
    """A target that got no load is reported, not divided by zero."""
    run = web_run()
    write_requests(run.target("web"), [])
    (web,) = with_findings(compute(run)).targets
    assert web.latency_ms is None
    assert web.finding == "No request was scheduled in the measured time."


def test_opened_is_the_servers_own_count_over_the_window(results_of_six):
    """The figure per request is over those that ended in the measured time."""
    found = named(results_of_six, "lambda")
    assert found.connections.opened == found.served
    assert found.connections.opened_per_1000_requests == 1000
    assert named(results_of_six, "web").connections.opened_warm_up == 9


def test_disagreeing_pool_events_are_noted(made_up_run, made_up):
    """The server's count is used, and the report says where the pools' count differs."""
    target = made_up("web", per_request=1, pool_opened=100)
    web = target_of(made_up_run(targets={"web": target}), "web")
    assert web.connections.opened == web.served
    assert any("the pools' events 100" in note for note in web.warnings)


def test_a_counter_that_was_reset_gives_no_count(web_run):
    """After a crash the server counts from 0 again: a negative number is not a number."""
    run = web_run()
    file = run.target("web").path / "samples.csv"
    *lines, last = file.read_text().splitlines(keepends=True)
    inside = [n for n, line in enumerate(lines[1:], 1) if float(line.split(",")[0]) < TO]
    moment, backends, _, xacts = lines[inside[-1]].split(",")
    lines[inside[-1]] = f"{moment},{backends},3,{xacts}"
    file.write_text("".join([*lines, last]))
    assert target_of(run, "web").connections.opened is None


def test_peak_mean_and_states_are_those_of_the_samples(results_of_six):
    """A made-up pool of nine, two of them in a transaction, shows nine and two."""
    found = named(results_of_six, "web").connections
    assert (found.peak, found.mean, found.busy_peak) == (9, 9, 2)
    assert found.by_state == {"idle": 7, "idle in transaction": 2}
    assert found.idle_seconds == pytest.approx(7 * 10, rel=0.03)
    assert found.at_ceiling_share == 0


def test_a_gap_between_samples_is_not_idle_time():
    """While the server could not be asked, nothing is known."""
    seen = [Moment(time, 4, {"idle": 4}) for time in (0.0, 0.1, 60.0)]
    assert idle_seconds(seen, 0.1, 60.1) == pytest.approx(4 * (0.1 + 0.3 + 0.1))


def test_a_limit_on_connections_needs_the_samples(made_up_run, made_up):
    """The peak may have been in three seconds without samples."""
    run = made_up_run(
        targets={"web": made_up("web", kept=3)}, thresholds=("db.connections.max < 80",)
    )
    file = run.target("web").path / "samples.csv"
    begin = run.target("web").window().from_ + 2
    head, *rows = file.read_text().splitlines(keepends=True)
    seen = [row for row in rows if not begin < float(row.split(",")[0]) < begin + 3]
    other = run.target("web").path / "connections.csv"
    of_backends = other.read_text().splitlines(keepends=True)
    kept = [r for r in of_backends[1:] if not begin < float(r.split(",")[0]) < begin + 3]
    assert compute(run).verdicts[0].status == "passed"
    file.write_text("".join([head, *seen]))
    other.write_text("".join([of_backends[0], *kept]))
    (verdict,) = compute(run).verdicts
    assert verdict.message.startswith("web: db.connections.max is not known (the server could not")


def test_cpu_is_cores_used_inside_the_window(results_of_six):
    """The figures come from the cumulative times of each role's processes."""
    web = named(results_of_six, "web")
    assert web.cpu_share == pytest.approx({"load": 0.2, "target": 0.4, "database": 0.2})
    assert web.rss_mb == 214


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"cpu": {"load": 0.95}}, "used 0.95 of a core"), ({"late_ms": 80.0}, "80 ms late")],
)
def test_a_saturated_load_generator_is_marked(made_up_run, made_up, changes, why):
    """By its processor time, or by late starts while its users were free."""
    web = target_of(made_up_run(targets={"web": made_up("web", **changes)}), "web")
    assert web.saturated
    assert why in web.saturated_by


def test_waiting_for_a_slow_target_does_not_saturate_the_load_generator(made_up_run, made_up):
    """Users that wait for answers start late too; the latency has to show that."""
    web = target_of(made_up_run(targets={"web": made_up("web", p50=600, late_ms=80)}), "web")
    assert not web.saturated


def test_cold_starts_are_counted_apart_and_found_in_the_tail(results_of_six):
    """Cold starts before and in the measured time, and the slow requests that waited for one."""
    cold = named(results_of_six, "lambda_warm").cold
    assert (cold.count, cold.warm_up, cold.among_slowest, cold.slowest) == (2, 18, 2, 4)
    assert 600 < cold.init_ms_p50 < 750


def test_results_are_plain_json_of_the_documented_shape(results_of_six):
    """They have the keys that docs/results.md promises."""
    found = json.loads(json.dumps(results_json(results_of_six)))
    assert found["schema"] == 1
    assert list(found["targets"]) == [
        *("lambda", "lambda_warm", "web", "web_async", "worker", "lambda_proxy")
    ]
    web = found["targets"]["web"]
    assert web["preset"]["pool_size"] == 20
    assert {"p50", "p90", "p95", "p99", "max", "mean"} <= set(web["latency_ms"])
    assert {"peak", "mean", "opened", "opened_per_1000_requests", "idle_seconds", "left_over"} <= (
        set(web["connections"])
    )
    assert found["targets"]["lambda_warm"]["cold_starts"] == 2


def test_every_key_of_the_results_is_documented(results_of_six):
    """docs/results.md names each figure."""
    document = (ROOT / "docs/results.md").read_text()
    named = set(re.findall(r"[a-z_0-9]+", document))
    found = results_json(results_of_six)
    web, warm = found["targets"]["web"], found["targets"]["lambda_warm"]
    for keys in (found, found["plan"], found["machine"], web, web["connections"], warm["cold"]):
        assert set(keys) <= named
    assert set(web["latency_ms"]) <= named


def test_a_measurement_s_own_ceiling_is_taken_from_its_window(made_up_run, made_up):
    """The plan has the ceiling at the highest load only."""
    run = made_up_run(targets={"lambda_proxy": made_up("lambda_proxy", kept=5, ceiling=20)})
    folder = run.target("lambda_proxy")
    folder.write_window(replace(folder.window(), instances=40, ceiling=12, ceiling_reason="so"))
    (found,) = compute(run).targets
    assert (found.connections.ceiling, found.connections.ceiling_reason) == (12, "so")


# -- whose connections they are -----------------------------------------------------------------


@pytest.fixture
def attributed(made_up_run, made_up):
    """A function that makes a run whose rows have owners, and returns the target's result."""

    def make(owner, by, *, thresholds=(), **window):
        run = made_up_run(targets={"web": made_up("web", kept=5)}, thresholds=thresholds)
        folder = run.target("web")
        rows = folder.rows(ConnectionRow).rows
        with folder.writer(ConnectionRow) as write:
            for row in rows:
                way = by if row.pid % 5 else "preset"
                write(replace(row, owner=owner, by=way, age_s=row.time - 1.7e9))
        folder.write_window(replace(folder.window(), **{"is_own_server": True, **window}))
        return compute(run)

    return make


def test_the_ceiling_of_an_application_without_the_preset_is_not_known(attributed):
    """One connection of another engine is enough; a pooler or its engines may tell it."""
    for given, ceiling in (
        ({}, None),
        ({"engine_ceiling": 15, "engine_ceiling_reason": "1 process x 15"}, 15),
        ({"engine_ceiling_reason": "an engine without a limit"}, None),
    ):
        (web,) = attributed("target", "name", **given).targets
        assert (web.connections.peak, web.connections.ceiling) == (5, ceiling)
        assert web.connections.attributed_by == {"preset": 1, "name": 4}
        assert web.connections.uses_preset is False
    (web,) = attributed("target", "preset").targets
    assert (web.connections.ceiling, web.connections.uses_preset) == (20, True)


def test_connections_that_are_not_attributed_are_unknown_and_fail_a_threshold(attributed):
    """On a shared server nothing but names and sockets shows whose they are."""
    thresholds = ("db.connections.max < 50", "db.left_over == 0", "http.errors < 1%")
    results = attributed("other", "", is_own_server=False, thresholds=thresholds)
    write_report(Path(results.folder))
    (web,) = results.targets
    assert web.connections.peak is web.connections.opened is web.connections.left_over is None
    assert web.connections.idle_seconds is web.connections.busy_peak is None
    statuses = {verdict.threshold.metric: verdict.status for verdict in results.verdicts}
    assert statuses == {
        "http.errors": "passed",
        "db.connections.max": "unknown",
        "db.left_over": "unknown",
    }


def test_a_target_that_failed_is_reported_as_failed(attributed):
    """The page quotes its logs, with their paths."""
    evidence = Evidence(load_exception="KeyError: 'x'", load_log="log/locust@web.log")
    results = attributed("target", "preset", failure="web ended by itself", evidence=evidence)
    assert results.has_failures
    assert results.levels["web"][0].why_not == "failed: web ended by itself"
    write_report(Path(results.folder))
    page = (Path(results.folder) / "report.html").read_text()
    assert "KeyError: &#39;x&#39; (log/locust@web.log)" in page


def test_holds_are_figures_of_all_lines_together(made_up_run, made_up):
    """p95 over every checkout, the share of SQL in all hold time, and second connections."""
    rows = (
        hold("a.py:1 in a", count=90, spread="-56:90", held_s=0.36, busy_s=0.36, nested=3),
        hold("b.py:2 in b", count=10, **{**LONG, "spread": "-7:10", "held_s": 3.0}),
    )
    limits = ("db.hold.p95 < 200", "db.hold.busy_share > 20%", "db.nested_checkouts <= 3")
    results = compute(
        made_up_run(targets={"web": made_up("web", kept=3, holds=rows)}, thresholds=limits)
    )
    (web,) = results.targets
    assert web.holds.p95_ms == pytest.approx(300, rel=0.06)
    assert web.holds.busy_share == pytest.approx(0.96 / 3.36)
    assert [site.where for site in web.holds.sites] == ["b.py:2 in b", "a.py:1 in a"]
    assert [verdict.status for verdict in results.verdicts] == ["failed", "passed", "passed"]
    written = results_json(results)["targets"]["web"]["holds"]
    assert written["nested_checkouts"] == 3
    assert written["sites"][0]["busy_share"] == pytest.approx(0.2)


def test_a_connection_that_is_still_out_raises_the_hold_time(made_up_run, made_up):
    """Like a request without an answer: one of a few, or the only one."""
    rows = (hold("a.py:1 in a", count=3, spread="-56:3", out_s=8.0),)
    never = (hold("a.py:1 in a", count=0, spread="", held_s=0.0, busy_s=0.0, out_s=9.0),)
    targets = {"web": made_up("web", holds=rows), "web_async": made_up("web_async", holds=never)}
    found = {t.name: t.holds for t in compute(made_up_run(targets=targets)).targets}
    assert found["web"].p95_ms == 8000
    assert (found["web_async"].p95_ms, found["web_async"].busy_share) == (9000, None)


@pytest.mark.parametrize("url", [None, "https://dev.example.org"])
def test_holds_that_were_not_reported_are_not_known(made_up_run, made_up, url):
    """By an application without SQLAlchemy, or by a deployed target; the line says which."""
    limits = ("db.hold.p95 < 200", "db.nested_checkouts == 0", "db.hold.busy_share > 0%")
    run = made_up_run(targets={"web": made_up("web", kept=3, url=url)}, thresholds=limits)
    results = compute(run)
    assert results.targets[0].holds is None
    assert {verdict.status for verdict in results.verdicts} == {"unknown"}
    (reason,) = {verdict.reason for verdict in results.verdicts}
    assert reason == (
        "only a target that the run has started reports it"
        if url
        else "its processes reported no checkout of SQLAlchemy's pool"
    )
