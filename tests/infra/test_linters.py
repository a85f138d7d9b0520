"""The linters that others wrote, with every check on."""

import sys
from pathlib import Path

import pytest
import yaml
from infra.deployed import INFRA, ROOT
from processes import run

pytestmark = pytest.mark.process

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
@pytest.mark.timeout(1200)
def test_checkov_finds_nothing():
    """Templates, manifests and Dockerfiles pass, or say why not."""
    answer = run(ROOT / "scripts" / "checkov", timeout_s=1100)
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.count("Failed checks: 0") == 3
