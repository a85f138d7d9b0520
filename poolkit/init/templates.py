"""The numbers of a function in its SAM or CloudFormation template."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolkit.init.sources import Sources

_PROPERTIES = {
    "MemorySize": "memory",
    "Timeout": "timeout",
    "ReservedConcurrentExecutions": "reserved_concurrency",
}


def function_numbers(sources: Sources, handler: str) -> dict[str, int]:
    """Return the keys of a target with the numbers of the template's function of this handler.

    The template is read as lines: an indented block around `Handler:`. A parser of YAML is not part
    of a plain installation, and a number that is a parameter is not known here either way.

    Args:
        sources: the project's files.
        handler: `module.function`.
    """
    for path in sources.files:
        if path.suffix not in (".yaml", ".yml", ".template"):
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        for number, line in enumerate(lines):
            name = re.match(r"\s*(?:- )?Handler:\s*['\"]?([\w./]+)", line)
            # A handler may be a path: src/app.lambda_handler.
            if name and name[1].replace("/", ".").endswith(handler):
                return _numbers_beside(lines, number)
    return {}


def _numbers_beside(lines: list[str], number: int) -> dict[str, int]:
    """Return the known numbers among the properties of the same indentation."""
    indentation = len(lines[number]) - len(lines[number].lstrip())
    found = {}
    for direction in (range(number, -1, -1), range(number, len(lines))):
        for line in (lines[i] for i in direction):
            depth = len(line) - len(line.lstrip())
            if line.strip() and depth < indentation:
                break
            value = re.fullmatch(r"(\w+):\s*(\d+)", line.strip())
            if value and depth == indentation and value[1] in _PROPERTIES:
                found[_PROPERTIES[value[1]]] = int(value[2])
    return found
