"""The linters that others wrote, with every check on."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from infra.deployed import INFRA, ROOT
from processes import run

pytestmark = pytest.mark.process

NOT_EVERYWHERE = {
    "AWS::Lambda::CapacityProvider",
    "AWS::Lambda::NetworkConnector",
    "AWS::Lambda::WebFunction",
    "AWS::Lambda::WebFunctionEndpoint",
    "AWS::Lambda::WebFunctionRevision",
    "AWS::RDS::DBProxy",
    "AWS::RDS::DBProxyTargetGroup",
}
"""Types that AWS has not brought to every region. docs/infrastructure.md names their stacks."""

CFN_LINT = Path(sys.executable).with_name("cfn-lint")


def test_cfn_lint_looks_at_every_template():
    """Its configuration names them all, and switches nothing off."""
    settings = yaml.safe_load((ROOT / ".cfnlintrc.yaml").read_text())
    templates = {f"infra/{file.name}" for file in INFRA.glob("*.yaml")} - {"infra/compose.yaml"}
    assert set(settings["templates"]) == templates
    assert set(settings) == {"templates", "include_checks"}


@pytest.mark.timeout(900)
def test_cfn_lint_finds_nothing():
    """No error, no warning, not even a remark."""
    answer = run(CFN_LINT, timeout_s=800)
    assert (answer.stdout, answer.returncode) == ("", 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cfn_lint_finds_nothing_in_any_region():
    """Only optional stacks have types that some regions lack; all else exists in each region."""
    answer = run(CFN_LINT, "--regions", "ALL_REGIONS", timeout_s=800)
    findings = [line for line in answer.stdout.splitlines() if re.match(r"[EWI]\d{4} ", line)]
    lacking = [
        re.match(r"E3006 Resource type '([\w:]+)' does not exist", line) for line in findings
    ]
    assert None not in lacking, answer.stdout
    assert {match[1] for match in lacking} == NOT_EVERYWHERE
    files = {
        line.partition(":")[0] for line in answer.stdout.splitlines() if line.startswith("infra/")
    }
    assert files == {"infra/managedfunction.yaml", "infra/proxy.yaml", "infra/webfunction.yaml"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cdk_nag_finds_nothing_without_a_reason():
    """The AwsSolutions rules, with prod's parameters; each accepted finding has its reason."""
    answer = run(ROOT / "scripts" / "cdk-nag", timeout_s=800)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert int(answer.stdout.split()[0]) > 20, "the rules ran"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_checkov_finds_nothing():
    """Templates, manifests and Dockerfiles pass, or say why not."""
    answer = run(ROOT / "scripts" / "checkov", timeout_s=1100)
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.count("Failed checks: 0") == 3


def test_the_linters_of_pipelines_find_nothing():
    """actionlint, zizmor, shellcheck and the schemas of GitHub and GitLab, with every check on."""
    answer = run(ROOT / "scripts" / "lint-pipelines", timeout_s=250)
    assert (answer.stdout + answer.stderr, answer.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("right", "wrong", "finding"),
    [
        ("actions/checkout@3d3c42e5aac5ba805825da76410c181273ba90b1 # v7.0.1", "actions/checkout@v7",
         "unpinned-uses"),
        ('"$NUMBER"', "${{ github.event.pull_request.title }}", "untrusted"),
        ("runs-on: ubuntu-24.04-arm", "runs-on: ubuntu-25.04-arm", "ubuntu-25.04-arm"),
        ("persist-credentials: false", "persist-credentials: true", "artipacked"),
        ("matrix.image", "matrix.imgae", "imgae"),
        ('"$GITHUB_PATH"', "$GITHUB_PATH", "SC2086"),
        ("    timeout-minutes: 60\n", "", "timeout-minutes"),
        ("contents: read", "contents: all", "all"),
    ],
)  # fmt: skip
def test_the_linters_of_pipelines_work(right, wrong, finding, tmp_path):
    """A fault of each kind in a workflow is found by one of them."""
    workflow = (INFRA / "github/pull-request.yml").read_text()
    if right == '"$NUMBER"':
        workflow = workflow.replace("make test", f"echo {right}")
    assert right in workflow
    folder = tmp_path / ".github/workflows"
    folder.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (folder / "pull-request.yml").write_text(workflow.replace(right, wrong))
    answer = run(ROOT / "scripts" / "lint-pipelines", tmp_path, timeout_s=250)
    assert answer.returncode == 1
    assert finding in answer.stdout + answer.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("empty", [True, False], ids=["nothing there", "no such folder"])
def test_checkov_that_scans_nothing_fails(empty, tmp_path):
    """Success would say that what was not read is right."""
    folder = tmp_path / "templates"
    if empty:
        folder.mkdir()
    answer = run(ROOT / "scripts" / "checkov", "--directory", folder, timeout_s=500)
    assert answer.returncode == 2, answer.stdout
    assert str(folder) in answer.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_checkov_with_a_format_alone_scans_everything():
    """Options without a place leave the place as it is without options."""
    answer = run(ROOT / "scripts" / "checkov", "--output", "json", timeout_s=500)
    assert answer.returncode == 0, answer.stderr
    assert sum(each["summary"]["passed"] for each in json.loads(answer.stdout)) > 500
