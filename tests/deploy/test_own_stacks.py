"""This project's own environments and templates, deployed to moto's server and removed."""

import shutil

import boto3
import pytest
from deploy.conftest import ROOT
from deploy.test_deploy import deploy, statuses
from moto.cloudformation import parsing

from poolkit.deploy.environment import StackEnvironment

ENVIRONMENTS = sorted(file.stem for file in ROOT.glob("infra/environments/*.toml"))
ACCOUNT = "123456789012"
MOTO_CANNOT_MAKE = {
    "AWS::IAM::ManagedPolicy",
    "AWS::Lambda::EventSourceMapping",
    "AWS::Lambda::Permission",
    "AWS::RDS::DBInstance",
}
"""Types of which moto has a model that fails on what these templates say."""

MOTO_CANNOT_REMOVE = {
    "AWS::EC2::VPC",
}
"""Types whose removal it refuses, because it removes in no order."""

CERTIFICATE = f"arn:aws:iam::{ACCOUNT}:server-certificate/articles"


@pytest.fixture
def project(shop, monkeypatch):
    """Put this project's templates into a folder, with what is to be replaced replaced."""
    shutil.rmtree(shop / "infra")
    shutil.copytree(ROOT / "infra", shop / "infra")
    for file in shop.glob("infra/environments/*.toml"):
        text = file.read_text().replace("000000000000", ACCOUNT)
        file.write_text(text)
    return shop


@pytest.fixture
def not_made(monkeypatch):
    """Go on where moto's own model of a resource fails; collect the types."""
    create, types = parsing.parse_and_create_resource, set()

    def tolerant(logical_id, resource_json, resources_map, **where):
        try:
            return create(logical_id, resource_json, resources_map, **where)
        except Exception:  # noqa: BLE001 - each model has its own way to fail
            types.add(resource_json["Type"])
            return None

    monkeypatch.setattr(parsing, "parse_and_create_resource", tolerant)
    return types


@pytest.fixture
def not_removed(monkeypatch):
    """Go on where moto's own model refuses a removal; collect the types."""
    remove, types = parsing.ResourceMap._delete_resource, set()

    def tolerant(self, parsed_resource, resource_json):
        try:
            remove(self, parsed_resource, resource_json)
        except Exception:  # noqa: BLE001 - each model has its own way to fail
            types.add(resource_json["Type"])

    monkeypatch.setattr(parsing.ResourceMap, "_delete_resource", tolerant)
    return types


# Of the types that moto does not know, it says so and makes nothing.
@pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto")
def test_production_is_deployed_updated_and_removed(poolkit, project, not_made, not_removed):
    """From the network to the dashboard, with every reference between the stacks resolved."""
    environment = StackEnvironment.read(project, "prod")
    bucket = environment.tables["lambda"]["CodeBucket"]
    boto3.client("s3").create_bucket(
        Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": environment.region}
    )
    words = ("--parameter", f"web.CertificateArn={CERTIFICATE}")
    made = deploy(poolkit, "all", *words, environment="prod")
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr
    names = [environment.stack_name(template) for template in environment.order()]
    assert list(statuses()) == names
    assert not_made == MOTO_CANNOT_MAKE
    again = deploy(poolkit, "all", *words, environment="prod")
    assert again.stdout.count("nothing to change") == len(names), again.stdout + again.stderr
    status = poolkit("status", "-e", "prod")
    assert status.stdout.count("CREATE_COMPLETE") == len(names)
    gone = poolkit("destroy", "all", "-e", "prod", "--yes-delete", "poolkit-prod")
    assert gone.returncode == 0, gone.stdout[-3000:] + gone.stderr
    removed = [line for line in gone.stdout.splitlines() if line.endswith(": removed")]
    assert removed == [f"{name}: removed" for name in reversed(names)]
    assert statuses() == {}
    assert not_removed == MOTO_CANNOT_REMOVE
