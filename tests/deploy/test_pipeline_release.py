"""The steps of a release, as the pipeline runs them: bash, with moto's server in the place of AWS."""

import os
import re

import boto3
import pytest
import web_server
from deploy.conftest import write_package
from deploy.test_document import checkout
from infra.deployed import INFRA
from infra.test_pipelines import read
from poolkit_command import POOLKIT, run_here
from processes import run

from poolkit.deploy.rehearsal.account import RehearsalAccount

__all__ = ["checkout"]  # a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto"),
]

(RELEASE,) = read(INFRA / "github/release-environment.yml")["jobs"].values()


@pytest.fixture
def release(checkout, aws):
    """Release images of a tag with a package, step by step; return the names of the steps."""
    answer = run_here("bootstrap", "--environment", "staging", "--yes", cwd=checkout, **aws)
    assert answer.returncode == 0, answer.stderr
    account = RehearsalAccount(aws["AWS_ENDPOINT_URL"], "eu-central-1")
    (found,) = boto3.client("cloudformation").describe_stacks(StackName="poolkit-bootstrap")[
        "Stacks"
    ]
    outputs = {each["OutputKey"]: each["OutputValue"] for each in found["Outputs"]}

    def push(name, tag):
        uri = outputs[f"{name}RepositoryUri"]
        return f"{uri}@{account.push_image(uri.partition('/')[2], f'{name}-{tag}')}"

    # The first deployment is by hand (docs/pipeline.md): it makes the application's role.
    for words in (
        ("deploy", "network", "--yes"),
        ("deploy", "database", "--yes"),
        ("migrate", "--image", push("Web", "by-hand")),
        ("db", "role"),
    ):
        answer = run_here(*words, "--environment", "staging", cwd=checkout, **aws)
        assert answer.returncode == 0, answer.stderr

    def release(tag, url):
        write_package(checkout / "build/lambda.zip", tag)
        variables = aws | {
            "PATH": f"{POOLKIT.parent}:{os.environ['PATH']}",
            "COLUMNS": "200",
            "ENVIRONMENT": "staging",
            "WEB_IMAGE": push("Web", tag),
            "WORKER_IMAGE": push("Worker", tag),
            "SERVICE_URL": url,
            "POOLKIT_SMOKE_TIMEOUT": "1",
        }
        done, failed = [], ""
        for step in RELEASE["steps"]:
            script, condition = step.get("run", "make install"), step.get("if", "success()")
            if "make install" in script or ("failure()" in condition) != bool(failed):
                continue
            bash = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script)
            answer = run(*bash, cwd=checkout, environ=variables, timeout_s=600)
            done.append(step["name"])
            if step["name"] == "Deploy":
                ran.append(deployed())
            if answer.returncode:
                assert not failed, answer.stdout[-3000:] + answer.stderr
                failed = step["name"]
                output = answer.stdout + answer.stderr
                assert failed == "Smoke test", output[-5000:]
        return done, failed

    ran = []
    release.ran = ran
    return release


def deployed():
    """Return the images and the function's key that the stacks have."""
    pages = boto3.client("cloudformation").get_paginator("describe_stacks").paginate()
    return {
        stack["StackName"].rpartition("-")[2]: parameter["ParameterValue"]
        for page in pages
        for stack in page["Stacks"]
        for parameter in stack.get("Parameters", ())
        if re.fullmatch("ImageUri|CodeKey", parameter["ParameterKey"])
        and re.search("-(web|worker|lambda)$", stack["StackName"])
    }


@pytest.mark.sample
def test_a_release_that_fails_its_test_is_replaced_by_the_one_before(release):
    """The first release passes; the second one's requests fail, and the first one runs again."""
    steps = [each["name"] for each in RELEASE["steps"] if "run" in each and "if" not in each]
    with web_server.serving() as service:
        done, failed = release("first", service.url)
        assert (done, failed) == (steps[1:], "")
        first = deployed()
        assert set(first) == {"web", "worker", "lambda"}
        service.statuses["/articles"] = 500
        done, failed = release("second", service.url)
        assert failed == "Smoke test"
        assert done == [*steps[1:], "Go back to what ran before"]
        assert deployed() == first
        _, second = release.ran
        assert all(second[name] != first[name] for name in first)
