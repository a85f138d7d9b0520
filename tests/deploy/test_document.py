"""docs/deploying.md from its first command to its last, in this order, as far as moto goes."""

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
BLOCKS = re.findall(
    r"^```sh\n(.*?)^```$", (ROOT / "docs/deploying.md").read_text(), re.MULTILINE | re.DOTALL
)
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
    for line in text.splitlines():
        program, command, *words = shlex.split(line, comments=True)
        assert program == "poolkit"
        if command != "status" and not {"--plan-only", "--yes", "--rollback"} & set(words):
            words += AGREED.get(command, ())
        answer = run_here(command, *words, cwd=checkout, **aws)
        said = f"{line}\n{answer.stdout[-3000:]}{answer.stderr}"
        assert answer.returncode == wanted, said
        if command == "bootstrap":
            push_every_image()  # by hand there, with docker
    return said


@pytest.mark.sample
def test_the_commands_of_the_document_run_in_its_order(checkout, aws):
    """From an empty account to a deployment and its removal, step by step, and in CI."""
    at_a_glance, prepare, step_by_step, packages, in_ci, rollback = BLOCKS
    run_block("poolkit package lambda", checkout, aws)
    run_block(at_a_glance, checkout, aws)
    stacks = boto3.client("cloudformation").describe_stacks()["Stacks"]
    assert {each["StackName"] for each in stacks} == {"poolkit-bootstrap", "poolkit-dev-access"}
    run_block(prepare, checkout, aws)
    run_block(step_by_step, checkout, aws)
    run_block(packages, checkout, aws)
    # CI deploys what has been deployed before.
    run_block("poolkit bootstrap --environment prod", checkout, aws)
    run_block("poolkit deploy all --environment prod --migrate", checkout, aws)
    push_image("poolkit-web", "release-7", content="7")
    run_block(in_ci, checkout, aws)
    refused = run_block(rollback, checkout, aws, wanted=2)
    assert "no unfinished change to undo" in refused
