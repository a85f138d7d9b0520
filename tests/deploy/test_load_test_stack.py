"""The load test's stack: started by its name, run as its containers would be, and removed."""

import contextlib
import json
import re
import shutil
import subprocess
import sys

import boto3
import pytest
from deploy.conftest import MACHINE, MINOR, ROOT
from deploy.registry import push_image
from deploy.test_deploy import deploy, statuses
from loadtest.conftest import LOCUSTFILE
from poolkit_command import refused
from processes import run, started
from web_server import serving

from poolkit.deploy.package.contents import find_uv
from poolkit.deploy.package.image import write_image_context
from poolkit.deploy.package.settings import package_settings
from poolkit.local.ports import free_port
from poolkit.project import Project

# The network's and the database's outputs, without what a VPC and a server cost to make.
NETWORK = """\
Resources:
  Vpc: {Type: AWS::EC2::VPC, Properties: {CidrBlock: 10.40.0.0/16}}
Outputs:
  VpcId: {Value: !Ref Vpc}
  PublicSubnetIds: {Value: "subnet-0000000a,subnet-0000000b"}
  PrivateSubnetIds: {Value: "subnet-0000000c,subnet-0000000d"}
  WorkloadSecurityGroupId: {Value: sg-0000000a}
  DatabaseClientSecurityGroupId: {Value: sg-0000000b}
"""
ENVIRONMENT = """\
[stack]
name_prefix = "shop"
region = "eu-central-1"
by_name_only = ["loadtest"]

[network]

"""
GIVEN = ("Host=http://127.0.0.1:1", "YesLoadThisHost=yes", "Run=first", "DatabaseSecretArn=")
STACK = "shop-dev-loadtest"

# Of the types that moto does not know, it says so and makes nothing.
pytestmark = [
    pytest.mark.process,
    # Wheels are fetched and installed.
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto"),
]


@pytest.fixture
def project(shop, aws):
    """Put this project's template beside a small network, and its image into the registry."""
    push_image("poolkit-loadtest", "latest", architecture="amd64")
    shutil.rmtree(shop / "infra")
    (shop / "infra/environments").mkdir(parents=True)
    shutil.copy(ROOT / "infra/loadtest.yaml", shop / "infra/loadtest.yaml")
    (shop / "infra/network.yaml").write_text(NETWORK)
    own = (ROOT / "infra/environments/dev.toml").read_text().partition("[loadtest]")[2]
    own = re.sub(r"\{database\.\w+\}", "", own)
    registry = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    own = re.sub(r"\{bootstrap\.\w+Uri\}", f"{registry}/poolkit-loadtest", own)
    own = re.sub(r"\{bootstrap\.\w+\}", "poolkit-loadtest", own)
    (shop / "infra/environments/dev.toml").write_text(f"{ENVIRONMENT}[loadtest]{own}")
    return shop


def start(poolkit, *more, leave_out=""):
    given = [word for word in (*GIVEN, *more) if not (leave_out and word.startswith(leave_out))]
    words = [part for word in given for part in ("--parameter", word)]
    return deploy(poolkit, "loadtest", *words)


def test_a_load_test_is_started_by_name_and_ended_by_name(poolkit, project):
    """`all` leaves it out; it comes when it is named, is shown, and goes with the rest."""
    assert deploy(poolkit, "all").returncode == 0
    assert list(statuses()) == ["shop-dev-network"]
    made = start(poolkit, "Workers=8")
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr
    assert statuses()[STACK] == "CREATE_COMPLETE"
    assert re.search(r"ResultsUrl = s3://\S+/first$", made.stdout, re.MULTILINE)
    assert desired_counts() == [1, 8]

    assert f"{STACK} " in poolkit("status", "-e", "dev").stdout
    answer = poolkit("destroy", "network", "-e", "dev", "--yes-delete", "shop-dev-network")
    assert f"{STACK} uses outputs of shop-dev-network" in answer.stderr
    gone = poolkit("destroy", "all", "-e", "dev", "--yes-delete", "shop-dev")
    assert gone.returncode == 0, gone.stdout[-3000:] + gone.stderr
    assert statuses() == {}


def desired_counts():
    ecs = boto3.client("ecs")
    (cluster,) = ecs.list_clusters()["clusterArns"]
    arns = ecs.list_services(cluster=cluster)["serviceArns"]
    found = ecs.describe_services(cluster=cluster, services=arns)["services"]
    return sorted(each["desiredCount"] for each in found)


@pytest.mark.parametrize("name", ["YesLoadThisHost", "Host", "Run"])
def test_no_host_is_loaded_by_accident(poolkit, project, name):
    """The host, the agreement to load it and the run's name must be given each time."""
    answer = start(poolkit, leave_out=name)
    refused(answer, f"parameter {name} has no default and no value", f"--parameter {name}=")
    assert statuses() == {}


@pytest.fixture
def host():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Make what the image has: /app, and programs that know nothing but its requirements."""
    if MACHINE == "arm64":
        pytest.skip("the image is for x86_64, where hdrhistogram has a wheel")
    folder = tmp_path_factory.mktemp("image")
    given = {"architecture": MACHINE, "python": MINOR, "out": str(folder / "app")}
    write_image_context(package_settings(Project.find(ROOT), "loadtest", **given))
    uv, programs = find_uv(ROOT), folder / "venv" / "bin"
    subprocess.run([uv, "venv", "-q", "--python", sys.executable, programs.parent], check=True)
    how = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--link-mode", "copy"]
    what = ["--python", programs / "python", "--requirement", folder / "app/requirements.txt"]
    subprocess.run([uv, "pip", "install", "-q", *how, *what], check=True)
    (folder / "app/visitors.py").write_text(LOCUSTFILE)
    return folder


@pytest.fixture
def tasks(image, aws, tmp_path):
    """Give a function that starts a container of the stack as ECS would; all are ended."""
    ending = contextlib.ExitStack()

    def start_task(kind, *more):
        definition = boto3.client("ecs").describe_task_definition(taskDefinition=f"{STACK}-{kind}")
        (container,) = definition["taskDefinition"]["containerDefinitions"]
        words = [word.replace("/app/", f"{image}/app/") for word in [*container["command"], *more]]
        # Cloud Map has the master's name.
        words = [re.sub(r"^master\..*\.internal$", "127.0.0.1", word) for word in words]
        variables = aws | {each["name"]: each["value"] for each in container["environment"]}
        variables |= {"PATH": f"{image}/venv/bin:/usr/bin:/bin", "PYTHONPATH": f"{image}/app"}
        variables |= {"HOME": str(tmp_path)}
        program = image / "venv/bin" / words[0]
        task = started(program, *words[1:], cwd=tmp_path, environ=variables, clean=True)
        return ending.enter_context(task)

    with ending:
        yield start_task


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_the_commands_of_the_stack_run(poolkit, host, tasks):
    """What the template says to its containers is what the image has: a whole run, kept."""
    # The loopback address has one port for everybody; in the cloud each stack has its own master.
    port = free_port()
    there = f"--master-bind-host 127.0.0.1 --master-bind-port {port}"
    options = f"LocustOptions={there} --threshold 'http.errors < 1%'"
    url = f"Host={host.url}"
    load = ("Users=2", "RunTime=5s", "LocustFile=/app/visitors.py", options)
    words = [part for word in (url, *GIVEN[1:], *load) for part in ("--parameter", word)]
    assert deploy(poolkit, "all").returncode == 0
    made = deploy(poolkit, "loadtest", *words)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr
    (bucket,) = re.findall(r"s3://(\S+)/first", made.stdout)

    for _ in range(2):
        tasks("worker", "--master-port", str(port))
    master = tasks("master")
    master.wait_for("waiting to be stopped", timeout_s=150)
    body = boto3.client("s3").get_object(Bucket=bucket, Key="first/finished.json")["Body"].read()
    marker = json.loads(body)
    assert marker["status"] == 0, master.text
    assert {"run.html", "run.json", "run_stats.csv"} <= set(marker["files"])
    assert host.asked
    assert master.terminate() == 0


@pytest.mark.sample
def test_the_image_has_every_load(image, tmp_path):
    """The locustfiles import nothing that was left out, and nothing that is not installed."""
    files = sorted((image / "app/loadtests").glob("*.py"))
    answer = run(
        *(image / "venv/bin/locust", "--list", "-f", ",".join(map(str, files))),
        cwd=tmp_path,
        environ={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{image}/app", "HOME": str(tmp_path)},
        clean=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert {"Reader", "Sender"} <= set(answer.stdout.split())


@pytest.mark.sample
@pytest.mark.parametrize("target", ["web", "worker"])
def test_an_image_has_boto3(target, tmp_path):
    """Only a function's runtime brings it by itself, and secrets are read with it."""
    made = package_settings(Project.find(ROOT), target, out=str(tmp_path / "context"))
    write_image_context(made)
    assert "\nboto3==" in (tmp_path / "context/requirements.txt").read_text()
