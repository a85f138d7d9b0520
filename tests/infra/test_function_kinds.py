"""The two other kinds of functions, Managed Instances and Web Functions: stacks that an environment adds.

No environment of this project has them; each test gives one a table, as docs/function-kinds.md shows.
"""

import importlib
import inspect
import itertools
import json
import re
import shutil
import tomllib
import zipfile

import pytest
from infra.deployed import ENVIRONMENTS, INFRA, ROOT, answer_of
from infra.transformed import declared, references, transformed
from poolkit_command import run_here

from poolkit.budget.command import compute_budget
from poolkit.budget.model import Options
from poolkit.config.presets import preset

SHARED = """
[{template}]
CodeBucket = "{{bootstrap.ArtifactBucket}}"
CodeKey = "poolkit/{template}.zip"
SubnetIds = "{{network.PrivateSubnetIds}}"
WorkloadSecurityGroupId = "{{network.WorkloadSecurityGroupId}}"
DatabaseClientSecurityGroupId = "{{network.DatabaseClientSecurityGroupId}}"
Environment = "{environment}"
DatabaseHost = "{{database.Host}}"
DatabaseName = "{{database.Name}}"
DatabaseSecretArn = "{{database.ApplicationSecretArn}}"
AlarmTopicArn = "{{access.AlarmTopicArn}}"
"""

KINDS = ("managedfunction", "webfunction")


@pytest.fixture
def count(tmp_path):
    """Give the function that counts an environment with one more table, and returns its service."""
    shutil.copytree(INFRA, tmp_path / "infra")

    def with_table(template, environment="prod", **parameters):
        file = tmp_path / "infra" / "environments" / f"{environment}.toml"
        text = (INFRA / "environments" / file.name).read_text()
        text += SHARED.format(template=template, environment=environment)
        text += "".join(f"{name} = {json.dumps(each)}\n" for name, each in parameters.items())
        file.write_text(text)
        budget = compute_budget(Options(paths=(tmp_path / "infra",), environment=environment)).only
        assert (budget.gaps, budget.unread) == ((), ())
        (service,) = (each for each in budget.services if each.name.startswith(template))
        return service

    return with_table


MANAGED = list(itertools.product(("lambda", "lambda_warm", "lambda_proxy"), (1, 3), (1, 16)))


@pytest.mark.parametrize(("target", "environments", "concurrency"), MANAGED)
def test_the_budget_counts_a_managed_function(count, target, environments, concurrency):
    """Python runs a process for each request at once, and each process has a pool."""
    service = count(
        "managedfunction",
        Preset=target,
        MaxExecutionEnvironments=environments,
        MaxConcurrency=concurrency,
    )
    assert service.target == target
    per_process = preset(target, "prod").max_connections_per_process or 1
    assert service.steady == environments * concurrency * per_process
    # Without a pool, connections are of requests, of which two versions have no more than one.
    assert service.ceiling == (2 if target == "lambda_warm" else 1) * service.steady


@pytest.mark.parametrize(
    ("target", "environments", "pool"),
    list(itertools.product(("web", "web_async"), (2, 4), ((5, 0), (2, 3)))),
)
def test_the_budget_counts_a_web_function(count, target, environments, pool):
    """Each execution environment has one pool, of the size that the template says."""
    size, overflow = pool
    service = count(
        "webfunction",
        Preset=target,
        MaxEnvironments=environments,
        PoolSize=size,
        MaxOverflow=overflow,
    )
    assert service.target == target
    assert service.steady == environments * (size + overflow)
    assert service.ceiling == 2 * service.steady


@pytest.mark.parametrize("template", KINDS)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_tables_of_the_document_are_complete(template, environment):
    """Every parameter without a default is in a table as it is shown, and none that does not exist."""
    table = tomllib.loads(SHARED.format(template=template, environment=environment))[template]
    parameters = declared(f"{template}.yaml")["Parameters"]
    needed = {name for name, each in parameters.items() if "Default" not in each}
    assert set(table) == needed | {"AlarmTopicArn"}
    document = (ROOT / "docs" / "function-kinds.md").read_text()
    (shown,) = re.findall(r"\[managedfunction\]\n(?:.+\n)+?(?=```)", document)
    assert set(tomllib.loads(shown)["managedfunction"]) == set(table)


# -- managed instances ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def managed():
    return transformed("managedfunction.yaml")


def test_a_managed_function_has_nothing_that_its_instances_have(managed):
    """SAM refuses VpcConfig and provisioned concurrency beside a capacity provider; the rest is unused.

    AWS Lambda Developer Guide, "Configuring JSON and plain text log formats": managed instances
    write JSON only. "Capacity providers": they have the VPC.
    """
    function = managed.properties("ApiFunction")
    for absent in ("VpcConfig", "ReservedConcurrentExecutions", "SnapStart"):
        assert absent not in function
    alias = next(iter(managed.of_type("AWS::Lambda::Alias").values()))
    assert "ProvisionedConcurrencyConfig" not in alias["Properties"]
    assert function["LoggingConfig"]["LogFormat"] == "JSON"


def test_a_version_has_the_limits_of_its_function(managed):
    """The version that the alias serves is what scales, not only the function's newest code."""
    function = managed.properties("ApiFunction")
    (version,) = managed.of_type("AWS::Lambda::Version").values()
    assert version["Properties"]["FunctionScalingConfig"] == function["FunctionScalingConfig"]
    assert set(function["FunctionScalingConfig"]) == {
        *("MinExecutionEnvironments", "MaxExecutionEnvironments")
    }


def test_managed_instances_are_of_one_function_and_reach_the_database(managed):
    """Containers on one instance are no boundary; the provider has both security groups."""
    provider = managed.properties("CapacityProvider")
    assert len(provider["VpcConfig"]["SecurityGroupIds"]) == 2
    users = [
        name
        for name, each in managed.of_type("AWS::Lambda::Function").items()
        if "CapacityProvider" in references(each["Properties"])
    ]
    assert users == ["ApiFunction"]
    (policy,) = managed.properties("OperatorRole")["ManagedPolicyArns"]
    assert policy["Fn::Sub"].endswith(":policy/AWSLambdaManagedEC2ResourceOperator")


def test_a_managed_environment_has_memory_for_its_processes():
    """At least 2 GB in whole vCPUs, and at most 16 processes for each (Python's most on AWS)."""
    parameters = declared("managedfunction.yaml")["Parameters"]
    memory = parameters["Memory"]
    assert memory["MinValue"] >= 2048
    vcpus = memory["Default"] / 1024 / parameters["MemoryPerVcpu"]["Default"]
    assert vcpus == int(vcpus) >= 1
    assert parameters["MaxConcurrency"]["Default"] <= 16 * vcpus
    enough = parameters["MaxExecutionEnvironments"]["Default"] * vcpus
    assert parameters["MaxVcpus"]["Default"] >= enough


def test_a_release_to_managed_instances_is_checked_too(managed):
    """The same hook and the same alarms as lambda.yaml's API has."""
    plain = transformed("lambda.yaml")
    alias = next(iter(managed.of_type("AWS::Lambda::Alias").values()))
    update = alias["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]
    assert update["BeforeAllowTrafficHook"] == {"Ref": "ReleaseCheckFunction"}
    for name in ("ApiReleaseErrorsAlarm", "ApiReleaseUnavailableAlarm", "ApiServerErrorsAlarm"):
        same = {key: each for key, each in plain.properties(name).items() if key != "Dimensions"}
        found = managed.properties(name)
        assert {key: each for key, each in found.items() if key != "Dimensions"} == same
    group = managed.properties("ApiFunctionDeploymentGroup")
    assert references(group["AlarmConfiguration"]["Alarms"]) == {
        *("ApiReleaseErrorsAlarm", "ApiReleaseUnavailableAlarm", "ApiServerErrorsAlarm")
    }


# -- web functions --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def web():
    return transformed("webfunction.yaml")


def variables(target="web"):
    stack = transformed("webfunction.yaml", Preset=target)
    return stack.properties("Revision")["ServiceConfig"]["EnvironmentVariables"]


def test_the_parts_of_a_web_function_have_its_name(web):
    """A reference to the function is its ARN, which revisions and endpoints store and cannot match."""
    names = [
        web.properties(name)["FunctionName"] for name in ("WebFunction", "Revision", "Endpoint")
    ]
    assert names == [{"Ref": "AWS::StackName"}] * 3
    for name in ("Revision", "Endpoint"):
        assert web.resources[name]["DependsOn"] == "WebFunction"


@pytest.mark.sample
@pytest.mark.parametrize("target", ["web", "web_async"])
def test_the_entry_point_is_the_presets_application(target):
    """AWS Lambda Developer Guide, "Building Lambda Web Functions with Python": [asgi:]module:callable."""
    kind, module, name = variables(target)["AWS_LAMBDA_PYTHON_ENTRYPOINT"].split(":")
    assert kind == "asgi"
    assert module == ("webapp.async_app" if target == "web_async" else "webapp.app")
    application = getattr(importlib.import_module(module), name)
    assert len(inspect.signature(application).parameters) == 3
    assert inspect.iscoroutinefunction(type(application).__call__)


def test_variables_are_texts_with_names_that_web_functions_take():
    """A name begins with a letter, and no value is empty (schema of AWS::Lambda::WebFunctionRevision)."""
    for name, value in variables().items():
        assert re.fullmatch("[a-zA-Z]([a-zA-Z0-9_])*", name)
        assert value != ""
        assert isinstance(value, str | dict)


def test_a_web_function_waits_longer_than_its_application(web):
    """The answer is the application's 503, and not Lambda's 504."""
    timeout = web.properties("Revision")["ServiceConfig"]["TimeoutSeconds"]
    for target, environment in itertools.product(("web", "web_async"), ENVIRONMENTS):
        assert answer_of(preset(target, environment)) < timeout


def test_a_revision_in_the_vpc_is_served_at_home(web):
    """A network connector allows no other type, and is named with its version."""
    service = web.properties("Revision")["ServiceConfig"]
    assert service["EgressNetworkConnectorArn"] == {
        "Fn::GetAtt": ["NetworkConnector", "LatestVersionArn"]
    }
    assert web.properties("Endpoint")["EndpointType"] == "HomeRegion"
    egress = web.properties("NetworkConnector")["Configuration"]["VpcEgressConfiguration"]
    assert egress["AssociatedComputeResourceTypes"] == ["WebFunction"]
    assert len(egress["SecurityGroupIds"]) == 2


def test_the_old_revision_stays_to_go_back_to(web):
    """A replaced revision is kept, and can get a part of the traffic."""
    assert web.resources["Revision"]["UpdateReplacePolicy"] == "Retain"
    assert web.properties("Endpoint")["RevisionWeights"] == [
        {"RevisionId": {"Fn::GetAtt": ["Revision", "RevisionId"]}, "Weight": 100}
    ]
    shared = transformed("webfunction.yaml", PreviousRevisionId="old").properties("Endpoint")
    new, old = shared["RevisionWeights"]
    assert old["RevisionId"] == "old"
    assert int(new["Weight"]) + int(old["Weight"]) == 100


def test_an_endpoint_is_signed_unless_it_is_said(web):
    """It serves /metrics too, so that it is not open by itself."""
    assert web.properties("Endpoint")["AuthType"] == "IamAuth"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.sample
def test_the_package_has_the_application_for_arm(tmp_path):
    """`poolkit package webfunction` packs both applications and boto3, for arm64 alone."""
    out = tmp_path / "webfunction.zip"
    done = run_here("package", "webfunction", "--no-bytecode", "--out", out, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(out) as package:
        names = set(package.namelist())
        manifest = json.loads(package.read("poolkit-package.json"))
    assert manifest["architecture"] == "arm64"
    assert {
        "webapp/app.py",
        "webapp/async_app.py",
        "fastapi/__init__.py",
        "boto3/__init__.py",
    } <= names
    assert sum(each.startswith(("poolkit/compare/", "poolkit/deploy/")) for each in names) == 0
