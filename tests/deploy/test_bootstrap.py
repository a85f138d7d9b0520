"""`poolkit bootstrap` with this project's own templates, against moto's server."""

import re
import shutil

import boto3
import pytest
from deploy.test_deploy import statuses
from poolkit_command import ROOT

ACCOUNT = "123456789012"
GITHUB = "token.actions.githubusercontent.com"

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


def test_environments_share_the_first_stack(poolkit, project):
    """A second environment adds its own stack, and leaves the shared one as it is."""
    bootstrap(poolkit, "dev")
    assert "poolkit-bootstrap: nothing to change" in bootstrap(poolkit, "high_traffic")
    assert set(statuses()) == {
        *("poolkit-bootstrap", "poolkit-dev-access", "poolkit-high-traffic-access")
    }
