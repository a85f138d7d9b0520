"""How a project makes its schema: migrations, seeds and extensions; and its deployment files."""

from __future__ import annotations

import ast
import configparser
import contextlib
import os
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from poolkit.init.sources import text_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poolkit.init.applications import Application
    from poolkit.init.sources import Sources

_SEEDS = re.compile(
    r"((load_)?initial_data|init_data|seeds?|seed_\w+|init_db|create_first_\w+)\.py"
)
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
_UPGRADE: tuple[str, ...] = ("{python}", "-m", "alembic", "upgrade", "head")
_REPLACES_URL = (
    "set_main_option",
    "create_engine(",
    "environ",
    "getenv",
    "settings",
    "get_url",
    "config[",
)
"""Text of an env.py that takes its URL from elsewhere than alembic.ini."""
_NOT_IN_THE_WHEEL = ("uuid-ossp", "pgcrypto", "xml2", "sslinfo", "postgis", "timescaledb")
"""Extensions that need a server of the machine's own."""
_DEBIAN_PROGRAMS = Path("/usr/lib/postgresql")
_DEBIAN_FILES = Path("/usr/share/postgresql")
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

    @property
    def lacking(self) -> list[str]:
        """The extensions that the embedded PostgreSQL lacks."""
        return [name for name in self.extensions if name in _NOT_IN_THE_WHEEL]


def schema_of(sources: Sources, folder: Path, application: Application | None) -> Schema:
    """Return the schema of the application whose working directory is `folder`."""
    found = _migrations(sources, folder, application)
    seeds: list[tuple[str, ...]] = []
    notes = list(found.notes)
    for module in sources.modules:
        path, parts = module.path, module.path.parts
        if not (found.command or notes) and ".create_all" in text_of(path):
            notes.append(
                f"no migrations; {path.relative_to(sources.root)} makes the tables (create_all): "
                "it needs no schema command if that runs at start"
            )
        is_seed = _SEEDS.fullmatch(path.name) and folder in path.parents
        if is_seed and "migrations" not in parts:
            if "management" in parts:
                seeds.append(("{python}", "manage.py", path.stem))
            elif module.root == folder:
                seeds.append(("{python}", "-m", module.name))
            else:
                seeds.append(("{python}", os.path.relpath(path, folder)))
    deployment = [
        str(path.relative_to(sources.root))
        for path in sources.files
        if path.suffix in (".yaml", ".yml", ".json", ".template")
        and (_COMPOSE.fullmatch(path.name) or _TEMPLATE.search(text_of(path)[:2_000]))
    ]
    return replace(
        found,
        seeds=tuple(seeds),
        extensions=tuple(_extensions(sources)),
        deployment=tuple(deployment),
        notes=tuple(notes),
    )


def _migrations(sources: Sources, folder: Path, application: Application | None) -> Schema:
    """Return the command that upgrades the schema, its tool, and notes."""
    framework = application.framework if application is not None else ""
    manage = [path for path in sources.files if path.name == "manage.py"]
    if framework == "django" and manage:
        # Relative by os.path: Path.relative_to walks up since Python 3.12 only.
        file = os.path.relpath(min(manage, key=lambda path: len(path.parts)), folder)
        return Schema(command=("{python}", file, "migrate", "--noinput"), tool="manage.py")
    inis = [path for path in sources.files if path.name == "alembic.ini"]
    for ini in sorted(inis, key=lambda path: (folder not in path.parents, len(path.parts))):
        if "current_app" not in text_of(ini.parent / "env.py"):
            return _alembic(ini, folder, sources.root)
        if application is not None and framework == "flask":
            name = application.name.replace(":create_app", "")
            command = ["{python}", "-m", "flask", "--app", name, "db", "upgrade"]
            if ini.parent != folder / "migrations":
                command += ["-d", os.path.relpath(ini.parent, folder)]
            where = ini.parent.relative_to(sources.root)
            return Schema(command=tuple(command), tool=f"Flask-Migrate ({where})")
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if "alembic" in tomllib.loads(text_of(folder / "pyproject.toml")).get("tool", {}):
            return Schema(command=_UPGRADE, tool="Alembic ([tool.alembic] in pyproject.toml)")
    return Schema()


def _alembic(ini: Path, folder: Path, root: Path) -> Schema:
    """Return the upgrade of an alembic.ini, or a note why it must not run as it is."""
    where = ini.relative_to(root)
    config = configparser.RawConfigParser()
    try:
        config.read(ini, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return Schema(notes=(f"{where} cannot be read; set schema yourself",))
    location = config.get("alembic", "script_location", fallback="alembic")
    tool = f"Alembic ({where}, {location})"
    command = _UPGRADE
    if ini.parent != folder:
        command = (*_UPGRADE[:3], "-c", os.path.relpath(ini, folder), *_UPGRADE[3:])
        if "%(here)s" not in location and ":" not in location and not (folder / location).is_dir():
            note = f"{where}: its script_location is relative to its own folder; set schema"
            return Schema(tool=tool, notes=(note,))
    scripts = (ini.parent if "%(here)s" in location else folder) / location.replace("%(here)s/", "")
    url = config.get("alembic", "sqlalchemy.url", fallback="")
    env_py = text_of(scripts / "env.py")
    if url.startswith("postgres") and env_py and not any(w in env_py for w in _REPLACES_URL):
        note = (
            f"{where} names a database, and {location}/env.py takes it: `alembic upgrade` would "
            "change that one; let env.py read DATABASE_URL, then set schema"
        )
        return Schema(tool=tool, notes=(note,))
    return Schema(command=command, tool=tool)


def _extensions(sources: Sources) -> list[str]:
    """Return the extensions that migrations and SQL files create."""
    found: dict[str, None] = {}
    for path in sources.files:
        parts = {part.lower() for part in path.parts}
        is_migration = path.suffix == ".sql" or parts & {"migrations", "versions", "alembic"}
        if path.suffix not in (".py", ".sql") or not is_migration:
            continue
        text = text_of(path)
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


def server_with(extensions: Sequence[str]) -> str:
    """Return the programs of a Debian PostgreSQL with these extensions, the newest, or nothing."""
    for folder in sorted(_DEBIAN_PROGRAMS.glob("[1-9][0-9]"), reverse=True):
        controls = [
            _DEBIAN_FILES / folder.name / f"extension/{name}.control" for name in extensions
        ]
        if (folder / "bin/postgres").is_file() and all(map(Path.is_file, controls)):
            return str(folder / "bin")
    return ""
