"""The images of a deployment: tags resolved to digests, existence and architecture checked.

A tag can be moved, a digest cannot. So a task definition gets digests, and a later deployment that
changes something else starts the same image again.

The manifest of an image in ECR has one of four forms: Docker's or OCI's, each for one platform or
as an index of platforms. An index names the architectures; BuildKit adds attestations to it, whose
platform is "unknown". The manifest of a single image does not name the architecture; its
configuration does, which is a blob in the repository.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from poolkit.deploy.aws import error_code, in_plain_words
from poolkit.errors import DeployError

if TYPE_CHECKING:
    from poolkit.deploy.aws import Aws
    from poolkit.deploy.environment import Template

IMAGE_PARAMETER: Final = "ImageUri"
"""The name, or the end of the name, of a parameter that takes an image."""

_REPOSITORY_PARAMETER: Final = "ImageRepository"
"""The end of the name of a parameter with the repository that a role may pull from."""

_INDEXES: Final = (
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.index.v1+json",
)
_SINGLES: Final = (
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
)
_CONFIGURATIONS: Final = (
    "application/vnd.docker.container.image.v1+json",
    "application/vnd.oci.image.config.v1+json",
)
_DOCKER_NAMES: Final = {"ARM64": "arm64", "X86_64": "amd64"}
"""The architecture in a manifest, by that of a task's RuntimePlatform."""
_CONTEXTS: Final = {
    "pgbouncer": "--file infra/pgbouncer/Dockerfile .",
    "migrate": "build/web",
}
"""What `docker build` is given, where it is not the folder of `poolkit package`."""
_PACKAGED: Final = ("web", "worker", "loadtest")
"""The images whose folder `poolkit package` writes."""
_DOWNLOAD_LIMIT_S: Final = 10.0

_ECR: Final = re.compile(
    r"(?P<account>\d{12})\.dkr[.-]ecr(-fips)?\.(?P<region>[a-z0-9-]+)"
    r"\.(amazonaws\.com(\.cn)?|on\.aws|on\.amazonwebservices\.com\.cn)"
)
_REFERENCE: Final = re.compile(
    r"(?P<name>([^@\s:/]+(:\d+)?/)?[^@\s:]+)(:(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, kw_only=True)
class ImageName:
    """A reference to an image: `registry/repository:tag@digest`."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Read a reference.

        Raises:
            DeployError: it is none.
        """
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise DeployError(
                f"{text!r} is not the name of an image; wanted REGISTRY/REPOSITORY:TAG, or …@sha256: and 64 "
                "hexadecimal digits"
            )
        registry, slash, repository = found["name"].partition("/")
        # As Docker distinguishes them: a registry has a dot or a port in its name.
        if not (slash and ("." in registry or ":" in registry or registry == "localhost")):
            registry, repository = "docker.io", found["name"]
        return cls(
            registry=registry,
            repository=repository,
            tag=found["tag"] or "",
            digest=found["digest"] or "",
        )

    @property
    def without_version(self) -> str:
        """The repository with its registry."""
        return f"{self.registry}/{self.repository}"

    @property
    def by_digest(self) -> str:
        """The reference that cannot be moved."""
        return f"{self.without_version}@{self.digest}"


def image_parameters(template: Template) -> list[str]:
    """Return the parameters of a template that take an image."""
    return [name for name in template.parameters if name.endswith(IMAGE_PARAMETER)]


def architecture_of(template: Template, parameter: str, values: dict[str, str]) -> str:
    """Return the architecture of the tasks that run an image, as a manifest names it.

    Args:
        template: whose task definitions are looked through.
        parameter: the one that takes the image.
        values: of the parameters.

    Returns:
        Empty if no task definition of the template uses the parameter.
    """
    # Late, because most deployments have no task definition: a third of the command's start.
    from poolkit.budget.cloudformation.templates import make_stacks  # noqa: PLC0415
    from poolkit.budget.read.parameters import Environment, ParameterValue  # noqa: PLC0415

    table = {
        name: ParameterValue(value, f"[{template.name}]")
        for name, value in values.items()
        if name in template.parameters
    }
    only = Environment(name="", file="", prefix="", region="", tables={template.name: table})
    stack = make_stacks([template.document], only, {}).by_name[template.name]
    for resource in stack.of_type("AWS::ECS::TaskDefinition"):
        written = template.section("Resources")[resource.logical_id].get("Properties") or {}
        if not _refers(written.get("ContainerDefinitions"), parameter):
            continue
        # ECS takes X86_64 where a task definition does not name one.
        wanted = "X86_64"
        if "CpuArchitecture" in (written.get("RuntimePlatform") or {}):
            # With its conditions and references resolved.
            wanted = resource.get("RuntimePlatform", "CpuArchitecture")
        return _DOCKER_NAMES.get(str(wanted).upper(), "")
    return ""


def _refers(value: Any, parameter: str) -> bool:
    if isinstance(value, dict):
        return value == {"Ref": parameter} or any(_refers(v, parameter) for v in value.values())
    if isinstance(value, list):
        return any(_refers(each, parameter) for each in value)
    return isinstance(value, str) and f"${{{parameter}}}" in value


@dataclass(frozen=True, kw_only=True)
class ResolvedImage:
    """An image that exists, by digest."""

    uri: str
    warning: str = ""
    """What could not be checked."""


def resolve(aws: Aws, text: str, *, template: str, architecture: str) -> ResolvedImage:
    """Return an image by its digest, after checking that its tasks can run it.

    Args:
        aws: where the deployment goes.
        text: the reference, with a tag or a digest.
        template: the name of the template, for the command that builds the image.
        architecture: which one its tasks run on, as a manifest names it; empty: any.

    Raises:
        DeployError: it does not exist, was built for another architecture, or is a tag in a
            registry that cannot be asked.
    """
    name = ImageName.parse(text)
    ecr = _ECR.fullmatch(name.registry)
    if ecr is None:
        if not name.digest:
            raise DeployError(
                f"{text} is not in ECR, so its tag cannot be resolved; give it by digest, as "
                f"`docker buildx imagetools inspect {text}` prints it"
            )
        warning = f"{name.by_digest} is not in ECR; neither existence nor architecture is checked"
        return ResolvedImage(uri=name.by_digest, warning=warning)
    if not (name.tag or name.digest):
        name = ImageName(registry=name.registry, repository=name.repository, tag="latest")
    client = aws.client("ecr", region=ecr["region"])
    build = _build_command(name, template, architecture)
    manifest, digest = _find(client, ecr["account"], name, build)
    found = ImageName(registry=name.registry, repository=name.repository, digest=digest)
    if not architecture:
        return ResolvedImage(uri=found.by_digest)
    has = _architectures(client, ecr["account"], found, manifest)
    if has is None:
        return ResolvedImage(
            uri=found.by_digest,
            warning=f"{found.by_digest}: its architecture could not be read; the tasks need "
            f"linux/{architecture}",
        )
    if architecture not in has:
        raise DeployError(
            f"{text} was built for {', '.join(sorted(has)) or 'no platform'}, but the tasks of "
            f"{template} run on linux/{architecture}; build and push it with: {build}"
        )
    return ResolvedImage(uri=found.by_digest)


def repository_parameters(template: Template) -> list[str]:
    """Return the parameters of a template that name a repository its tasks may pull from."""
    return [name for name in template.parameters if name.endswith(_REPOSITORY_PARAMETER)]


def require_pullable(
    aws: Aws, uri: str, template: Template, parameter: str, values: dict[str, str]
) -> None:
    """Check that the execution role of a template may pull an image.

    The role may read the repositories that parameters such as ImageRepository name, in the account and
    the region of the stack. A task with another image would never start.

    Args:
        aws: where the stack is.
        uri: the image.
        template: whose tasks run it.
        parameter: the one that takes the image.
        values: of the parameters.

    Raises:
        DeployError: the role may not pull it.
    """
    own = parameter.removesuffix(IMAGE_PARAMETER) + _REPOSITORY_PARAMETER
    name = ImageName.parse(uri)
    ecr = _ECR.fullmatch(name.registry)
    if ecr is None or own not in template.parameters:
        return
    others = repository_parameters(template)
    # That of another image is for that image alone; a repository without one is for any.
    others = [
        each
        for each in others
        if each == own
        or each.removesuffix(_REPOSITORY_PARAMETER) + IMAGE_PARAMETER not in template.parameters
    ]
    allowed = [template.value_of(each, values) for each in others]
    if name.repository not in allowed:
        raise DeployError(
            f"{parameter} of {template.name} is of the repository {name.repository}, but the tasks' "
            f"execution role may pull {' and '.join(allowed)} only; give another image, or the "
            f"repository as {own}"
        )
    place, region = f"{ecr['account']} in {ecr['region']}", aws.cloudformation.meta.region_name
    if place != f"{aws.account} in {region}":
        raise DeployError(
            f"{parameter} of {template.name} is in account {place}, but the tasks' execution role may "
            f"pull from account {aws.account} in {region} only; push the image there"
        )


def _build_command(name: ImageName, template: str, architecture: str) -> str:
    tag = f"{name.without_version}:{name.tag or 'TAG'}"
    context = _CONTEXTS.get(template, f"build/{template}")
    platform = f"--platform linux/{architecture} " if architecture else ""
    image = context.removeprefix("build/")
    package = f"poolkit package {image}" if image in _PACKAGED else ""
    if package and architecture == "amd64":
        package += " --architecture x86_64"
    return (
        f"{package} && " * bool(package)
        + f"docker build {platform}--tag {tag} {context} && docker push {tag}"
    )


def _find(client: Any, account: str, name: ImageName, build: str) -> tuple[dict[str, Any], str]:
    """Return the manifest and the digest of an image. Raises `DeployError`."""
    from botocore.exceptions import ClientError  # noqa: PLC0415 - 60 ms

    reference = {"imageDigest": name.digest} if name.digest else {"imageTag": name.tag}
    shown = name.by_digest if name.digest else f"{name.without_version}:{name.tag}"
    with in_plain_words(f"looking for the image {shown}"):
        try:
            found = client.batch_get_image(
                registryId=account,
                repositoryName=name.repository,
                imageIds=[reference],
                # Without them ECR converts an index into the image of one platform.
                acceptedMediaTypes=[*_INDEXES, *_SINGLES],
            )
        except ClientError as error:
            if error_code(error) != "RepositoryNotFoundException":
                raise
            raise DeployError(
                f"there is no repository {name.repository} in ECR of account {account}; "
                "create it with: poolkit bootstrap --environment NAME"
            ) from None
    if not found.get("images"):
        reasons = [each.get("failureReason", "") for each in found.get("failures", ())]
        raise DeployError(
            f"there is no image {shown} ({reasons[0] if reasons else 'not found'}); build and "
            f"push it with: {build}"
        )
    image = found["images"][0]
    try:
        manifest = json.loads(image["imageManifest"])
    except ValueError:
        manifest = {}
    manifest.setdefault("mediaType", image.get("imageManifestMediaType", ""))
    return manifest, image["imageId"]["imageDigest"]


def _architectures(
    client: Any, account: str, name: ImageName, manifest: dict[str, Any]
) -> set[str] | None:
    """Return the Linux architectures of an image, None if they cannot be read.

    Raises:
        DeployError: it is something else than an image of a container.
    """
    if isinstance(manifest.get("manifests"), list):
        platforms = [each.get("platform") or {} for each in manifest["manifests"]]
        return {
            str(each.get("architecture"))
            for each in platforms
            if each.get("os") == "linux"  # an attestation has "unknown"
        }
    configuration = manifest.get("config") or {}
    if "digest" not in configuration:
        return None  # the first version of Docker's manifests
    if configuration.get("mediaType", _CONFIGURATIONS[0]) not in _CONFIGURATIONS:
        raise DeployError(
            f"{name.by_digest} is no image of a container, but {configuration['mediaType']}"
        )
    content = _read_blob(client, account, name.repository, configuration["digest"])
    if content is None or "architecture" not in content:
        return None
    return {str(content["architecture"])} if content.get("os", "linux") == "linux" else set()


def _read_blob(client: Any, account: str, repository: str, digest: str) -> dict[str, Any] | None:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - 60 ms

    try:
        layer = client.get_download_url_for_layer(
            registryId=account, repositoryName=repository, layerDigest=digest
        )
        url = layer["downloadUrl"]
        if not url.startswith(("https://", "http://")):
            return None
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_LIMIT_S) as answer:  # noqa: S310
            found = json.loads(answer.read(1_000_000))
    except (ClientError, BotoCoreError, urllib.error.URLError, OSError, ValueError):
        # For example without ecr:GetDownloadUrlForLayer. The deployment is still possible.
        return None
    return found if isinstance(found, dict) else None
