"""The forms of the output: terminal, JSON, Markdown, annotations, SARIF."""

import json
import re
import resource

import pytest
from poolkit_command import ROOT, refused, run_process, succeeded

from poolkit.compare.results.files import to_json, write_json
from poolkit.compare.results.run_folder import Level, Plan, PlannedTarget

COMPOSE = """
    services:
      db: {image: "postgres:17"}
      web:
        image: web
        command: [gunicorn, -w, "%d", app]
        environment: {POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: prod}
      odd[bold]name|: {image: x, environment: {DATABASE_URL: "x"}, deploy: {replicas: 2}}
"""
ODD = "odd[bold]name|"


@pytest.fixture
def shop(folder):
    """A compose file whose two services need 90 + 2 + 4 of 97."""
    folder.write("compose.yaml", COMPOSE % 3)
    return folder


KNOWN = ("compose.yaml", "--service", f"{ODD}=1+0x1")


def test_the_exit_status_is_the_verdict(shop):
    """--allow-unknown accepts unknown numbers, as long as the known part fits."""
    assert shop.run(*KNOWN).returncode == 0
    assert shop.run("compose.yaml").returncode == 3
    assert shop.run("compose.yaml", "--allow-unknown").returncode == 0
    shop.write("compose.yaml", COMPOSE % 4)
    assert shop.run("compose.yaml", "--allow-unknown").returncode == 1


@pytest.mark.parametrize("columns", ["80", "100", "160"])
def test_no_line_is_wider_than_the_terminal(shop, columns):
    """Tables and sentences fold; brackets in names are no markup."""
    answer = shop.run("compose.yaml", columns=columns)
    assert max(map(len, answer.stdout.splitlines())) <= int(columns)
    assert ODD in answer.stdout
    assert "(20 + 10)" in answer.stdout


def test_every_number_names_its_line(shop):
    """The terminal shows where each number comes from."""
    answer = shop.run(*KNOWN, columns="160")
    assert "processes 3: compose.yaml:5 (--workers)" in answer.stdout
    assert "pool 20+10: compose.yaml:6 (preset web in prod)" in answer.stdout
    assert "Fits: 96 of 97 connections, 1 to spare." in answer.stdout


def test_json_holds_the_whole_budget(shop):
    """The keys that docs/budget.md promises, with numbers as numbers."""
    found = json.loads(shop.run(*KNOWN, "--json").stdout)
    assert (found["version"], found["verdict"], found["exit_status"]) == (1, "fits", 0)
    assert (found["available"], found["needed"], found["known"]) == (97, 96, 96)
    web, odd = found["services"]
    assert (web["name"], web["ceiling"], web["running"], odd["ceiling"]) == ("web", 90, 90, 2)
    assert web["processes"] == {"value": 3, "origin": "compose.yaml:5 (--workers)"}
    unknown = json.loads(shop.run("compose.yaml", "--json").stdout)
    assert unknown["needed"] is None
    assert unknown["services"][1]["pool_size"]["value"] is None
    assert {gap["of"] for gap in unknown["unknown"]} == {ODD}


def test_the_document_names_every_key(shop):
    """docs/budget.md describes what `--json` prints, and nothing else."""
    found = json.loads(shop.run(*KNOWN, "--json").stdout)
    text = (ROOT / "docs/budget.md").read_text()
    table = text[text.index("| key | meaning |") :].partition("\n\n")[0].splitlines()[2:]
    documented = {key for line in table for key in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert documented == set(found)
    for name in ("services", "database"):
        inside = found[name][0] if name == "services" else found[name]
        line = next(line for line in table if f"`{name}`" in line.split("|")[1])
        assert set(re.findall(r"`(\w+)`", line.split("|")[2])) >= set(inside)


def test_markdown_is_a_table_that_names_do_not_break(shop):
    """A pipe or bracket in a name is escaped, so every row has the same columns."""
    text = shop.run("compose.yaml", "--markdown").stdout
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {6}
    verdict = "at least 94 of 97 connections, and some numbers are unknown."
    assert f"**Cannot be shown to fit: {verdict}**" in text


def test_github_annotations_stand_at_the_line(shop):
    """One workflow command per finding, with the file and the line of the service."""
    shop.write("compose.yaml", COMPOSE % 4)
    lines = shop.run("compose.yaml", "--github").stdout.splitlines()
    title = "title=Connection budget,file=compose.yaml"
    assert lines[0].startswith(f"::error {title},line=3::Does not fit")
    assert any(line.startswith(f"::warning {title},line=7::odd") for line in lines)


def test_sarif_follows_its_schema(shop):
    """Version, driver, rules, and results that point at rules and places (SARIF 2.1.0)."""
    shop.write("compose.yaml", COMPOSE % 4)
    log = json.loads(shop.run("compose.yaml", "--sarif").stdout)
    assert (log["version"], list(log)) == ("2.1.0", ["$schema", "version", "runs"])
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in {"none", "note", "warning", "error"}
        assert result["message"]["text"]
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert place["artifactLocation"]["uri"] == "compose.yaml"
        assert place["region"]["startLine"] >= 1
    assert run["results"][0]["ruleId"] == "does-not-fit"


@pytest.mark.process
def test_it_takes_less_than_two_seconds(shop):
    """Processor time, because other tests run on the machine too."""

    def used():
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        return spent.ru_utime + spent.ru_stime

    before = used()
    run_process("budget", *KNOWN, cwd=shop.path)
    assert used() - before < 2


# -- --check-run ----------------------------------------------------------------------------


def a_run(path, peak, *more):
    """Write the files of a run that are read; further peaks are at other loads."""
    target = PlannedTarget(name="web", kind="web", preset="web", locustfile="x")
    plan = Plan(
        created="2026-01-01T00:00:00Z",
        command="poolkit compare",
        environment="prod",
        levels=(Level(users=1, rate_per_user=1),),
        duration_s=1,
        warm_up_s=1,
        max_connections=100,
        interval_s=0.1,
        targets=(target,),
    )
    path.mkdir()
    write_json(path / "plan.json", to_json(plan))
    found, *others = ({"instances": 1, "connections": {"peak": each}} for each in (peak, *more))
    levels = [{"repeats": [found]}, *({"repeats": [other]} for other in others), {"repeats": []}]
    write_json(path / "results.json", {"targets": {"web": found}, "levels": {"web": levels}})
    return path


def test_a_run_is_compared_with_the_ceilings(shop):
    """One process may hold 30: a peak of 31 at any load gives exit status 1."""
    a_run(shop.path / "good", 30)
    a_run(shop.path / "bad", 12, 31, 20)
    good = shop.run(*KNOWN, "--check-run", "good", columns="160")
    succeeded(good, "web: at most 30 open with 1 process(es), within the 30 that web allows")
    bad = shop.run(*KNOWN, "--check-run", "bad", "--json")
    assert (bad.returncode, json.loads(bad.stdout)["verdict"]) == (1, "fits")
    assert "web: at most 31 open with 1 process(es), ABOVE the 30" in bad.stderr


def test_a_folder_that_is_no_run_is_refused(shop):
    """The message has what was expected."""
    refused(shop.run(*KNOWN, "--check-run", "."), "not a run of `poolkit compare`")
