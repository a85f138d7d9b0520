"""The simulated account refuses RDS Proxy without the role that it logs in as, as AWS does.

The resource provider of AWS::RDS::DBProxyTargetGroup asks 240 times, every five seconds, whether the
targets are AVAILABLE (aws-cloudformation-resource-providers-rds-proxy, CreateHandler).
"""

import boto3
import pytest
from deploy.test_deploy import statuses
from deploy.test_migrate import POOLER, poolkit, project, server, tasks

__all__ = ["poolkit", "project", "server", "tasks"]  # fixtures

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto"),
]


def test_without_the_role_a_proxy_does_not_become_available(tasks):
    """Its stack is rolled back."""
    cloudformation = boto3.client("cloudformation")
    named = {"StackName": "shop-dev-proxy", "ChangeSetName": "c"}
    cloudformation.create_change_set(
        **named,
        ChangeSetType="CREATE",
        TemplateBody=POOLER % "proxy",
        Parameters=[{"ParameterKey": "DatabaseSecretArn", "ParameterValue": "x"}],
    )
    cloudformation.execute_change_set(**named)
    assert statuses()["shop-dev-proxy"].startswith("ROLLBACK")
