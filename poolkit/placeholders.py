"""Placeholders such as `{db_host}` in the settings of a project.

Commands may use `{python}`, `{port}` and `{processes}`. Variables (`env`) may also use those of the
database and the broker:

| placeholder | value |
|---|---|
| `{database_url}` | `postgresql://user:password@host:port/name` |
| `{database_url:asyncpg}` | the same for a driver of SQLAlchemy: `postgresql+asyncpg://...` |
| `{db_host}`, `{db_port}`, `{db_user}`, `{db_password}`, `{db_name}` | its parts |
| `{broker_url}` | the broker, which is started for it |
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from poolkit.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

IN_COMMANDS = ("python", "port", "processes")
DATABASE = ("database_url", "db_host", "db_port", "db_user", "db_password", "db_name")
BROKER = "broker_url"
IN_ENV = (*IN_COMMANDS, *DATABASE, BROKER)
_ONLY_IN_ENV = {*DATABASE, BROKER}
_WITH_DRIVER = re.compile(r"database_url:[a-z][a-z0-9_]*")


class DatabaseUrl(str):
    """A database's URL, which formats as `{database_url}` and as `{database_url:DRIVER}`."""

    __slots__ = ()

    def __format__(self, driver: str) -> str:
        url = make_url(str(self))
        scheme = url.drivername.partition("+")[0]
        url = url.set(drivername=f"{scheme}+{driver}" if driver else scheme)
        return url.render_as_string(hide_password=False)


def values_for(
    database_url: str, *, python: str, broker_url: str = "", port: str = "0", processes: str = "1"
) -> dict[str, str]:
    """Return a value for each placeholder of `env`, for `str.format`.

    Args:
        database_url: with the user and the password.
        python: the interpreter.
        broker_url: empty without a broker.
        port: where the process listens.
        processes: of a service behind its port, or children of a worker.
    """
    parts = make_url(database_url)
    return {
        "python": python,
        "port": port,
        "processes": processes,
        "database_url": DatabaseUrl(database_url),
        "db_host": parts.host or "",
        "db_port": str(parts.port or 5432),
        "db_user": parts.username or "",
        "db_password": str(parts.password or ""),
        "db_name": parts.database or "",
        BROKER: broker_url,
    }


def filled(env: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Return variables with their placeholders filled in."""
    return {name: text.format(**values) for name, text in env.items()}


def uses(text: str, name: str) -> bool:
    """Return whether a checked text has the placeholder of that name."""
    return any(field.partition(":")[0] == name for field in fields(text))


def check_command(where: str, command: Sequence[str], allowed: Sequence[str] = IN_COMMANDS) -> None:
    """Refuse unknown placeholders in a command, and those that would show a password.

    Raises:
        ConfigurationError: the message begins with `where`.
    """
    for word in command:
        for name in fields(word, where):
            if name.partition(":")[0] in _ONLY_IN_ENV:
                # Every user can list the arguments of processes, and the URLs have passwords.
                raise ConfigurationError(
                    f"{where} cannot have {{{name}}}, because every user can read a process's "
                    f'arguments; use env, as in env = {{ NAME = "{{{name}}}" }}'
                )
    _check(where, command, allowed)


def check_env(where: str, env: Mapping[str, str]) -> None:
    """Refuse a name that no variable can have, and unknown placeholders.

    Raises:
        ConfigurationError: the message begins with `where`.
    """
    for name in env:
        if not name or set(name) & set("=\0"):
            raise ConfigurationError(f"{where}: {name!r} cannot name a variable")
    _check(where, env.values(), IN_ENV)


def fields(text: str, where: str = "") -> list[str]:
    """Return the texts in braces, such as `port`, or `port.x` and `port!r`, which are unknown.

    Raises:
        ConfigurationError: a brace is not closed; the message begins with `where`.
    """
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ConfigurationError(
            f"{where}: {text!r} has an unknown placeholder: {error} ({{{{ for a brace itself)"
        ) from None
    return [
        f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
        for _, name, form, conversion in parts
        if name is not None
    ]


def _check(where: str, texts: Iterable[str], allowed: Sequence[str]) -> None:
    for text in texts:
        for name in fields(text, where):
            with_driver = _WITH_DRIVER.fullmatch(name) and "database_url" in allowed
            if name not in allowed and not with_driver:
                names = ", ".join(f"{{{each}}}" for each in allowed)
                raise ConfigurationError(
                    f"{where}: {text!r} has an unknown placeholder; there are {names} "
                    "(and {{ for a brace itself)"
                )
