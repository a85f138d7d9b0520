"""The report of several loads: chart, tables, thresholds, on the page and on a terminal."""

import io
import re
from dataclasses import replace

import pytest
from compare.conftest import identifiers_are_unique
from rich.console import Console

from poolkit.compare.charts.levels import over_load
from poolkit.compare.report.findings import with_findings
from poolkit.compare.report.page import load_text, loop_text, run_page
from poolkit.compare.report.terminal import print_run
from poolkit.compare.report.write import read_results, report_two, write_report
from poolkit.compare.results.results import compute
from poolkit.compare.results.run_folder import Level
from poolkit.compare.results.wording import (
    NOTHING,
    Spread,
    figure,
    figure_with_range,
    origin,
    with_range,
)
from poolkit.errors import RunFolderError

USERS = tuple(Level(users=number, rate_per_user=2.0) for number in (1, 10, 40))
THRESHOLDS = ("http.p95 < 200", "web: http.errors < 1%", "db.connections.max < 15")


@pytest.fixture
def by_load(made_up_run, made_up):
    """Return a function that makes a run of two targets at three loads."""

    def make(name="run", *, levels=USERS, thresholds=THRESHOLDS, change=None, **plan):
        targets = {
            "lambda": made_up("lambda", p50=20, per_request=1, capacity=30, ceiling=20),
            "web": made_up("web", kept=6),
        }
        return made_up_run(
            name, targets, levels=levels, thresholds=thresholds, change=change, **plan
        )

    return make


def printed(results, width=80):
    out = io.StringIO()
    print_run(results, Console(file=out, width=width, force_terminal=False))
    return out.getvalue()


def page_without_charts(run):
    return run_page(with_findings(compute(run)), [])


def headings(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_the_page_has_a_part_for_loads_and_one_for_thresholds(by_load):
    """With the chart among the files, and the level in the other charts' titles."""
    run = by_load(repeat=2)
    write_report(run.path)
    page = (run.path / "report.html").read_text()
    parts = ("Findings", "Which settings", "Thresholds", "Load by load", "Figures", "Charts")
    assert headings(page) == [*parts, "How it was measured"]
    assert (run.path / "charts" / "levels.png").stat().st_size > 10_000
    assert "Connections and latency of each target under the same load (10 users)" in page
    assert page.count("<figure>") == 4
    assert "was measured 2 times at each load" in page
    assert identifiers_are_unique(page)


def test_a_plain_run_has_neither_part(reported):
    """No empty section, and no load in any text."""
    page = (reported.path / "report.html").read_text()
    assert not {"Thresholds", "Load by load", "Repeats"} & set(headings(page))
    output = printed(read_results(reported.path))
    assert "per 1,000" not in output
    assert "At 20 users" not in output + page


def test_repeats_of_one_load_are_shown_without_a_chart(by_load):
    """The chart needs several loads for its axis."""
    run = by_load(levels=USERS[1:2], repeat=3, thresholds=())
    results = read_results(run.path)
    assert "Repeats" in headings(page_without_charts(run))
    assert over_load(results) is None
    output = " ".join(printed(results).split())
    legend = "peaks the highest; in brackets the lowest and the highest"
    assert f"Medians of the repeats, {legend}" in output
    assert "below, each target's repeat with the median p95" in output


def test_the_chart_describes_what_it_shows(by_load):
    """The description has every load of every target that was measured."""

    def change(step, target):
        return None if step.target == "web" and step.level.users == 40 else target

    picture = over_load(compute(by_load(change=change)))
    web = picture.description.partition("web: ")[2]
    assert re.match(r"1 user 1 connections?, p95 [\d.]+ ms, 10 users \d connections", web)
    assert "40 users" not in web


def test_the_chart_has_limits_knee_and_hollow_points(by_load):
    """Read from its specification: what is drawn, not how."""

    def change(step, target):
        if step.target == "web" and step.level.users == 40:
            return replace(target, cpu={"load": 0.97})
        return target

    spec = str(over_load(compute(by_load(change=change))).chart.to_dict())
    for drawn in ("< 15", "< 200 ms", "ceiling 20", "knee at 10 users", "'knee'"):
        assert drawn in spec
    assert "'saturated': True" in spec
    assert "'fill': '#ffffff'" in spec


def test_a_share_of_connections_is_drawn_by_each_target_s_own_server(made_up_run, made_up):
    """30 % of 400 connections are 120, as in the verdict; of 100 they are 30."""
    targets = {
        "web": made_up("web", kept=60, max_connections=100),
        "web@there": made_up("web", kept=60, url="https://x", max_connections=400),
    }
    limits = ("db.connections.share < 30%", "web: http.p95 < 9")
    run = made_up_run(targets=targets, levels=USERS, thresholds=limits)
    spec = str(over_load(compute(run)).chart.to_dict())
    assert set(re.findall(r"'limit': ([\d.]+), 'text': '< 30 ?%'", spec)) == {"30.0", "120.0"}
    assert spec.count("'text': '< 9 ms'") == 1


def test_the_table_of_loads_fits_the_terminal(by_load):
    """A tick for a load that was sustained, a cross for another; no figure is ever cut."""
    results = with_findings(compute(by_load(repeat=2)))
    output = {width: printed(results, width) for width in (50, 80, 120)}
    for width in (80, 120):
        lines = output[width].splitlines()
        assert max(len(line) for line in lines) <= width
        rows = [line for line in lines if re.match(r"\s*(lambda|web)?\s+\d+ users?\s", line)]
        assert [line.split()[-1] for line in rows] == ["✓", "✓", "✗", "✓", "✓", "✓"]
    # Half a number is a wrong one, and a row without its target's name is useless.
    assert output[50].partition("\n\n")[0] == output[80].partition("\n\n")[0]


@pytest.mark.parametrize("width", [80, 120])
def test_throughput_and_connections_opened_have_the_range_of_their_repeats(by_load, width):
    """Beside the median, or under it on a terminal of 80 columns; no figure is cut."""

    def change(step, target):
        return replace(target, per_request=0.1 * step.repeat) if step.target == "web" else target

    results = with_findings(compute(by_load(levels=USERS[1:2], repeat=3, change=change)))
    output = printed(results, width).partition("Medians")[0]
    assert max(len(line) for line in output.splitlines()) <= width
    (at,) = results.levels["web"]
    low, median, high = at.opened_per_1000_requests
    assert f"({figure(low)}{NOTHING}{figure(high)})" in output
    assert figure(median) in output
    rate = at.spread["http.rate"]
    assert rate.low == rate.high or f"({figure(rate.low)}{NOTHING}{figure(rate.high)})" in output


def test_thresholds_have_a_tick_or_a_cross_for_each_target(by_load):
    """One line for all loads: how near the target came to the limit, or where it failed."""
    output = " ".join(printed(with_findings(compute(by_load())), 200).split())
    assert re.search(r"✗ lambda: http.p95 is [\d.]+ ms at 40 users, wanted < 200 ms", output)
    assert re.search(r"✓ web: http.p95 < 200 ms at every load \(at most [\d.]+ ms\)", output)
    assert "1 of 15 checks failed." in output


def test_one_load_has_one_line_a_verdict(made_up_run, made_up):
    """The terminal has the figure of each, and the page the number that failed."""
    run = made_up_run(targets={"web": made_up("web")}, thresholds=("http.p95 < 1", "http.max < 1s"))
    output = printed(with_findings(compute(run)))
    assert re.search(r"✗ web: http.p95 is [\d.]+ ms, wanted < 1 ms", output)
    assert "✓ web: http.max is" in output
    assert "1 of 2 checks failed" in page_without_charts(run)


def test_open_and_closed_loop_are_named(by_load, made_up_run, made_up):
    """In the head, and what it means for a latency."""
    closed = by_load(repeat=3).plan()
    assert load_text(closed).startswith(
        "Closed loop: 1, 10 and 40 users with 2 tasks per second each, which offers 2 to 80 per "
        "second to every target, each for 10 s after 4 s of warm-up, 3 times in turn"
    )
    rates = (Level(users=9, arrival_rate=50.0, arrivals="poisson", max_users=2000),)
    opened = made_up_run("open", {"web": made_up("web")}, levels=rates)
    assert load_text(opened.plan()).startswith(
        "Open loop: 50 tasks per second arrive at every target, spacing random (Poisson), with at "
        "most 2,000 users at once, for 10 s"
    )
    assert loop_text(opened.plan()).startswith("open: tasks begin on schedule")
    assert "<dt>Loop</dt><dd>open: " in page_without_charts(opened)


def test_deployed_targets_are_named_with_their_host_alone(made_up_run, made_up):
    """The machine in the report is the load generator's, not theirs."""
    deployed = made_up("web", url="https://user:secret@web.example:8443/prod?key=1")
    page = page_without_charts(made_up_run(targets={"web": deployed, "lambda": made_up("lambda")}))
    assert "web at https://web.example:8443" in page
    assert "secret" not in page.replace("AWS Secrets", "")
    assert "of the load generator, shared with lambda and their database" in page


def test_two_runs_are_compared_at_the_loads_that_both_have(by_load):
    """The others are named."""
    first = by_load("a", levels=USERS[:2])
    second = by_load("b", levels=USERS[1:])
    out = io.StringIO()
    file = report_two(first.path, second.path, Console(file=out, width=100))
    output = " ".join(out.getvalue().split())
    assert "only one of the runs has 1 user and 40 users" in output
    assert "web, 10 users" in output
    assert "web, 1 user " not in output
    assert "(10 users)</h3>" in file.read_text()


def test_two_runs_without_a_common_load_are_not_compared(by_load):
    """The message has the loads of each run."""
    first = by_load("a", levels=USERS[:1])
    second = by_load("b", levels=USERS[1:])
    with pytest.raises(RunFolderError, match=r"a has 1 user, .*b has 10 users and 40 users"):
        report_two(first.path, second.path, Console(file=io.StringIO()))


def test_ranges_and_addresses_are_short():
    """No range of one value, one unit for all three, and of a URL only its origin."""
    assert with_range(None) == NOTHING
    assert with_range(Spread(12.0, 12.1, 12.2)) == "12 ms"
    assert with_range(Spread(900.0, 1500.0, 2100.0)) == f"1.5 s (0.9{NOTHING}2.1)"
    assert figure_with_range(None) == NOTHING
    assert figure_with_range(Spread(0.1, 0.2, 0.3)) == f"0.2 (0.1{NOTHING}0.3)"
    assert origin("https://user:pa@ss@host:1/path") == "https://host:1"
