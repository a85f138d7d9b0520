"""`poolkit bootstrap` with this project's own templates, against moto's server."""

import re
import shutil

import boto3
import pytest
from deploy.test_deploy import statuses
from infra.deployed import ENVIRONMENTS, deployment_of
from poolkit_command import ROOT

from poolkit.deploy.bootstrap import SERVICES

ACCOUNT = "123456789012"
GITHUB = "token.actions.githubusercontent.com"
ARN = f"arn:aws:iam::{ACCOUNT}:server-certificate/articles"
CERTIFICATE = ("--parameter", f"web.CertificateArn={ARN}")

# Of the types that moto does not know, it says so and makes nothing.
pytestmark = pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto")


@pytest.fixture
def project(shop):
    """Put this project's templates into a folder."""
    shutil.rmtree(shop / "infra")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "infra", shop / "infra", ignore=ignored)
    return shop


def change(project, environment, **values):
    file = project / f"infra/environments/{environment}.toml"
    text = file.read_text()
    for name, value in values.items():
        text, count = re.subn(rf'^{name} = ".*?"', f'{name} = "{value}"', text, flags=re.MULTILINE)
        assert count, name
    file.write_text(text)


def outputs(stack):
    (found,) = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    return {each["OutputKey"]: each["OutputValue"] for each in found.get("Outputs", ())}


def bootstrap(poolkit, environment="dev", *words):
    answer = poolkit("bootstrap", "-e", environment, *(words or ("--yes",)))
    assert answer.returncode == 0, answer.stdout[-3000:] + answer.stderr
    return answer.stdout


def test_a_second_run_changes_nothing(poolkit, project):
    """Both stacks are made once, and the next steps are printed each time."""
    made = bootstrap(poolkit)
    assert statuses() == dict.fromkeys(
        ("poolkit-bootstrap", "poolkit-dev-access"), "CREATE_COMPLETE"
    )
    again = bootstrap(poolkit)
    assert again.count("nothing to change") == 2
    assert made.partition("\nNext:")[2] == again.partition("\nNext:")[2]


def test_an_empty_account_gets_the_roles_of_services(poolkit, project):
    """Without its role, ECS refuses the first cluster of an account; the roles are made once."""
    planned = poolkit("bootstrap", "-e", "dev", "--plan-only")
    assert planned.returncode == 0, planned.stderr
    of_services = {"PathPrefix": "/aws-service-role/"}
    assert boto3.client("iam").list_roles(**of_services)["Roles"] == []
    assert bootstrap(poolkit).count("the account's role of") == len(SERVICES)
    roles = boto3.client("iam").list_roles(**of_services)["Roles"]
    assert {each["Path"].split("/")[2] for each in roles} == set(SERVICES)
    assert "the account's role of" not in bootstrap(poolkit)


def test_every_service_of_the_templates_has_its_role():
    """Services of types whose handlers create a service-linked role (IAM User Guide)."""
    types = {
        each.type
        for name in ENVIRONMENTS
        for stack in deployment_of(name).stacks.values()
        for each in stack.resources.values()
    }
    needed = {
        "AWS::ECS::Cluster": "ecs.amazonaws.com",
        "AWS::ApplicationAutoScaling::ScalableTarget": "ecs.application-autoscaling.amazonaws.com",
        "AWS::ElasticLoadBalancingV2::LoadBalancer": "elasticloadbalancing.amazonaws.com",
        "AWS::RDS::DBInstance": "rds.amazonaws.com",
    }
    assert needed.keys() <= types
    assert set(needed.values()) == set(SERVICES)


def test_environments_share_the_first_stack(poolkit, project):
    """A second environment adds its own stack, and leaves the shared one as it is."""
    bootstrap(poolkit, "dev")
    assert "poolkit-bootstrap: nothing to change" in bootstrap(poolkit, "high_traffic")
    assert set(statuses()) == {
        *("poolkit-bootstrap", "poolkit-dev-access", "poolkit-high-traffic-access")
    }


def test_a_provider_that_exists_is_used(poolkit, project):
    """An account has one for GitHub at most; the stack then makes none."""
    boto3.client("iam").create_open_id_connect_provider(Url=f"https://{GITHUB}")
    bootstrap(poolkit)
    (stack,) = boto3.client("cloudformation").describe_stacks(StackName="poolkit-bootstrap")[
        "Stacks"
    ]
    given = {each["ParameterKey"]: each["ParameterValue"] for each in stack["Parameters"]}
    assert given["GitHubProvider"] == "exists"
    assert "poolkit-bootstrap: nothing to change" in bootstrap(poolkit)


def test_a_deployment_before_it_names_the_command(poolkit, project):
    """Nothing is deployed, not even the network, which needs nothing of it."""
    answer = poolkit(
        "deploy", "all", "-e", "dev", "--yes", "--no-lint", "--no-budget", *CERTIFICATE
    )
    assert answer.returncode == 2
    assert "poolkit bootstrap -e dev" in answer.stderr
    assert statuses() == {}


def test_production_without_a_topic_is_refused(poolkit, project):
    """The message names the environment, the template and the parameter."""
    bootstrap(poolkit, "prod")
    change(project, "prod", AlarmTopicArn="")
    answer = poolkit("deploy", "database", "-e", "prod", "--yes", "--no-lint", "--no-budget")
    assert answer.returncode == 2
    for word in ("prod", "database", "AlarmTopicArn"):
        assert word in answer.stderr


def test_the_shared_stack_stays_while_an_environment_needs_it(poolkit, project):
    """It can be removed after the stacks of all environments."""
    bootstrap(poolkit, "dev")
    bootstrap(poolkit, "staging")
    words = ("destroy", "bootstrap", "-e", "dev", "--yes-delete", "poolkit-bootstrap")
    assert poolkit(*words).returncode == 2
    for environment in ("dev", "staging"):
        name = f"poolkit-{environment}-access"
        gone = poolkit("destroy", "access", "-e", environment, "--yes-delete", name)
        assert gone.returncode == 0, gone.stderr
        assert (poolkit(*words).returncode == 2) is (environment == "dev")
    assert statuses() == {}


@pytest.mark.parametrize(
    ("name", "value"), [("StackFamily", "poolkit-prod"), ("NamePrefix", "shop")]
)
def test_roles_for_other_stacks_are_refused(poolkit, project, name, value):
    """A role is for the stacks of its environment."""
    change(project, "dev", **{name: value})
    answer = poolkit("bootstrap", "-e", "dev", "--yes")
    assert answer.returncode == 2
    assert name in answer.stderr
    assert statuses() == {}


def test_a_name_that_another_one_begins_with_is_refused(poolkit, project):
    """The roles for poolkit-dev-* would reach the stacks of dev_two."""
    file = project / "infra/environments/dev.toml"
    file.with_name("dev_two.toml").write_text(file.read_text())
    answer = poolkit("bootstrap", "-e", "dev", "--yes")
    assert answer.returncode == 2
    assert "poolkit-dev-two" in answer.stderr
