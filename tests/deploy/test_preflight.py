"""What stops a deployment before anything is changed: one line, exit status 2, nothing made."""

import sys

import boto3
import moto.settings
import pytest
from deploy.conftest import write_package
from deploy.test_deploy import bucket, deploy, statuses
from poolkit_command import ROOT, refused, succeeded

from poolkit.deploy.environment import Template
from poolkit.deploy.preflight import Checked, check_lint, check_package
from poolkit.errors import DeployError

__all__ = ["bucket"]  # a fixture

DEV, WEB = "infra/environments/dev.toml", "infra/web.yaml"
WORKER = "infra/worker.yaml"
CA_FILE = "/var/task/certificates/ca.pem"
NO_CERTIFICATE = (
    "arn:aws:acm:eu-central-1:000000000000:certificate/00000000-0000-0000-0000-000000000000"
)


@pytest.mark.parametrize(
    "case",
    [
        ("web", WEB, ("Resources:", "Resources: ["), "infra/web.yaml:"),
        ("web", DEV, ("[web]", "[web"), "dev.toml:"),
        ("web", DEV, ("{network.VpcId}", "{nework.VpcId}"), "there is no table [nework]"),
        ("web", DEV, ("[web]", "[web]\nVpc = 1"), "[web] Vpc is no parameter"),
        ("web", WEB, ("VpcId:", "SubnetId: {Type: String}\n  VpcId:"), "SubnetId has no"),
        ("web", DEV, ("[web]", "[wob]"), "has no table [web]; it has"),
        ("web", WEB, (" ", " "), "network is not deployed. Next: poolkit deploy network"),
        ("worker", DEV, ("= 90", '= "soon"'), "[worker] VisibilityTimeout is 'soon', but"),
        ("worker", WORKER, ("Default: 60", "MaxValue: 60"), "has MaxValue 60"),
        ("lambda", DEV, ("[lambda]", '[lambda]\nArchitecture = "arm"'), "allows arm64, x86"),
        ("lambda", DEV, ("[lambda]", '[lambda]\nArchitecture = "x86_64"'), "was built for arm64"),
        ("lambda", DEV, ('code_bucket = "shop-code"', ""), "name the bucket that packages"),
        ("worker", DEV, ("{database.GroupId}", "{dashboard.X}"), "in a circle"),
        ("web", DEV, ('"shop"', '"my shop"'), "would be called 'my shop-dev-dashboard'"),
        # A function that looks for its CA certificates below the task root gets them.
        (
            "lambda",
            "infra/lambda.yaml",
            ("Parameters:", f"Parameters:\n  Root: {{Type: String, Default: {CA_FILE}}}"),
            f"Root is {CA_FILE}, but",
        ),
        # The account of twelve zeros does not exist, so AWS is not asked.
        (
            "lambda",
            DEV,
            ('"shop-code"', '"shop-000000000000"'),
            "[lambda] CodeBucket is still the placeholder shop-000000000000",
        ),
        (
            "web",
            DEV,
            ("[web]", f'[web]\nCertificateArn = "{NO_CERTIFICATE}"'),
            f"[web] CertificateArn is still the placeholder {NO_CERTIFICATE}",
        ),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_made(poolkit, shop, case):
    """The line names the file, and the file's line where there is one."""
    target, file, change, message = case
    path = shop / file
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    refused(deploy(poolkit, target), message, lines=1)
    assert statuses() == {}


@pytest.mark.parametrize(
    ("declared", "value", "bound"),
    [
        ("Type: Number, MinValue: 2, MaxValue: 8", "1", "MinValue 2"),
        ("Type: Number, MinValue: 2, MaxValue: 8", "8.5", "MaxValue 8"),
        ("Type: String, MinLength: 2", "a", "MinLength 2"),
        ("Type: String, MaxLength: 4", "abcde", "MaxLength 4"),
    ],
)
def test_a_value_beyond_a_bound_is_refused(tmp_path, declared, value, bound):
    """The line names the template's bound; a value at the bound is taken."""
    file = tmp_path / "web.yaml"
    file.write_text(
        f"Parameters:\n  Size: {{{declared}}}\nResources: {{Topic: {{Type: AWS::SNS::Topic}}}}\n"
    )
    template = Template.read("web", file)
    with pytest.raises(DeployError, match=f"Size is '{value}', but .*web.yaml:2 has {bound}"):
        template.require_parameters({"Size": value}, tmp_path)
    size = int(bound.partition(" ")[2])
    template.require_parameters(
        {"Size": str(size) if "Number" in declared else "a" * size}, tmp_path
    )


def test_an_output_that_is_not_there_is_named(poolkit, shop):
    """The message has the outputs that are there."""
    assert deploy(poolkit, "network").returncode == 0
    file = shop / DEV
    file.write_text(file.read_text().replace("{network.VpcId}", "{network.Vpc}"))
    refused(deploy(poolkit, "web"), "shop-dev-network has no such output; it has Cidr, VpcId")


def test_a_missing_package_is_named(poolkit, shop):
    """The message has the command that makes it."""
    (shop / "build/lambda.zip").unlink()
    refused(deploy(poolkit, "lambda"), "build it with: poolkit package lambda")


@pytest.mark.parametrize("machine", ["arm64", "x86_64"])
def test_this_projects_functions_run_on_the_machine_of_their_package(tmp_path, machine):
    """Its template takes the machine as a parameter, and the package must be for that one."""
    template = Template.read("lambda", ROOT / "infra/lambda.yaml")
    package = tmp_path / "lambda.zip"
    write_package(package, "", architecture=machine)
    assert machine in check_package(package, template, {"Architecture": machine}).text
    for given in ({}, {"Architecture": "arm64"}):
        if machine == "x86_64":
            with pytest.raises(
                DeployError, match=r"built for x86_64, but .* Architecture is arm64"
            ):
                check_package(package, template, given)
    for resource in template.section("Resources").values():
        if resource["Type"] == "AWS::Serverless::Function":
            assert resource["Properties"]["Architectures"] == [{"Ref": "Architecture"}]


def test_the_package_is_looked_for_where_it_is_put(poolkit, shop):
    """`out` in pyproject.toml moves it for `poolkit package` and for `poolkit deploy` alike."""
    (shop / "build/lambda.zip").unlink()
    write_package(shop / "dist/function.zip", "x")
    (shop / "pyproject.toml").write_text(
        '[tool.poolkit.package.lambda]\ninclude = ["shop"]\nout = "dist/function.zip"\n'
    )
    for target in ("network", "database"):
        assert deploy(poolkit, target).returncode == 0
    succeeded(deploy(poolkit, "lambda"), "function.zip: uploaded to s3://shop-code")


def test_a_missing_bucket_is_named(poolkit, shop):
    """The upload fails before a change set is made."""
    for target in ("network", "database"):
        assert deploy(poolkit, target).returncode == 0
    file = shop / DEV
    file.write_text(file.read_text().replace('"shop-code"', '"no-such-bucket"'))
    refused(deploy(poolkit, "lambda"), "uploading to the bucket no-such-bucket: NoSuchBucket")
    assert "shop-dev-lambda" not in statuses()


def test_web_needs_a_certificate_outside_dev(poolkit, bucket, monkeypatch):
    """Without one prod is refused; an issued one is named; one that waits is refused."""
    answer = deploy(poolkit, "web", environment="prod")
    refused(answer, "web would serve without TLS: give the certificate's ARN")
    assert deploy(poolkit, "network", environment="prod").returncode == 0
    monkeypatch.setattr(moto.settings, "ACM_VALIDATION_WAIT", 3600)  # s until it is issued
    acm = boto3.client("acm")
    arn = acm.request_certificate(DomainName="shop.example")["CertificateArn"]
    parameter = ("--parameter", f"CertificateArn={arn}")
    waiting = deploy(poolkit, "web", *parameter, environment="prod")
    refused(waiting, "is PENDING_VALIDATION, not ISSUED")
    monkeypatch.setattr(moto.settings, "ACM_VALIDATION_WAIT", -1)
    issued = deploy(poolkit, "web", *parameter, environment="prod")
    succeeded(issued, "ok TLS: shop.example, issued")


def test_a_large_template_goes_by_way_of_the_bucket(poolkit, shop, bucket):
    """CloudFormation takes 51,200 bytes in a request."""
    template = shop / "infra/network.yaml"
    template.write_text(template.read_text() + "# " + "x" * 51_200 + "\n")
    answer = deploy(poolkit, "network")
    assert answer.returncode == 0, answer.stderr
    (uploaded,) = bucket.list_objects_v2(Bucket="shop-code")["Contents"]
    assert uploaded["Key"].startswith("templates/")


def test_cfn_lint_stops_a_template_that_is_wrong(poolkit, shop):
    """The first finding is shown with its file and line."""
    template = shop / "infra/network.yaml"
    template.write_text(template.read_text().replace("CidrBlock", "CidrBlok"))
    answer = poolkit("deploy", "network", "-e", "dev", "--yes", "--no-budget")
    refused(answer, "cfn-lint: ", "network.yaml:", "CidrBlok")
    assert statuses() == {}


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}, "no AWS credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Could not connect to the endpoint URL"),
        ({"AWS_PROFILE": "nobody"}, "The config profile (nobody) could not be found"),
    ],
)
def test_credentials_that_are_no_use_are_one_line(poolkit, tmp_path, environ, message):
    """Missing ones and an endpoint that is not there are named."""
    home = {"HOME": str(tmp_path), "AWS_MAX_ATTEMPTS": "1"}
    refused(deploy(poolkit, "network", **home, **environ), message, lines=1)


def test_a_parameter_of_the_command_line_wins(poolkit, shop):
    """CI hands over the image's digest this way."""
    write_package(shop / "build/lambda.zip", "x")
    assert deploy(poolkit, "network", "--parameter", "VpcCidr=10.9.0.0/16").returncode == 0
    (stack,) = boto3.client("cloudformation").describe_stacks()["Stacks"]
    assert {"ParameterKey": "VpcCidr", "ParameterValue": "10.9.0.0/16"} in stack["Parameters"]
    for words in (("--parameter", "VpcCidr"), ("--parameter", "=1")):
        assert "must be Name=Value" in deploy(poolkit, "network", *words).stderr
    answer = deploy(poolkit, "all", "--parameter", "VpcCidr=10.9.0.0/16")
    assert "name its template: TEMPLATE.VpcCidr" in answer.stderr


CROWDED = """\
  Database:
    Type: AWS::RDS::DBInstance
    Properties: {DBInstanceClass: db.t4g.micro, Engine: postgres, AllocatedStorage: "20"}
  Crowd:
    Type: AWS::Lambda::Function
    Properties:
      ReservedConcurrentExecutions: 5000
      Environment: {Variables: {POOLKIT_TARGET: lambda_warm, POOLKIT_DEV: prod}}
"""


def test_a_fleet_that_does_not_fit_is_not_deployed(poolkit, shop):
    """The budget of the whole environment is checked, whichever stack is deployed."""
    template = shop / "infra/worker.yaml"
    template.write_text(template.read_text().replace("Resources:\n", f"Resources:\n{CROWDED}"))
    answer = poolkit("deploy", "network", "-e", "dev", "--yes", "--no-lint")
    refused(answer, "Does not fit: ", "to deploy anyway: --no-budget")
    assert statuses() == {}


UNBOUNDED = CROWDED.replace("      ReservedConcurrentExecutions: 5000\n", "")


@pytest.mark.parametrize(
    ("resources", "said"),
    [(UNBOUNDED, "Cannot be shown to fit: "), ("", "Nothing to count: ")],
)
def test_a_fleet_that_cannot_be_shown_to_fit_is_no_fleet_that_fits(poolkit, shop, resources, said):
    """In dev that is a warning; elsewhere it is refused, unless it is allowed explicitly."""
    template = shop / "infra/worker.yaml"
    template.write_text(template.read_text().replace("Resources:\n", f"Resources:\n{resources}"))
    words = ("deploy", "network", "--no-lint", "--plan-only", "-e")
    assert f"warning connection budget: {said}" in poolkit(*words, "dev").stdout
    answer = poolkit(*words, "prod")
    refused(answer, f"connection budget: {said}", "to deploy anyway: --allow-unknown-budget")
    allowed = poolkit(*words, "prod", "--allow-unknown-budget")
    succeeded(allowed, f"warning connection budget: {said}")


def test_templates_that_were_not_linted_are_no_templates_without_a_finding(monkeypatch):
    """Without cfn-lint there is a warning."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert check_lint([]) == Checked(
        "templates: not linted, because cfn-lint is not installed", is_shown=False
    )


def test_the_budget_counts_the_parameters_of_the_command_line(poolkit, shop):
    """What the file says fits; what CI hands over beside it does not, and is refused."""
    template = shop / "infra/worker.yaml"
    crowd = CROWDED.replace("5000", "!Ref Most")
    declared = "Parameters:\n  Most: {Type: Number, Default: 10}"
    text = template.read_text().replace("Resources:\n", f"Resources:\n{crowd}")
    template.write_text(text.replace("Parameters:", declared))
    words = ("deploy", "worker", "-e", "dev", "--yes", "--no-lint", "--plan-only")
    assert "connection budget: Fits: " in poolkit(*words).stdout
    for name in ("Most", "worker.Most"):
        refused(poolkit(*words, "--parameter", f"{name}=5000"), "Does not fit: ")
    assert statuses() == {}
