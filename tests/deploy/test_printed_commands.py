"""Every command that a message names is one that the command line accepts."""

import ast
import re
import shlex

import click
import pytest
from poolkit_command import ROOT

from poolkit.cli import main

pytestmark = pytest.mark.pure

FOLDERS = ("poolkit/deploy", "poolkit/cli")
# Up to what ends it in a sentence, or in a list of commands.
COMMAND = re.compile(r"(?<![`\w])poolkit ([a-z]+(?: [^`;|&\n]*)?)|`poolkit ([a-z][^`\n]*)`")
STAND_INS = {
    "target": "web --environment dev",
    "rest": "--environment dev",
    "words": "--environment dev",
    "change_set.target": "web --environment dev",
    "self.target": "web --environment dev",
}
"""What takes the place of more than one word; any other expression becomes one."""
# A sentence about poolkit, or about a command whose name is an expression.
NO_COMMAND = re.compile(r"^(adds|did|needs|does|has|is|ran|web)\b")


def text_of(node):
    """Give a string of the code with a value in place of each expression; None for what is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            each.value
            if isinstance(each, ast.Constant)
            else STAND_INS.get(ast.unparse(each.value), "web")
            for each in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return left + right if left is not None and right is not None else None
    return None


def _is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def printed_commands():
    found = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text())
            inner = {
                part
                for node in ast.walk(tree)
                # A docstring; the parts of a string that is read as a whole.
                if text_of(node) is not None or _is_docstring(node)
                for part in ast.walk(node)
                if part is not node
            }
            for node in ast.walk(tree):
                text = None if node in inner else text_of(node)
                for match in COMMAND.finditer(text or ""):
                    words = (match[1] or match[2]).replace("{target}", STAND_INS["target"])
                    words = words.replace("{rest}", STAND_INS["rest"])
                    if not NO_COMMAND.match(words):
                        found[f"{file.relative_to(ROOT)}:{node.lineno}: {words}"] = words
    return found


def refusal(words):
    """Give why the command line refuses the words of a sentence, None if it accepts a beginning."""
    try:
        rest = shlex.split(re.split(r"[.,)] |[.,)]$| \(|: ", words)[0])
    except ValueError as error:
        return str(error)
    command, ctx = main, click.Context(main, info_name="poolkit")
    try:
        while isinstance(command, click.Group):
            if not rest:
                return None
            name, command, rest = command.resolve_command(ctx, rest)
            ctx = click.Context(command, info_name=name, parent=ctx)
        command.make_context(ctx.info_name, rest, parent=ctx.parent)
    except click.UsageError as error:
        return error.format_message()
    return None


COMMANDS = printed_commands()


def test_messages_name_commands():
    """The search finds those of each part."""
    files = {place.partition(":")[0] for place in COMMANDS}
    assert {"poolkit/deploy/statuses.py", "poolkit/deploy/migrate/release.py"} <= files
    assert len(COMMANDS) >= 25


@pytest.mark.parametrize("place", COMMANDS)
def test_a_printed_command_is_accepted(place):
    """As it is written: with its target, its environment and nothing that is no option."""
    assert refusal(COMMANDS[place]) is None, place
