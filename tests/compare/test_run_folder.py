"""Reading a run folder: tolerant of missing files, strict about existing ones."""

import json

import pytest
from compare.conftest import request

from poolkit.compare.results.results import compute
from poolkit.compare.results.run_folder import Request, RunFolder, SampleRow
from poolkit.errors import RunFolderError


def test_a_run_folder_is_read_as_it_was_written(made_up_run):
    """Plan, machine, window and rows are read as they were written."""
    run = made_up_run()
    again = RunFolder.open(run.path)
    assert again.plan() == run.plan()
    assert again.plan().targets[0].preset_fields["pool"] == "null"
    assert again.machine().versions["postgresql"] == "18.6"
    assert again.target("web").window().sessions_before == 100
    row = again.target("web").rows(Request).rows[0]
    assert (row.method, row.name, row.status, row.error) == ("GET", "/articles", 200, "")


def test_a_row_survives_commas_quotes_and_line_breaks(made_up_run, tmp_path):
    """Errors and wait events are free text."""
    folder = made_up_run().target("web")
    row = request(1.5, error='said "no", twice\nand left')
    with folder.writer(Request) as write:
        write(row)
    assert folder.rows(Request).rows == (row,)


@pytest.mark.parametrize("name", ["nothing", "a_file"])
def test_a_path_that_is_no_folder_is_named(tmp_path, name):
    """The message has the path."""
    (tmp_path / "a_file").touch()
    with pytest.raises(RunFolderError, match=f"{name} is not a folder"):
        RunFolder.open(tmp_path / name)


def test_a_folder_without_a_plan_is_no_run(tmp_path):
    """Another kind of folder is refused before anything is read."""
    with pytest.raises(RunFolderError, match=r"not a run of .*no plan\.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2, but this version of poolkit reads schema 1"),
        ({"levels": [{"users": "20"}]}, r"levels\[0\]: users must be of type int, not '20'"),
        ({"levels": [{"users": None}]}, r"levels\[0\]: users must be of type int, not None"),
        ({"targets": {}}, "targets must be of type list"),
        ({"targets": [{"name": "web"}]}, r"targets\[0\]: kind is missing"),
        ({"absent": [7]}, r"absent\[0\] must be of type Absent"),
    ],
)
def test_a_wrong_plan_is_named_by_its_key(made_up_run, change, message):
    """One line names what is wrong, and where."""
    run = made_up_run()
    file = run.path / "plan.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(RunFolderError, match=message):
        run.plan()


@pytest.mark.parametrize("name", ["../elsewhere", "..", "", "a/b", "a\\b"])
def test_a_target_cannot_name_a_path(made_up_run, name):
    """A run folder from elsewhere cannot make a report read outside of it."""
    run = made_up_run()
    file = run.path / "plan.json"
    plan = json.loads(file.read_text())
    plan["targets"][0]["name"] = name
    file.write_text(json.dumps(plan))
    with pytest.raises(RunFolderError, match="not a valid name"):
        run.plan()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": NaN}', "\ud800", "[" * 100_000])
def test_a_broken_json_file_is_named(made_up_run, text):
    """The message is one line with the file's name."""
    run = made_up_run()
    (run.path / "plan.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(RunFolderError, match=r"plan\.json is broken") as caught:
        run.plan()
    assert len(str(caught.value).splitlines()) == 1


def test_a_last_line_cut_short_is_left_out_with_a_warning(made_up_run):
    """A killed run loses only the row that was being written."""
    folder = made_up_run().target("web")
    file = folder.path / "samples.csv"
    whole = folder.rows(SampleRow).rows
    file.write_bytes(file.read_bytes()[:-3])
    cut = folder.rows(SampleRow)
    assert cut.rows == whole[:-1]
    assert cut.warnings == ("the last line of samples.csv was cut short",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.0,2", "line 3 is broken: it has too few columns|line 3 is broken"),
        ("1.0,two,3,4", "line 3 is broken: invalid literal"),
        ("nan,2,3,4", "line 3 is broken: 'nan' is not a number"),
    ],
)
def test_a_broken_row_is_named_by_its_line(made_up_run, line, message):
    """A row in the middle is not left out in silence."""
    folder = made_up_run().target("web")
    file = folder.path / "samples.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:2], line + "\n", *lines[2:]]))
    with pytest.raises(RunFolderError, match=message):
        folder.rows(SampleRow)


def test_a_missing_column_is_named(made_up_run):
    """A file of another tool is not read as zeros."""
    folder = made_up_run().target("web")
    (folder.path / "samples.csv").write_text("time,backends\n1.0,2\n")
    with pytest.raises(RunFolderError, match=r"samples\.csv has no column sessions, xacts"):
        folder.rows(SampleRow)


def test_a_target_without_a_window_is_reported_as_not_measured(made_up_run):
    """A run that was stopped half-way still has a report of what it measured."""
    run = made_up_run()
    (run.target("worker").path / "window.json").unlink()
    results = compute(run)
    assert "worker" not in [t.name for t in results.targets]
    assert ("worker", "the run was stopped before its end") in [
        (a.name, a.reason) for a in results.absent
    ]


def test_missing_raw_files_leave_gaps_and_warnings(made_up_run):
    """Unknown figures stay unknown."""
    run = made_up_run()
    for name in ("samples.csv", "connections.csv", "processes.csv"):
        (run.target("web").path / name).unlink()
    (web,) = (t for t in compute(run).targets if t.name == "web")
    assert web.connections.peak is web.connections.idle_seconds is web.rss_mb is None
    assert web.connections.opened == 0
    assert {"samples.csv is missing", "processes.csv is missing"} <= set(web.warnings)


def test_a_run_without_any_measured_target_is_refused(made_up_run):
    """The message is that the run was stopped before any measurement."""
    run = made_up_run()
    for target in run.plan().targets:
        (run.target(target.name).path / "window.json").unlink()
    with pytest.raises(RunFolderError, match="stopped before any target was measured"):
        compute(run)
