"""`poolkit compare --app`: a project without settings of poolkit, described from its own files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from poolkit.compare.results.wording import count
from poolkit.errors import ConfigurationError
from poolkit.init.findings import find
from poolkit.init.routes import plain_routes
from poolkit.init.writing import GITIGNORE, locustfile_text

if TYPE_CHECKING:
    from pathlib import Path

    from poolkit.compare.plan.options import Options
    from poolkit.init.findings import Deployable, Findings
    from poolkit.project import Project

_SETTINGS = (
    "python",
    "directory",
    "schema",
    "seed",
    "env",
    "extensions",
    "postgres_bin",
    "migrations",
)
"""Keys of a project's own settings that also hold for `--app`."""


class AppProject(NamedTuple):
    """A project with one target, and what was read for it."""

    project: Project
    notes: list[str]
    """A line each."""


def project_of_app(project: Project, options: Options) -> AppProject:
    """Return the project of `--app`, with the settings that `poolkit init` would write for it.

    The project's own settings win where it has any. The load is written into `.poolkit/`.

    Raises:
        ConfigurationError: there is no such application, or it has no load.
    """
    own = {key: project.table[key] for key in _SETTINGS if key in project.table}
    python = options.python or (project.python if "python" in own else None)
    found = find(project.root, app=options.app, python=python)
    (deployable,) = found.deployables
    table = {**found.table, **own}
    if options.python is not None:
        table["python"] = str(options.python)
    locustfile = options.locustfile or _written_load(project.root, deployable)
    target = {**deployable.table, "locustfile": str(locustfile.resolve())}
    table["targets"] = {deployable.target: target}
    if "thresholds" in project.table:
        table["thresholds"] = project.table["thresholds"]
    return AppProject(replace(project, table=table), _notes(found, deployable, options))


def _written_load(root: Path, deployable: Deployable) -> Path:
    """Write a locustfile from the application's paths, and return it."""
    if deployable.application.framework == "celery":
        raise ConfigurationError(
            f"--app {deployable.application.name} is a worker, whose load its files do not "
            "show: `poolkit init` writes a locustfile to complete; name it with --locustfile"
        )
    folder = root / ".poolkit" / "app"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / ".gitignore").write_text(GITIGNORE, encoding="utf-8")
    file = folder / "locustfile.py"
    file.write_text(locustfile_text(deployable, command="poolkit compare --app"), encoding="utf-8")
    return file


def _notes(found: Findings, deployable: Deployable, options: Options) -> list[str]:
    """Return how the application is run and loaded, a line each."""
    python = found.interpreter
    label = "poolkit's own Python" if found.is_own_interpreter else f"{python.path}"
    lines = [f"{deployable.application.name}: {deployable.server}, {label}: {python.described()}"]
    if names := [variable.name for variable in found.variables.database]:
        lines.append(f"its database: {', '.join(names)}")
    if found.schema.command:
        lines.append(f"its schema: {' '.join(found.schema.command[1:])}")
    if deployable.description.failure:
        lines.append(f"its import failed: {deployable.description.failure}")
    if options.locustfile is None:
        description = deployable.description
        paths = [route.path for route in plain_routes(description.routes, description.signup)]
        shown = f": {', '.join(paths[:5])}" if paths else "; / is requested"
        origin = description.origin
        lines.append(f"its load: {count(len(paths), 'path')} from {origin}{shown}")
    lines += [f"look at: {line}" for line in found.missing]
    return [*lines, "`poolkit init` writes this into files that you can edit"]
