"""Measured connections compared with the ceilings: `poolkit budget --check-run` and `--live`.

A run of `poolkit compare` has the peak of open connections of each target, which belongs to the
services with the same preset.

A connection of a server belongs to the service that its `application_name` names: by the target
(`<target>:<instance>`), by the service's own name, or by the name in its variables. Else it belongs
to the services whose variables have its user and database. Behind a pooler, the pooler's
connections count. Only PostgreSQL can be asked.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.budget.model import Login, total
from poolkit.budget.signs import is_about_database
from poolkit.budget.verdict import Check
from poolkit.errors import BudgetError, RunFolderError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from poolkit.budget.model import Service, Workload
    from poolkit.budget.verdict import Budget, Budgets


def _compared(text: str, count: int, ceiling: int | None) -> Check:
    """Return a line about a number of connections and the ceiling for it."""
    if ceiling is None:
        return Check(f"{text}; the ceiling is unknown")
    word = "within" if count <= ceiling else "ABOVE"
    return Check(f"{text}, {word} the ceiling of {ceiling:,}", count <= ceiling)


# -- a run ----------------------------------------------------------------------------------


def check_run(budgets: Budgets, path: Path) -> list[Check]:
    """Compare a run's peaks with the ceilings of the services with the same preset.

    With several loads, a target's peak is its highest at any of them.

    Raises:
        RunFolderError: it is no run, it has no results, or no target of it is in the budget.
    """
    from poolkit.compare.results.files import read_json  # noqa: PLC0415  (for a run only)
    from poolkit.compare.results.run_folder import RunFolder  # noqa: PLC0415  (the same)

    presets = {target.name: target.preset for target in RunFolder.open(path).plan().targets}
    results = read_json(path / "results.json")
    if not isinstance(results.get("targets"), dict):
        raise RunFolderError(
            f"{path / 'results.json'} has no targets; write it with: poolkit report {path}"
        )
    measured = {name: [at_reference] for name, at_reference in results["targets"].items()}
    # A run of an older poolkit has one load and no levels.
    for name, levels in (results.get("levels") or {}).items():
        measured.setdefault(name, []).extend(each for one in levels for each in one["repeats"])
    services: dict[str, dict[str, Service]] = defaultdict(dict)
    for service in (each for budget in budgets.each for each in budget.services if each.target):
        services[service.target][service.name] = service
    if services.keys().isdisjoint(presets.get(name, name) for name in measured):
        raise RunFolderError(
            f"{path}: no target of the run has the preset of a service in the templates "
            f"({', '.join(sorted(services)) or 'none'})"
        )
    checks: list[Check] = []
    for name, repeats in measured.items():
        fullest = max(repeats, key=lambda each: _peak(each) or 0, default=None)
        of_preset = services.get(presets.get(name, name), {}).values()
        no_service = Check(f"{name}: no service in the templates has its preset")
        checks += [_of_run(name, fullest, service) for service in of_preset] or [no_service]
    return checks


def _peak(found: Any) -> int | None:
    peak = found.get("connections", {}).get("peak") if isinstance(found, dict) else None
    return peak if isinstance(peak, int) else None


def _of_run(target: str, measured: Any, service: Service) -> Check:
    """Return the comparison with one service, for as many processes as the run had."""
    if (peak := _peak(measured)) is None:
        return Check(f"{target}: no peak was measured")
    instances = measured.get("instances") or measured.get("execution_environments")
    text, allowed = f"{service.name}: at most {peak:,} open", service.ceiling
    if isinstance(instances, int):
        text += f" with {instances} process(es)"
        # The run may have had fewer instances than the service can have.
        own = None if service.per_process is None else instances * service.per_process
        allowed = min((each for each in (own, allowed) if each is not None), default=None)
    return _compared(f"{text} of target {target}", peak, allowed)


def knee_of_run(path: Path) -> int | None:
    """Return the most connections that a target of a run had at its knee; None without a knee.

    Raises:
        RunFolderError: the run has no results.
    """
    from poolkit.compare.results.files import read_json  # noqa: PLC0415  (for a run only)

    results = read_json(path / "results.json")
    levels, knees = results.get("levels") or {}, results.get("knees") or {}
    at_knee = [
        _peak(repeat) or 0
        for target, knee in knees.items()
        for level in levels.get(target, ())
        if knee and level.get("name") == knee["level"]
        for repeat in level["repeats"]
    ]
    return max(at_knee, default=0) or None


# -- a server -------------------------------------------------------------------------------

# The view shows a role without pg_monitor who is connected, and neither kind nor address of others.
# The platforms' own roles have connections that the reserve covers.
_CLIENTS = """
SELECT coalesce(application_name, ''), coalesce(usename, ''), coalesce(datname, ''),
       coalesce(string_agg(DISTINCT host(client_addr), ', '), ''),
       count(*) FILTER (WHERE backend_type IS NULL), count(*)
FROM pg_stat_activity
WHERE datid IS NOT NULL AND usesysid IS NOT NULL AND pid <> pg_backend_pid()
      AND coalesce(backend_type, 'client backend') = 'client backend'
      AND application_name IS DISTINCT FROM 'poolkit:activity'
      AND usename NOT IN ('rdsadmin', 'cloudsqladmin', 'cloudsqlagent', 'alloydbadmin', 'azuresu')
GROUP BY 1, 2, 3 ORDER BY count(*) DESC, 1, 2, 3
"""
_URL = re.compile(r"//(?P<user>[^:@/\s]+)(?::[^@\s]*)?@[^/?\s]*(?:/(?P<database>[^?;\s]+))?")
_NAME = re.compile(r"(?P<user>USER(?:_?NAME)?)$|(?P<database>DATABASE|DB|DB_?NAME)$")
_APPLICATION = re.compile(r"\bapplication_?name=(?P<application>[^&;\s'\"]+)", re.IGNORECASE)


class _Client(NamedTuple):
    """The connections of one application, user and database."""

    application: str
    user: str
    database: str
    addresses: str
    hidden: int
    """Those of which the role cannot see whether they are a client's."""
    connections: int

    def __str__(self) -> str:
        name = self.application or "a client without application_name"
        address = f", from {self.addresses}" if self.addresses else ""
        return f"{name} (user {self.user}, database {self.database}{address})"


def login(workload: Workload) -> Login:
    """Return what a workload's variables show of its connections; passwords are not read."""
    found = {"application": workload.text("PGAPPNAME")}
    for name, variable in workload.variables.items():
        text = (variable.partly if variable.text is None else variable.text).strip()
        if not text or not is_about_database(name, variable):
            continue
        if match := _APPLICATION.search(text):
            found |= match.groupdict()
        if match := _URL.search(text):
            found = {**{key: part for key, part in match.groupdict().items() if part}, **found}
        elif match := _NAME.search(name.upper()):
            found.setdefault(match.lastgroup or "", text)
    return Login(**found)


def check_live(budgets: Budgets, url: str) -> list[Check]:
    """Compare the open connections of a server with the ceilings of its budget.

    Raises:
        BudgetError: there is no URL.
        ConfigurationError: it is not that of a PostgreSQL server.
        DatabaseUnavailable: the server cannot be asked.
    """
    from poolkit.activity.server import ActivityConnection  # noqa: PLC0415  (needs psycopg2)

    if not url:
        raise BudgetError("--live needs the server: give --database-url, or POOLKIT_DATABASE_URL")
    with ActivityConnection(url, needs_all=False) as activity:
        clients = [_Client(*row) for row in activity.rows(_CLIENTS)]
    found = list(_compare(budgets.only, clients))
    if hidden := sum(client.hidden for client in clients):
        text = f"{hidden:,} of these are hidden from {activity.role}, and may be parallel workers"
        text += f'; as a superuser run: GRANT pg_monitor TO "{activity.role}"'
        found.append(Check(text))
    if activity.is_pooled:
        found.append(Check("The URL is a pooler's; these are its connections to the server"))
    return found


def _compare(budget: Budget, clients: Sequence[_Client]) -> Iterator[Check]:
    """Return a line for each service or pooler, for each unexplained client, and for the sum."""
    groups, strangers = Counter[frozenset[str]](), list[_Client]()
    for client in clients:
        if parts := _parts(budget, client):
            groups[parts] += client.connections
        else:
            strangers.append(client)
    ceilings = {each.name: each.ceiling(budget.max_connections) for each in budget.poolers}
    ceilings |= {service.name: service.ceiling for service in budget.direct}
    for parts in groups:
        # What belongs to one of several services uses the ceilings of all of them.
        count = sum(number for inside, number in groups.items() if inside <= parts)
        ceiling = total(*(ceilings.get(part) for part in parts))
        yield _compared(f"{' and '.join(sorted(parts))}: {count:,} open", count, ceiling)
    for client in strangers:
        yield Check(f"not in the files: {client}: {client.connections:,} open")
    others = sum(client.connections for client in strangers)
    more, room = max(0, others - budget.migrations - budget.operators), budget.available
    text = f"{sum(each.connections for each in clients):,} open in all, {others:,} not in the files"
    if more and room is not None:
        text += f"; with them, {budget.known + more:,} can be needed of {room:,}"
    yield Check(text, not more or room is None or budget.known + more <= room)


def _parts(budget: Budget, client: _Client) -> frozenset[str]:
    """Return the names of the services or poolers that a connection may belong to."""
    names = {client.application, client.application.partition(":")[0]} - {""}
    for sign in (
        lambda each: names & {*each.name.split("/"), each.target, each.login.application},
        lambda each: (
            each.login.user == client.user and each.login.database in ("", client.database)
        ),
    ):
        if found := [service for service in budget.services if sign(service)]:
            return frozenset(service.through or service.name for service in found)
    return frozenset()
