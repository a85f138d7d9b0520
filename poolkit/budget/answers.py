"""Answers to what files do not show: `[tool.poolkit.budget]` of the project.

`poolkit budget --answer` writes them: those of its command line, and "?" for what is still unknown.

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

from typing import TYPE_CHECKING, Any

from poolkit.budget.model import Answers
from poolkit.errors import ConfigurationError
from poolkit.masking import printable
from poolkit.project import OWN_FILE, SHARED_FILE

if TYPE_CHECKING:
    from poolkit.budget.model import Options
    from poolkit.budget.verdict import Budgets
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
            known = ", ".join(("ignore", *_KINDS))
            raise ConfigurationError(f"{section} has an unknown key {key}; known: {known}")
        entries = value if isinstance(value, dict) else {key: None}
        for name, entry in entries.items():
            if entry != OPEN and (type(entry) is not kind or entry in (0, "")):
                wanted = {str: "a text such as 5+10x4@6", int: "a whole number", dict: "a table"}
                raise ConfigurationError(f"{section} {key}.{name} must be {wanted[kind]}")
        found[key] = {name: entry for name, entry in entries.items() if entry != OPEN}
    return Answers(origin=section, **found)


# -- writing --------------------------------------------------------------------------------


def write_answers(project: Project, options: Options, budgets: Budgets) -> list[str]:
    """Write the answers of a command line, and "?" for what is still unknown.

    An entry stays as it is, unless this command line has another answer. A "?" whose number has
    become known is removed.

    Args:
        project: the one whose file gets the answers; pyproject.toml is created if it has none.
        options: the options of the command line.
        budgets: the result with these options.

    Returns:
        Lines about what was written, and about entries that are about nothing in these files.

    Raises:
        ConfigurationError: the file is no TOML, has an inline table, or cannot be written.
    """
    import tomlkit  # noqa: PLC0415  (for this option only)
    from tomlkit.exceptions import TOMLKitError  # noqa: PLC0415  (the same)

    file = project.file or project.root / SHARED_FILE
    path = ["budget"] if file.name == OWN_FILE else ["tool", "poolkit", "budget"]
    pairs = (argument.partition("=") for argument in options.services)
    given: dict[tuple[str, str], str | int]
    given = {("services", name.strip()): numbers.strip() for name, _, numbers in pairs}
    if options.max_connections is not None and budgets.only.database.where is not None:
        given["databases", budgets.only.database.name] = options.max_connections
    unknown = {
        (gap.answer.table, gap.of): printable(f"{gap.answer.form}; {gap.sentence}", one_line=True)
        for gap in budgets.gaps
        if gap.answer.table
    }
    try:
        document: Any = tomlkit.parse(file.read_bytes().decode() if file.is_file() else "")
        table = document
        for key in path:
            table = table.setdefault(key, tomlkit.table(is_super_table=key != "budget"))
        if options.ignored:
            names = table.setdefault("ignore", tomlkit.array())
            names.extend(name for name in options.ignored if name not in names)
        for kind, name in _entries(table):
            if kind != "ignore" and table[kind][name] == OPEN and (kind, name) not in unknown:
                del table[kind][name]
        for kind, name in {**given, **unknown}:
            entries = table.setdefault(kind, tomlkit.table())
            if (kind, name) in given:
                entries[name] = given[kind, name]
            elif name not in entries:
                entries[name] = OPEN
                entries[name].comment(unknown[kind, name])
        file.write_bytes(tomlkit.dumps(document).encode())
    except (TOMLKitError, ValueError, OSError) as error:
        raise ConfigurationError(f"{file}: the answers cannot be written: {error}") from None
    existing = {each.name for each in budgets.not_counted}
    existing |= {each.database.name for each in budgets.each}
    existing |= {service.name for each in budgets.each for service in each.services}
    lines = [f"{file}: {len(given) + len(options.ignored)} answers, {len(unknown)} unknown"]
    lines += [
        f"{kind}: these files have no {n}" for kind, n in _entries(table) if n not in existing
    ]
    return lines


def _entries(table: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the names of all entries about services and databases, with their tables."""
    kinds = ("ignore", "services", "databases")
    return [(kind, str(name)) for kind in kinds for name in table.get(kind, ())]
