"""RDS Proxy comes after the role that it logs in as: CloudFormation waits for its first login.

The resource provider of AWS::RDS::DBProxyTargetGroup asks 240 times, every five seconds, whether the
targets are AVAILABLE (aws-cloudformation-resource-providers-rds-proxy, CreateHandler).
"""

import boto3
import pytest
from deploy.test_deploy import statuses
from deploy.test_migrate import (
    DATABASE,
    ENVIRONMENT,
    commands,
    deploy,
    poolkit,
    prepared,
    project,
    server,
    tasks,
)
from poolkit_command import refused, succeeded

__all__ = ["poolkit", "prepared", "project", "server", "tasks"]  # fixtures

PROXY = (
    DATABASE.replace(
        "Resources:\n",
        "Parameters:\n  EnableProxy: {Type: String}\n"
        'Conditions: {HasProxy: !Equals [!Ref EnableProxy, "true"]}\n'
        "Resources:\n"
        "  ProxyToInstance:\n    Type: AWS::RDS::DBProxyTargetGroup\n    Condition: HasProxy\n"
        "    Properties: {DBProxyName: shop, TargetGroupName: default}\n",
        1,
    )
    + "  ProxyHost: {Condition: HasProxy, Value: !GetAtt Instance.Endpoint.Address}\n"
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto"),
]


@pytest.fixture
def proxied(project):
    """The project with a proxy, whose address the function gets."""
    (project / "infra/database.yaml").write_text(PROXY)
    text = ENVIRONMENT.replace("[database]\n", '[database]\nEnableProxy = "true"\n')
    text = text.replace("[lambda]\n", '[lambda]\nDatabaseHost = "{database.ProxyHost}"\n')
    (project / "infra/environments/dev.toml").write_text(text)
    file = project / "infra/lambda.yaml"
    declared = "Parameters:\n  DatabaseHost: {Type: String}\n"
    file.write_text(file.read_text().replace("Parameters:\n", declared, 1))
    return project


def has_proxy():
    (stack,) = boto3.client("cloudformation").describe_stacks(StackName="shop-dev-database")[
        "Stacks"
    ]
    (value,) = (
        each["ParameterValue"]
        for each in stack["Parameters"]
        if each["ParameterKey"] == "EnableProxy"
    )
    return value == "true"


def test_all_with_migrate_turns_the_proxy_on_after_the_role(proxied, poolkit, tasks):
    """One command on an empty account, and the next one changes nothing."""
    made = succeeded(deploy(poolkit, "all", "--migrate"), "db role: done")
    assert made.index("db role: done") < made.index("turning EnableProxy on")
    assert made.index("turning EnableProxy on") < made.index("Plan: create shop-dev-lambda")
    assert has_proxy()
    again = succeeded(deploy(poolkit, "all"))
    assert again.count("nothing to change") == len(statuses())


@pytest.mark.slow
def test_step_by_step_the_second_deployment_turns_it_on(proxied, poolkit, tasks):
    """The first one names the command that creates the role."""
    succeeded(deploy(poolkit, "network"))
    succeeded(deploy(poolkit, "database"), "poolkit db role -e dev")
    assert not has_proxy()
    succeeded(poolkit("migrate"))
    refused(deploy(poolkit, "lambda"), "ProxyHost")
    succeeded(poolkit("db", "role"))
    succeeded(deploy(poolkit, "all"))
    assert has_proxy()
    assert "lambda" in {name.rpartition("-")[2] for name in statuses()}
    assert commands(tasks)[:2] == ["upgrade", "role"]


def test_without_the_role_a_proxy_does_not_become_available(proxied, poolkit, tasks):
    """As in AWS, where the stack is then rolled back."""
    cloudformation = boto3.client("cloudformation")
    named = {"StackName": "shop-dev-database", "ChangeSetName": "c"}
    cloudformation.create_change_set(
        **named,
        ChangeSetType="CREATE",
        TemplateBody=PROXY,
        Parameters=[{"ParameterKey": "EnableProxy", "ParameterValue": "true"}],
    )
    cloudformation.execute_change_set(**named)
    assert statuses()["shop-dev-database"].startswith("ROLLBACK")
