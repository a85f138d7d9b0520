"""The calls that poolkit makes to AWS, held against the policies of the roles that it runs with."""

import contextlib
import fnmatch
from typing import NamedTuple

import boto3
import yaml

from poolkit.deploy.aws import Aws


class Call(NamedTuple):
    """One call as IAM sees it: an action on a resource."""

    command: str
    action: str
    resource: str


class Calls(list):
    """Every call since `record`, with the command that made it."""

    command = ""

    def record(self, monkeypatch):
        """Note the calls of every client that poolkit makes from now on."""
        client_of = Aws.client

        def client(aws, service, **options):
            client = client_of(aws, service, **options)
            prefix = client.meta.service_model.signing_name
            region = client.meta.region_name

            def note(params, model, **_):
                for action, resource in needed(prefix, model.name, params, region):
                    self.append(Call(self.command, action, resource))

            client.meta.events.register("provide-client-params", note)
            return client

        monkeypatch.setattr(Aws, "client", client)


ACCOUNT = "123456789012"
WITHOUT_RIGHTS = {"sts:GetCallerIdentity"}
"""Calls that IAM allows everyone (AWS STS API Reference)."""
NAMES = {"s3:HeadObject": "s3:GetObject", "s3:HeadBucket": "s3:ListBucket"}
"""Calls whose right has another name (Amazon S3 API Reference, "Permissions")."""


def needed(prefix, operation, params, region):
    """Give what a call needs: actions, each with the resource that IAM compares."""
    action = f"{prefix}:{operation}"
    action = NAMES.get(action, action)
    yield action, resource_of(prefix, operation, params, f"{region}:{ACCOUNT}")
    if role := params.get("RoleARN"):
        yield "iam:PassRole", role
    if action == "ecs:RegisterTaskDefinition":
        for kind in {"taskRoleArn", "executionRoleArn"} & params.keys():
            yield "iam:PassRole", params[kind]
    if action == "ecs:RunTask":
        # It hands on the tags and the roles of the task definition, which moto does not have.
        stack = params["cluster"].partition("-EcsCluster")[0]
        yield "ecs:TagResource", f"arn:aws:ecs:{region}:{ACCOUNT}:task/{params['cluster']}/id"
        for name in ("TaskRole", "ExecutionRole"):
            yield "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{stack}-{name}-id"


RESOURCES = {
    "s3": ("s3:::{Bucket}/{Key}", "s3:::{Bucket}"),
    "ecr": ("ecr:{where}:repository/{repositoryName}",),
    "ssm": ("ssm:{where}:parameter{Name}",),
    "logs": ("logs:{where}:log-group:{logGroupName}:log-stream:{logStreamName}",),
    "ecs": ("ecs:{where}:task-definition/{family}:1",),
}
"""The forms of ARNs by the members that a call has (Service Authorization Reference)."""
BY_ARN = {
    *("ResourceName", "LoadBalancerArn", "CertificateArn"),
    *("PolicyArn", "OpenIDConnectProviderArn"),
}


def resource_of(prefix, operation, params, where):
    """Return the ARN of what a call is about; "*" if IAM has no narrower one for it."""
    if prefix == "cloudformation":
        name = params.get("StackName") or params.get("ChangeSetName") or "*"
        return name if ":" in name else f"arn:aws:cloudformation:{where}:stack/{name}/id"
    named = [params[name] for name in BY_ARN & params.keys()]
    if operation == "RunTask":
        named = [params["taskDefinition"]]
    elif operation in {"DescribeTasks", "StopTask"}:
        named = params.get("tasks") or [params["task"]]
    for form in RESOURCES.get(prefix, ()):
        with contextlib.suppress(KeyError):
            named.append("arn:aws:" + form.format_map(params | {"where": where}))
    return next(iter(named), "*")


def policies_of(role, *managed):
    """Return the statements of a role of the account, and of managed policies that it has.

    moto does not attach the managed policies of a stack, so they are named.
    """
    iam, documents = boto3.client("iam"), []
    for policy in iam.list_policies(Scope="Local")["Policies"]:
        if any(f"access-{name}" in policy["PolicyName"] for name in managed):
            arn, version = policy["Arn"], policy["DefaultVersionId"]
            found = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]
            documents.append(found["Document"])
    assert len(documents) == len(managed)
    documents += [
        iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    # moto keeps the policies of a stack as text that is nearly JSON.
    read = [yaml.safe_load(each) if isinstance(each, str) else each for each in documents]
    return [statement for each in read for statement in each["Statement"]]


def not_allowed(calls, statements):
    """Return the calls that no statement allows, or that one denies."""
    return sorted(
        {
            call
            for call in calls
            if call.action not in WITHOUT_RIGHTS
            and (
                not any(matches(each, call, "Allow") for each in statements)
                or any(matches(each, call, "Deny") for each in statements)
            )
        }
    )


def matches(statement, call, effect):
    """Return whether a statement is about a call."""
    return (
        statement["Effect"] == effect
        and _any(statement["Action"], call.action)
        and _any(statement["Resource"], call.resource)
    )


def _any(patterns, text):
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(text, each) for each in patterns)
