"""The pipelines to copy, and this project's own workflows: rules for each, and their commands."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from infra.deployed import INFRA, ROOT

COPIED = sorted((INFRA / "github").glob("*.yml"))
WORKFLOWS = [*COPIED, *sorted((ROOT / ".github/workflows").glob("*.yml"))]
GITLAB = INFRA / "gitlab/.gitlab-ci.yml"
WRITABLE = {"id-token", "pull-requests"}
"""What a job may write: a token for AWS, and a comment."""


class Job(NamedTuple):
    """A job of a workflow, with the file it is in."""

    file: Path
    name: str
    job: dict

    @property
    def steps(self):
        return self.job.get("steps", [])


def read(file):
    # YAML 1.1 reads the key `on` as true.
    return yaml.safe_load(file.read_text())


JOBS = [
    pytest.param(Job(file, name, job), id=f"{file.parent.name}/{file.stem}:{name}")
    for file in WORKFLOWS
    for name, job in read(file)["jobs"].items()
]


def name_of(file):
    return f"{file.parent.name}/{file.name}"


# -- rules of workflows -----------------------------------------------------------------------


@pytest.mark.parametrize("file", [*WORKFLOWS, ROOT / "action.yml"], ids=name_of)
def test_actions_are_pinned_by_commit(file):
    """Each action of others has 40 hexadecimal digits, and its version in a comment."""
    for line in re.findall(r"^\s*(?:- )?uses: (.*)$", file.read_text(), re.MULTILINE):
        if not line.startswith("./"):
            assert re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_one_version():
    """All workflows, and the action of this project, use the same commit of an action."""
    found = {}
    for file in [*WORKFLOWS, ROOT / "action.yml"]:
        for action, version in re.findall(r"uses: ([\w-]+/[\w/-]+)@(.*)", file.read_text()):
            found.setdefault(action, set()).add(version)
    assert {action: versions for action, versions in found.items() if len(versions) > 1} == {}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_has_an_end(job):
    """A job that hangs must not hold a runner, or a release, for six hours."""
    assert "uses" in job.job or 0 < job.job["timeout-minutes"] <= 180


@pytest.mark.parametrize("file", WORKFLOWS, ids=name_of)
def test_workflows_of_one_kind_do_not_overlap(file):
    """A workflow has a concurrency group; one that another calls has that of the caller."""
    workflow = read(file)
    assert "concurrency" in workflow or list(workflow[True]) == ["workflow_call"]


def test_a_release_is_not_cancelled_half_way():
    """A newer commit waits: a cancelled deployment would leave AWS at work."""
    assert read(INFRA / "github/release.yml")["concurrency"]["cancel-in-progress"] is False


@pytest.mark.parametrize("file", COPIED, ids=name_of)
def test_a_copied_workflow_grants_nothing_by_default(file):
    """Permissions are the jobs' own; a shell ends at a failure inside a pipe."""
    workflow = read(file)
    assert workflow["permissions"] == {}
    assert workflow["defaults"]["run"]["shell"] == "bash"


@pytest.mark.parametrize("job", [each for each in JOBS if each.values[0].file in COPIED])
def test_a_job_s_permissions_are_minimal(job):
    """It reads the code, and writes no more than a token for AWS and a comment."""
    granted = job.job["permissions"]
    assert granted["contents"] == "read"
    assert {each for each, access in granted.items() if access == "write"} <= WRITABLE
    takes_a_role = any("configure-aws-credentials" in str(s.get("uses")) for s in job.steps)
    assert (granted.get("id-token") == "write") == (takes_a_role or "uses" in job.job)


@pytest.mark.parametrize("job", JOBS)
def test_no_value_is_put_into_a_script(job):
    """Values of an event come as variables: text inside a script would run as a part of it."""
    for step in job.steps:
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("job", JOBS)
def test_the_checkout_keeps_no_token(job):
    """Later steps, and the packages that they install, find no token in .git/config."""
    for step in job.steps:
        if "actions/checkout@" in str(step.get("uses")):
            assert step["with"]["persist-credentials"] is False


def test_the_code_of_a_fork_gets_no_role():
    """A job of a pull request that takes a role is for branches of this repository."""
    workflow = read(INFRA / "github/pull-request.yml")
    assert list(workflow[True]) == ["pull_request"]
    for job in workflow["jobs"].values():
        if job["permissions"].get("id-token"):
            assert "head.repo.full_name == github.repository" in job["if"]


def test_prod_waits_for_its_approval_and_gets_the_same_images():
    """The GitHub environment has the reviewers, and staging comes first."""
    jobs = read(INFRA / "github/release.yml")["jobs"]
    called = read(INFRA / "github/release-environment.yml")["jobs"]["release"]
    assert called["environment"]["name"] == "${{ inputs.environment }}"
    assert "staging" in jobs["prod"]["needs"]
    images = [{k: v for k, v in jobs[name]["with"].items() if k != "environment"} for name in
              ("staging", "prod")]  # fmt: skip
    assert images[0] == images[1]
    prod = read(GITLAB)["prod"]
    assert prod["rules"][-1]["when"] == "manual"
    assert "staging" in prod["needs"]


@pytest.mark.parametrize("file", COPIED, ids=name_of)
def test_variables_are_explained(file):
    """Each variable of a workflow is in the table of the page."""
    page = (ROOT / "docs/pipeline.md").read_text()
    for name in re.findall(r"vars\.(\w+)", file.read_text()):
        assert f"`{name}`" in page
