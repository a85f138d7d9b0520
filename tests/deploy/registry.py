"""Images in ECR as `docker push` and BuildKit store them: manifest, configuration, index."""

import hashlib
import json

import boto3

from poolkit.deploy.rehearsal.moto_stacks import LAYER_BUCKET as BUCKET

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIGURATION = "application/vnd.docker.container.image.v1+json"
OCI_CONFIGURATION = "application/vnd.oci.image.config.v1+json"


def digest_of(text):
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def push_image(repository, tag, *, architecture="arm64", content="", form="docker"):
    """Store an image of one platform, as `docker push` does, and return its digest.

    Args:
        repository: its name; it is created if there is none.
        tag: the image's.
        architecture: as a manifest names it.
        content: makes the digest another one.
        form: `docker`, `oci`, or `index`, which BuildKit makes with an attestation.
    """
    ecr = boto3.client("ecr")
    if repository not in {each["repositoryName"] for each in _repositories(ecr)}:
        ecr.create_repository(repositoryName=repository)
    configuration = json.dumps(
        {"architecture": architecture, "os": "linux", "config": {"Labels": {"is": content}}}
    )
    _store_layer(configuration)
    is_docker = form == "docker"
    media_type = MANIFEST if is_docker else OCI_MANIFEST
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": {
            "mediaType": CONFIGURATION if is_docker else OCI_CONFIGURATION,
            "size": len(configuration),
            "digest": digest_of(configuration),
        },
        "layers": [],
    }
    if form == "index":
        inner = json.dumps(manifest)
        media_type = INDEX
        manifest = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "size": len(inner),
                    "digest": digest_of(inner),
                    "platform": {"architecture": architecture, "os": "linux"},
                },
                {
                    "mediaType": OCI_MANIFEST,
                    "size": 1,
                    "digest": digest_of("attestation"),
                    "platform": {"architecture": "unknown", "os": "unknown"},
                    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
                },
            ],
        }
    text = json.dumps(manifest)
    ecr.put_image(
        repositoryName=repository,
        imageTag=tag,
        imageManifest=text,
        imageManifestMediaType=media_type,
        imageDigest=digest_of(text),
    )
    return digest_of(text)


def _repositories(ecr):
    pages = ecr.get_paginator("describe_repositories").paginate()
    return [each for page in pages for each in page["repositories"]]


def _store_layer(text):
    s3 = boto3.client("s3", region_name="us-east-1")
    if BUCKET not in {each["Name"] for each in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key=digest_of(text).replace(":", "-"), Body=text)
    s3.put_object_acl(Bucket=BUCKET, Key=digest_of(text).replace(":", "-"), ACL="public-read")


def push_every_image(tag="latest", stack="poolkit-bootstrap"):
    """Push an image for its machine into each repository that `poolkit bootstrap` made."""
    (found,) = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    for output in found["Outputs"]:
        if output["OutputKey"].endswith("RepositoryUri"):
            repository = output["OutputValue"].partition("/")[2]
            if boto3.client("ecr").list_images(repositoryName=repository)["imageIds"]:
                continue  # its tags are immutable
            machine = "amd64" if output["OutputKey"].startswith("Loadtest") else "arm64"
            push_image(repository, tag, architecture=machine, content=repository)
