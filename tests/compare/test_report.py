"""The report: a page that opens offline, pictures, tables, two runs side by side."""

import io
import json
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from click.testing import CliRunner
from compare.conftest import LONG, hold, identifiers_are_unique
from poolkit_command import run_process
from rich.console import Console

from poolkit.cli import main
from poolkit.compare.charts.style import apart
from poolkit.compare.report.terminal import print_run
from poolkit.compare.report.write import read_results, report_two, write_report
from poolkit.compare.results.results import results_json
from poolkit.compare.results.run_folder import Level, Machine, RunFolder
from poolkit.compare.results.wording import milliseconds
from poolkit.errors import ConfigurationError, RunFolderError

EVIL = '<script>alert("1")</script>&amp;[bold]'


class Page(HTMLParser):
    """The requests a page would make, its tags and headings; unbalanced tags fail."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.fetched, self.headings, self.labels = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data")]
        self.labels += [v for k, v in attrs if k == "aria-label"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append((self.open[-1], data))


def lines_of(results, width):
    out = io.StringIO()
    print_run(results, Console(file=out, width=width, force_terminal=False))
    return out.getvalue().splitlines()


def charts_of(run):
    return sorted(file.name for file in (run.path / "charts").iterdir())


def test_a_report_is_made_from_the_raw_files_alone(reported):
    """results.json, the page and four charts; a second report is the same."""
    charts = ("cold_starts", "connections", "latency", "overview")
    assert charts_of(reported) == [f"{name}.png" for name in charts]
    before = (reported.path / "results.json").read_text()
    assert json.loads(before)["schema"] == 1
    again = json.dumps(results_json(read_results(reported.path)))
    assert json.loads(again) == json.loads(before)


def test_the_page_fetches_nothing_and_runs_nothing(reported):
    """One file, which opens without a network, in well under a megabyte."""
    text = (reported.path / "report.html").read_text()
    page = Page(text)
    assert page.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "default-src 'none'" in text
    assert identifiers_are_unique(text)
    assert len(text) < 600_000


def test_charts_have_their_values_at_the_pointer(reported):
    """As titles of the marks, which need no script: percentiles, and each moment's connections."""
    text = (reported.path / "report.html").read_text()
    titles = set(re.findall(r"<(?:path|line) [^>]*><title>([^<]*)</title>", text))
    for target in read_results(reported.path).targets:
        # Once in the overview, once in the chart by percentile.
        assert text.count(f"<title>{target.name}: p95 {milliseconds(target.latency_ms.p95)}<") == 2
    peak = next(each.connections.peak for each in read_results(reported.path).targets)
    assert any(re.match(rf"-?[\d.]+ s: connections {peak}\b", title) for title in titles)


def test_the_page_has_headings_and_descriptions_of_its_pictures(reported):
    """The descriptions are for screen readers."""
    page = Page((reported.path / "report.html").read_text())
    assert [text for tag, text in page.headings if tag == "h2"] == [
        *("Findings", "Which settings", "Figures", "Charts", "How it was measured")
    ]
    assert page.tags.count("svg") == page.tags.count("figure") == 4
    assert any("lambda: peak 5, opened 399 for 399 requests" in label for label in page.labels)


def test_pictures_are_as_wide_as_a_readme(reported):
    """At twice the resolution, for sharp text."""
    for file in (reported.path / "charts").iterdir():
        width, height = struct.unpack(">II", file.read_bytes()[16:24])
        assert 1400 < width < 1720
        assert 300 < height < 1000


def test_text_from_a_run_folder_is_never_markup(made_up_run, made_up):
    """Names, reasons, warnings and versions may come from anywhere."""
    target = made_up("web", kept=2, warnings=(EVIL,))
    run = made_up_run(targets={EVIL.replace("/", "|"): target}, command=EVIL, created=EVIL)
    run.write_machine(Machine(cpu=EVIL, versions={EVIL: EVIL}))
    results = write_report(run.path)
    assert "script" not in Page((run.path / "report.html").read_text()).tags
    assert "[bold]" in "".join(lines_of(results, 100))


@pytest.mark.parametrize("width", [80, 200])
def test_the_distance_and_its_costs_are_on_the_page_and_on_the_terminal(made_up_run, width):
    """With what the loopback address alone would have shown; without a distance there is none."""
    run = made_up_run()
    assert "Distance" not in " ".join(lines_of(read_results(run.path), width))
    far = {"proxy_added_ms": 0.15, "connect_ms": 9.87, "loopback_connect_ms": 3.21}
    run.write_machine(Machine(distance="0.5 ms round trip (same-az), TLS", **far))
    results = write_report(run.path)
    shown = (
        (run.path / "report.html").read_text(),
        " ".join(map(str.strip, lines_of(results, width))),
    )
    for text in shown:
        for fact in ("0.5 ms round trip (same-az), TLS", "0.15 ms", "9.9 ms", "3.2 ms"):
            assert fact in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_fits_the_terminal(reported, width):
    """No line is longer, and every target's name is whole."""
    lines = lines_of(read_results(reported.path), width)
    assert max(len(line) for line in lines) <= width
    assert {line.split()[0] for line in lines[4:10]} == set(read_names(reported))


def read_names(run):
    return [target.name for target in run.plan().targets]


def test_a_report_has_the_charts_of_its_own_data_alone(made_up_run, made_up):
    """None for invokes that there were not, and none that an earlier report has left."""
    run = made_up_run(targets={"web": made_up("web", kept=3)})
    (run.path / "charts").mkdir()
    (run.path / "charts" / "cold_starts.png").touch()
    write_report(run.path)
    assert charts_of(run) == ["connections.png", "latency.png", "overview.png"]


def test_a_target_that_answered_nothing_still_has_its_rows(made_up_run, made_up):
    """Everything failed: no latency, no crash."""
    target = made_up("lambda", errors={"503": 1000})
    run = made_up_run(targets={"lambda": target, "web": made_up("web", kept=2)})
    folder = run.target("lambda")
    text = (folder.path / "requests.csv").read_text().replace("200,\n", "503,503\n")
    (folder.path / "requests.csv").write_text(text)
    results = write_report(run.path)
    assert results.targets[0].latency_ms is None
    assert "400 of 400 requests failed (100 %)" in results.targets[0].finding


def test_a_page_that_cannot_be_written_is_one_line(made_up_run, made_up):
    """The command ends with status 2 and the reason."""
    run = made_up_run(targets={"web": made_up("web")})
    (run.path / "report.html").mkdir()
    result = CliRunner().invoke(main, ["report", str(run.path)])
    assert result.exit_code == 2
    assert "Is a directory" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_folder_whose_name_looks_like_markup_gets_its_report(made_up_run, made_up, tmp_path):
    run = made_up_run("a[/red]", {"web": made_up("web")})
    shown = CliRunner().invoke(main, ["report", str(run.path)], catch_exceptions=False)
    assert shown.exit_code == 0
    assert f"Report: {run.path}/report.html" in shown.output


def test_a_wrong_folder_is_one_line_and_status_2(tmp_path):
    """There is no traceback."""
    result = CliRunner().invoke(main, ["report", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert result.output.startswith("poolkit: ")
    assert len(result.output.splitlines()) == 1


def test_two_runs_side_by_side_have_cautions_for_every_difference(made_up_run, made_up):
    """Of load, machine, versions and targets; the table has both figures and their ratio."""
    first = made_up_run("a", {"web": made_up("web", kept=5), "worker": made_up("worker", kept=4)})
    level = Level(users=40, rate_per_user=2.0)
    second = made_up_run("b", {"web": made_up("web", kept=7, p50=9)}, levels=(level,))
    second.write_machine(replace(second.machine(), cores=8, versions={"postgresql": "16.4"}))
    out = io.StringIO()
    file = report_two(first.path, second.path, Console(file=out, width=80))
    output = " ".join(out.getvalue().split())
    for part in ("users 20 and 40", "cores 2 and 8", "postgresql 18.6 and 16.4"):
        assert part in output
    assert "only one of the runs has worker" in output
    assert "5 → 7" in output
    assert "x1.8" in output
    assert max(len(line) for line in out.getvalue().splitlines() if "/" not in line) <= 80
    assert file == second.path / "against-a.html"
    assert Page(file.read_text()).fetched == []


def test_a_run_against_itself_is_a_tie_throughout(reported, tmp_path):
    """Noise is no difference."""
    out = io.StringIO()
    page = tmp_path / "page.html"
    report_two(reported.path, reported.path, Console(file=out, width=100), page)
    assert out.getvalue().count("tie") == 12
    assert "Before comparing" not in page.read_text()


@pytest.mark.parametrize(
    ("where", "why"), [("none/x.html", "there is no folder .*/none"), (".", "is a folder")]
)
def test_a_page_that_cannot_be_written_is_refused_before_the_table(reported, tmp_path, where, why):
    """The line names the option, and nothing of the table stands above it."""
    out = io.StringIO()
    with pytest.raises(ConfigurationError, match=f"--out: .* {why}"):
        report_two(reported.path, reported.path, Console(file=out), tmp_path / where)
    assert out.getvalue() == ""


def test_the_page_says_what_was_not_measured_and_why(reported):
    """Among the findings, where a reader looks for a missing target."""
    page = (reported.path / "report.html").read_text()
    found = page.partition("<h2>Findings")[2].partition("</section>")[0]
    assert "lambda_pgbouncer</strong><p>Not measured: pgbouncer is not on PATH" in found


def test_runs_without_a_common_target_are_not_compared(made_up_run, made_up):
    """The message names the targets of each run."""
    first = made_up_run("a", {"web": made_up("web", kept=5)})
    second = made_up_run("b", {"worker": made_up("worker", kept=4)})
    with pytest.raises(RunFolderError, match=r"no target in common: .*a has web, .*b has worker"):
        report_two(first.path, second.path, Console(file=io.StringIO()))


def test_a_run_of_another_schema_is_not_compared(made_up_run, made_up):
    """Its figures may mean something else."""
    first = made_up_run("a", {"web": made_up("web", kept=5)})
    second = made_up_run("b", {"web": made_up("web", kept=5)}, schema=2)
    with pytest.raises(RunFolderError, match="schema 2"):
        report_two(first.path, RunFolder(second.path).path, Console(file=io.StringIO()))


def test_labels_that_would_touch_are_moved_apart_in_their_order():
    """Labels move as little as needed, and never outside the chart."""
    assert apart([10, 50, 90], gap=17, low=0, high=100) == [10, 50, 90]
    moved = apart([50, 51, 49], gap=10, low=0, high=100)
    assert moved == [50, 60, 40]
    crowded = apart([99, 99, 99, 98, 20], gap=10, low=0, high=100)
    assert max(crowded) == 100
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(sorted(crowded)))


@pytest.mark.process
def test_a_terminal_that_lacks_a_character_gets_another(made_up_run, made_up):
    """Dashes, ticks and crosses stay different from each other, and the command works."""
    run = made_up_run(
        targets={"web": made_up("web", kept=1)}, thresholds=("http.p95 < 1", "http.p95 < 1s")
    )
    answer = run_process("report", run.path, PYTHONIOENCODING="ascii")
    assert answer.returncode == 0, answer.stderr
    (row,) = (line for line in answer.stdout.splitlines() if line.startswith("|web"))
    assert re.search(r"\| +- \|", row), "no cold starts of a web application: a dash"
    assert "\nx web: http.p95 is " in answer.stdout
    assert "\n+ web: http.p95 is " in answer.stdout


def test_the_page_and_the_terminal_show_which_line_holds_connections(made_up_run, made_up):
    """The page every line; the terminal those that stand out. Names are other people's text."""
    rows = (
        hold(f"app/{EVIL}.py:7 in send", unit=f"POST /{EVIL}", **LONG),
        hold("app/quick.py:1 in quick"),
        hold("app/b.py:2 in b", nested=4, after_response=5),
    )
    run = made_up_run(
        targets={"web": made_up("web", kept=3, holds=rows), "web_async": made_up("web_async")}
    )
    write_report(run.path)
    page = (run.path / "report.html").read_text()
    assert "script" not in Page(page).tags
    assert page.count("Who holds the connections of") == 1
    assert all(name in page for name in ("app/quick.py:1 in quick", "app/b.py:2 in b"))
    shown = io.StringIO()
    print_run(read_results(run.path), Console(file=shown, width=80))
    assert "app/b.py:2 in b" in shown.getvalue()
    assert "app/quick.py:1 in quick" not in shown.getvalue()
    assert max(map(len, shown.getvalue().splitlines())) <= 80
