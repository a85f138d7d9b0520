"""Whatever stands in the files, the answer is a budget or one clear error."""

import copy
import json
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkit.budget.command import budget_text, compute_budget, exit_status
from poolkit.budget.model import Options
from poolkit.errors import BudgetError

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
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from places(inner, (*way, key))


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@settings(max_examples=120, deadline=None)
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
    assert exit_status(budget, allow_unknown=False) in (0, 1)
    for form in ("json", "markdown", "github", "sarif"):
        assert budget_text(budget, form, status=0)


@given(st.text(alphabet="{}[]:-!&*<>|'\"\n\t ab1#%@`,", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_yaml_or_one_error(text):
    """Text that is no YAML is refused, and no other exception is raised."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.yaml"
        file.write_text(text)
        with pytest.raises(BudgetError):
            compute_budget(Options(paths=(file,), max_connections=100))
