"""A preset as text: the code to paste, with the reason beside each setting, and the table."""

from __future__ import annotations

import dataclasses
import json
from textwrap import wrap
from typing import TYPE_CHECKING, Any

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
# What a driver calls a field of the preset, where the names differ.
_FIELDS = {"timeout": "connect_timeout", "application_name": "target"}
_REASONS = {
    "poolclass": None,
    "connect_args": None,
    "application_name": "pg_stat_activity shows it: <target>:<instance>, 63 bytes at most",
    "keepalives": "notice a peer that vanished without a word",
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
# What SQLAlchemy's own arguments cannot say.
_BEYOND = (
    "ping_after_idle",
    "pool_recycle_jitter",
    "retry_connect",
    "prewarm",
    "fail_fast",
)

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

    Raises:
        ValueError: the driver is unknown, or does not fit the target.
    """
    chosen = chosen.replace(driver=driver or chosen.driver)
    url = _sample_url(chosen.driver)
    options = chosen.engine_options(url, application_name=f"{chosen.target}:instance")
    function = "create_async_engine" if chosen.is_async else "create_engine"
    module = "sqlalchemy.ext.asyncio" if chosen.is_async else "sqlalchemy"
    shown = chosen.url(url).render_as_string(hide_password=False)
    lines = [
        *(f"# {line}" for line in wrap(_introduction(chosen), WIDTH - 2)),
        f"from {module} import {function}",
        f"from sqlalchemy.pool import {options['poolclass'].__name__}",
        "",
        f"engine = {function}(",
        f"    {_value(shown)},  # yours",
        *_arguments(options, indent="    "),
        ")",
        "",
        "# What the preset does beyond these arguments, for which it has to be there itself",
        "# (poolkit preset --copy presets.py):",
        *_beyond(chosen),
    ]
    return "\n".join(lines)


def _sample_url(driver: str) -> str:
    backend = _BACKENDS.get(driver, "postgresql")
    return _SAMPLE_URLS[backend].format(driver=driver)


def _introduction(chosen: EnginePreset) -> str:
    return f"{chosen.target} in {chosen.environment}. {chosen.why} {_ceiling(chosen)}"


def _ceiling(chosen: EnginePreset) -> str:
    count = chosen.max_connections_per_process
    if chosen.pool == "null":
        return "One connection at a time in each process; the pool enforces nothing."
    return f"At most {count} connection{'s' * (count != 1)} in each process."


def _arguments(options: dict[str, Any], indent: str) -> Iterator[str]:
    plain = {name: value for name, value in options.items() if name != "connect_args"}
    yield from _explained({f"{name}=": value for name, value in plain.items()}, indent)
    yield f"{indent}connect_args={{"
    inner = {f"{_value(name)}: ": value for name, value in options["connect_args"].items()}
    yield from _explained(inner, indent + "    ")
    yield f"{indent}}},"


def _beyond(chosen: EnginePreset) -> Iterator[str]:
    width = WIDTH - 2
    for name in _BEYOND:
        text = f"{name}={getattr(chosen, name)!r}: {_reason(name)}"
        yield from (
            f"# {line}" for line in wrap(text, width, initial_indent="- ", subsequent_indent="  ")
        )


def _explained(settings: dict[str, Any], indent: str) -> Iterator[str]:
    """A short reason stands behind its setting, a long one above it."""
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
    rows = [_HEADING, *(_row(preset(t, e)) for t in TARGETS for e in ENVIRONMENTS)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADING))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(chosen: EnginePreset) -> tuple[str, ...]:
    queue = chosen.pool == "queue"
    kind = ("AsyncAdaptedQueuePool" if chosen.is_async else "QueuePool") if queue else "NullPool"
    return (
        chosen.target,
        chosen.environment,
        kind,
        f"{chosen.pool_size}+{chosen.max_overflow}" if queue else "-",
        f"{chosen.pool_timeout:g}" if queue else "-",
        f"{chosen.pool_recycle:g}" if queue else "-",
        f"{chosen.statement_timeout / 1000:g}" if not chosen.transaction_pooling else "-",
        str(chosen.max_connections_per_process),
    )
