"""docs/infrastructure.md has the numbers of the templates and the environments."""

import re
import tomllib

from infra.deployed import ENVIRONMENTS, INFRA, ROOT, answer_of, deployment_of

from poolkit.config.presets import preset

TEXT = (ROOT / "docs" / "infrastructure.md").read_text()


def rows(heading):
    """Give the cells of the first table behind a heading, without its own."""
    section = TEXT.partition(f"## {heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)[0].splitlines()
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_environments_are_described_as_they_are(deployment):
    """Instance, limits, presets and the ceiling of each environment."""
    row = next(each for each in rows("Environments") if each[0] == deployment.environment)
    given = {
        name: {key: each.value for key, each in table.items()}
        for name, table in deployment.tables.items()
    }
    functions, web, worker = given["lambda"], given["web"], given["worker"]

    tasks = "task" if web["MaxTasks"] == 1 else "tasks"
    reserved = f"{functions['ApiReservedConcurrency']} + {functions['IngestReservedConcurrency']}"
    assert row[1:] == [
        given["database"]["InstanceClass"],
        str(given["database"]["MaxConnections"]),
        f"{reserved} `{functions['Preset']}",
        f"{web['MaxTasks']} {tasks} `{web['Preset']}",
        f"{worker['MaxTasks']} x {worker['Concurrency']}",
        str(deployment.budget.needed),
    ]


def test_timeouts_are_described_as_they_are():
    """From the inside out; for web the largest of both presets in all environments."""
    cells = rows("Timeouts")
    table = {row[column]: float(row[column + 1]) for column in (2, 4) for row in cells}
    table |= {f"web {row[0]}": float(row[1]) for row in cells}
    web = [preset(target, each) for target in ("web", "web_async") for each in ENVIRONMENTS]
    assert table["web statement"] == max(each.statement_timeout for each in web) / 1000
    assert table["web checkout + statement"] == max(
        each.pool_timeout + each.statement_timeout / 1000 for each in web
    )
    assert table["web application's deadline"] == max(map(answer_of, web))
    prod = deployment_of("prod")
    balancer = prod.resource("web", "LoadBalancer").get("LoadBalancerAttributes")
    assert table["web load balancer, idle"] == float(balancer[0]["Value"])
    assert table["function"] == prod.resource("lambda", "ApiFunction").get("Timeout")
    integration = prod.resource("lambda", "ApiIntegration").get("TimeoutInMillis")
    assert table["HTTP API"] == integration / 1000
    worker = prod.container("worker")
    assert table["soft time limit"] == float(worker.variables["WORKER_TASK_SOFT_TIME_LIMIT"])
    assert table["time limit"] == float(worker.variables["WORKER_TASK_TIME_LIMIT"])
    assert table["StopTimeout"] == worker.definition["StopTimeout"]
    assert table["visibility"] == float(worker.variables["WORKER_VISIBILITY_TIMEOUT"])


def test_stopping_is_described_as_it_is():
    """The seconds of draining, of the grace period and of the stop."""
    web = deployment_of("prod").container("web")
    graceful = int(web.text()["UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN"])
    assert f"the application has {graceful} s" in TEXT
    assert f"(`StopTimeout` {web.definition['StopTimeout']})" in TEXT
    delay = deployment_of("prod").resource("web", "TargetGroup").get("TargetGroupAttributes")[0]
    assert f"waits {delay['Value']} s for answers" in TEXT


def test_every_template_is_described():
    """The table of templates names each of them."""
    named = set(re.findall(r"^\| `(\w+\.yaml)` \|", TEXT, re.MULTILINE))
    assert named == {file.name for file in INFRA.glob("*.yaml")} - {"compose.yaml"}


def test_what_no_machine_has_proven_is_the_same_in_both_lists():
    """Row by row: `poolkit rehearse` prints what the document has, with the same commands."""
    chapter = TEXT.partition("## What no machine has proven\n")[2]
    described = {}
    for section in chapter.split("\n### ")[1:]:
        title, _, table = section.partition("\n")
        lines = re.findall(r"^\| (.+) \| (.+) \| `(.+)` \|$", table, re.MULTILINE)
        described[title] = lines
    listed = tomllib.loads((INFRA / "unproven.toml").read_text())["unproven"]
    assert described == {
        title: [(row["what"], row["why"], row["command"]) for row in listed if row["needs"] == need]
        for need, title in {
            "account": "It needs an AWS account",
            "docker": "It needs Docker and a registry",
            "cluster": "It needs a Kubernetes cluster",
        }.items()
    }
    assert sum(map(len, described.values())) == len(listed)
