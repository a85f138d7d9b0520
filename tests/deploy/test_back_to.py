"""`--back-to FILE` runs again what ran when `poolkit status --json` wrote the file."""

import json

import boto3
import pytest
from deploy.conftest import write_package
from deploy.registry import push_image
from deploy.test_deploy import bucket, deploy
from deploy.test_images import REGISTRY, deployed_image, web
from poolkit_command import refused

__all__ = ["bucket", "web"]  # fixtures


def deployed_key():
    (stack,) = boto3.client("cloudformation").describe_stacks(StackName="shop-dev-lambda")["Stacks"]
    return {p["ParameterKey"]: p["ParameterValue"] for p in stack["Parameters"]}["CodeKey"]


def release(poolkit, shop, content):
    """Deploy an image and a package."""
    digest = push_image("shop-web", content, content=content)
    write_package(shop / "build/lambda.zip", content)
    for words in (("web", "--image", f"{REGISTRY}/shop-web@{digest}"), ("lambda",)):
        assert deploy(poolkit, *words).returncode == 0


@pytest.fixture
def released(poolkit, shop):
    """Release once, record that, and release again; return what ran first, and the file."""
    for name in ("network", "database"):
        assert deploy(poolkit, name).returncode == 0
    release(poolkit, shop, "first")
    before = (deployed_image(), deployed_key())
    file = shop / "before.json"
    file.write_text(poolkit("status", "-e", "dev", "--json").stdout)
    release(poolkit, shop, "second")
    assert (deployed_image(), deployed_key()) != before
    return before, file


def test_images_and_package_of_the_file_are_deployed_again(poolkit, released):
    """All stacks at once; stacks that did not run then are deployed as the environment says."""
    before, file = released
    words = ("--yes", "--no-lint", "--no-budget", "--back-to", str(file))
    answer = poolkit("deploy", "all", "-e", "dev", *words)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert (deployed_image(), deployed_key()) == before


def test_one_stack_goes_back_alone(poolkit, released):
    """Its target names it."""
    before, file = released
    key = deployed_key()
    words = ("--yes", "--no-lint", "--no-budget", "--back-to", str(file))
    assert poolkit("deploy", "web", "-e", "dev", *words).returncode == 0
    assert (deployed_image(), deployed_key()) == (before[0], key)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"stacks": [{"template": "web"}]}', '{"stacks": [1]}', '{"stacks": []}'],
)
def test_another_file_is_refused(poolkit, shop, text):
    """One line names the file and the command that writes it; nothing is changed."""
    file = shop / "before.json"
    file.write_text(text)
    answer = poolkit("deploy", "web", "-e", "dev", "--back-to", str(file))
    refused(answer, str(file), "poolkit status --environment dev --json", lines=1)


def test_a_file_of_another_environment_is_refused(poolkit, shop):
    """Images of prod do not reach dev by the wrong file."""
    file = shop / "before.json"
    line = {"environment": "prod", "template": "web", "released": {"ImageUri": "x"}}
    file.write_text(json.dumps({"stacks": [line]}))
    refused(poolkit("deploy", "web", "-e", "dev", "--back-to", str(file)), "in dev", lines=1)


@pytest.mark.parametrize("words", [("--image", "x"), ("--rollback", "previous")])
def test_two_ways_to_name_an_image_are_refused(poolkit, shop, words):
    """And so is a file that does not exist."""
    file = str(shop / "before.json")
    refused(poolkit("deploy", "web", "-e", "dev", "--back-to", file, *words), "--back-to names")
    refused(poolkit("deploy", "web", "-e", "dev", "--back-to", file), "No such file")
