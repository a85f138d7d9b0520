"""Images are deployed by digest, exist, and fit the machine of their tasks."""

import boto3
import pytest
from deploy.registry import push_image
from deploy.test_deploy import bucket, deploy, statuses
from poolkit_command import ROOT, refused, succeeded

from poolkit.deploy.environment import Template
from poolkit.deploy.images import ImageName, architecture_of, image_parameters
from poolkit.errors import DeployError

__all__ = ["bucket"]  # a fixture

REGISTRY = "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
TEMPLATES = sorted(file for file in ROOT.glob("infra/*.yaml") if file.stem != "compose")
WEB = """\
Parameters:
  ImageUri: {Type: String}
  Architecture: {Type: String, Default: ARM64, AllowedValues: [ARM64, X86_64]}
  Cpu: {Type: String, Default: "256"}
  Memory: {Type: String, Default: "512"}
Resources:
  Task:
    Type: AWS::ECS::TaskDefinition
    Properties:
      Family: shop
      RequiresCompatibilities: [FARGATE]
      RuntimePlatform: {CpuArchitecture: !Ref Architecture, OperatingSystemFamily: LINUX}
      Cpu: !Ref Cpu
      Memory: !Ref Memory
      ContainerDefinitions:
        - {Name: web, Image: !Ref ImageUri}
"""


@pytest.fixture(autouse=True)
def web(shop):
    """Make web a stack with a task definition, whose image the file names by a tag."""
    (shop / "infra/web.yaml").write_text(WEB)
    file = shop / "infra/environments/dev.toml"
    text = file.read_text().replace(
        '[web]\nVpcId = "{network.VpcId}"', f'[web]\nImageUri = "{REGISTRY}/shop-web:latest"'
    )
    file.write_text(text)
    return shop / "infra/web.yaml"


def deployed_image():
    (stack,) = boto3.client("cloudformation").describe_stacks(StackName="shop-dev-web")["Stacks"]
    return {p["ParameterKey"]: p["ParameterValue"] for p in stack["Parameters"]}["ImageUri"]


@pytest.mark.parametrize("form", ["docker", "oci", "index"])
def test_a_tag_becomes_the_digest_of_its_image(poolkit, form):
    """The task definition gets the digest, and the output names it; attestations do not count."""
    digest = push_image("shop-web", "latest", form=form)
    answer = deploy(poolkit, "web")
    succeeded(answer, f"ok image: {REGISTRY}/shop-web@{digest}")
    assert deployed_image() == f"{REGISTRY}/shop-web@{digest}"


def test_an_image_of_the_command_line_is_kept(poolkit):
    """The tag of the file may have moved since; the next deployment keeps the digest."""
    push_image("shop-web", "latest", content="1")
    release = push_image("shop-web", "release-2", content="2")
    image = f"{REGISTRY}/shop-web:release-2"
    assert deploy(poolkit, "web", "--image", image).returncode == 0
    push_image("shop-web", "release-2b", content="3")
    again = deploy(poolkit, "web", "--parameter", "Cpu=512", "--parameter", "Memory=1024")
    succeeded(again, f"ImageUri = {REGISTRY}/shop-web@{release}")
    assert deployed_image().endswith(release)


def test_an_image_is_given_for_a_template_of_all(poolkit, shop):
    """With all the template is named before the image."""
    digest = push_image("shop-web", "r1")
    image = f"{REGISTRY}/shop-web@{digest}"
    refused(deploy(poolkit, "all", "--image", image), f"name its template: TEMPLATE={image}")
    assert deploy(poolkit, "all", "--image", f"web={image}").returncode == 0
    assert deployed_image() == image


@pytest.mark.parametrize("form", ["docker", "oci", "index"])
def test_an_image_for_another_machine_is_refused(poolkit, form):
    """With the command that builds the right one; a parameter may choose the machine."""
    push_image("shop-web", "latest", architecture="amd64", form=form)
    tag = f"{REGISTRY}/shop-web:latest"
    refused(
        deploy(poolkit, "web"),
        f"{tag} was built for amd64, but the tasks of web run on linux/arm64; build and push it "
        f"with: poolkit package web && docker build --platform linux/arm64 --tag {tag} build/web && docker push {tag}",
        lines=1,
    )
    assert statuses() == {}
    assert deploy(poolkit, "web", "--parameter", "Architecture=X86_64").returncode == 0


def test_a_task_definition_without_a_platform_runs_on_x86_64(poolkit, web):
    """As ECS documents it."""
    platform = "RuntimePlatform: {CpuArchitecture: !Ref Architecture, OperatingSystemFamily: LINUX}"
    web.write_text(web.read_text().replace(f"      {platform}\n", ""))
    push_image("shop-web", "latest")
    refused(deploy(poolkit, "web"), "built for arm64, but the tasks of web run on linux/amd64")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (f"{REGISTRY}/shop-web:missing", "there is no image"),
        (f"{REGISTRY}/shop-web@sha256:{'0' * 64}", "there is no image"),
        (f"{REGISTRY}/elsewhere:1", "there is no repository elsewhere in ECR of account 1234567"),
        ("public.ecr.aws/nginx/nginx:1.27", "is not in ECR, so its tag cannot be resolved"),
        ("nginx", "is not in ECR, so its tag cannot be resolved; give it by digest"),
        ("shop web:1", "is not the name of an image; wanted REGISTRY/REPOSITORY:TAG"),
        (f"{REGISTRY}/shop-web@sha256:0a1b", "64 hexadecimal digits"),
    ],
)
def test_an_image_that_cannot_run_is_refused(poolkit, image, message):
    """Before anything is changed, in one line."""
    push_image("shop-web", "latest")
    refused(deploy(poolkit, "web", "--image", image), message, lines=1)
    assert statuses() == {}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (f"{REGISTRY}/other:1", "may pull shop-web only; give another image, or the repository as"),
        (f"{REGISTRY.replace('1234', '9999')}/shop-web:1", "pull from account 123456789012 in eu-"),
        (f"{REGISTRY.replace('central', 'west')}/shop-web:1", "in eu-west-1, but the tasks'"),
    ],
)
def test_an_image_that_the_execution_role_may_not_pull_is_refused(poolkit, web, image, message):
    """ECS would never start its tasks: CannotPullContainerError."""
    repository = "  ImageRepository: {Type: String, Default: shop-web}\n"
    web.write_text(web.read_text().replace("Parameters:\n", f"Parameters:\n{repository}"))
    push_image("other", "1")
    refused(deploy(poolkit, "web", "--image", image), message, lines=1)
    assert statuses() == {}


@pytest.mark.pure
@pytest.mark.parametrize("file", TEMPLATES, ids=lambda file: file.stem)
def test_the_machine_of_every_image_is_known(file):
    """Of each template that is deployed: with its default, and with each value of Architecture."""
    template = Template.read(file.stem, file)
    architectures = (template.parameters.get("Architecture") or {}).get("AllowedValues", ())
    for parameter in image_parameters(template):
        assert architecture_of(template, parameter, {}) in {"arm64", "amd64"}
        found = [
            architecture_of(template, parameter, {"Architecture": each, parameter: "x"})
            for each in architectures
        ]
        assert found == [{"arm64": "arm64", "x86_64": "amd64"}[each] for each in architectures]


def test_an_image_elsewhere_is_accepted_by_its_digest(poolkit):
    """With a warning, because ECR is not asked about it."""
    image = f"ghcr.io/shop/web@sha256:{'1' * 64}"
    succeeded(deploy(poolkit, "web", "--image", image), f"warning image: {image} is not in ECR")
    assert deployed_image() == image


def test_an_architecture_that_cannot_be_read_is_a_warning(poolkit):
    """The configuration may be out of reach: the network, or ecr:GetDownloadUrlForLayer."""
    push_image("shop-web", "latest")
    s3 = boto3.client("s3")
    layers = "layers-of-the-registry"
    for each in s3.list_objects_v2(Bucket=layers)["Contents"]:
        s3.delete_object(Bucket=layers, Key=each["Key"])
    succeeded(
        deploy(poolkit, "web"), "its architecture could not be read; the tasks need linux/arm"
    )


@pytest.mark.parametrize(
    ("cpu", "memory"), [("4096", "2048"), ("256", "4096"), ("8192", "18432"), ("300", "512")]
)
def test_a_task_size_that_fargate_lacks_is_refused(poolkit, cpu, memory):
    """RegisterTaskDefinition would refuse it while the stack is changed."""
    push_image("shop-web", "latest")
    answer = deploy(poolkit, "web", "--parameter", f"Cpu={cpu}", "--parameter", f"Memory={memory}")
    refused(answer, f"would have Cpu {cpu} and Memory {memory}, which Fargate does not have")
    assert statuses() == {}


D = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("localhost:5000/shop/web:1", ("localhost:5000", "shop/web", "1", "")),
        (f"{REGISTRY}/a/b:t@{D}", (REGISTRY, "a/b", "t", D)),
        (f"nginx@{D}", ("docker.io", "nginx", "", D)),
        ("shop/web:1.2", ("docker.io", "shop/web", "1.2", "")),
    ],
)
def test_a_reference_is_read_as_docker_reads_it(text, parts):
    """A port is no tag, and a registry has a dot, a port, or is localhost."""
    name = ImageName.parse(text)
    assert (name.registry, name.repository, name.tag, name.digest) == parts


@pytest.mark.parametrize("text", ["", "a b", "web@sha256:12", "web:" + "t" * 129])
def test_what_is_no_reference_is_refused(text):
    """The message has the form that is wanted."""
    with pytest.raises(DeployError, match="wanted REGISTRY/REPOSITORY:TAG"):
        ImageName.parse(text)
