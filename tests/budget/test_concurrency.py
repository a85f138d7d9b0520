"""The second ceiling: how many connections a server can put to use."""

import json

import pytest

from poolkit.budget.limits import class_limit, useful_connections, useful_note
from poolkit.budget.measured import knee_of_run
from poolkit.budget.model import Database
from poolkit.budget.report.rows import ways_out
from poolkit.errors import RunFolderError


def database(instance_class):
    """Return a database of this class."""
    limits = vars(class_limit("postgres", instance_class))
    return Database(name="db", kind="RDS", where=None, **limits)


@pytest.mark.parametrize(
    ("instance_class", "busy", "most"),
    [("db.r6g.large", 5, 40), ("db.m7g.2xlarge", 17, 160), ("db.r9g.large", None, None)],
)
def test_the_processors_of_the_class_decide(instance_class, busy, most):
    """2 connections per vCPU and one more can compute; none is useful above 20 per vCPU."""
    of_class = database(instance_class)
    assert useful_connections(of_class) == most
    assert (f"about {busy} can compute" in useful_note(of_class, 1000)) == (busy is not None)


def test_more_connections_than_that_get_a_note():
    """They fit, and will not run at once. Without a known class there is nothing to say."""
    of_class = database("db.r6g.large")
    assert useful_note(of_class, 40) == ""
    assert all(
        part in useful_note(of_class, 1700) for part in ("1,700 connections", "2 vCPU", "40")
    )
    assert useful_note(database("db.r9g.large"), 1700) == ""


def test_the_output_has_the_note(folder):
    """A deployment that fits may still have more connections than its server can put to use."""
    folder.write(
        "db.yaml",
        "Resources:\n  Db:\n    Type: AWS::RDS::DBInstance\n"
        "    Properties: {Engine: postgres, DBInstanceClass: db.r6g.large}\n",
    )
    folder.write("compose.yaml", "services:\n  web: {image: x, environment: {PGHOST: db}}\n")
    few, many = (folder.budget(services=(f"web={size}+0x1",)) for size in (20, 1200))
    assert (few.verdict, many.verdict) == ("fits", "fits")
    assert not any("vCPU" in str(group) for group in ways_out(few))
    assert "1,204 connections on 2 vCPU" in ways_out(many)[0].sentence


def results(tmp_path, knees):
    """Write the results of a run with two levels."""
    levels = [
        {"name": name, "repeats": [{"connections": {"peak": peak}} for peak in peaks]}
        for name, peaks in (("10 users", (9, 12)), ("80 users", (60,)))
    ]
    found = {"levels": {"web": levels, "lambda": levels}, "knees": knees}
    (tmp_path / "results.json").write_text(json.dumps(found))


def test_the_knee_of_a_run_takes_its_place(tmp_path):
    """In connections: the most that the target had at the load of its knee."""
    results(tmp_path, {"web": {"level": "10 users"}, "lambda": None})
    assert knee_of_run(tmp_path) == 12
    of_class = database("db.r6g.large")
    assert (useful_connections(of_class, 12), useful_note(of_class, 12, 12)) == (12, "")
    assert "12" in useful_note(of_class, 30, 12)


def test_a_run_without_a_knee_has_none(tmp_path):
    """A folder without results is an error."""
    results(tmp_path, {"web": None})
    assert knee_of_run(tmp_path) is None
    with pytest.raises(RunFolderError):
        knee_of_run(tmp_path / "nowhere")
