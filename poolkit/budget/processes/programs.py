"""Programs: the options and variables for their number of processes, and those with only one.

They stand in tables/programs.toml with their sources.
"""

from __future__ import annotations

from typing import NamedTuple

from poolkit.budget.tables import table


class Server(NamedTuple):
    """A program that starts processes, and the options and variables that set their number."""

    name: str
    options: list[str]
    variables: list[str]
    default: int | None
    """The number without an option or variable; None: unknown."""
    why: str
    """The origin of the default, or the reason why there is none."""
    files: list[str]
    """Options that name a file which may set the number too."""


SERVERS = {
    name: Server(
        name,
        each["options"],
        each.get("variables", []),
        each.get("default"),
        each.get("why", f"{name}'s default"),
        each.get("files", []),
    )
    for name, each in table("programs")["servers"].items()
}
PROGRAMS = {name: frozenset(each) for name, each in table("programs")["programs"].items()}
"""Sets of programs and sub-commands by the idea that they have in common."""

WRAPPERS: dict[str, int] = table("programs")["wrappers"]
"""Programs that start another one, and the number of words before it: `gosu app`, `poetry run`."""
