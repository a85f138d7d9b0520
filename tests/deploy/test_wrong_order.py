"""Commands in the wrong order, or with the wrong option: what is changed, and what the message names."""

import json

import pytest
from deploy.test_deploy import deploy, statuses
from poolkit_command import refused, succeeded

from poolkit.deploy.statuses import STATUSES, deploy_command, next_step

DEV = "infra/environments/dev.toml"


def test_a_refusal_after_a_change_is_no_refusal(poolkit, shop):
    """The exit status says that something was changed, and the message what."""
    file = shop / DEV
    file.write_text(file.read_text().replace('[web]\nVpcId = "{network.VpcId}"', OTHER_OUTPUT))
    answer = deploy(poolkit, "all")
    assert answer.returncode == 1
    assert "has no such output" in answer.stderr
    assert "changed before that: shop-dev-network" in answer.stderr
    assert statuses() == {"shop-dev-network": "CREATE_COMPLETE"}
    refused(deploy(poolkit, "web"), "has no such output")


OTHER_OUTPUT = '[web]\nVpcId = "{network.Nope}"'


@pytest.mark.pure
@pytest.mark.parametrize("status", STATUSES)
def test_what_bootstrap_deploys_is_not_deployed_by_another_command(status):
    """`poolkit bootstrap` finds out what `poolkit deploy bootstrap` would have to be given."""
    assert deploy_command("access --environment dev") == "poolkit bootstrap --environment dev"
    assert not next_step(status, "bootstrap --environment dev").startswith("poolkit deploy") or (
        "--rollback" in next_step(status, "bootstrap --environment dev")
    )


def test_the_status_of_a_stack_is_that_of_the_environments_that_have_it(poolkit, shop):
    """Another one is not an error; a name that none has is."""
    file = shop / DEV
    file.write_text(f"{file.read_text()}\n[extra]\n")
    found = json.loads(succeeded(poolkit("status", "extra", "--json")))
    assert [each["stack"] for each in found["stacks"]] == ["shop-dev-extra"]
    refused(poolkit("status", "exta"), "has no table [exta]")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--image", "x"), "the command line: network.ImageUri is no parameter that"),
        (("--parameter", "VpcCidr={web.Cidr}"), "refers to an output, {web.Cidr}, which only"),
    ],
)
def test_a_message_names_the_command_line_where_that_is_wrong(poolkit, words, message):
    """And not the file, which has nothing to repair."""
    refused(deploy(poolkit, "network", *words), message, lines=1)


def test_an_environment_that_does_not_exist_names_those_that_do(poolkit):
    """A typo is seen at once."""
    refused(poolkit("status", "-e", "dve"), "dve.toml; there is dev, prod", lines=1)
