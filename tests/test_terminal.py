"""What commands print: other people's texts, which control neither the terminal nor GitHub's runner."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from poolkit.terminal import new_console

ROOT = Path(__file__).parents[1]
HOSTILE = "a[/red]\x1b[31m\x9b2J\u202e"
TEMPLATE = """
Resources:
  Db:
    Type: AWS::RDS::DBInstance
    Properties: {Engine: postgres, DBInstanceClass: db.t4g.small}
  Fn:
    Type: AWS::Serverless::Function
    Properties:
      FunctionName: "x\\n::add-mask::visible\\n\\u001b[2J@security see #1 <img src=x> [a](http://b)"
      ReservedConcurrentExecutions: 2
      Environment: {Variables: {DATABASE_URL: !Sub 'postgresql://${Db.Endpoint.Address}/app'}}
"""


def printed(thing, **options):
    out = io.StringIO()
    new_console(file=out, width=80, **options).print(thing)
    return out.getvalue()


def test_brackets_are_text_and_control_characters_are_question_marks():
    table = Table()
    table.add_row(HOSTILE)
    for shown in (printed(HOSTILE), printed(table)):
        assert "a[/red]?[31m?" in shown
        assert not {"\x1b", "\x9b", "\u202e"} & set(shown)


def test_colours_of_our_own_stay():
    out = io.StringIO()
    new_console(file=out, force_terminal=True, color_system="standard").print("x", style="red")
    assert "\x1b[31mx" in out.getvalue()


def test_in_a_workflow_no_text_is_a_command(monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    shown = printed("  ::set-output name=a::b\n##[add-mask]x\nhttp://[::1]:80")
    assert "::set-output" not in shown
    assert "##[" not in shown
    assert "[::1]:80" in shown


@pytest.fixture
def action(tmp_path):
    """A function that runs the action on a template; returns its output and its job summary."""

    def run(template, **variables):
        (tmp_path / "template.yaml").write_text(template)
        environ = os.environ | {
            "BUDGET_PATHS": "template.yaml",
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
            "GITHUB_OUTPUT": str(tmp_path / "output"),
            **variables,
        }
        command = [sys.executable, str(ROOT / "scripts/budget_action")]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
        )
        return done, (tmp_path / "summary.md")

    return run


@pytest.mark.process
def test_the_action_lets_no_name_of_a_template_be_a_command(action):
    done, summary = action(TEMPLATE)
    assert done.returncode in (0, 1, 3), done.stderr
    stopped, active = None, []
    for line in done.stdout.splitlines():
        if stopped is None and line.startswith("::stop-commands::"):
            stopped = f"::{line.removeprefix('::stop-commands::')}::"
        elif line == stopped:
            stopped = None
        elif stopped is None:
            active.append(line)
    assert stopped is None
    assert not [
        line for line in active if not line.startswith(("::error", "::warning", "::notice"))
    ]
    assert "\x1b" not in done.stdout
    text = summary.read_text()
    assert "\x1b" not in text
    for markup in ("@security", "<img", "[a](", "\n::"):
        assert markup not in text


@pytest.mark.process
def test_the_action_shows_no_password_to_ps_or_to_the_log(action):
    """A server that does not answer makes the command name its URL."""
    url = "postgresql://app:C4N4RY@127.0.0.1:1/app?sslpassword=C4N4RY"
    done, _ = action(TEMPLATE, BUDGET_DATABASE_URL=url)
    assert done.returncode == 2
    assert "C4N4RY" not in done.stdout + done.stderr
