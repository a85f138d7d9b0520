"""The roles of a pipeline may do what poolkit does: each call of the documented way is allowed.

The calls are recorded as they are made, and the policies are those that the account has.
"""

import re

import boto3
import pytest
from deploy.registry import push_every_image, push_image
from deploy.rights import Call, Calls, not_allowed, policies_of
from deploy.test_document import checkout
from poolkit_command import run_here, succeeded

__all__ = ["checkout"]  # a fixture

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto"),
]

PLANS = ("deploy web --plan-only", "status")
DEPLOYMENTS = (
    "deploy all --migrate --yes",
    "migrate",
    "migrate --check --image {second}",
    "db role --rotate",
    "deploy web --yes --image {second}",
    "deploy web --yes --rollback previous",
    "status",
)
"""What pipelines and the pages of the documentation run, without removal."""


@pytest.fixture
def prepared(checkout, aws):
    """An environment whose role for GitHub exists, and images; return a function that runs."""
    file = checkout / "infra/environments/dev.toml"
    text = re.sub('GitHubRepository = ""', 'GitHubRepository = "acme/shop"', file.read_text())
    file.write_text(text)

    def run(command):
        words = [*command.split(), "--environment", "dev"]
        return run_here(*words, cwd=checkout, **aws)

    succeeded(run("bootstrap --yes"))
    succeeded(run_here("package", "lambda", cwd=checkout, **aws))
    push_every_image()
    return run


def role_named(name):
    (found,) = (
        each["RoleName"]
        for each in boto3.client("iam").list_roles()["Roles"]
        if f"access-{name}" in each["RoleName"]
    )
    return found


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.timeout(900)
def test_each_call_of_a_deployment_is_allowed(prepared, monkeypatch):
    """The deploy role has the rights for all of them, and the plan role those for plans."""
    calls = Calls()
    calls.record(monkeypatch)
    push_image("poolkit-web", "second", content="second")
    image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/poolkit-web:second"
    for command in DEPLOYMENTS:
        calls.command = command
        succeeded(prepared(command.format(second=image)))
    assert {"ecs:RunTask", "iam:PassRole", "s3:PutObject", "ssm:PutParameter"} <= {
        call.action for call in calls
    }
    rights = policies_of(role_named("DeployRole"), "PlanPolicy", "DeployPolicy")
    assert not_allowed(calls, rights) == []

    calls.clear()
    for command in PLANS:
        calls.command = command
        succeeded(prepared(command))
    assert calls
    assert not_allowed(calls, policies_of(role_named("PlanRole"), "PlanPolicy")) == []


ALLOWED = {"Effect": "Allow", "Action": ["s3:Put*"], "Resource": "arn:aws:s3:::b/*"}
DENIED = {"Effect": "Deny", "Action": "s3:PutObject", "Resource": ["arn:aws:s3:::b/secret"]}


@pytest.mark.parametrize(
    ("action", "resource", "is_allowed"),
    [
        ("s3:PutObject", "arn:aws:s3:::b/key", True),
        ("s3:PutObject", "arn:aws:s3:::other/key", False),
        ("s3:DeleteObject", "arn:aws:s3:::b/key", False),
        ("s3:PutObject", "arn:aws:s3:::b/secret", False),
        ("sts:GetCallerIdentity", "*", True),
    ],
)
def test_a_call_without_a_right_is_found(action, resource, is_allowed):
    """As IAM decides: a statement allows it, and none denies it."""
    call = Call("deploy", action, resource)
    assert not_allowed([call], [ALLOWED, DENIED]) == ([] if is_allowed else [call])
