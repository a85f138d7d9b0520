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
from poolkit.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Iterator

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


class Check(NamedTuple):
    """A line about a measurement, and whether it is within its ceiling."""

    text: str
    is_within: bool = True


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
    found = Login(application=workload.text("PGAPPNAME"))
    for name, variable in workload.variables.items():
        text = (variable.partly if variable.text is None else variable.text).strip()
        if not text or not is_about_database(name, variable):
            continue
        if url := _URL.search(text):
            found = found._replace(
                user=found.user or url["user"], database=found.database or url["database"] or ""
            )
        elif match := _NAME.search(name.upper()):
            part = "user" if match["user"] else "database"
            found = found._replace(**{part: getattr(found, part) or text})
        if match := _APPLICATION.search(text):
            found = found._replace(application=match[1])
    return found


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
    found = list(compare(budgets.only, clients))
    if hidden := sum(client.hidden for client in clients):
        found.append(
            Check(
                f"{activity.role} cannot see whether {hidden:,} of the connections are clients' or "
                f'parallel workers; as a superuser run: GRANT pg_monitor TO "{activity.role}"'
            )
        )
    if activity.is_pooled:
        found.append(
            Check(
                "This URL leads to a pooler, whose own connections to the server are those above."
            )
        )
    return found


def compare(budget: Budget, clients: list[_Client]) -> Iterator[Check]:
    """Return a line for each service or pooler, for each unexplained client, and for the sum."""
    groups = Counter[frozenset[str]]()
    unexplained = []
    for client in clients:
        if parts := _parts(budget, client):
            groups[parts] += client.connections
        else:
            unexplained.append(client)
    ceilings = {each.name: each.ceiling(budget.max_connections) for each in budget.poolers}
    ceilings |= {service.name: service.ceiling for service in budget.direct}
    for parts in groups:
        # What belongs to one of several services uses the ceilings of all of them.
        count = sum(number for inside, number in groups.items() if inside <= parts)
        name, ceiling = " and ".join(sorted(parts)), total(*(ceilings[part] for part in parts))
        verdict = "within" if ceiling is None or count <= ceiling else "ABOVE"
        text = f"{name}: {count:,} open, {verdict} the ceiling of {ceiling or 0:,}"
        if ceiling is None:
            text = f"{name}: {count:,} open; the ceiling is unknown"
        yield Check(text, is_within=verdict == "within")
    for client in unexplained:
        yield Check(f"not in the files: {client}: {client.connections:,} open")
    others = sum(client.connections for client in unexplained)
    more = max(0, others - budget.migrations - budget.operators)
    needed, room = budget.known + more, budget.available
    count = sum(client.connections for client in clients)
    text = f"{count:,} open in all, {others:,} of them not in the files"
    if more:
        shown = "?" if room is None else f"{room:,}"
        text += f"; with them, {needed:,} connections can be needed of {shown}"
    yield Check(text, is_within=not more or room is None or needed <= room)


def _parts(budget: Budget, client: _Client) -> frozenset[str]:
    """Return the names of the services or poolers that a connection may belong to."""
    target, services = client.application.partition(":")[0], budget.services
    names = (target, client.application)
    signs = (
        [each for each in services if target and each.name.rpartition("/")[2] in names],
        [each for each in services if target and target == each.target],
        [
            each
            for each in services
            if client.application and each.login.application == client.application
        ],
        [
            each
            for each in services
            if each.login.user == client.user and each.login.database in ("", client.database)
        ],
    )
    found = next((each for each in signs if each), [])
    return frozenset(service.through or service.name for service in found)
