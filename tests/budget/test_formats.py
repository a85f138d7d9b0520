"""The forms of the output: terminal, JSON, Markdown, annotations, SARIF."""

import json
import re
import resource

import pytest
from markdown_it import MarkdownIt
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
    """A line without a file is in the file of the service, which is named once."""
    answer = shop.run(*KNOWN, columns="200")
    assert "web (compose.yaml:3): " in answer.stdout
    assert "processes 3: line 5 (--workers)" in answer.stdout
    assert "pool size 20, max overflow 10: line 6 (preset web in prod)" in answer.stdout
    assert "Fits: 96 of 97 connections, 1 to spare." in answer.stdout


DEEP = "deployments/production/region-europe-west/applications/of-the-shop/compose-services.yaml"


def many_services(folder, *, name=DEEP, count=30):
    """Write services of which nothing is known but that they use the database."""
    service = '{image: example.org/app, environment: {DATABASE_URL: "postgresql://a@db/x"}}'
    lines = [f"  service-{n}: {service}" for n in range(count)]
    folder.write(name, "\n".join(["services:", "  db: {image: 'postgres:17'}", *lines]))
    return folder


@pytest.mark.parametrize("columns", ["40", "80", "120"])
def test_a_path_is_never_broken(folder, columns):
    """It has a line of its own where it is longer than the terminal is wide."""
    for count in (1, 30):
        output = many_services(folder, count=count).run(DEEP, columns=columns).stdout
        assert DEEP in output
        rest = output.replace(DEEP, "")
        assert not {"deployments", "compose-services.yaml"} & set(re.split(r"[/:\s]", rest))


def test_one_sentence_is_about_everything_of_its_kind(folder):
    """Unknown numbers come first, grouped, with the names below and the flag that answers them."""
    output = many_services(folder).run(DEEP).stdout
    unknown = output.partition("migrations")[0].partition("Unknown")[2]
    assert unknown.count("the image decides") == unknown.count("POOLKIT_TARGET") == 1
    assert unknown.count("Answer: ") == 2
    assert "--service NAME=POOL+OVERFLOW" in unknown
    assert {f"service-{n}" for n in range(30)} <= set(re.findall(r"service-\d+", unknown))
    assert output.splitlines()[0] == ""
    assert "Cannot be shown to fit" in output.splitlines()[1]
    assert "Cannot be shown to fit" in output.splitlines()[-2]


TWO = """
    services:
      orders: {image: "postgres:17"}
      billing: {image: "postgres:17", command: [postgres, -c, max_connections=20]}
      web:
        image: example.org/web
        environment: {DATABASE_URL: "postgresql://a@orders/x"}
      pay:
        image: example.org/pay
        environment: {DATABASE_URL: "postgresql://a@billing/x"}
"""
TWO_KNOWN = ("compose.yaml", "--service", "web=5+5x1", "--service", "pay=20+0x1")


def test_each_database_has_its_section_and_verdict(folder):
    """The last line sums up; the other forms have all databases too."""
    folder.write("compose.yaml", TWO)
    answer = folder.run(*TWO_KNOWN)
    assert answer.returncode == 1
    assert "Database orders" in answer.stdout
    assert answer.stdout.splitlines()[-1].endswith("orders: fits; billing: does not fit.")
    found = json.loads(folder.run(*TWO_KNOWN, "--json").stdout)
    assert [(each["name"], each["verdict"]) for each in found["databases"]] == [
        ("orders", "fits"),
        ("billing", "does not fit"),
    ]
    assert "Database billing" in folder.run(*TWO_KNOWN, "--markdown").stdout
    assert "::error" in folder.run(*TWO_KNOWN, "--github").stdout


def test_nothing_to_count_names_what_was_found(folder):
    """And the option that counts a service."""
    folder.write("compose.yaml", "services: {db: {image: 'postgres:17'}, site: {image: nginx}}")
    answer = folder.run("compose.yaml")
    assert answer.returncode == 3
    assert "Nothing to count" in answer.stdout
    assert "site" in answer.stdout.partition("Not counted")[2]
    assert "--service NAME=" in answer.stdout


def test_what_is_not_counted_is_a_short_list(folder):
    """Ten names at most for each reason; JSON has all."""
    sites = "".join(f"      site-{number:02}: {{image: nginx}}\n" for number in range(30))
    folder.write("compose.yaml", COMPOSE % 1 + sites)
    assert len(set(re.findall(r"site-\d\d", folder.run(".").stdout))) == 10
    found = json.loads(folder.run(".", "--json").stdout)["not_counted"]
    assert sum(each["name"].startswith("site-") for each in found) == 30


def test_json_holds_the_whole_budget(shop):
    """The keys that docs/budget.md promises, with numbers as numbers."""
    found = json.loads(shop.run(*KNOWN, "--json").stdout)
    assert (found["version"], found["verdict"], found["exit_status"]) == (2, "fits", 0)
    (database,) = found["databases"]
    assert (database["available"], database["needed"], database["known"]) == (97, 96, 96)
    web, odd = database["services"]
    assert (web["name"], web["ceiling"], web["running"], odd["ceiling"]) == ("web", 90, 90, 2)
    assert web["processes"] == {"value": 3, "origin": "compose.yaml:5 (--workers)"}
    (unclear,) = json.loads(shop.run("compose.yaml", "--json").stdout)["databases"]
    assert unclear["needed"] is None
    assert unclear["services"][1]["pool_size"]["value"] is None
    assert {gap["of"] for gap in unclear["unknown"]} == {ODD}
    assert all("--service" in gap["answer"] for gap in unclear["unknown"])


def keys(found, path=""):
    """Return the keys of every object in a document, by the path of the object."""
    if isinstance(found, list):
        return [pair for each in found for pair in keys(each, path)]
    if not isinstance(found, dict):
        return []
    inside = [
        pair for name, each in found.items() for pair in keys(each, f"{path}.{name}".strip("."))
    ]
    return [(path, set(found)), *inside]


@pytest.mark.parametrize("arguments", [KNOWN, ("compose.yaml",)])
def test_the_document_names_every_key(shop, arguments):
    """docs/budget.md describes what `--json` prints, and nothing else."""
    pooler = "{image: edoburu/pgbouncer, environment: {DB_HOST: db, MAX_CLIENT_CONN: '1'}}"
    text = COMPOSE.replace("services:", f"services:\n      pgbouncer: {pooler}")
    shop.write("compose.yaml", text % 4)
    a_run(shop.path / "run", 12)
    found = json.loads(shop.run(*arguments, "--check-run", "run", "--json").stdout)
    text = (ROOT / "docs/budget.md").read_text().partition("## JSON output")[2]
    documented = {
        path.strip("`").removeprefix("document").strip("."): set(re.findall(r"`(\w+)`", inside))
        for path, inside in re.findall(r"^\| (`[\w.]+`) \| (.*) \|$", text, re.MULTILINE)
    }
    seen = keys(found)
    assert {path for path, _ in seen} >= {"", "databases", "databases.services"}
    for path, names in seen:
        # Each number of the model has the same two keys.
        if names != {"value", "origin"}:
            assert documented[path] == names, path


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


def test_github_shows_ten_warnings_and_the_tenth_has_the_rest(folder):
    """Errors come first, and no unknown number is lost."""
    lines = many_services(folder, count=30).run(DEEP, "--github").stdout.splitlines()
    warnings = [line for line in lines if line.startswith("::warning")]
    assert len(warnings) == 10
    assert all(f"service-{n}" in "".join(warnings) for n in range(30))


def test_sarif_points_at_rules_and_places(shop):
    """Version, driver, rules, and results with a relative path and a line (SARIF 2.1.0)."""
    shop.write("compose.yaml", COMPOSE % 4)
    for path in ("compose.yaml", shop.path / "compose.yaml"):
        log = json.loads(shop.run(path, "--sarif").stdout)
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


def test_an_unknown_number_is_annotated_at_its_own_line(folder):
    """The line of the variable, not that of the service."""
    folder.write(
        "compose.yaml",
        """
        services:
          db: {image: "postgres:17"}
          mail:
            image: example.org/mail
            command: [gunicorn, -w, "2", app]
            deploy:
              replicas: ${TASKS}
            environment: {POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: prod}
        """,
    )
    (run,) = json.loads(folder.run("compose.yaml", "--sarif").stdout)["runs"]
    (location,) = run["results"][0]["locations"]
    assert location["physicalLocation"]["region"]["startLine"] == 7


def test_what_fits_is_no_alert(shop):
    """Code scanning shows every result as one."""
    assert json.loads(shop.run(*KNOWN, "--sarif").stdout)["runs"][0]["results"] == []


HOSTILE = [
    "a|b",
    "<img src=x onerror=y>",
    "@someone",
    "`code` **bold** [x](http://evil.example)",
    "-\u202eabc",
    "zero\u200bwidth",
    "1. item",
    "line\nbreak",
    "bell\x07",
    "# heading",
    ":tada:",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_only_a_text_in_markdown(folder, name):
    """No markup, no HTML, no mention, no invisible character, no line of its own."""
    service = {"image": "x", "environment": {"DATABASE_URL": "postgresql://db/x"}}
    services = {"db": {"image": "postgres:17"}, name: service, "site": {"image": "nginx"}}
    folder.write("compose.yaml", json.dumps({"services": services}))
    text = folder.run("compose.yaml", "--markdown").stdout
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    assert not re.search(r"<(img|a|h1|code)\b", rendered)
    assert "@someone" not in text
    assert not re.search("[\u202e\x07]", text)
    assert "zero\u200bwidth" not in text


def test_long_lists_are_folded_in_markdown(folder):
    """The verdict stands above them."""
    text = many_services(folder).run(DEEP, "--markdown").stdout
    assert text.index("**Cannot be shown to fit") < text.index("<details>")
    assert text.count("<details>") == text.count("</details>") >= 2


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
    succeeded(
        good, "web: at most 30 open with 1 process(es) of target web, within the ceiling of 30"
    )
    bad = shop.run(*KNOWN, "--check-run", "bad", "--json")
    found = json.loads(bad.stdout)
    assert (bad.returncode, found["exit_status"], found["verdict"]) == (1, 1, "fits")
    (check,) = found["checks"]
    assert not check["is_within"]
    assert (
        "at most 31 open with 1 process(es) of target web, ABOVE the ceiling of 30" in check["text"]
    )
    assert "::error" in shop.run(*KNOWN, "--check-run", "bad", "--github").stdout


def test_the_knee_of_a_run_is_the_second_ceiling(shop):
    """More connections than the target had at its knee fit, and will not run at once."""
    results = a_run(shop.path / "run", 3) / "results.json"
    found = json.loads(results.read_text())
    found["levels"]["web"][0]["name"] = "1 user"
    write_json(results, {**found, "knees": {"web": {"level": "1 user"}, "lambda": None}})
    answer = shop.run(*KNOWN, "--check-run", "run", columns="160")
    succeeded(answer, "will not run at once: the run's latency grew faster than its throughput")


def test_a_folder_that_is_no_run_is_refused(shop):
    """The message has what was expected."""
    refused(shop.run(*KNOWN, "--check-run", "."), "not a run of `poolkit compare`")
