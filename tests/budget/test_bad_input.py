"""Wrong input, and any input at all: a budget, or one clear line with file and line."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from poolkit_command import refused

from poolkit.budget.command import budget_text, compute_budget
from poolkit.budget.model import Options
from poolkit.errors import BudgetError, TemplateError

HEAD = "AWSTemplateFormatVersion: '2010-09-09'\n"
RESOURCES = HEAD + "Resources:\n"
DATABASE = "  Db:\n    Type: AWS::RDS::DBInstance\n    Properties: {DBInstanceClass: %s}\n"
FUNCTION = """  Fn:
    Type: AWS::Lambda::Function
    Properties:
      ReservedConcurrentExecutions: %s
      Environment: {Variables: {POOLKIT_TARGET: %s, DATABASE_URL: x}}
"""


def function(concurrency="1", target="lambda", head=RESOURCES):
    return head + FUNCTION % (concurrency, target)


CIRCLE = """Conditions:
  A: !Not [!Condition B]
  B: !Not [!Condition A]
Resources: {Fn: {Type: "AWS::Lambda::Function", Condition: A}}
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RESOURCES + "  A: [1, 2\n  B: }\n", "app.yaml:4: not valid YAML"),
        (HEAD + CIRCLE, "condition A refers to itself"),
        (
            function(target="lamda"),
            "Fn: POOLKIT_TARGET: target 'lamda' is unknown (did you mean 'lambda'?)",
        ),
        (HEAD + "Resources: &a\n  B: *a\n", "nested too deeply"),
    ],
)
def test_a_wrong_template_is_one_line(folder, text, message):
    """The message names file and line, and there is no traceback."""
    folder.write("app.yaml", text)
    refused(folder.run("app.yaml"), message, lines=1)


@pytest.mark.parametrize("number", ["-1", "many", "1.5", "!Frobnicate 3"])
def test_a_number_that_is_none_is_unknown(folder, number):
    """Its reason has the line, and other services are still counted."""
    folder.write("app.yaml", function(number) + FUNCTION.replace("Fn", "Other") % ("3", "lambda"))
    found = folder.budget(max_connections=100)
    (fn, other) = found.services
    assert (fn.ceiling, other.ceiling) == (None, 3)
    assert fn.instances.where.line == 6


def test_a_template_of_a_folder_that_its_reader_refuses_is_unread(folder):
    """The other files of the folder are counted; if it is named, it is an error."""
    folder.write("app.yaml", function())
    broken = folder.write("other.yaml", HEAD + CIRCLE)
    found = folder.budget(max_connections=100)
    assert [service.name for service in found.services] == ["Fn"]
    assert [(each.where.file, each.where.line) for each in found.unread] == [(str(broken), 3)]
    with pytest.raises(TemplateError, match=r"other\.yaml:3"):
        folder.budget("app.yaml", "other.yaml", max_connections=100)


def test_a_broken_file_that_another_one_names_leaves_only_that_one_out(folder):
    """A project whose variables cannot be read is unread; the others are counted."""
    folder.write("one/compose.yaml", "services:\n  a: {image: x, env_file: .env}\n")
    (folder.path / "one/.env").write_bytes(b"NAME=K\xf6ln\n")
    variables = "{POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: dev, DATABASE_URL: x}"
    text = f"services:\n  b: {{image: x, command: uvicorn a, environment: {variables}}}\n"
    folder.write("two/compose.yaml", text)
    found = folder.budget(max_connections=100)
    assert [service.name for service in found.services] == ["b"]
    assert [Path(each.where.file).name for each in found.unread] == [".env"]


def test_a_folder_without_templates_counts_nothing(folder):
    """Other YAML files are no templates. The message says which files are read."""
    folder.write("notes.yaml", "some: thing\n")
    found = folder.budget(max_connections=100)
    assert [service.name for service in found.services] == []
    assert "compose file" in next(each.reason for each in found.not_counted)
    assert folder.run(".", "--max-connections", "100").returncode == 3


def test_a_named_file_that_is_no_deployment_is_refused(folder):
    """The message has the file, and which kinds are read."""
    folder.write("notes.yaml", "some: thing\n")
    refused(folder.run("notes.yaml"), "notes.yaml: no CloudFormation or SAM template")


def test_without_files_the_services_are_declared(folder, ceilings):
    """--service gives every number; one that is missing is unknown, and so is the verdict."""
    budget = folder.budget(services=("web=5+10x2@3", "worker=1+0x4@1"), max_connections=100)
    assert ceilings(budget) == {"web": 90, "worker": 4}
    assert budget.verdict == "does not fit"
    partly = folder.budget(services=("web=5+10", "worker=1+0x4@1"), max_connections=100)
    assert ceilings(partly) == {"web": None, "worker": 4}
    assert partly.verdict == "cannot be shown to fit"


TYPESCRIPT = '{\n  // comments\n  "compilerOptions": {"strict": true}\n}\n'


def test_a_folder_may_hold_files_that_cannot_be_read(folder):
    """A file that is broken and names no resources or services is listed as not counted."""
    folder.write("app.yaml", function())
    folder.write("frontend/events.json", '{"id": 1}}')
    folder.write("docker.env.template", "{% if tls %}\nTLS=on\n{% endif %}\n")
    found = folder.budget(max_connections=100)
    assert [service.name for service in found.services] == ["Fn"]
    names = {Path(each.name).name for each in found.not_counted}
    assert names == {"events.json", "docker.env.template"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("compose.yaml", "services:\n  web: {image: a\n"),
        ("chart.yaml", "apiVersion: v1\nkind: {{ .Values.kind }}: x\n"),
        ("app.json", '{"Resources": {"Fn": }'),
    ],
)
def test_a_broken_deployment_in_a_folder_is_unread(folder, name, text):
    """What may open connections is never left out without a word, and stops nothing else."""
    folder.write("app.yaml", function())
    folder.write(name, text)
    found = folder.budget(max_connections=100)
    assert [service.name for service in found.services] == ["Fn"]
    assert found.verdict == "cannot be shown to fit"
    (unread,) = found.unread
    assert Path(unread.where.file).name == name
    assert unread.where.line


def test_a_broken_file_that_was_named_is_an_error(folder):
    """Only a folder's other files may be left out."""
    file = folder.write("events.json", '{"id": 1}}')
    with pytest.raises(TemplateError, match=r"events\.json"):
        folder.budget(file)


def test_a_template_in_utf_16_is_read(folder):
    """PowerShell's redirection writes UTF-16 with a byte order mark."""
    text = function()
    (folder.path / "app.yaml").write_bytes(text.replace("\n", "\r\n").encode("utf-16"))
    assert [s.name for s in folder.budget(max_connections=100).services] == ["Fn"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"services": ("Fn=5-1",)}, "must be NAME=POOL"),
        ({"services": ("Fn=0+0",)}, "at least 1 connection"),
        ({"services": ("Missing=1+1",)}, "there is no service 'Missing'"),
        ({"parameters": ("Missing=1",)}, "no template has a parameter Missing"),
        ({"parameters": ("missing.json",)}, "neither Key=Value nor an existing JSON file"),
        ({"max_connections": 0}, "--max-connections must not be 0"),
        ({"operators": -1}, "--operators must not be -1"),
        ({"environment": "moon"}, "environment moon: there is no"),
        ({"database": "Other", "max_connections": None}, "there is no such database"),
        ({"instance_class": "db.m7g.large"}, "give one of them"),
    ],
)
def test_a_wrong_option_is_refused(folder, options, message):
    """The message has the unknown name or the impossible number."""
    folder.write("app.yaml", function())
    with pytest.raises(BudgetError, match=message.replace("(", r"\(")):
        folder.budget(**{"max_connections": 100, **options})


def test_references_in_a_circle_between_stacks(folder):
    """Two stacks that each need an output of the other cannot be deployed."""
    template = HEAD + "Parameters: {P: {Type: String}}\nResources:\n"
    for name in "ab":
        text = template + FUNCTION.replace("Fn", f"F{name}") % ("!Ref P", "lambda")
        folder.write(f"{name}.yaml", text + "Outputs: {O: {Value: !Ref P}}\n")
    folder.write("environments/prod.toml", '[a]\nP = "{b.O}"\n[b]\nP = "{a.O}"\n')
    with pytest.raises(BudgetError, match="refers to itself"):
        folder.budget(environment="prod", max_connections=10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[app]\nCapacity = 3\n",
            "prod.toml:2: .*app.yaml has no parameter Capacity; did you mean",
        ),
        ("[app\n", "prod.toml:1: not valid TOML"),
        ("[missing]\n", r"no template belongs to the table \[missing\]"),
        ('[app]\nCapacities = "{missing.Id}"\n', "prod.toml:2: .*there is no template missing"),
    ],
)
def test_a_wrong_environment_file_names_its_line(folder, text, message):
    """A misspelt parameter is found too."""
    head = HEAD + "Parameters: {Capacities: {Type: Number}}\nResources:\n"
    folder.write("app.yaml", function("!Ref Capacities", head=head))
    folder.write("environments/prod.toml", text)
    with pytest.raises(BudgetError, match=message):
        folder.budget(environment="prod", max_connections=10)


def test_each_database_has_a_budget_of_its_own(folder):
    """Clients count for the database that they name; a given limit needs the name of one."""
    other = DATABASE.replace("Db", "Other") % "db.m7g.large"
    text = FUNCTION.replace("DATABASE_URL: x", "DATABASE_HOST: !GetAtt Other.Endpoint.Address")
    resources = DATABASE % "db.m7g.large" + other + text % ("5", "lambda")
    folder.write("app.yaml", RESOURCES + resources)
    found = {each.database.name: each for each in folder.budgets().each}
    assert {name: each.verdict for name, each in found.items()} == {
        "Db": "nothing to count",
        "Other": "fits",
    }
    assert found["Other"].needed == 9
    assert folder.budget(database="Other").needed == 9
    assert [each.name for each in folder.budget(database="Db").not_counted] == ["Fn"]
    with pytest.raises(BudgetError, match="several databases"):
        folder.budgets(max_connections=100)


# -- any input at all -----------------------------------------------------------------------


VARIABLES = "{POOLKIT_TARGET: web, POOLKIT_ENVIRONMENT: prod, DATABASE_HOST: pool}"


def named(name, value):
    """Return the same variables as a list in YAML, whose items have these two keys."""
    variables = yaml.safe_load(VARIABLES).items()
    return json.dumps([{name: k, value: v} for k, v in variables])


TEMPLATE = f"""
Parameters: {{P: {{Type: Number, Default: 3}}}}
Mappings: {{M: {{a: {{b: 4}}}}}}
Conditions: {{C: {{Fn::Equals: [{{Ref: P}}, "3"]}}}}
Resources:
  Db:
    Type: AWS::RDS::DBInstance
    Properties: {{DBInstanceClass: db.m7g.large, DBParameterGroupName: {{Ref: Group}}}}
  Group:
    Type: AWS::RDS::DBParameterGroup
    Properties:
      Parameters: {{max_connections: "LEAST({{DBInstanceClassMemory/9531392}},5000)"}}
  Cluster:
    Type: AWS::RDS::DBCluster
    Condition: C
    Properties:
      Engine: aurora-postgresql
      ServerlessV2ScalingConfiguration: {{MinCapacity: 1, MaxCapacity: 4}}
  Proxy: {{Type: "AWS::RDS::DBProxy", Properties: {{DBProxyName: p}}}}
  Targets:
    Type: AWS::RDS::DBProxyTargetGroup
    Properties:
      DBProxyName: {{Ref: Proxy}}
      ConnectionPoolConfigurationInfo: {{MaxConnectionsPercent: 50}}
  Fn:
    Type: AWS::Lambda::Function
    Properties:
      ReservedConcurrentExecutions: {{Fn::FindInMap: [M, a, b]}}
      Environment: {{Variables: {VARIABLES.replace("web", "lambda")}}}
  Task:
    Type: AWS::ECS::TaskDefinition
    Properties:
      ContainerDefinitions:
        - {{Name: web, Image: x, Command: [gunicorn, -w, "2"], Environment: {named("Name", "Value")}}}
  Web:
    Type: AWS::ECS::Service
    Properties:
      TaskDefinition: {{Ref: Task}}
      DesiredCount: {{Fn::If: [C, 2, 1]}}
      DeploymentConfiguration: {{MaximumPercent: 150}}
  Scale:
    Type: AWS::ApplicationAutoScaling::ScalableTarget
    Properties:
      ServiceNamespace: ecs
      ResourceId: {{Fn::Sub: "service/c/${{Web.Name}}"}}
      MaxCapacity: 9
  Nested: {{Type: "AWS::CloudFormation::Stack", Properties: {{TemplateURL: nowhere.yaml}}}}
Outputs:
  O: {{Value: {{Fn::GetAtt: [Db, Endpoint.Address]}}, Export: {{Name: e}}}}
"""
COMPOSE = f"""
services:
  db: {{image: "postgres:17", command: postgres -c max_connections=50}}
  pool:
    image: edoburu/pgbouncer
    environment: {{DB_HOST: db, DEFAULT_POOL_SIZE: 5}}
    configs: [{{source: c, target: /x.ini}}]
  web:
    image: x
    command: [uvicorn, "a:b"]
    environment: {VARIABLES}
    deploy: {{replicas: 2, update_config: {{order: start-first}}}}
    env_file: []
    volumes: ["./a.ini:/b"]
    networks: {{n: {{aliases: [w]}}}}
configs: {{c: {{content: "[pgbouncer]\\ndefault_pool_size = 3"}}}}
"""
DEPLOYMENT = f"""
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 2
  strategy: {{rollingUpdate: {{maxSurge: 25%}}}}
  template:
    metadata: {{labels: {{a: b}}}}
    spec:
      volumes: [{{configMap: {{name: c}}}}]
      containers:
        - {{name: web, image: x, env: {named("name", "value")}, envFrom: [{{configMapRef: {{name: c}}}}]}}
"""
FILES = {
    "app.json": yaml.safe_load(TEMPLATE),
    "compose.json": yaml.safe_load(COMPOSE),
    "web.json": (web := yaml.safe_load(DEPLOYMENT)),
    "list.json": {"apiVersion": "v1", "kind": "List", "items": [web, {**web, "kind": "Rollout"}]},
}

rubbish = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 10**7)
    | st.sampled_from(["", "x", "${", "${P}", "-1", "1.5", "{{resolve:x}}", "%", "9" * 30]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Ref", "Fn::If", "Fn::Sub", "Fn::GetAtt", "Name", "Type", "Fn::Select", "x"]
            ),
            inner,
            max_size=2,
        )
    ),
    max_leaves=6,
)


def places(value, way=()):
    """Return the path to every value inside a value."""
    yield way
    items = enumerate(value) if isinstance(value, list) else ()
    items = value.items() if isinstance(value, dict) else items
    for key, inner in items:
        yield from places(inner, (*way, key))


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_any_value_anywhere_gives_a_budget_or_one_error(name, data):
    """A value of another type at any place of a file gives no traceback."""
    document = copy.deepcopy(FILES[name])
    way = data.draw(st.sampled_from([way for way in places(document) if way]))
    parent = document
    for step in way[:-1]:
        parent = parent[step]
    parent[way[-1]] = data.draw(rubbish)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(json.dumps(document))
        try:
            budget = compute_budget(Options(paths=(file,), max_connections=100))
        except BudgetError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017  (no error is right as well)
            return
    assert budget.exit_status() in (0, 1, 3)
    for form in ("json", "markdown", "github", "sarif"):
        assert budget_text(budget, form, status=0)


@given(st.text(alphabet="{}[]:-!&*<>|'\"\n\t ab1#%@`,", max_size=60))
def test_any_text_is_yaml_or_one_error(text):
    """Text that is no YAML is refused, and no other exception is raised."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.yaml"
        file.write_text(text)
        with pytest.raises(BudgetError):
            compute_budget(Options(paths=(file,), max_connections=100))
