"""`--rollback` with a value deploys an earlier image."""

import pytest
from deploy.registry import push_image
from deploy.test_deploy import bucket, deploy
from deploy.test_images import REGISTRY, deployed_image, web
from poolkit_command import refused, succeeded

__all__ = ["bucket", "web"]  # fixtures


@pytest.fixture
def releases(poolkit):
    """Deploy three images one after the other; return their digests."""
    digests = [push_image("shop-web", f"release-{n}", content=str(n)) for n in (1, 2, 3)]
    for digest in digests:
        image = f"{REGISTRY}/shop-web@{digest}"
        assert deploy(poolkit, "web", "--image", image).returncode == 0
    return digests


def roll_back(poolkit, *value):
    words = ("--no-lint", "--no-budget", "--yes", "--rollback", *value)
    return poolkit("deploy", "web", "-e", "dev", *words)


def test_the_previous_image_is_deployed_again(poolkit, releases):
    """Twice leads to the newer one again; a deployment that changes no image changes no history."""
    again = ("--parameter", "Cpu=512", "--parameter", "Memory=1024")
    assert deploy(poolkit, "web", *again).returncode == 0
    succeeded(roll_back(poolkit, "previous"), f"ok image: {REGISTRY}/shop-web@{releases[1]}")
    assert deployed_image().endswith(releases[1])
    assert roll_back(poolkit, "previous").returncode == 0
    assert deployed_image().endswith(releases[2])


def test_any_image_of_the_repository_is_deployed_by_its_digest(poolkit, releases):
    """It is kept as one of the command line is."""
    succeeded(roll_back(poolkit, releases[0]), f"-> {REGISTRY}/shop-web@{releases[0]}")
    assert deployed_image().endswith(releases[0])
    succeeded(deploy(poolkit, "web"), "nothing to change")


def test_a_plan_alone_shows_where_a_rollback_leads(poolkit, releases):
    """The image stays."""
    assert releases[1] in roll_back(poolkit, "previous", "--plan-only").stdout
    assert deployed_image().endswith(releases[2])


def test_an_image_that_is_gone_is_refused(poolkit, releases):
    """A lifecycle rule may have removed it."""
    refused(roll_back(poolkit, f"sha256:{'0' * 64}"), "there is no image")


def test_without_an_earlier_image_there_is_none_to_return_to(poolkit):
    """The message has the other way: a digest."""
    refused(roll_back(poolkit, "previous"), "shop-dev-web is not deployed")
    push_image("shop-web", "latest")
    assert deploy(poolkit, "web").returncode == 0
    refused(roll_back(poolkit, "previous"), "no earlier image is known", "--rollback sha256:")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("web", "--rollback", "release-1"), "--rollback takes 'previous', a digest"),
        (("network", "--rollback", "previous"), "has no parameter ImageUri"),
        (("all", "--rollback", "previous"), "--rollback is for one stack"),
        (("web", "--rollback", "previous", "--image", "x"), "both name an image"),
        (("network", "--rollback="), "--rollback has an empty value"),
        (("network", "--rollback", "--plan-only"), "ignores --plan-only"),
        (("network", "--rollback", "--parameter", "A=b"), "ignores --parameter"),
        (("web", "--rollback", "previous", "--migrate"), "--migrate upgrades the schema"),
        (("--rollback", "network"), "Missing argument 'TARGET'"),
    ],
)
def test_a_rollback_that_cannot_be_meant_is_refused(poolkit, words, message):
    """Nothing is changed."""
    assert deploy(poolkit, "network").returncode == 0
    refused(poolkit("deploy", *words, "-e", "dev"), message, lines=1)
