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
# A driver's argument to the preset's field, where the names differ.
_FIELDS = {"timeout": "connect_timeout", "application_name": "target"}
_REASONS = {
    # The preset's limit includes attempts and pauses. Pasted code makes one attempt.
    "connect_timeout": "how long opening a connection may take",
    "timeout": "how long opening a connection may take",
    "application_name": "pg_stat_activity shows it: <target>:<instance>, 63 bytes at most",
    "keepalives": "notice a peer that vanished without notice",
    "options": "the server's own limits, in ms, for what would hold a connection too long",
    "program_name": "performance_schema shows it",
    "init_command": "the server's own limits for what would hold a connection too long: MySQL reads "
    "one comment, MariaDB the other",
    "read_timeout": "a little more than the statement timeout, s",
    "write_timeout": "a little more than the statement timeout, s",
    "check_same_thread": "the pool gives a connection to any thread, one at a time",
    "prepare_threshold": "nothing prepared by name outlives a transaction",
    "statement_cache_size": "nothing prepared by name outlives a transaction",
    "prepared_statement_cache_size": "the same, in SQLAlchemy's own cache",
    "prepared_statement_name_func": "unnamed statements",
}
# Where another database than PostgreSQL has other reasons.
_REASONS_THERE = {
    "mysql": {
        "pool_recycle": "a connection older than this is replaced at checkout: it spreads load "
        "after a failover, and stays under wait_timeout, after which MySQL ends idle sessions; -1: "
        "never",
        "pool_use_lifo": "last in, first out: connections that a quiet hour does not need go idle, "
        "and MySQL ends them after wait_timeout",
        "retry_connect": "on 1040 and 1203 (too many connections) try again with full jitter until "
        "connect_timeout is spent",
    },
    "sqlite": {
        "pool_size": "connections kept open when idle, each with a cache of the file",
        "pool_use_lifo": "last in, first out: the next checkout gets the cache that was used last",
        "timeout": "how long a statement waits for a lock on the file",
        "fail_fast": "a file that cannot be opened fails the start, instead of the first request",
    },
}
# The experiment that supports a number.
_EXPERIMENTS = {
    "pool_size": "pool_size",
    "max_overflow": "one_too_many",
    "pool_timeout": "one_too_many",
    "pool_recycle": "recycle",
    "pool_recycle_jitter": "recycle_together",
    "pool_use_lifo": "idle_connections",
    "pool_pre_ping": "stale_connections",
    "ping_after_idle": "ping_cost",
    "retry_connect": "too_many_instances",
    "prewarm": "when_connections_open",
    "connect_timeout": "lambda_connect_timeout",
    "options": "held_while_slow",
    "server_settings": "held_while_slow",
    "init_command": "held_while_slow",
    "check_same_thread": "sqlite_pools",
    "prepare_threshold": "pool_modes",
    "statement_cache_size": "pool_modes",
    "prepared_statement_cache_size": "pool_modes",
}
_EXPERIMENTS_THERE = {
    "mysql": {
        "pool_recycle": "mysql_wait_timeout",
        "pool_pre_ping": "mysql_wait_timeout",
        "ping_after_idle": "mysql_wait_timeout",
    },
    "sqlite": {"pool_size": "sqlite_pools", "connect_timeout": "", "pool_use_lifo": ""},
}
_EXPERIMENTS_OF_LAMBDA = {"pool_size": "lambda_pools", "max_overflow": "lambda_pools"}
_WHY_THERE = {
    ("mysql", "lambda_warm"): "One connection per execution environment, kept between invokes. "
    "Freezing does not close it, so reserved concurrency is the connection ceiling; the server ends "
    "the ones that stay frozen (wait_timeout).",
    ("mysql", "lambda_proxy"): "RDS Proxy or ProxySQL keeps the connections; a second pool here "
    "would only hold its clients' slots. Timeouts belong on the server or the proxy: SET pins the "
    "connection.",
    ("sqlite", "lambda_warm"): "One connection per execution environment, kept between invokes.",
}
_ON_THE_SOCKET = ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")
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
    is followed by the arguments of a prefork child (`EnginePreset.per_task`). Each reason is true of
    this target, database and driver; in brackets is the experiment that supports the number.

    Raises:
        ValueError: the driver is unknown, or does not fit the target.
    """
    return _Printed(chosen.replace(driver=driver or chosen.driver)).code()


class _Printed:
    """A preset with the driver that decides what is true of it."""

    def __init__(self, chosen: EnginePreset) -> None:
        self.chosen = chosen
        self.backend = _BACKENDS.get(chosen.driver, "postgresql")
        if (self.backend, chosen.target) == ("sqlite", "lambda_proxy"):
            raise ValueError(
                "target 'lambda_proxy' is for a server behind a proxy; SQLite has none"
            )
        self.url = _SAMPLE_URLS[self.backend].format(driver=chosen.driver)
        name = f"{chosen.target}:instance"
        self.options = chosen.engine_options(self.url, application_name=name)
        self.connect_args = self.options.pop("connect_args")

    def code(self) -> str:
        chosen = self.chosen
        function = "create_async_engine" if chosen.is_async else "create_engine"
        module = "sqlalchemy.ext.asyncio" if chosen.is_async else "sqlalchemy"
        shown = chosen.url(self.url).render_as_string(hide_password=False)
        return "\n".join(
            (
                *_comment(
                    f"{chosen.target} in {chosen.environment}. {self.why} {self.ceiling} In brackets: "
                    "the experiment that supports a number (poolkit experiment NAME)."
                ),
                f"from {module} import {function}",
                f"from sqlalchemy.pool import {self.options['poolclass'].__name__}",
                "",
                f"engine = {function}(",
                f"    {_value(shown)},  # yours",
                *self.explained(self.options, "{}=", "    "),
                "    connect_args={",
                *self.explained(self.connect_args, '"{}": ', "        "),
                "    },",
                ")",
                *self.child(),
                *self.beyond(),
            )
        )

    @property
    def why(self) -> str:
        return _WHY_THERE.get((self.backend, self.chosen.target), self.chosen.why)

    @property
    def ceiling(self) -> str:
        chosen, count = self.chosen, self.chosen.max_connections_per_process
        if chosen.pool == "queue":
            ceiling = f"At most {count} connection{'s' * (count != 1)} in each process"
        elif chosen.is_async:
            ceiling = "One connection for each unit of work under way; the pool enforces nothing"
        else:
            ceiling = "One connection at a time in each process; the pool enforces nothing"
        if self.backend == "sqlite":
            return f"{ceiling}."
        shown = "lambda_pools" if chosen.target.startswith("lambda") else "too_many_instances"
        return f"{ceiling} [{shown}]."

    def child(self) -> Iterator[str]:
        """Yield the arguments that differ in a process that runs one task at a time."""
        if self.chosen.target != "worker" or self.chosen.pool == "null":
            return
        child = self.chosen.per_task()
        yield ""
        yield from _comment(
            "A prefork child of Celery runs one task at a time. Its engine has "
            f"pool_size={child.pool_size}, max_overflow={child.max_overflow} instead, "
            'which is preset("worker", ...).per_task() in the preset file.'
        )

    def beyond(self) -> Iterator[str]:
        """Yield the preset's additions to SQLAlchemy, those that this pool and server have."""
        yield ""
        yield from _comment(
            "What the preset does beyond these arguments, for which its file is needed "
            "(poolkit preset --copy presets.py):"
        )
        for name in self.additions():
            value = getattr(self.chosen, name)
            yield from _comment(f"{name}={value!r}: {self.reason(name, value)}", first="- ")

    def additions(self) -> Iterator[str]:
        chosen = self.chosen
        keeps = chosen.pool == "queue"
        if self.backend != "sqlite":  # no server that could be full, or close a connection
            if keeps:  # a null pool's connections are new at every checkout
                yield from ("ping_after_idle", "pool_recycle_jitter")
            yield "retry_connect"
            # libpq has them as arguments, and mysqlclient shows no socket to set them on.
            if chosen.driver in ("asyncpg", "pymysql", "asyncmy"):
                yield from _ON_THE_SOCKET
        if keeps:
            yield "prewarm"
        yield "fail_fast"
        if keeps:
            if 0 < chosen.concurrent_connects < chosen.max_connections_per_process:
                yield "concurrent_connects"
            # Off unless set.
            yield from ("max_waiting",) if chosen.max_waiting else ()
            yield from ("breaker_failures", "breaker_pause") if chosen.breaker_failures else ()

    def explained(self, settings: dict[str, Any], label: str, indent: str) -> Iterator[str]:
        """Yield each setting with its reason: a short one behind it, a long one above it."""
        codes = {
            name: f"{indent}{label.format(name)}{_value(value, indent)},"
            for name, value in settings.items()
        }
        width = max((len(code) for code in codes.values() if len(code) < 40), default=0)
        for name, code in codes.items():
            reason = self.reason(name, settings[name])
            behind = f"{code:<{width}}  # {reason}"
            if reason is None:
                yield code
            elif len(behind) <= WIDTH and "\n" not in code:
                yield behind
            else:
                yield from (f"{indent}# {line}" for line in wrap(reason, WIDTH - len(indent) - 2))
                yield code

    def reason(self, name: str, value: Any) -> str | None:
        """Return why a setting has its value, with the experiment that supports it."""
        fields = {field.name: field for field in dataclasses.fields(EnginePreset)}
        field = fields.get(_FIELDS.get(name, name))
        reason = self.reason_here(name)
        if reason is None:
            reason = _REASONS_THERE.get(self.backend, {}).get(name) or _REASONS.get(name)
            if reason is None and field is not None:
                reason = str(field.metadata["why"])
            if reason is not None and field is not None and value is False:
                reason = f"if True: {reason}"
        if reason is None:
            return None
        if field is not None and field.metadata.get("unit") in {"s", "ms"}:
            reason = f"{reason} ({field.metadata['unit']})"
        experiment = self.experiment(name)
        return f"{reason} [{experiment}]" if experiment else reason

    def reason_here(self, name: str) -> str | None:
        """Return the reason of a setting whose effect depends on the driver, or on other settings."""
        chosen, reason = self.chosen, None
        match name:
            case "max_overflow" if chosen.max_overflow == 0:
                reason = "none beyond pool_size: further checkouts wait"
            case "pool_use_lifo" if chosen.max_connections_per_process == 1:
                reason = "without effect on a pool of one"
            case "check_same_thread" if chosen.driver == "aiosqlite":
                reason = "aiosqlite uses each connection in a thread of its own"
            case "check_same_thread" if chosen.pool == "null":
                reason = "a unit of work may go on in another thread"
            case "server_settings" if self.connect_args[name].keys() == {"application_name"}:
                reason = _REASONS["application_name"]
            case "server_settings":
                reason = f"the name in pg_stat_activity; {_REASONS['options']}"
            case "retry_connect" if self.backend == "postgresql":
                states = "53300 (too many clients) and 57P03 (starting up)"
                if "target_session_attrs" in self.connect_args:
                    states = (
                        "53300 (too many clients), 57P03 (starting up) and a server that "
                        "target_session_attrs refuses"
                    )
                reason = f"on {states}, try again with full jitter until connect_timeout is spent"
        return reason

    def experiment(self, name: str) -> str:
        """Return the experiment that supports a setting, empty for none."""
        known = _EXPERIMENTS | _EXPERIMENTS_THERE.get(self.backend, {})
        if self.chosen.target.startswith("lambda") and self.backend != "sqlite":
            known |= _EXPERIMENTS_OF_LAMBDA
        if self.chosen.max_connections_per_process == 1:
            known["pool_use_lifo"] = ""
        if name == "server_settings" and self.connect_args[name].keys() == {"application_name"}:
            return ""
        return known.get(_FIELDS.get(name, name), "")


def _comment(text: str, first: str = "") -> list[str]:
    lines = wrap(text, WIDTH - 2, initial_indent=first, subsequent_indent=" " * len(first))
    return [f"# {line}" for line in lines]


def _value(value: Any, indent: str = "") -> str:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, dict):
        rows = (f"{indent}    {_value(k)}: {_value(v)},\n" for k, v in value.items())
        return "{\n" + "".join(rows) + indent + "}"
    return 'lambda: ""' if callable(value) else repr(value)


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
