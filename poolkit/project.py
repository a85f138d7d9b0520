"""A project: the folder of a pyproject.toml, and its table `[tool.poolkit]`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poolkit.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Project:
    """A folder and the table `[tool.poolkit]` of its pyproject.toml, empty without one."""

    root: Path
    table: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def find(cls, start: Path | None = None) -> Project:
        """Return the nearest project at or above `start` (default: the current folder).

        Raises:
            ConfigurationError: its pyproject.toml is no TOML, or `tool.poolkit` is no table.
        """
        start = (start or Path.cwd()).resolve()
        for folder in (start, *start.parents):
            file = folder / "pyproject.toml"
            if file.is_file():
                return cls(root=folder, table=_poolkit_table(file))
        return cls(root=start)


def _poolkit_table(file: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from None
    for name, path in (("tool", "tool"), ("poolkit", "tool.poolkit")):
        found = found.get(name, {})
        if not isinstance(found, dict):
            raise ConfigurationError(f"{file}: {path} must be a table, not {found!r}")
    migrations = found.get("migrations", "")
    if not isinstance(migrations, str):
        raise ConfigurationError(
            f"{file}: [tool.poolkit] migrations must name a folder or a module, not {migrations!r}"
        )
    return found
