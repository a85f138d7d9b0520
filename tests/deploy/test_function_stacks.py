"""The stacks of managed and web functions: each with its own package, by `poolkit deploy`."""

import shutil

import boto3
import pytest
from deploy.conftest import ROOT, write_package
from deploy.test_deploy import deploy, statuses
from deploy.test_load_test_stack import NETWORK
from poolkit_command import refused

TABLES = """\
[stack]
name_prefix = "shop"
region = "eu-central-1"

[network]

[managedfunction]
{shared}

[webfunction]
{shared}
"""
SHARED = """\
CodeBucket = "packages"
CodeKey = "written by the deployment"
SubnetIds = "{network.PrivateSubnetIds}"
WorkloadSecurityGroupId = "{network.WorkloadSecurityGroupId}"
DatabaseClientSecurityGroupId = "{network.DatabaseClientSecurityGroupId}"
Environment = "dev"
DatabaseHost = "db.internal"
DatabaseName = "articles"
DatabaseSecretArn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:app"
"""

# Of the types that moto does not know, it says so and makes nothing.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto"),
]


@pytest.fixture
def project(shop, aws):
    """Put this project's two templates beside a small network."""
    shutil.rmtree(shop / "infra")
    (shop / "infra/environments").mkdir(parents=True)
    for name in ("managedfunction", "webfunction"):
        shutil.copy(ROOT / f"infra/{name}.yaml", shop / f"infra/{name}.yaml")
    (shop / "infra/network.yaml").write_text(NETWORK)
    (shop / "infra/environments/dev.toml").write_text(TABLES.format(shared=SHARED))
    own = '\n[tool.poolkit.package.webfunction]\ninclude = ["app.py"]\n'
    with (shop / "pyproject.toml").open("a") as file:
        file.write(own)
    write_package(shop / "build/webfunction.zip", "the web application")
    boto3.client("s3").create_bucket(
        Bucket="packages", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return shop


def test_each_kind_of_function_has_a_stack_and_its_package(poolkit, project):
    """The managed function has the function's zip, the web function one of its own."""
    done = deploy(poolkit, "all")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert statuses() == {
        f"shop-dev-{name}": "CREATE_COMPLETE"
        for name in ("network", "managedfunction", "webfunction")
    }
    uploaded = {
        content["Key"]: content["Size"]
        for content in boto3.client("s3").list_objects_v2(Bucket="packages")["Contents"]
    }
    sizes = {(project / f"build/{name}.zip").stat().st_size for name in ("lambda", "webfunction")}
    assert set(uploaded.values()) == sizes


def test_a_web_function_without_its_package_is_not_deployed(poolkit, project):
    """The message names the command that makes it."""
    (project / "build/webfunction.zip").unlink()
    answer = deploy(poolkit, "webfunction")
    refused(answer, "webfunction.zip is missing", "poolkit package webfunction")
