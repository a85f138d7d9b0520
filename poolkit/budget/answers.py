"""Answers to what files do not show: `[tool.poolkit.budget]` of the project.

[tool.poolkit.budget]
ignore = ["frontend"]

[tool.poolkit.budget.services]
web = "5+10x4@6"                       # as --service
worker = "?"                           # still unknown

[tool.poolkit.budget.databases]
Orders = 181                           # max_connections

[tool.poolkit.budget.classes]
"db.t4g.small" = 181

[tool.poolkit.budget.software."ghcr.io/acme/app"]
role = "client"
pool = 10
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from poolkit.budget.model import Answers
from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from poolkit.project import Project

OPEN = "?"
"""The value of an entry that nothing is known about yet."""
_KINDS: dict[str, type] = {"services": str, "databases": int, "classes": int, "software": dict}


def read_answers(project: Project) -> Answers:
    """Return the answers of a project; open entries are left out.

    Raises:
        ConfigurationError: an entry is unknown or has another type.
    """
    section, table = project.section("budget"), project.table.get("budget", {})
    if not isinstance(table, dict):
        raise ConfigurationError(f"{section} must be a table")
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key == "ignore":
            if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
                raise ConfigurationError(f"{section} ignore must be a list of names")
            found[key] = tuple(value)
            continue
        kind = _KINDS.get(key)
        if kind is None:
            known = ", ".join(field.name for field in dataclasses.fields(Answers)[1:])
            raise ConfigurationError(f"{section} has an unknown key {key}; known: {known}")
        entries = value if isinstance(value, dict) else {key: None}
        for name, entry in entries.items():
            if entry != OPEN and (type(entry) is not kind or entry in (0, "")):
                wanted = {str: "a text such as 5+10x4@6", int: "a whole number", dict: "a table"}
                raise ConfigurationError(f"{section} {key}.{name} must be {wanted[kind]}")
        found[key] = {name: entry for name, entry in entries.items() if entry != OPEN}
    return Answers(origin=section, **found)
