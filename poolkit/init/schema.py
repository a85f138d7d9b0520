"""How a project makes its schema: migrations, seeds and extensions; and its deployment files."""

from __future__ import annotations

import ast
import configparser
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poolkit.init.applications import Application
    from poolkit.init.sources import Sources

_SEEDS = re.compile(r"(initial_data|init_data|seeds?|seed_\w+|init_db|create_first_\w+)\.py")
_CREATE_EXTENSION = re.compile(
    r"CREATE\s+EXTENSION\s+(?:IF\s+NOT\s+EXISTS\s+)?[\"'\\]*([a-z][\w-]*)", re.IGNORECASE
)
_OF_DJANGO = {
    "BtreeGinExtension": "btree_gin",
    "BtreeGistExtension": "btree_gist",
    "CITextExtension": "citext",
    "CryptoExtension": "pgcrypto",
    "HStoreExtension": "hstore",
    "TrigramExtension": "pg_trgm",
    "UnaccentExtension": "unaccent",
    "VectorExtension": "vector",
}
_OTHER_EXTENSION = re.compile(r"CreateExtension\(\s*[\"']([\w-]+)")
NOT_IN_THE_WHEEL = ("uuid-ossp", "pgcrypto", "xml2", "sslinfo", "postgis", "timescaledb")
"""Extensions that need a server of the machine's own."""
_COMPOSE = re.compile(r"(docker-)?compose[\w.-]*\.ya?ml")
_TEMPLATE = re.compile(
    r"^(AWSTemplateFormatVersion|Transform:\s*AWS::Serverless|apiVersion:)|\"AWSTemplateFormat",
    re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The commands and files of a project's schema."""

    command: tuple[str, ...] = ()
    tool: str = ""
    """The tool and its file, for people."""
    seeds: tuple[tuple[str, ...], ...] = ()
    extensions: tuple[str, ...] = ()
    deployment: tuple[str, ...] = ()
    """Files that `poolkit budget` reads."""
    notes: tuple[str, ...] = ()


def schema_of(sources: Sources, folder: Path, application: Application | None) -> Schema:
    """Return the schema of the application whose working directory is `folder`."""
    command, tool, notes = _migrations(sources, folder, application)
    if not command and not notes:
        notes = _without_migrations(sources)
    return Schema(
        command=command,
        tool=tool,
        seeds=tuple(_seeds(sources, folder)),
        extensions=tuple(_extensions(sources)),
        deployment=tuple(_deployment(sources)),
        notes=tuple(notes),
    )


def _migrations(
    sources: Sources, folder: Path, application: Application | None
) -> tuple[tuple[str, ...], str, list[str]]:
    """Return the command that upgrades the schema, its tool, and notes."""
    root = sources.root
    names = {path.relative_to(root): path for path in sources.files}
    manage = [path for path in names.values() if path.name == "manage.py"]
    if application is not None and application.framework == "django" and manage:
        file = min(manage, key=lambda path: len(path.parts))
        return ("{python}", str(_from(folder, file)), "migrate", "--noinput"), "manage.py", []
    inis = [path for path in names.values() if path.name == "alembic.ini"]
    inis.sort(key=lambda path: (folder not in path.parents, len(path.parts)))
    for ini in inis:
        if _is_of_flask(ini):
            if application is None or application.framework != "flask":
                continue
            name = application.name.replace(":create_app", "")
            arguments = (
                () if ini.parent == folder / "migrations" else ("-d", _from(folder, ini.parent))
            )
            command = (
                "{python}",
                "-m",
                "flask",
                "--app",
                name,
                "db",
                "upgrade",
                *map(str, arguments),
            )
            return command, f"Flask-Migrate ({ini.parent.relative_to(root)})", []
        return _alembic(ini, folder, root)
    if _has_tool_alembic(folder / "pyproject.toml"):
        command = ("{python}", "-m", "alembic", "upgrade", "head")
        return command, "Alembic ([tool.alembic] in pyproject.toml)", []
    return (), "", []


def _alembic(ini: Path, folder: Path, root: Path) -> tuple[tuple[str, ...], str, list[str]]:
    config = configparser.RawConfigParser()
    try:
        config.read(ini, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return (), "", [f"{ini.relative_to(root)} cannot be read; set schema yourself"]
    location = config.get("alembic", "script_location", fallback="alembic")
    where = ini.relative_to(root)
    tool = f"Alembic ({where}, {location})"
    command: tuple[str, ...] = ("{python}", "-m", "alembic", "upgrade", "head")
    if ini.parent != folder:
        command = ("{python}", "-m", "alembic", "-c", str(_from(folder, ini)), "upgrade", "head")
        if "%(here)s" not in location and ":" not in location and not (folder / location).is_dir():
            return (
                (),
                tool,
                [f"{where}: its script_location is relative to its own folder; set schema"],
            )
    scripts = (ini.parent if "%(here)s" in location else folder) / location.replace("%(here)s/", "")
    url = config.get("alembic", "sqlalchemy.url", fallback="")
    if url.startswith("postgres") and not _env_py_replaces_url(scripts / "env.py"):
        note = (
            f"{where} names a database, and {location}/env.py takes it: `alembic upgrade` would "
            "change that one; let env.py read DATABASE_URL, then set schema"
        )
        return (), tool, [note]
    return command, tool, []


def _env_py_replaces_url(file: Path) -> bool:
    words = (
        "set_main_option",
        "create_engine(",
        "environ",
        "getenv",
        "settings",
        "get_url",
        "config[",
    )
    text = _read(file)
    return not text or any(word in text for word in words)


def _is_of_flask(ini: Path) -> bool:
    return "current_app" in _read(ini.parent / "env.py")


def _has_tool_alembic(file: Path) -> bool:
    try:
        return "alembic" in tomllib.loads(_read(file)).get("tool", {})
    except tomllib.TOMLDecodeError:
        return False


def _without_migrations(sources: Sources) -> list[str]:
    for module in sources.modules:
        text = _read(module.path)
        if ".create_all" in text:
            where = module.path.relative_to(sources.root)
            return [
                f"no migrations; {where} makes the tables (create_all): it needs no schema command if that runs at start"
            ]
    return []


def _seeds(sources: Sources, folder: Path) -> Iterable[tuple[str, ...]]:
    for module in sources.modules:
        parts = module.path.parts
        if folder not in module.path.parents or "migrations" in parts:
            continue
        if _SEEDS.fullmatch(module.path.name):
            if "management" in parts:
                yield ("{python}", "manage.py", module.path.stem)
            elif module.root == folder:
                yield ("{python}", "-m", module.name)
            else:
                yield ("{python}", str(_from(folder, module.path)))


def _extensions(sources: Sources) -> list[str]:
    """Return the extensions that migrations and SQL files create."""
    found: dict[str, None] = {}
    for path in sources.files:
        parts = {part.lower() for part in path.parts}
        is_migration = path.suffix == ".sql" or parts & {"migrations", "versions", "alembic"}
        if path.suffix not in (".py", ".sql") or not is_migration:
            continue
        text = _read(path)
        for name in _CREATE_EXTENSION.findall(text) + _OTHER_EXTENSION.findall(text):
            found[name.lower()] = None
        for name, extension in _OF_DJANGO.items():
            if f"{name}(" in text:
                found[extension] = None
    return [name for name in found if name != "plpgsql"]


def tables_of(sources: Sources, root: Path) -> list[str]:
    """Return the names that models of SQLAlchemy give their tables."""
    return [
        value.value
        for module in sources.modules
        if module.root == root
        for node in module.nodes
        if isinstance(node, ast.Assign)
        and isinstance(value := node.value, ast.Constant)
        and isinstance(value.value, str)
        and any(isinstance(t, ast.Name) and t.id == "__tablename__" for t in node.targets)
    ]


def _deployment(sources: Sources) -> Iterable[str]:
    for path in sources.files:
        if path.suffix not in (".yaml", ".yml", ".json", ".template"):
            continue
        if _COMPOSE.fullmatch(path.name) or _TEMPLATE.search(_read(path)[:2_000]):
            yield str(path.relative_to(sources.root))


def _from(folder: Path, path: Path) -> Path:
    """Return a path relative to a folder that need not be above it."""
    # Path.relative_to walks up since Python 3.12 only.
    return Path(os.path.relpath(path, folder))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
