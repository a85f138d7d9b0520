"""A preset as text: the code to paste with each setting's reason, the table, the file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from poolkit.config import presets
from poolkit.config.presets import ENVIRONMENTS, TARGETS, EnginePreset, preset

if TYPE_CHECKING:
    from collections.abc import Iterator

_SAMPLE_URLS = {
    "postgresql": "postgresql+{driver}://user:password@host:5432/database?sslmode=require",
    "mysql": "mysql+{driver}://user:password@host:3306/database",
    "sqlite": "sqlite+{driver}:///database.sqlite",
}
_BACKENDS = {"pymysql": "mysql", "mysqldb": "mysql", "asyncmy": "mysql"}
_BACKENDS |= {"pysqlite": "sqlite", "aiosqlite": "sqlite"}
_RETRY_MYSQL = (
    "on 1040 and 1203 (too many connections) try again with full jitter "
    "until connect_timeout is spent"
)
# A driver's argument to the preset's field, where the names differ.
_FIELDS = {"timeout": "connect_timeout", "application_name": "target"}
_REASONS = {
    "poolclass": None,
    "connect_args": None,
    "application_name": "pg_stat_activity shows it: <target>:<instance>, 63 bytes at most",
    "keepalives": "notice a peer that vanished without notice",
    "options": "the server's own limits, in ms",
    "server_settings": "the server's own limits, in ms",
    "program_name": "performance_schema shows it",
    "init_command": "the server's own limits: MySQL reads one comment, MariaDB the other",
    "read_timeout": "a little more than the statement timeout, s",
    "write_timeout": "a little more than the statement timeout, s",
    "check_same_thread": "the pool hands a connection to any thread, one at a time",
    "prepare_threshold": "nothing prepared by name outlives a transaction",
    "statement_cache_size": "nothing prepared by name outlives a transaction",
    "prepared_statement_cache_size": "the same, in SQLAlchemy's own cache",
    "prepared_statement_name_func": "unnamed statements",
}
_HEADING = (
    "target",
    "environment",
    "pool",
    "size+overflow",
    "timeout s",
    "recycle s",
    "statement s",
    "per process",
)
WIDTH = 96


def preset_code(chosen: EnginePreset, driver: str | None = None) -> str:
    """Return Python code that makes this preset's engine with SQLAlchemy alone.

    What only the preset file can do stands behind the code, as comments. A worker's code
    is followed by the arguments of a prefork child (`EnginePreset.per_task`).

    Raises:
        ValueError: the driver is unknown, or does not fit the target.
    """
    chosen = chosen.replace(driver=driver or chosen.driver)
    backend = _BACKENDS.get(chosen.driver, "postgresql")
    url = _SAMPLE_URLS[backend].format(driver=chosen.driver)
    options = chosen.engine_options(url, application_name=f"{chosen.target}:instance")
    function = "create_async_engine" if chosen.is_async else "create_engine"
    module = "sqlalchemy.ext.asyncio" if chosen.is_async else "sqlalchemy"
    shown = chosen.url(url).render_as_string(hide_password=False)
    if chosen.pool == "null":
        ceiling = "One connection at a time in each process; the pool enforces nothing."
    else:
        count = chosen.max_connections_per_process
        ceiling = f"At most {count} connection{'s' * (count != 1)} in each process."
    connect_args = {f"{_value(k)}: ": value for k, value in options.pop("connect_args").items()}
    return "\n".join(
        (
            *_comment(f"{chosen.target} in {chosen.environment}. {chosen.why} {ceiling}"),
            f"from {module} import {function}",
            f"from sqlalchemy.pool import {options['poolclass'].__name__}",
            "",
            f"engine = {function}(",
            f"    {_value(shown)},  # yours",
            *_explained({f"{name}=": value for name, value in options.items()}, "    "),
            "    connect_args={",
            *_explained(connect_args, "        "),
            "    },",
            ")",
            *_child(chosen),
            *_beyond(chosen, backend),
        )
    )


def _child(chosen: EnginePreset) -> Iterator[str]:
    """Yield the arguments that differ in a process that runs one task at a time."""
    if chosen.target != "worker" or chosen.pool == "null":
        return
    child = chosen.per_task()
    yield ""
    yield from _comment(
        "A prefork child of Celery runs one task at a time. Its engine has "
        f"pool_size={child.pool_size}, max_overflow={child.max_overflow} instead, "
        'which is preset("worker", ...).per_task() in the preset file.'
    )


def _beyond(chosen: EnginePreset, backend: str) -> Iterator[str]:
    """Yield the preset's additions to SQLAlchemy, those that this pool and server have."""
    names = ["prewarm", "fail_fast"]
    if backend != "sqlite":  # no server that could be full, or close a connection
        names.insert(0, "retry_connect")
        if chosen.pool == "queue":  # a null pool's connections are new at every checkout
            names = ["ping_after_idle", "pool_recycle_jitter", *names]
    if chosen.pool == "queue":
        names.append("concurrent_connects")
        # Off unless set.
        names += ["max_waiting"] if chosen.max_waiting else []
        names += ["breaker_failures", "breaker_pause"] if chosen.breaker_failures else []
    yield ""
    yield from _comment(
        "What the preset does beyond these arguments, for which its file is needed "
        "(poolkit preset --copy presets.py):"
    )
    for name in names:
        reason = _reason(name)
        if name == "retry_connect" and backend == "mysql":
            reason = _RETRY_MYSQL
        yield from _comment(f"{name}={getattr(chosen, name)!r}: {reason}", first="- ")


def _comment(text: str, first: str = "") -> list[str]:
    lines = wrap(text, WIDTH - 2, initial_indent=first, subsequent_indent=" " * len(first))
    return [f"# {line}" for line in lines]


def _explained(settings: dict[str, Any], indent: str) -> Iterator[str]:
    """Yield each setting with its reason: a short one behind it, a long one above it."""
    codes = {label: f"{indent}{label}{_value(value, indent)}," for label, value in settings.items()}
    width = max((len(code) for code in codes.values() if len(code) < 40), default=0)
    for label, code in codes.items():
        reason = _reason(label.strip('":= '))
        behind = f"{code:<{width}}  # {reason}"
        if reason is None:
            yield code
        elif len(behind) <= WIDTH and "\n" not in code:
            yield behind
        else:
            yield from (f"{indent}# {line}" for line in wrap(reason, WIDTH - len(indent) - 2))
            yield code


def _value(value: Any, indent: str = "") -> str:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, dict):
        rows = (f"{indent}    {_value(k)}: {_value(v)},\n" for k, v in value.items())
        return "{\n" + "".join(rows) + indent + "}"
    return 'lambda: ""' if callable(value) else repr(value)


def _reason(name: str) -> str | None:
    if name in _REASONS:
        return _REASONS[name]
    fields = {field.name: field for field in dataclasses.fields(EnginePreset)}
    found = fields.get(_FIELDS.get(name, name))
    if found is None:
        return None
    unit = found.metadata.get("unit")
    why = str(found.metadata["why"])
    return f"{why} ({unit})" if unit in {"s", "ms"} else why


def preset_table() -> str:
    """Return every target in every environment, aligned, one line each."""
    rows = [_HEADING]
    for chosen in (preset(target, name) for target in TARGETS for name in ENVIRONMENTS):
        queue = chosen.pool == "queue"
        row = (
            chosen.target,
            chosen.environment,
            chosen.pool_class("postgresql://").__name__,
            f"{chosen.pool_size}+{chosen.max_overflow}" if queue else "-",
            f"{chosen.pool_timeout:g}" if queue else "-",
            f"{chosen.pool_recycle:g}" if queue else "-",
            f"{chosen.statement_timeout / 1000:g}" if not chosen.transaction_pooling else "-",
            str(chosen.max_connections_per_process),
        )
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def copy_presets(file: Path) -> Path:
    """Copy the preset file, which works alone, and return where it is now.

    Args:
        file: the copy, or the folder that it goes to.

    Raises:
        FileExistsError: the copy exists already. It may have numbers of the project's own.
        OSError: it cannot be written.
    """
    if file.is_dir():
        file /= "presets.py"
    source = Path(presets.__file__).read_text(encoding="utf-8")
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(source)
    except FileExistsError:
        raise FileExistsError(f"{file} exists already; it was not changed") from None
    return file
