"""The rules of what an account and an environment are prepared with."""

import fnmatch
import functools
import json
import re

import pytest
from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER
from infra.deployed import ENVIRONMENTS, INFRA, Deployment, deployment_of
from infra.test_network_rules import Evaluation, template
from infra.test_policies import as_list

from poolkit.budget.command import compute_budget
from poolkit.budget.model import Options
from poolkit.deploy.aws import INLINE_LIMIT
from poolkit.deploy.environment import ALL, PREPARED, StackEnvironment

ROOT = INFRA.parent
GITHUB = {"access": {"GitHubRepository": "octo/shop@7", "GitHubEnvironment": "prod"}}
SUBJECT = "token.actions.githubusercontent.com:sub"
AUDIENCE = "token.actions.githubusercontent.com:aud"


@functools.cache
def with_github():
    return Deployment("prod", GITHUB)


def text_of(value):
    """Give a value as text; what only AWS knows is a word in angle brackets."""
    if isinstance(value, str):
        return value
    parts = getattr(value, "parts", None)
    return "".join(map(text_of, parts)) if parts is not None else f"<{value}>"


def statements_of(policy):
    return policy.get("PolicyDocument", "Statement")


# -- environments ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_is_prepared_apart(name):
    """`all` neither deploys nor removes what `poolkit bootstrap` made."""
    environment = StackEnvironment.read(ROOT, name)
    assert {*PREPARED} <= environment.tables.keys()
    assert not {*PREPARED} & {*environment.chosen(ALL), *environment.removed_with_all()}
    assert environment.tables["access"]["StackFamily"] == environment.family
    assert environment.stack_name("bootstrap") == "poolkit-bootstrap"


def test_the_account_is_described_alike():
    """A second environment of an account changes nothing of the first stack."""
    tables = [StackEnvironment.read(ROOT, name).tables["bootstrap"] for name in ENVIRONMENTS]
    assert all(table == tables[0] for table in tables)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_template_with_alarms_has_a_topic(name):
    """Each of them takes one, and each environment gives it that of its access stack."""
    environment = StackEnvironment.read(ROOT, name)
    with_alarms = {
        each.stack.name for each in deployment_of(name).of_type("AWS::CloudWatch::Alarm")
    }
    assert with_alarms
    for stack in with_alarms:
        assert environment.tables[stack]["AlarmTopicArn"] == "{access.AlarmTopicArn}", stack


def test_production_is_marked():
    """Only a production environment is refused without a topic."""
    marked = {name for name in ENVIRONMENTS if StackEnvironment.read(ROOT, name).production}
    assert marked == {"prod", "high_traffic"}


@pytest.mark.parametrize("name", PREPARED)
def test_what_is_deployed_first_needs_no_bucket(name):
    """The templates are small enough for a request."""
    assert len((INFRA / f"{name}.yaml").read_bytes()) <= INLINE_LIMIT


# -- packages and images --------------------------------------------------------------------


def test_buckets_are_private_and_need_tls():
    """Every bucket refuses public access, and requests without TLS."""
    deployment = with_github()
    policies = {
        policy.get("Bucket").resource: statements_of(policy)
        for policy in deployment.of_type("AWS::S3::BucketPolicy")
    }
    for bucket in deployment.of_type("AWS::S3::Bucket"):
        assert all(bucket.get("PublicAccessBlockConfiguration").values())
        denied = [
            each
            for each in policies[bucket.stack.name, bucket.logical_id]
            if each["Effect"] == "Deny"
            and each["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        ]
        assert denied


def test_packages_stay():
    """A rollback reads the package of the version before, however old it is."""
    bucket = with_github().resource("bootstrap", "ArtifactBucket")
    rules = bucket.get("LifecycleConfiguration", "Rules")
    assert [rule["Prefix"] for rule in rules if "ExpirationInDays" in rule] == ["templates/"]


def repositories():
    return with_github().of_type("AWS::ECR::Repository")


def test_each_image_has_a_repository():
    """Every image that an environment deploys is one of the account's."""
    uris = {
        value
        for name in ENVIRONMENTS
        for table in StackEnvironment.read(ROOT, name).tables.values()
        for key, value in table.items()
        if key == "ImageUri"
    }
    names = {re.fullmatch(r"\{bootstrap\.(\w+)Uri\}:latest", uri)[1] for uri in uris}
    assert names <= {each.logical_id for each in repositories()}


def test_a_tag_does_not_move():
    """Only "latest" may; each image is scanned."""
    for each in repositories():
        assert each.get("ImageTagMutability") == "IMMUTABLE_WITH_EXCLUSION"
        (excluded,) = each.get("ImageTagMutabilityExclusionFilters")
        assert excluded["ImageTagMutabilityExclusionFilterValue"] == "latest"
        assert each.get("ImageScanningConfiguration", "ScanOnPush") is True


def test_a_deployed_image_does_not_expire():
    """Nothing expires by its age or with a tag; of those without one, the newest stay."""
    texts = [
        each["Properties"]["LifecyclePolicy"]["LifecyclePolicyText"]["Fn::Sub"]
        for each in template("bootstrap")["Resources"].values()
        if each["Type"] == "AWS::ECR::Repository"
    ]
    assert len(texts) == len(repositories())
    for text in texts:
        (rule,) = json.loads(text.replace("${UntaggedImages}", "100"))["rules"]
        assert rule["selection"]["tagStatus"] == "untagged"
        assert rule["selection"]["countType"] == "imageCountMoreThan"


# -- alarms ---------------------------------------------------------------------------------


def test_cloudwatch_may_publish_to_every_alarm_topic():
    """Its policy and the policy of its key allow it; the key is not one of AWS's own."""
    deployment = with_github()
    topics = deployment.of_type("AWS::SNS::Topic")
    assert topics
    key_policies = [each.get("KeyPolicy") for each in deployment.of_type("AWS::KMS::Key")]
    for topic in topics:
        key = topic.get("KmsMasterKeyId")
        assert key.resource == ("bootstrap", "AlarmKey"), "alias/aws/sns refuses CloudWatch"
        allowed = [
            statement
            for policy in deployment.of_type("AWS::SNS::TopicPolicy")
            for statement in statements_of(policy)
            if statement["Effect"] == "Allow"
        ]
        for statement in allowed:
            assert statement["Condition"]["StringEquals"]["aws:SourceAccount"]
        assert "cloudwatch.amazonaws.com" in allowed[0]["Principal"]["Service"]
    (policy,) = key_policies
    (uses,) = [
        each
        for each in policy["Statement"]
        if each["Principal"].get("Service") == "cloudwatch.amazonaws.com"
    ]
    assert set(uses["Action"]) == {"kms:Decrypt", "kms:GenerateDataKey*"}


# -- GitHub's workflows ---------------------------------------------------------------------


def test_a_role_of_github_is_for_one_subject():
    """Audience and subject are compared exactly, without a wildcard."""
    wanted = {
        "DeployRole": "repo:octo/shop@7:environment:prod",
        "PlanRole": "repo:octo/shop@7:pull_request",
    }
    deployment = with_github()
    for name, subject in wanted.items():
        (statement,) = deployment.resource("access", name).get(
            "AssumeRolePolicyDocument", "Statement"
        )
        assert statement["Action"] == "sts:AssumeRoleWithWebIdentity"
        assert statement["Condition"].keys() == {"StringEquals"}
        conditions = statement["Condition"]["StringEquals"]
        assert text_of(conditions[AUDIENCE]) == "sts.amazonaws.com"
        assert text_of(conditions[SUBJECT]) == subject


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_without_a_repository_there_is_no_role(name):
    """An environment trusts only the workflows that its file names."""
    deployment = deployment_of(name)
    roles = {
        each.logical_id
        for each in deployment.of_type("AWS::IAM::Role")
        if each.stack.name == "access"
    }
    assert roles == {"ExecutionRole"}


@pytest.mark.parametrize(
    ("repository", "is_allowed"),
    [
        ("", True),
        ("octo-org/shop.api", True),
        ("octo-org@123456/shop@456789", True),
        ("octo-org", False),
        ("octo-org/*", False),
        ("*/shop", False),
        ("octo-org/shop:ref:refs/heads/main", False),
        ("octo-org/shop/more", False),
        ("octo-org@me/shop", False),
    ],
)
def test_a_repository_is_written_as_github_writes_it(repository, is_allowed):
    """By its name, or with the numbers that newer repositories have in their tokens."""
    pattern = template("access")["Parameters"]["GitHubRepository"]["AllowedPattern"]
    assert bool(re.fullmatch(pattern, repository)) is is_allowed


def test_githubs_provider_has_no_thumbprint():
    """IAM verifies GitHub with its own authorities; a pinned thumbprint would only grow old."""
    provider = template("bootstrap")["Resources"]["GitHubIdentityProvider"]["Properties"]
    assert "ThumbprintList" not in provider
    assert provider["ClientIdList"] == ["sts.amazonaws.com"]


@pytest.mark.parametrize("choice", ["create", "exists", "none"])
def test_an_account_has_one_provider(choice):
    """It is made once, and roles find it either way."""
    stack = Evaluation("bootstrap", GitHubProvider=choice)
    assert bool(stack.of_type("AWS::IAM::OIDCProvider")) is (choice == "create")
    found = stack.of(stack.template["Outputs"]["GitHubProviderArn"]["Value"])
    assert (found == "") is (choice == "none")


def test_the_role_of_a_pipeline_is_no_client():
    """It may run the migration, which stays one connection of the budget."""
    options = Options(paths=(INFRA,), environment="prod", overrides=GITHUB)
    assert compute_budget(options).only.verdict == "fits"


# -- rights ---------------------------------------------------------------------------------


def role_statements(role):
    return [
        statement
        for policy in with_github().resource("access", role).get("Policies")
        for statement in policy["PolicyDocument"]["Statement"]
    ]


def covers(patterns, action):
    return any(fnmatch.fnmatchcase(action.lower(), each.lower()) for each in patterns)


NEVER_USED = {
    *("autoscaling", "cognito-idp", "elasticfilesystem", "firehose", "s3files", "s3tables"),
    *("vpc-lattice", "vpce"),
}
"""Services of properties that no template has."""

NEVER_ASKED = {
    "codedeploy:RegisterOnPremisesInstance",
    *("iam:AttachGroupPolicy", "iam:AttachUserPolicy"),
    *("iam:DetachGroupPolicy", "iam:DetachUserPolicy"),
    *("iam:DeleteRolePermissionsBoundary", "iam:PutRolePermissionsBoundary"),
    *("kms:RetireGrant", "s3:GetObject", "s3:getObject", "s3:GetObjectVersion"),
    *("s3:DeleteObject", "s3:PutObjectAcl", "s3:REST.PUT.OBJECT", "s3:ListAllMyBuckets"),
    *("ec2:AssignPrivateNatGatewayAddress", "ec2:UnassignPrivateNatGatewayAddress"),
    *("ec2:AssociateNatGatewayAddress", "ec2:DisassociateNatGatewayAddress"),
}
"""Actions for properties that no template has, and those on objects."""


def needed_by_cloudformation():
    """Give what each type's handlers need, as the registry of CloudFormation describes it."""
    for name in (*ENVIRONMENTS, "aurora", "iam"):
        for stack in deployment_of(name).stacks.values():
            if stack.name in PREPARED:
                continue
            for resource in stack.resources.values():
                yield resource.type


def test_cloudformation_may_do_what_the_templates_need():
    """The role has every permission that the handlers of the templates' types name."""
    patterns = {
        action
        for statement in role_statements("ExecutionRole")
        if statement["Effect"] == "Allow"
        for action in as_list(statement["Action"])
    }
    lacking, types = set(), {each for each in needed_by_cloudformation() if "::" in each}
    for kind in types:
        try:
            schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("eu-central-1", kind).schema
        except Exception as error:  # noqa: BLE001 - cfn-lint has an exception of its own
            assert "Serverless" in kind, error  # noqa: PT017
            continue
        # Stacks have tags, which CloudFormation hands on to what can have them.
        parts = [schema.get("tagging", {})] + [
            schema.get("handlers", {}).get(handler, {})
            for handler in ("create", "read", "update", "delete")
        ]
        for action in {each for part in parts for each in part.get("permissions", ())}:
            if action.partition(":")[0] in NEVER_USED or action in NEVER_ASKED:
                continue
            if not covers(patterns, action):
                lacking.add((kind, action))
    assert len(types) > 40
    assert sorted(lacking) == []


def test_rights_that_reach_further_are_narrow():
    """Roles, policies and parameters are the environment's; a key serves AWS only."""
    family = "poolkit-prod"
    for statement in role_statements("ExecutionRole"):
        if statement["Effect"] == "Deny" or statement["Sid"].startswith(("Read", "List")):
            continue
        actions = as_list(statement["Action"])
        if any(action.startswith(("iam:", "ssm:", "s3:Put", "s3:*")) for action in actions):
            for resource in as_list(statement["Resource"]):
                text = text_of(resource)
                assert family in text or "/aws-service-role/" in text, statement["Sid"]


def test_a_deployment_cannot_widen_its_own_rights():
    """Its roles are denied to CloudFormation, and its stack to the deploy role."""
    denied = {
        text_of(each["Resource"]).rpartition(":")[2]: {*each["Action"]}
        for each in role_statements("ExecutionRole")
        if each["Effect"] == "Deny"
    }
    assert denied.keys() == {"role/poolkit-prod-access-*", "policy/poolkit-prod-access-*"}
    for kind, actions in denied.items():
        allowed = {
            action
            for each in role_statements("ExecutionRole")
            if each["Effect"] == "Allow"
            and any(
                text_of(r).endswith(f":{kind.partition('/')[0]}/poolkit-prod-*")
                for r in as_list(each["Resource"])
            )
            for action in as_list(each["Action"])
        }
        reading = ("Get", "List", "Tag", "Untag", "UpdateRoleDescription")
        changing = {each for each in allowed if not each.partition(":")[2].startswith(reading)}
        assert changing - actions == set()
    policy = with_github().resource("access", "DeployPolicy")
    (denied,) = [each for each in statements_of(policy) if each["Effect"] == "Deny"]
    assert text_of(denied["Resource"]).endswith(":stack/poolkit-prod-access/*")
    assert "cloudformation:ExecuteChangeSet" in denied["Action"]


def test_a_plan_changes_nothing():
    """The rights to plan write neither stacks nor objects nor images."""
    actions = {
        action
        for statement in statements_of(with_github().resource("access", "PlanPolicy"))
        for action in as_list(statement["Action"])
    }
    writing = ("Delete", "Execute", "Put", "Update", "Run", "Register", "Upload", "Modify")
    verbs = {action for action in actions if action.partition(":")[2].startswith(writing)}
    assert verbs == {"cloudformation:DeleteChangeSet"}
