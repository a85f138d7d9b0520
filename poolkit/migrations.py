"""A project's migrations, found by name and run with the project's own settings."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from poolkit.config.engine import make_engine
from poolkit.config.session import translated
from poolkit.errors import ConfigurationError
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine

    from poolkit.config.settings import Settings


_FUNCTIONS = {
    "upgrade": "upgrade(engine)",
    "current": "current(engine)",
    "heads": "heads()",
}


@dataclass(frozen=True, kw_only=True)
class Migrations:
    """A module with `upgrade(engine)`, `current(engine)` and `heads()`, and a database."""

    module: Any
    settings: Settings

    @classmethod
    def find(cls, name: str | None, settings: Settings) -> Migrations:
        """Return the named module, or the one that `[tool.poolkit] migrations` names.

        Raises:
            ConfigurationError: none is named, it cannot be imported, or it has not what it needs.
        """
        project = Project.find()
        name = name or project.table.get("migrations")
        if not name:
            raise ConfigurationError(
                "no migrations are named; set [tool.poolkit] migrations in pyproject.toml, "
                "POOLKIT_MIGRATIONS or --migrations"
            )
        return cls(module=module_named(name, project), settings=_patient(settings))

    def upgrade(self) -> tuple[str | None, str | None]:
        """Apply what is missing; return the revision before and after.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
        """
        with self._engine() as engine:
            before = self.module.current(engine)
            self.module.upgrade(engine)
            return before, self.module.current(engine)

    def current(self) -> str | None:
        """Return the database's revision; None if it was never upgraded."""
        with self._engine() as engine:
            revision: str | None = self.module.current(engine)
            return revision

    def heads(self) -> tuple[str, ...]:
        """Return the latest revisions that the module knows."""
        return tuple(self.module.heads())

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        engine = make_engine(self.settings)
        try:
            with translated():
                yield engine
        finally:
            engine.dispose()


def module_named(name: str, project: Project) -> Any:
    """Import a project's module of migrations.

    Raises:
        ConfigurationError: it cannot be imported, or lacks a function; one line.
    """
    # As `python -m` does: the project's own packages need no installation.
    sys.path.insert(0, str(project.root))
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  (whatever somebody's module raises)
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        said = " ".join(str(error).split())
        raise ConfigurationError(f"migrations {name!r} do not import: {kind}{said}") from None
    missing = [each for each in _FUNCTIONS if not callable(getattr(module, each, None))]
    if missing:
        raise ConfigurationError(
            f"migrations {name!r} have no {' and no '.join(missing)}; wanted a module with "
            f"{', '.join(_FUNCTIONS.values())}"
        )
    return module


def _patient(settings: Settings) -> Settings:
    # Building an index takes as long as it takes; lock_timeout is what protects the others.
    return replace(
        settings,
        preset=settings.preset.replace(statement_timeout=0, idle_in_transaction_session_timeout=0),
    )
