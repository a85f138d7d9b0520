"""The open connections of a server compared with the ceilings: `poolkit budget --live`.

A connection belongs to the service that its `application_name` names (`<target>:<instance>`, or the
service's own name), else to the services whose variables have its user and database. Behind a
pooler, the pooler's connections count. Only PostgreSQL can be asked.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from poolkit.budget.model import Login, total
from poolkit.budget.signs import is_about_database
from poolkit.budget.verdict import Check
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.budget.model import Workload
    from poolkit.budget.verdict import Budget, Budgets

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
_NAME = re.compile(r"(?P<user>USER(_?NAME)?)$|(DATABASE|DB|DB_?NAME)$")
_APPLICATION = re.compile(r"\bapplication_?name=([^&;\s'\"]+)", re.IGNORECASE)


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
    user = database = ""
    application = workload.text("PGAPPNAME")
    for name, variable in workload.variables.items():
        text = (variable.partly if variable.text is None else variable.text).strip()
        if not text or not is_about_database(name, variable):
            continue
        if match := _APPLICATION.search(text):
            application = match[1]
        if match := _URL.search(text):
            user, database = user or match["user"], database or match["database"] or ""
        elif match := _NAME.search(name.upper()):
            user, database = (user or text, database) if match["user"] else (user, database or text)
    return Login(user, database, application)


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
    groups = Counter[frozenset[str]]()
    for client in clients:
        groups[_parts(budget, client)] += client.connections
    others = groups.pop(frozenset(), 0)
    ceilings = {each.name: each.ceiling(budget.max_connections) for each in budget.poolers}
    ceilings |= {service.name: service.ceiling for service in budget.direct}
    for parts in groups:
        # What belongs to one of several services uses the ceilings of all of them.
        count = sum(number for inside, number in groups.items() if inside <= parts)
        ceiling = total(*(ceilings.get(part) for part in parts))
        is_within = ceiling is None or count <= ceiling
        text = f"{' and '.join(sorted(parts))}: {count:,} open"
        if ceiling is None:
            yield Check(f"{text}; the ceiling is unknown")
        else:
            verdict = "within" if is_within else "ABOVE"
            yield Check(f"{text}, {verdict} the ceiling of {ceiling:,}", is_within)
    for client in clients:
        if not _parts(budget, client):
            yield Check(f"not in the files: {client}: {client.connections:,} open")
    more, room = max(0, others - budget.migrations - budget.operators), budget.available
    text = f"{sum(each.connections for each in clients):,} open in all, {others:,} not in the files"
    if more and room is not None:
        text += f"; with them, {budget.known + more:,} can be needed of {room:,}"
    yield Check(text, not more or room is None or budget.known + more <= room)


def _parts(budget: Budget, client: _Client) -> frozenset[str]:
    """Return the names of the services or poolers that a connection may belong to."""
    target, application = client.application.partition(":")[0], client.application
    for sign in (
        lambda each: target and {target, application} & set(each.name.split("/")),
        lambda each: target and each.target == target,
        lambda each: application and each.login.application == application,
        lambda each: (
            each.login.user == client.user and each.login.database in ("", client.database)
        ),
    ):
        if found := [service for service in budget.services if sign(service)]:
            return frozenset(service.through or service.name for service in found)
    return frozenset()
