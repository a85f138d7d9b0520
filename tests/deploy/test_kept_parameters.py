"""Parameters of the command line stay until they are taken back."""

import boto3
import pytest
from deploy.test_deploy import bucket, deploy
from poolkit_command import refused, succeeded

__all__ = ["bucket"]  # a fixture


@pytest.fixture
def network(poolkit):
    """Deploy the network, whose block is then given on the command line."""
    assert deploy(poolkit, "network").returncode == 0
    given = deploy(poolkit, "network", "--parameter", "VpcCidr=10.9.0.0/16")
    succeeded(given, "VpcCidr: 10.7.0.0/16 -> 10.9.0.0/16")


def value(name, stack="shop-dev-network"):
    (found,) = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    return {p["ParameterKey"]: p["ParameterValue"] for p in found["Parameters"]}[name]


def change(file, *pair):
    text = file.read_text()
    assert pair[0] in text
    file.write_text(text.replace(*pair))


def touch(shop):
    """Change the template, so that there is something to deploy."""
    file = shop / "infra/network.yaml"
    file.write_text(f"{file.read_text()}  More: {{Value: 1}}\n")


@pytest.mark.parametrize("target", ["network", "all"])
def test_a_later_deployment_keeps_it_and_shows_it(poolkit, shop, network, target):
    """Another change of the stack, alone or with all stacks, does not put back the file's."""
    touch(shop)
    shown = succeeded(deploy(poolkit, target), "VpcCidr = 10.9.0.0/16  (the file: 10.7.0.0/16)")
    assert "to take the file's: --reset-parameter NAME" in shown
    assert value("VpcCidr") == "10.9.0.0/16"
    assert "VpcCidr = 10.9.0.0/16" in deploy(poolkit, target, "--plan-only").stdout


def test_status_names_it(poolkit, network):
    """As data, for scripts."""
    shown = succeeded(poolkit("status", "network", "-e", "dev", "--json"))
    assert '"kept_parameters": [\n        "VpcCidr"' in shown


@pytest.mark.parametrize(("target", "name"), [("network", "VpcCidr"), ("all", "network.VpcCidr")])
def test_it_is_taken_back(poolkit, network, target, name):
    """The file's value is deployed, and stays."""
    back = deploy(poolkit, target, "--reset-parameter", name)
    succeeded(back, "VpcCidr: 10.9.0.0/16 -> 10.7.0.0/16")
    assert value("VpcCidr") == "10.7.0.0/16"
    assert "kept from" not in deploy(poolkit, target).stdout


def test_a_failed_deployment_changes_nothing_of_it(poolkit, shop, network):
    """What is kept is stored in the stack, and rolled back with it."""
    good = (shop / "infra/network.yaml").read_text()
    change(shop / "infra/network.yaml", "Outputs:", "  B: {Type: AWS::S3::Bucket, Properties: "
           "{BucketName: x}}\nOutputs:")  # fmt: skip
    assert deploy(poolkit, "network", "--reset-parameter", "VpcCidr").returncode == 1
    (shop / "infra/network.yaml").write_text(good)
    touch(shop)
    succeeded(deploy(poolkit, "network"), "VpcCidr = 10.9.0.0/16  (the file:")


def test_a_changed_file_is_refused(poolkit, shop, network):
    """Either value may be meant; both ways on are named, and each of them works."""
    change(shop / "infra/environments/dev.toml", "10.7.0.0/16", "10.8.0.0/16")
    answer = deploy(poolkit, "network")
    refused(
        answer,
        "VpcCidr was '10.7.0.0/16' when 10.9.0.0/16 was given on the command line, and is "
        "'10.8.0.0/16' now",
        "--reset-parameter network.VpcCidr",
        "--parameter network.VpcCidr=10.9.0.0/16",
        lines=1,
    )
    kept = ("--parameter", "network.VpcCidr=10.9.0.0/16")
    assert "nothing to change" in deploy(poolkit, "network", *kept).stdout
    assert deploy(poolkit, "network", "--reset-parameter", "network.VpcCidr").returncode == 0
    assert value("VpcCidr") == "10.8.0.0/16"


def test_a_value_that_is_the_files_is_not_kept(poolkit, shop):
    """Then the file's counts, also when it changes."""
    same = ("--parameter", "VpcCidr=10.7.0.0/16")
    assert deploy(poolkit, "network", *same).returncode == 0
    change(shop / "infra/environments/dev.toml", "10.7.0.0/16", "10.8.0.0/16")
    assert deploy(poolkit, "network").returncode == 0
    assert value("VpcCidr") == "10.8.0.0/16"


def test_a_secret_parameter_is_kept_and_not_shown(poolkit, shop):
    """CloudFormation does not return it, and uses the value that it has."""
    assert deploy(poolkit, "network").returncode == 0
    secret = ("--parameter", "Password=kept-and-secret")
    assert deploy(poolkit, "database", *secret).returncode == 0
    change(shop / "infra/database.yaml", "db.internal", "db2.internal")
    again = deploy(poolkit, "database")
    shown = succeeded(again, "Password = ****", "(the file: not shown)")
    assert "secret" not in shown.replace("secretsmanager", "")
    summary = boto3.client("cloudformation").get_template_summary(StackName="shop-dev-database")
    assert "kept-and-secret" not in str(summary)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--reset-parameter", "Vpc"), "--reset-parameter network.Vpc: the template does not"),
        (
            ("--reset-parameter", "web.VpcId"),
            "--reset-parameter web.VpcId: this command deploys network, not web",
        ),
        (
            ("--reset-parameter", "VpcCidr", "--parameter", "VpcCidr=10.1.0.0/16"),
            "network.VpcCidr: pass --parameter or --reset-parameter, not both",
        ),
    ],
)
def test_a_mistake_is_one_line(poolkit, words, message):
    """Nothing is deployed."""
    refused(deploy(poolkit, "network", *words), message, lines=1)


def test_with_all_the_template_is_named(poolkit):
    """A parameter's name may occur in several templates."""
    answer = deploy(poolkit, "all", "--reset-parameter", "VpcCidr")
    refused(answer, "--reset-parameter VpcCidr: name its template: TEMPLATE.VpcCidr", lines=1)


METADATA = """\
Metadata:   # of the author
    AWS::CloudFormation::Interface:
        ParameterGroups: []

"""


def test_the_template_keeps_its_own_metadata(poolkit, shop):
    """What poolkit stores is a key beside the author's, indented as those are."""
    file = shop / "infra/network.yaml"
    file.write_text(METADATA + file.read_text())
    given = deploy(poolkit, "network", "--parameter", "VpcCidr=10.9.0.0/16")
    assert given.returncode == 0, given.stderr
    summary = boto3.client("cloudformation").get_template_summary(StackName="shop-dev-network")
    assert '"AWS::CloudFormation::Interface"' in summary["Metadata"]
    assert '"kept": {"VpcCidr": "10.7.0.0/16"}' in summary["Metadata"]
    file.write_text("Metadata: {A: 1}\n" + file.read_text().removeprefix(METADATA))
    refused(deploy(poolkit, "network"), "network.yaml: Metadata is on one line", lines=1)
