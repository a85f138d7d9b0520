"""docs/replace-the-sample.md, done as it is written, and the library's tests without the sample."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import ROOT, run, run_python

pytestmark = [pytest.mark.slow, pytest.mark.sample]

PAGE = ROOT / "docs/replace-the-sample.md"
FILES = re.compile(r'^```python title="([\w./]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SAMPLE = ("articles", "lambda_handler", "webapp", "worker")
TARGETS = ("lambda", "web", "web_async")


@dataclass(frozen=True)
class Checkout:
    """A copy of this checkout, whose files are imported instead of this one's."""

    path: Path
    environ: dict[str, str]

    def shell(self, commands):
        answer = run("sh", "-e", "-c", commands, cwd=self.path)
        assert answer.returncode == 0, answer.stderr

    def python(self, *arguments, **options):
        answer = run_python(*arguments, cwd=self.path, environ=self.environ, clean=True, **options)
        assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.fixture
def checkout(tmp_path):
    """Copy the sources; the interpreter finds the copy where it would find this checkout."""
    path = tmp_path / "checkout"
    made = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    shutil.copytree(ROOT, path, ignore=shutil.ignore_patterns(".git", *made))
    # An editable installation puts this checkout on the path. There, what was deleted still exists.
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\n\nsys.path[:] = [{str(path)!r} if p == {str(ROOT)!r} else p for p in sys.path]\n"
    )
    return Checkout(path, {"PYTHONPATH": str(tmp_path)})


@pytest.mark.timeout(600)
def test_the_page_replaces_the_sample(checkout, tmp_path):
    """The page's commands and files are enough for a comparison of three targets."""
    page = PAGE.read_text()
    deletion, rename, without_worker, _ = COMMANDS.findall(page)
    files = dict(FILES.findall(page))
    checkout.shell("git init -q && git add --all")
    checkout.shell("git -c user.name=t -c user.email=t@t.invalid commit -q -m t")
    checkout.shell(deletion)
    for name, text in files.items():
        (checkout.path / name).write_text(text)
    checkout.shell(rename)
    checkout.shell(without_worker)
    assert "articles" not in (checkout.path / "pyproject.toml").read_text()
    checkout.python("-m", "ruff", "check", *{name.split("/")[0] for name in files})
    checkout.python("-c", "from importlinter.cli import lint_imports_command as c; c()")
    measured = tmp_path / "run"
    checkout.python(
        *("-m", "poolkit", "compare", "--quick", "--targets", ",".join(TARGETS)),
        *("--out", measured),
        timeout_s=400,
    )
    found = json.loads((measured / "results.json").read_text())["targets"]
    assert {name: each["errors"] for name, each in found.items()} == dict.fromkeys(TARGETS, 0)
    assert all(each["requests"] > 0 for each in found.values())


@pytest.mark.timeout(600)
def test_the_library_s_tests_pass_without_the_sample(checkout):
    """All that are left can be collected, and those of the fast lane pass."""
    for name in SAMPLE:
        shutil.rmtree(checkout.path / name)
    for name in ("articles.py", "ingest.py"):
        (checkout.path / "loadtests" / name).unlink()
    checkout.python("-m", "pytest", "--collect-only", "-q", "-m", "")
    checkout.python("-m", "pytest", "-n", "2", "--dist", "loadfile", "-m", "pure", timeout_s=500)
