"""`poolkit rehearse`: an environment's whole life on a simulated account, step by step."""

import subprocess
import tomllib

import pytest
from deploy.test_deploy import break_template
from poolkit_command import ROOT, run_process, succeeded

ENVIRONMENTS = sorted(file.stem for file in ROOT.glob("infra/environments/*.toml"))

pytestmark = [pytest.mark.process, pytest.mark.timeout(900)]


def rehearse(environment, cwd):
    # A profile that leads to a real account must not be used.
    variables = {"AWS_PROFILE": "production", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    return run_process("rehearse", "-e", environment, cwd=cwd, timeout_s=800, **variables)


def files(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_strangers_project_is_rehearsed(shop):
    """A project of its own, without this one's account stacks, images and migrations."""
    before = files(shop)
    done = rehearse("dev", shop)
    output = succeeded(done, "dev: every step as expected")
    titles = [line.split(maxsplit=1)[1] for line in output.splitlines() if line.startswith("  ok ")]
    assert [title.rpartition(" (")[0] for title in titles] == [
        "The first deployment",
        "The same again changes nothing",
        "Every stack is complete",
        "An update that fails is undone",
        "Repaired, it deploys again",
        "Removal",
    ]
    assert files(shop) == before


def test_a_step_that_fails_ends_the_rehearsal(shop):
    """Exit status 1, the step and its output, and nothing after it."""
    break_template(shop, "network")
    done = rehearse("dev", shop)
    assert done.returncode == 1
    assert "FAIL The first deployment" in done.stdout
    assert "infra/network.yaml" in done.stdout  # where cfn-lint found the name of the bucket
    assert "changes nothing" not in done.stdout
    assert "poolkit deploy ended with exit status 2, but 0 was expected" in done.stderr


@pytest.mark.slow
@pytest.mark.sample
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_environment_is_rehearsed(environment):
    """This project's own, with migrations on a real server; then what only an account can prove."""
    before = subprocess.check_output(["git", "status", "--porcelain"], cwd=ROOT)
    output = succeeded(rehearse(environment, ROOT), f"{environment}: every step as expected")
    for title in ("The account's own stacks", "The schema of the next release", "Removal"):
        assert f"  ok   {title} (" in output
    rows = tomllib.loads((ROOT / "infra/unproven.toml").read_text())["unproven"]
    commands = [row["command"] for row in rows if row["needs"] == "account"]
    assert commands
    assert [command for command in commands if command not in output] == []
    assert subprocess.check_output(["git", "status", "--porcelain"], cwd=ROOT) == before
