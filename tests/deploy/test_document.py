"""docs/deploying.md and docs/deployments.md: their commands, in their order, as far as moto goes."""

import re
import shlex
import shutil

import boto3
import pytest
from deploy.registry import push_every_image, push_image
from deploy.test_own_stacks import ACCOUNT
from poolkit_command import ROOT, run_here

from poolkit.deploy.rehearsal.moto_tasks import LocalTasks

SOURCES = ("articles", "infra", "lambda_handler", "loadtests", "poolkit", "webapp", "worker")


def blocks(page):
    """The commands of a page, block by block."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


REGISTRY = f"{ACCOUNT}.dkr.ecr.eu-central-1.amazonaws.com"
"""The value that a reader exports, on the first of the pages."""
AGREED = {"bootstrap": ("--yes",), "deploy": ("--yes",), "destroy": ("--yes-delete", "poolkit-dev")}
"""What a person does on the terminal: agree to the plan, or type the name."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    # Of the types that moto does not know, it says so and makes nothing.
    pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto"),
]


@pytest.fixture
def checkout(tmp_path, aws, gate, new_postgres, monkeypatch):
    """Clone the project, with an account's own values where it says "replace"."""
    folder = tmp_path / "poolkit"
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder / name)
    # scripts/database-certificates fetches it from AWS.
    (folder / "certificates").mkdir()
    (folder / "certificates/database-ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    certificate = f"arn:aws:iam::{ACCOUNT}:server-certificate/articles"
    for file in folder.glob("infra/environments/*.toml"):
        text = file.read_text().replace("000000000000", ACCOUNT)
        file.write_text(re.sub('CertificateArn = ".*?"', f'CertificateArn = "{certificate}"', text))
    with new_postgres() as server:
        tasks = LocalTasks(gate, lambda: server, folder, aws)
        tasks.fill(monkeypatch)
        yield folder
        tasks.end()
        gate.end()


def run_block(text, checkout, aws, wanted=0):
    for line in text.replace("\\\n", " ").replace("$REGISTRY", REGISTRY).splitlines():
        program, command, *words = shlex.split(line, comments=True)
        assert program == "poolkit"
        # Undoing an unfinished change has no plan to agree to.
        if not {"--plan-only", "--yes"} & set(words) and words[-1] != "--rollback":
            words += AGREED.get(command, ())
        answer = run_here(command, *words, cwd=checkout, **aws)
        said = f"{line}\n{answer.stdout[-3000:]}{answer.stderr}"
        assert answer.returncode == wanted, said
    return said


def stacks():
    found = boto3.client("cloudformation").describe_stacks()["Stacks"]
    return {each["StackName"]: each["StackStatus"] for each in found}


def push_releases():
    """Push what the pages build by hand with docker: two releases, and an earlier latest."""
    for repository in ("poolkit-web", "poolkit-worker"):
        for release in ("release-1", "release-2"):
            push_image(repository, release, content=release)


@pytest.mark.sample
def test_the_way_to_a_release_and_back_runs_in_its_order(checkout, aws):
    """docs/deploying.md: from an empty account to a release, a bad one, back, and removal."""
    prepare, build, first, following, parameters, back, remove = blocks("deploying.md")
    run_block(prepare, checkout, aws)
    assert set(stacks()) == {"poolkit-bootstrap", "poolkit-dev-access"}
    run_block(build, checkout, aws)
    push_releases()
    run_block(first, checkout, aws)
    run_block(following, checkout, aws)
    run_block(parameters, checkout, aws)
    second = image_of("poolkit-dev-web")
    run_block(back, checkout, aws)
    assert image_of("poolkit-dev-web") != second
    assert {status.rpartition("_")[2] for status in stacks().values()} == {"COMPLETE"}
    run_block(remove, checkout, aws)
    assert set(stacks()) == {"poolkit-bootstrap", "poolkit-dev-access"}


def image_of(stack):
    (found,) = boto3.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
    values = {each["ParameterKey"]: each["ParameterValue"] for each in found["Parameters"]}
    return values["ImageUri"]


@pytest.mark.sample
def test_the_commands_of_the_details_run(checkout, aws):
    """docs/deployments.md: packages, production's deployments, and nothing to undo in the end."""
    packages, in_production, rollback = blocks("deployments.md")
    run_block(packages, checkout, aws)
    run_block("poolkit bootstrap --environment prod", checkout, aws)
    push_every_image()
    push_image("poolkit-web", "release-7", content="7")
    run_block("poolkit deploy all --environment prod --migrate", checkout, aws)
    run_block(in_production, checkout, aws)
    refused = run_block(rollback, checkout, aws, wanted=2)
    assert "no unfinished change to undo" in refused
