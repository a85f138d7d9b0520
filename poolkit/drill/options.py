"""The options of `poolkit drill` as one value."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from poolkit.drill.faults import FAULTS
from poolkit.errors import ConfigurationError
from poolkit.local.distance import Distance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from poolkit.drill.faults import Fault

_OF_A_URL = {
    "requests": "--request",
    "locustfile": "--locustfile",
    "database_url": "--database-url",
    "role": "--role",
    "table": "--table",
    "proxy_port": "--proxy-port",
    "agreed": "--yes-load-this-host",
    "agreed_to_break": "--yes-break-this-database",
}


@dataclass(frozen=True, kw_only=True)
class DrillOptions:
    """The options of a drill. Times are in seconds."""

    faults: tuple[Fault, ...]
    targets: tuple[str, ...] = ()
    seconds: float = 4.0
    rate: float = 20.0
    """Requests per second and target."""
    timeout_s: float = 8.0
    """A request without an answer for so long has failed."""
    recovery_limit_s: float = 1.0
    environment: str = "prod"
    distance: Distance = field(default_factory=Distance)
    """From the targets to the drill's own database."""
    url: str = ""
    """Of an application that runs already, in place of targets."""
    requests: tuple[str, ...] = ()
    locustfile: Path | None = None
    database_url: str = ""
    """Of that application's database, with a role that may end its sessions."""
    role: str = ""
    """Of the application; by default that of `database_url`."""
    table: str = ""
    """To lock."""
    proxy_port: int = 0
    """Where the drill's proxy listens, through which the application is connected; 0 for none."""
    agreed: bool = False
    """The host of `url` may be loaded, though it is another machine."""
    agreed_to_break: bool = False
    """The database of `database_url` may be broken, though it is on another machine."""
    out: Path | None = None
    as_json: bool = False
    command: str = "poolkit drill"


def drill_options(
    given: Mapping[str, Any], *, every: bool, faults: Sequence[str], command: str
) -> DrillOptions:
    """Return the options of a command line.

    Args:
        given: values by the names of `DrillOptions`; None and empty stand for the default.
        every: whether every fault is wanted.
        faults: the names of the wanted faults.
        command: the command line as it was typed, without passwords.

    Raises:
        ConfigurationError: a fault is unknown, none is named, or options do not go together.
    """
    by_name = {fault.name: fault for fault in FAULTS}
    for name in faults:
        if name not in by_name:
            close = difflib.get_close_matches(name, by_name, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(by_name)}"
            raise ConfigurationError(f"--fault {name} is unknown; {hint}")
    if bool(faults) == every:
        raise ConfigurationError("wanted either --fault or --all; --list prints the faults")
    chosen = FAULTS if every else tuple(by_name[name] for name in dict.fromkeys(faults))
    values = {name: value for name, value in given.items() if value not in (None, (), "", False)}
    if "url" not in values:
        for name in _OF_A_URL.keys() & values.keys():
            raise ConfigurationError(
                f"{_OF_A_URL[name]} is for the application of --url; the drill starts the servers "
                "of a project's targets itself"
            )
    elif "targets" in values:
        raise ConfigurationError("--targets starts targets of the project, so --url has no place")
    elif "requests" in values and "locustfile" in values:
        raise ConfigurationError("--request and --locustfile are two loads; give one of them")
    elif "proxy_port" in values and "database_url" not in values:
        raise ConfigurationError("--proxy-port needs --database-url: where the proxy leads to")
    return DrillOptions(faults=chosen, command=command, **values)
