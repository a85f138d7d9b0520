"""A project's migrations, found by name and run with the project's own settings."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc

from poolkit.config.engine import make_engine
from poolkit.config.session import sqlstate, translated
from poolkit.errors import ConfigurationError, LockTimeout, MigrationError, how_to_install
from poolkit.project import Project

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.engine import Engine

    from poolkit.config.settings import Settings


_FUNCTIONS = {
    "upgrade": "upgrade(engine)",
    "current": "current(engine)",
    "heads": "heads()",
}
# By SQLSTATE (PostgreSQL, Appendix A): insufficient_privilege, lock_not_available. Any other
# error is a mistake in a migration, and keeps its traceback.
_REMEDIES = {
    "42501": "grant {role} what is missing, or run this as the role that owns the schema",
    "55P03": "another session holds a lock that is needed; `poolkit watch` shows which; try again later",
}


@dataclass(frozen=True, kw_only=True)
class Migrations:
    """An object with `upgrade(engine)`, `current(engine)` and `heads()`, and a database.

    The object is Alembic's scripts (`poolkit.alembic.Scripts`) or a module of the project's own. A
    `knows(revision)`, if it has one, distinguishes a database that is behind from one that a later
    version of the program has upgraded.
    """

    scripts: Any
    settings: Settings

    @classmethod
    def find(cls, name: str | None, settings: Settings) -> Migrations:
        """Return the named migrations, or those that `[tool.poolkit] migrations` names.

        Raises:
            ConfigurationError: as `find_scripts`, or none are named.
        """
        project = Project.find()
        name = name or project.table.get("migrations")
        if not name:
            raise ConfigurationError(
                "no migrations are named; set [tool.poolkit] migrations in pyproject.toml, "
                "POOLKIT_MIGRATIONS or --migrations"
            )
        # Building an index takes its time; lock_timeout is what protects other sessions.
        unlimited = settings.preset.replace(
            statement_timeout=0, idle_in_transaction_session_timeout=0
        )
        return cls(
            scripts=find_scripts(name, project), settings=replace(settings, preset=unlimited)
        )

    def upgrade(self) -> tuple[str | None, str | None]:
        """Apply the missing migrations; return the revision before and after.

        Raises:
            DatabaseUnavailable: the database cannot be reached.
            MigrationError: the role may not do it, another session holds a lock, or the database
                is ahead of this version of the program.
        """
        with self._engine() as engine:
            before = self.scripts.current(engine)
            if not self.knows(before):
                raise MigrationError(
                    f"the database is at {before}, which this version of the program does not "
                    f"know (its latest is {', '.join(self.heads())}); deploy the version that "
                    "upgraded the database, or a later one"
                )
            self.scripts.upgrade(engine)
            return before, self.scripts.current(engine)

    def current(self) -> str | None:
        """Return the database's revision; None if it was never upgraded.

        Raises:
            DatabaseUnavailable, MigrationError: as `upgrade`.
        """
        with self._engine() as engine:
            revision: str | None = self.scripts.current(engine)
            return revision

    def check(self, needed: Sequence[str] = ()) -> str:
        """Return the database's revision, which this version of the program can work with.

        That is the latest of the migrations, or one that a later version has added.

        Args:
            needed: the revisions that another program needs, instead of the latest ones.

        Raises:
            DatabaseUnavailable: as `upgrade`.
            MigrationError: the database is behind.
        """
        revision, wanted = self.current(), tuple(needed) or self.heads()
        if revision is not None and (
            revision in wanted
            or not self.knows(revision)
            or (bool(needed) and all(self._leads_to(each, revision) for each in needed))
        ):
            return revision
        raise MigrationError(
            f"the database is at {revision or 'no revision'}, and this version of the program "
            f"needs {', '.join(wanted)}; run `poolkit db upgrade` first"
        )

    def _leads_to(self, earlier: str, later: str) -> bool:
        """Return whether a revision is among those before another one."""
        ask = getattr(self.scripts, "leads_to", None)
        return ask is not None and bool(ask(earlier, later))

    def heads(self) -> tuple[str, ...]:
        """Return the latest revisions of the migrations."""
        return tuple(self.scripts.heads())

    def knows(self, revision: str | None) -> bool:
        """Return whether the migrations have that revision; None is an empty database's."""
        ask = getattr(self.scripts, "knows", None)
        return revision is None or ask is None or bool(ask(revision))

    @contextmanager
    def _engine(self) -> Iterator[Engine]:
        engine = make_engine(self.settings)
        try:
            with translated():
                yield engine
        except (exc.DBAPIError, LockTimeout) as error:
            refusal = error.__cause__ if isinstance(error, LockTimeout) else error
            driver = refusal.orig if isinstance(refusal, exc.DBAPIError) else refusal
            state = sqlstate(driver)
            if state not in _REMEDIES:
                raise
            remedy = _REMEDIES[state].format(role=self.settings.url.username or "the role")
            reason = str(driver).partition("\n")[0]
            raise MigrationError(f"the database refused: {reason}; {remedy}") from error
        except ImportError as error:
            # Not only a module that is missing: pydantic raises this for a part that is optional.
            raise MigrationError(
                f"the migrations need what is not installed: {error}; for an image, add it to an extra "
                "that [tool.poolkit.package...] names, and to the lock file"
            ) from error
        finally:
            engine.dispose()


def find_scripts(name: str, project: Project) -> Any:
    """Return a project's migrations by their name.

    Args:
        name: the folder of Alembic's env.py, an alembic.ini, or a module, which has the three
            functions itself or is the package with the env.py.
        project: paths are relative to its root, and its own packages can be imported.

    Raises:
        ConfigurationError: there is no such file or module, it cannot be imported, or it lacks a
            function; one line.
    """
    # As `python -m` does: the project's own packages need no installation.
    sys.path[:0] = [str(project.directory), str(project.root)]
    path = project.root / name
    if (path / "env.py").is_file() or "/" in name or path.suffix == ".ini":
        return _alembic_scripts(path)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001  (a project's module may raise anything)
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        message = " ".join(str(error).split())
        raise ConfigurationError(
            f"migrations {name!r} cannot be imported: {kind}{message}"
        ) from None
    missing = [each for each in _FUNCTIONS if not callable(getattr(module, each, None))]
    folder = Path(module.__file__ or "").parent
    if missing and hasattr(module, "__path__") and (folder / "env.py").is_file():
        return _alembic_scripts(folder)
    if missing:
        raise ConfigurationError(
            f"migrations {name!r} lack {' and '.join(missing)}; wanted a folder with an env.py, an "
            f"alembic.ini, or a module with {', '.join(_FUNCTIONS.values())}"
        )
    return module


def _alembic_scripts(path: Path) -> Any:
    try:
        from poolkit.alembic import Scripts  # noqa: PLC0415  (a module of one's own needs no Alembic)
    except ModuleNotFoundError:
        raise ConfigurationError(
            f"migrations {path} need Alembic; {how_to_install('cli')}"
        ) from None
    return Scripts(path)
