"""The comment on a pull request, with a program in the place of gh that stands for GitHub."""

import os
import re
from pathlib import Path

import pytest
from infra.deployed import INFRA
from infra.test_pipelines import read
from processes import run

pytestmark = pytest.mark.process

GH = """\
#!/bin/sh
# `gh api`: lists the number of the comment, if there is one, and stores what is sent.
for word; do
    case "$word" in
        PATCH | POST) method=$word ;;
        repos/*) path=$word ;;
        body=@*) file=${word#body=@} ;;
    esac
done
echo "${method:-GET} $path" >>requests.txt
if [ -n "${file:-}" ]; then cp "$file" stored.md; elif [ -f stored.md ]; then echo 4711; fi
"""


def step(name):
    steps = read(INFRA / "github/pull-request.yml")["jobs"]["plan"]["steps"]
    return next(each["run"] for each in steps if each.get("name") == name)


@pytest.fixture
def comment(tmp_path):
    """Run the step in a folder of its own; return the requests of this run and the comment."""
    program = tmp_path / "bin/gh"
    program.parent.mkdir()
    program.write_text(GH)
    program.chmod(0o755)
    (tmp_path / "budget.md").write_text("Fits: 10 of 65 connections, 55 to spare.\n")

    def once(plan=None):
        requests = tmp_path / "requests.txt"
        requests.write_text("")
        if plan is not None:
            (tmp_path / "plan.txt").write_text(plan)
        done = run(
            *("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step("Comment")),
            cwd=tmp_path,
            environ={
                "PATH": f"{program.parent}:{os.environ['PATH']}",
                "ENVIRONMENT": "staging",
                "GITHUB_REPOSITORY": "shop/articles",
                "NUMBER": "7",
            },
        )
        assert done.returncode == 0, done.stderr
        return requests.read_text().split("\n")[:-1], (tmp_path / "stored.md").read_text()

    return once


def test_the_first_run_writes_a_comment_and_the_next_ones_replace_it(comment):
    """One comment for each pull request, with the budget and the plan."""
    comments = "repos/shop/articles/issues/7/comments"
    requests, text = comment("web: 1 to change")
    assert requests == [f"GET {comments}", f"POST {comments}"]
    assert text.startswith("<!-- poolkit -->\nFits: 10 of 65")
    assert "web: 1 to change" in text
    requests, text = comment("web: 2 to change")
    assert requests == [f"GET {comments}", "PATCH repos/shop/articles/issues/comments/4711"]
    assert "web: 2 to change" in text


def test_a_comment_fits_and_cannot_break_out_of_its_block(comment):
    """GitHub takes 65,536 characters; a plan may have a fence of its own."""
    _, text = comment("```\n" + "x" * 100_000)
    assert len(text) < 65_536
    assert re.search(r"^````text\n```\n", text, re.MULTILINE)
    assert text.endswith("\n````\n\n</details>\n")


def test_without_a_plan_the_budget_is_shown(comment):
    """Credentials that fail leave the budget, which needs none."""
    _, text = comment()
    assert "Fits: 10 of 65" in text


def test_a_failed_budget_fails_the_job_after_the_comment():
    """A pipe keeps the exit status of the command, and later steps run all the same."""
    workflow = read(INFRA / "github/pull-request.yml")
    assert workflow["defaults"]["run"]["shell"] == "bash"
    assert step("Budget").endswith("| tee budget.md")
    steps = {each.get("id"): each for each in workflow["jobs"]["plan"]["steps"]}
    assert "continue-on-error" not in steps["budget"]
    assert Path(step("Plan").split("tee ")[1]).name == "plan.txt"
