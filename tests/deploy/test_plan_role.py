"""A plan with the rights to plan, which delete no stack: moto allows what the policy of a user does."""

import json
import urllib.request

import boto3
import pytest
from deploy.test_deploy import bucket, statuses
from infra.test_bootstrap import as_list, statements_of, with_github
from poolkit_command import run_here, succeeded

__all__ = ["bucket"]  # a fixture


@pytest.fixture
def planner(aws, bucket):
    """The keys of a user who may do what the policy to plan allows, and moto asking for rights."""
    policy = with_github().resource("access", "PlanPolicy")
    actions = sorted(
        {
            action
            for statement in statements_of(policy)
            if statement["Effect"] == "Allow"
            for action in as_list(statement["Action"])
        }
    )
    iam = boto3.client("iam")
    iam.create_user(UserName="planner")
    document = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}],
    }
    iam.put_user_policy(UserName="planner", PolicyName="plan", PolicyDocument=json.dumps(document))
    key = iam.create_access_key(UserName="planner")["AccessKey"]
    yield {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
    }
    ask_for_rights(aws, after="inf")


def ask_for_rights(aws, after):
    """Tell moto's server after how many requests to look at the caller's policies."""
    url = f"{aws['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    request = urllib.request.Request(
        url, data=str(after).encode(), headers={"Content-Type": "text/plain"}
    )
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def test_a_new_stack_is_planned_without_the_right_to_delete_it(aws, shop, planner):
    """The plan is shown, and the empty stack stays for the next deployment."""
    words = ("deploy", "network", "-e", "dev", "--plan-only", "--no-lint", "--no-budget")
    ask_for_rights(aws, after=0)
    done = run_here(*words, cwd=shop, **aws | planner)
    ask_for_rights(aws, after="inf")
    succeeded(done, "Plan: create shop-dev-network")
    assert statuses() == {"shop-dev-network": "REVIEW_IN_PROGRESS"}
    deployed = run_here("deploy", "network", "-e", "dev", "--yes", "--no-budget", cwd=shop, **aws)
    succeeded(deployed)
    assert statuses() == {"shop-dev-network": "CREATE_COMPLETE"}
