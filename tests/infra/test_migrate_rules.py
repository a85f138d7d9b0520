"""The task of the migrations: its image, its login, its rights, its time to end."""

import pytest
from infra.deployed import ENVIRONMENTS, INFRA, Deployment, deployment_of
from infra.test_policies import as_list

from poolkit.budget.read.values import Reference, references
from poolkit.deploy.environment import StackEnvironment, Template
from poolkit.deploy.migrate.command import CODE, POOLERS
from poolkit.deploy.migrate.stack import TEMPLATE

OWNER = {("database", "Instance"), ("database", "Cluster")}
"""The resources whose secret is the owner's."""
APPLICATION = ("database", "ApplicationSecret")
PULLED_BY_ECS = "ecr:BatchGetImage"


def definition(deployment):
    (found,) = (
        each
        for each in deployment.of_type("AWS::ECS::TaskDefinition")
        if each.stack.name == TEMPLATE
    )
    return found


def rights(deployment, role):
    """Give each action of a role of the stack with the resources that it is for."""
    for policy in deployment.resource(TEMPLATE, role).get("Policies"):
        for statement in policy["PolicyDocument"]["Statement"]:
            if isinstance(statement, dict):
                for action in as_list(statement["Action"]):
                    yield action, as_list(statement["Resource"])


def secrets_of(value):
    """Give the resources that a value leads to."""
    return {each.resource for each in references(value)}


def test_the_image_is_a_parameter_of_its_own(any_deployment):
    """So the schema is upgraded with the next image while the services run the one before."""
    table = any_deployment.tables[TEMPLATE]
    assert "ImageUri" in table
    template = Template.read(TEMPLATE, INFRA / f"{TEMPLATE}.yaml")
    (container,) = template.section("Resources")["TaskDefinition"]["Properties"][
        "ContainerDefinitions"
    ]
    assert container["Image"] == {"Ref": "ImageUri"}
    assert not any(
        "{migrate.ImageUri}" in value.value
        for other in any_deployment.tables.values()
        for value in other.values()
        if isinstance(value.value, str)
    )


def test_only_the_migrations_get_the_owners_secret(any_deployment):
    """Everything else logs in as the application's role."""
    for each in any_deployment.deployables():
        if "DATABASE_SECRET_ARN" in each.variables:
            found = secrets_of(each.variables["DATABASE_SECRET_ARN"])
            wanted = OWNER if each.template == TEMPLATE else {APPLICATION}
            assert found & wanted, each.name
            assert found <= wanted, each.name


def test_only_the_migrations_may_read_the_owners_secret(any_deployment):
    """No other role has a right to it."""
    readers = set()
    for role in any_deployment.of_type("AWS::IAM::Role"):
        for policy in role.get("Policies") or ():
            for statement in policy["PolicyDocument"]["Statement"]:
                if not isinstance(statement, dict):
                    continue
                is_secret = any(
                    action.startswith("secretsmanager:") for action in as_list(statement["Action"])
                )
                if is_secret and secrets_of(statement["Resource"]) & OWNER:
                    readers.add((role.stack.name, role.logical_id))
    assert readers == {(TEMPLATE, "TaskRole")}


def test_the_connection_is_direct(any_deployment):
    """A pooler has the application's login only, and an advisory lock would pin or be lost."""
    variables = any_deployment.container("migration").variables
    assert {each.resource for each in references(variables["DATABASE_HOST"])} <= OWNER
    assert variables["POOLKIT_TARGET"] == "script"
    assert variables["DATABASE_SSLMODE"] == "verify-full"


def test_the_task_is_no_service(any_deployment):
    """It runs when it is started, and never twice because one has ended."""
    kinds = {each.type for each in any_deployment.stacks[TEMPLATE].resources.values()}
    assert not kinds & {
        *("AWS::ECS::Service", "AWS::ApplicationAutoScaling::ScalableTarget"),
        *("AWS::Events::Rule", "AWS::Scheduler::Schedule"),
    }


def test_its_log_is_in_a_group_of_the_stack(any_deployment):
    """`poolkit migrate` shows it, so it must be there and must end some day."""
    container = any_deployment.container("migration").definition
    options = container["LogConfiguration"]["Options"]
    assert options["awslogs-group"] == Reference(TEMPLATE, "LogGroup")
    assert options["awslogs-stream-prefix"]
    group = any_deployment.resource(TEMPLATE, "LogGroup")
    assert int(group.get("RetentionInDays")) > 0


def test_a_stopped_migration_has_the_longest_time(any_deployment):
    """Fargate allows two minutes, in which a transaction ends or is rolled back."""
    assert any_deployment.container("migration").definition["StopTimeout"] == 120


@pytest.mark.parametrize(("given", "wanted"), [("arm64", "ARM64"), ("x86_64", "X86_64")])
def test_the_instruction_set_is_a_parameter(given, wanted):
    """As of every image."""
    found = Deployment("prod", {TEMPLATE: {"Architecture": given}})
    assert definition(found).get("RuntimePlatform", "CpuArchitecture") == wanted


def test_the_roles_have_these_rights_and_no_others(any_deployment):
    """The task reads two secrets and writes one; ECS pulls two images and writes one log."""
    task = {
        (action, frozenset().union(*map(secrets_of, r))) for action, r in _secret(any_deployment)
    }
    actions = {action for action, _ in rights(any_deployment, "TaskRole")}
    assert actions <= {
        *("secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"),
        *("secretsmanager:PutSecretValue", "secretsmanager:UpdateSecretVersionStage"),
        *("kms:Decrypt", "kms:GenerateDataKey"),
    }
    written = {resources for action, resources in task if "Put" in action or "Update" in action}
    assert written == {frozenset({APPLICATION})}
    pulled = {
        str(resource)
        for action, resources in rights(any_deployment, "ExecutionRole")
        if action == PULLED_BY_ECS
        for resource in resources
    }
    assert len(pulled) == 2
    assert "*" not in pulled


def _secret(deployment):
    return [
        (action, resources)
        for action, resources in rights(deployment, "TaskRole")
        if action.startswith("secretsmanager:")
    ]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_what_logs_in_as_the_role_comes_after_it(environment):
    """Database, then migrations and role, then poolers, then services."""
    order = StackEnvironment.read(INFRA.parent, environment).every()
    assert order.index("network") < order.index("database") < order.index(TEMPLATE)
    later = [name for name in order if name in (*POOLERS, *CODE)]
    assert later
    assert order.index(TEMPLATE) < min(map(order.index, later))
    poolers = [order.index(name) for name in later if name in POOLERS]
    code = [order.index(name) for name in later if name in CODE]
    assert max(poolers, default=0) < min(code)


def test_every_template_with_the_applications_login_is_known():
    """One that is not listed would be created before there is a role."""
    for environment in ENVIRONMENTS:
        tables = StackEnvironment.read(INFRA.parent, environment).tables
        found = {
            name
            for name, table in tables.items()
            if "{database.ApplicationSecretArn}" in table.get("DatabaseSecretArn", "")
        }
        # A load test only watches, and is started by its own name.
        assert found - {"loadtest"} <= {*POOLERS, *CODE}


@pytest.mark.parametrize("file", sorted(INFRA.glob("*.yaml")), ids=lambda file: file.stem)
def test_tokens_need_a_user_and_a_resource(file):
    """CloudFormation refuses one without the other, before a task fails to log in."""
    if file.name == "compose.yaml":
        return
    template = Template.read(file.stem, file)
    if "DatabaseAuthentication" not in template.parameters:
        return
    (rule,) = (
        each
        for each in template.section("Rules").values()
        if each["RuleCondition"] == {"Fn::Equals": [{"Ref": "DatabaseAuthentication"}, "iam"]}
    )
    text = str(rule["Assertions"])
    assert "DatabaseUser" in text
    assert "DatabaseResourceId" in text


def test_poolers_have_the_timeout_of_the_role_or_their_own():
    """RDS Proxy cannot set one, so the role has that of the functions."""
    found = deployment_of("high_traffic")
    role = int(found.container("migration").variables["APPLICATION_STATEMENT_TIMEOUT"])
    assert role == found.functions()[0].settings.preset.statement_timeout
