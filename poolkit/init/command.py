"""`poolkit init`: read a project, report what was found, and write its settings."""

from __future__ import annotations

import sys
import tomllib
from typing import TYPE_CHECKING

import click

from poolkit.errors import ConfigurationError
from poolkit.init.findings import find
from poolkit.init.routes import plain_routes
from poolkit.init.writing import FIRST_LINE, GITIGNORE, locustfile_text, table_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from poolkit.init.findings import Findings

_WRITTEN_BY = "written by `poolkit init`"
_LABELS = {
    "fastapi": "FastAPI",
    "starlette": "ASGI",
    "flask": "Flask",
    "django": "Django",
    "other": "application",
    "mangum": "Mangum",
    "powertools": "Powertools",
    "lambda": "Lambda function",
    "celery": "Celery",
}


def init(
    folder: Path, *, app: str, python: Path | None, imports: bool, dry_run: bool, yes: bool
) -> None:
    """Write the configuration of a project.

    Raises:
        ConfigurationError: no application was found, or the files cannot be written.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise ConfigurationError(f"{folder} is not a folder")
    found = find(root, app=app, python=python, imports=imports)
    click.echo(report(found))
    files = files_of(found)
    if dry_run:
        for path, text in files.items():
            shown = text
            if path.name == "pyproject.toml":
                shown = text[text.index(FIRST_LINE) :]
            click.echo(f"\nwould write {path.relative_to(root)}:\n\n{shown.rstrip()}")
        return
    _check_existing(files, yes=yes)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))
        click.echo(f"wrote {path.relative_to(root)}")
    click.echo("\n" + next_commands(found))


def files_of(found: Findings) -> dict[Path, str]:
    """Return the files to write, whole, by path.

    Raises:
        ConfigurationError: pyproject.toml is no TOML.
    """
    files: dict[Path, str] = {}
    locustfiles = {}
    folder = found.root / "loadtests"
    for deployable in found.deployables:
        text = locustfile_text(deployable)
        # A function and a service of one application have one load.
        path = next((p for p, other in files.items() if _body(other) == _body(text)), None)
        if path is None:
            # Beside the project's own load tests: a name that is free, or a file of ours.
            path, number = folder / f"{deployable.target}.py", 2
            while path.exists() and _WRITTEN_BY not in path.read_text(errors="replace"):
                path, number = folder / f"{deployable.target}_{number}.py", number + 1
        locustfiles[deployable.target] = path.relative_to(found.root).as_posix()
        files.setdefault(path, text)
    project = found.root / "pyproject.toml"
    own = found.root / "poolkit.toml"
    if project.is_file() and not own.exists():
        text = project.read_bytes().decode("utf-8")
        tables = table_text(found, locustfiles, prefix="tool.poolkit")
        table_file = {project: _with_tables(text, tables, project)}
    else:
        table_file = {own: table_text(found, locustfiles, prefix="")}
    return {**table_file, **files, found.root / ".poolkit" / ".gitignore": GITIGNORE}


def _body(locustfile: str) -> str:
    return locustfile.partition("\n")[2]


def _with_tables(text: str, tables: str, file: Path) -> str:
    """Return pyproject.toml with the tables at its end; the rest keeps every character."""
    try:
        tool = tomllib.loads(text).get("tool", {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file}: {error}") from None
    if "poolkit" in tool:
        text = _without_tables(text)
    end = "\r\n" if "\r\n" in text else "\n"
    before = f"{text.rstrip()}{end}{end}" if text.strip() else ""
    whole = before + tables.replace("\n", end)
    try:
        tomllib.loads(whole)
    except tomllib.TOMLDecodeError:
        raise ConfigurationError(
            f"{file} has tool.poolkit in a form that is not rewritten; remove it, or move it to a "
            "poolkit.toml"
        ) from None
    return whole


def _without_tables(text: str) -> str:
    """Return TOML without the tables of `tool.poolkit`, and the comments that stand above them."""
    kept: list[str] = []
    pending: list[str] = []
    inside = False
    for line in text.splitlines(keepends=True):
        stripped = line.strip()
        if stripped.startswith("["):
            inside = stripped.strip("[] ").split(".")[:2] == ["tool", "poolkit"]
        if stripped.startswith("#") or not stripped:
            pending.append(line)
            continue
        if not inside:
            kept += pending
            kept.append(line)
        pending = []
    return "".join(kept)


def _check_existing(files: Mapping[Path, str], *, yes: bool) -> None:
    """Ask before something is lost: a table or a file that exists.

    Raises:
        ConfigurationError: there is no terminal to ask at, or the answer was no.
    """
    lost = []
    for path, text in files.items():
        if not path.is_file():
            continue
        old = path.read_text(encoding="utf-8", errors="replace")
        if path.name == "pyproject.toml":
            if "poolkit" in tomllib.loads(old).get("tool", {}):
                lost.append(f"[tool.poolkit] of {path.name}")
        elif old != text:
            lost.append(path.name)
    if not lost or yes:
        return
    names = " and ".join(lost)
    if not sys.stdin.isatty():
        raise ConfigurationError(
            f"this would replace {names}; add --yes to agree, or look with --dry-run"
        )
    if not click.confirm(f"Replace {names}?"):
        raise ConfigurationError("nothing was written")


def report(found: Findings) -> str:
    """Return what was found and what was not, one line each."""
    lines: list[str] = []
    for deployable in found.deployables:
        application, description = deployable.application, deployable.description
        name = f"{application.name}{'()' if application.is_factory else ''}"
        source = f"{application.module.path.relative_to(found.root)}:{application.line}"
        label = _LABELS[application.framework]
        lines.append(f"found   {label} {name} ({source}), served by {deployable.server}")
        if deployable.tasks:
            names = ", ".join(name for name, _ in deployable.tasks[:5])
            lines.append(f"        {len(deployable.tasks)} tasks: {names}")
        if description.routes:
            plain = len(plain_routes(description.routes))
            lines.append(
                f"        {len(description.routes)} paths from {description.origin}, "
                f"{plain} of them for a GET without parameters and login"
            )
        if signup := description.signup:
            lines.append(
                f"        users of the load sign up at {signup.path} and log in at {signup.login}; "
                f"paths in the load: {len(plain_routes(description.routes, signup))}"
            )
        if description.failure:
            lines.append(f"        its import failed: {description.failure}")
    python, schema = found.interpreter, found.schema
    if found.is_own_interpreter:
        lines.append(f"        {python.path} (poolkit's own): Python {python.version}")
    else:
        lines.append(f"        {python.path}: {python.described()}")
    lines += [
        f"        {variable.name} = {variable.value} ({variable.origin})"
        for variable in (*found.variables.database, *found.variables.broker)
    ]
    lines += [f"        {schema.tool}"] if schema.tool else []
    lines += [f"        extensions: {', '.join(schema.extensions)}"] if schema.extensions else []
    if schema.deployment:
        lines.append(f"        `poolkit budget` can read: {', '.join(schema.deployment)}")
    if found.others:
        names = ", ".join(a.name for a in found.others[:8])
        lines.append(f"not taken (name one with --app): {names}")
    return "\n".join([*lines, *(f"look at: {line}" for line in found.missing)])


def next_commands(found: Findings) -> str:
    """Return the commands to go on with."""
    lines = ["next:"]
    deployable = found.deployables[0]
    first = deployable.target
    if first == "worker":
        lines.append("  edit loadtests/worker.py: which task, and which row shows that it is done")
    pool = {"web": "web", "function": "lambda_warm", "worker": "worker"}[first]
    lines.append("  poolkit compare --quick --pool now         # a first measurement")
    # Django makes no engine of SQLAlchemy that could have a preset's pool.
    if deployable.application.framework != "django":
        lines.append(f"  poolkit compare --pool now,{pool:<15} # its own engine beside a preset's")
    if found.schema.deployment:
        lines.append(f"  poolkit budget {' '.join(found.schema.deployment[:3])}")
    return "\n".join(lines)
