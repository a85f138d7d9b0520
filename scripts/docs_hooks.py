"""Hooks of mkdocs: the tables of docs/cli.md come from the command line itself."""
# ruff: noqa: INP001

from __future__ import annotations

from html import escape
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker with a section for each command of `poolkit`."""
    if MARKER not in markdown:
        return markdown
    from poolkit.cli import main  # noqa: PLC0415 - only one page needs it

    return markdown.replace(MARKER, "\n\n".join(_sections(main, ("poolkit",))))


def _sections(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from _sections(command.commands[name], (*path, name))
        return
    context = click.Context(command, info_name=" ".join(path))
    arguments = " ".join(command.collect_usage_pieces(context))
    text = "\n\n".join(map(_paragraph, cleandoc(command.help or "").split("\n\n")))
    rows = [_row(option, context) for option in command.params if isinstance(option, click.Option)]
    table = "\n".join(["| option | meaning |", "|---|---|", *rows]) if rows else ""
    yield f"## {' '.join(path)}\n\n    {' '.join(path)} {arguments}\n\n{text}\n\n{table}"


def _paragraph(text: str) -> str:
    """Return a paragraph of a help text; a backspace marks lines that click does not wrap."""
    if text.startswith("\b\n"):
        return f"```text\n{text[2:].rstrip()}\n```"
    return " ".join(text.split())


def _row(option: click.Option, context: click.Context) -> str:
    spelling, meaning = option.get_help_record(context) or ("", "")
    return f"| <code>{_escaped(spelling)}</code> | {_escaped(meaning)} |"


def _escaped(text: str) -> str:
    return escape(" ".join(text.split()), quote=False).replace("|", "&#124;").replace("[", "&#91;")
