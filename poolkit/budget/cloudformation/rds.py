"""Amazon RDS and Aurora in a stack: their max_connections, and RDS Proxy in front of them.

Sources: as `instance_classes`; PostgreSQL, 19.3.1 (superuser_reserved_connections, 3;
reserved_connections, from PostgreSQL 16); Amazon RDS User Guide, "Working with parameters on
your RDS for PostgreSQL DB instance" (rds.rds_superuser_reserved_connections, 2);
ConnectionPoolConfiguration (MaxConnectionsPercent, 100).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.budget.instance_classes import (
    BYTES_PER_CONNECTION,
    GIB,
    MOST_BY_FORMULA,
    PUBLISHED_IN,
    RDS_RESERVED,
    SMALL_MINIMUM_CAP,
    SUPERUSER_RESERVED,
    class_formula,
    memory_gib,
    nominal_connections,
    planned_connections,
    serverless_connections,
)
from poolkit.budget.model import Database, Overlap, Pooler, Quantity, known, unknown
from poolkit.budget.read.values import Reference, Unknown, references, whole_number, why_unknown
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.model import SourceLocation

_RESERVES = {
    "superuser_reserved_connections": SUPERUSER_RESERVED,
    "rds.rds_superuser_reserved_connections": RDS_RESERVED,
    "reserved_connections": 0,
}
"""The parameters that reserve connections, and their defaults."""
_PARAMETER_GROUPS = ("DBParameterGroupName", "DBClusterParameterGroupName")
_MEMORY = re.compile(r"\{?\s*DBInstanceClassMemory\s*(?:([*/])\s*(\d+))?\s*\}?")


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """max_connections and how it was derived; the fields are those of `Database`."""

    max_connections: Quantity
    formula: str = ""
    instance_class: str = ""
    highest: int | None = None
    carried: int | None = None


class _Parameter(NamedTuple):
    """A parameter that a parameter group sets."""

    value: Any
    group: str
    origin: str
    where: SourceLocation


def rds_databases(stack: Stack) -> Iterator[Database]:
    """Return the databases of a stack, without replicas and members of a cluster.

    Raises:
        TemplateError: a number is wrong, or an instance class is unknown.
    """
    instances = list(stack.of_type("AWS::RDS::DBInstance"))
    for cluster in stack.of_type("AWS::RDS::DBCluster"):
        names = (cluster.get("DBClusterIdentifier"), cluster.get("DBInstanceIdentifier"))
        members = [
            each
            for each in instances
            for named in (each.get("DBClusterIdentifier"),)
            if any(found.resource == cluster.key for found in references(named))
            or (isinstance(named, str) and named in names)
        ]
        groups = [cluster, *members]
        kind, smallest = "Aurora", 0
        limit: _Limit | None = None
        is_serverless = not members or any(
            each.get("DBInstanceClass") == "db.serverless" for each in members
        )
        if cluster.get("ServerlessV2ScalingConfiguration") is not None and is_serverless:
            kind, limit = "Aurora Serverless v2", _by_acu(cluster, groups)
        else:
            # Any member may become the writer, so the smallest one counts. An unknown one could be
            # the smallest.
            own = [cluster] if cluster.get("DBClusterInstanceClass") else []
            for each in members or own:
                found = _by_class(each, [each, cluster])
                value = found.max_connections.value
                size = -1 if value is None else min(value, found.carried or value)
                if limit is None or size < smallest:
                    limit, smallest = found, size
        if limit is None:
            nothing = unknown("the cluster has no instance in the templates", cluster.where())
            limit = _Limit(max_connections=nothing)
        yield _database(cluster, kind, limit, members)
    for instance in instances:
        if not (instance.get("SourceDBInstanceIdentifier") or instance.get("DBClusterIdentifier")):
            yield _database(instance, "RDS", _by_class(instance, [instance]), [instance])


def _database(resource: Resource, kind: str, limit: _Limit, members: list[Resource]) -> Database:
    groups = [resource, *members]
    quantity, engine = limit.max_connections, resource.get("Engine") or "postgres"
    if why := why_unknown(engine):
        quantity = unknown(f"its engine is unknown: {why}", resource.where("Engine"))
    elif "postgres" not in str(engine):
        reason = f"engine {engine} is not PostgreSQL; give --max-connections"
        quantity = unknown(reason, resource.where("Engine"))
    for each, key in itertools.product(groups, _PARAMETER_GROUPS):
        named = each.get(key)
        is_own = isinstance(named, Reference) and named.stack == each.stack.name
        # RDS's own groups set nothing.
        is_default = isinstance(named, str) and named.startswith("default")
        if named is not None and not is_own and not is_default:
            shown = f" {named}" if isinstance(named, str) else ""
            reason = f"the parameter group{shown} ({each.where(key)}) is not in the templates"
            quantity = unknown(f"{reason}; give --max-connections", resource.where())
            break
    if isinstance(resource.present, Unknown):
        reason = f"it is unknown whether the database exists: {resource.present.reason}"
        quantity = unknown(reason, resource.where())
    reserved, labels = known(0, "", resource.where()), []
    for name, default in _RESERVES.items():
        found = _parameter(groups, name)
        number = known(default, "")
        if found is not None:
            number = whole_number(found.value, name, found.origin, found.where)
        if number.value is None:
            reserved = number
            break
        if number.value:
            labels.append(f"{number.value} {name}{f' ({number.origin})' if number.origin else ''}")
        both = (reserved.value or 0) + number.value
        reserved = known(both, " + ".join(labels), resource.where())
    return Database(
        name=resource.logical_id,
        kind=kind,
        where=resource.where(),
        max_connections=quantity,
        formula=limit.formula,
        instance_class=limit.instance_class,
        highest=limit.highest,
        carried=limit.carried,
        reserved=reserved,
        resources=tuple({resource.key, *(each.key for each in members)}),
    )


# -- parameter groups -----------------------------------------------------------------------


def _parameter(resources: list[Resource], name: str) -> _Parameter | None:
    """Find a parameter in the parameter groups of some resources."""
    for resource in resources:
        for key in _PARAMETER_GROUPS:
            group = resource.stack.referenced(resource.get(key))
            found = group.get("Parameters", name) if group else None
            if group is not None and found is not None:
                path = ("Parameters", name)
                return _Parameter(found, group.logical_id, group.origin(*path), group.where(*path))
    return None


# -- max_connections ------------------------------------------------------------------------


def _by_class(instance: Resource, groups: list[Resource]) -> _Limit:
    name = "DBInstanceClass" if instance.get("DBInstanceClass") else "DBClusterInstanceClass"
    instance_class, where = instance.get(name), instance.where(name)
    gib, why = None, why_unknown(instance_class) or "it has no instance class"
    if isinstance(instance_class, str):
        try:
            gib = memory_gib(instance_class)
        except BudgetError as error:
            raise TemplateError(f"{instance.where('DBInstanceClass')}: {error}") from None
    parameter = _parameter(groups, "max_connections")
    if parameter is not None:
        return _set_by_parameter(parameter, gib)
    if gib is None:
        return _Limit(max_connections=unknown(f"instance class: {why}", where))
    return _Limit(
        max_connections=known(planned_connections(gib), instance.origin(name), where),
        formula=class_formula(instance_class, gib),
        instance_class=instance_class,
        highest=nominal_connections(gib),
    )


def _set_by_parameter(parameter: _Parameter, gib: float | None) -> _Limit:
    text, where = str(parameter.value), parameter.where
    carried = planned_connections(gib) if gib is not None else None
    if "DBInstanceClassMemory" not in text:
        number = whole_number(parameter.value, "max_connections", parameter.origin, where)
        formula = f"Set in {parameter.group}."
        if carried is not None and number.value is not None:
            only = "only " if number.value > carried else ""
            formula += f" RDS's own formula would give {only}about {carried:,} for {gib:g} GiB."
            if only:
                formula += " With more connections, the server may run out of memory."
        return _Limit(max_connections=number, formula=formula, carried=carried)
    if gib is None or carried is None:
        reason = "max_connections is a formula of the memory, and the instance class is unknown"
        return _Limit(max_connections=unknown(reason, where), formula=text)
    # The same share of the memory is missing as in the default formula.
    memory = carried * BYTES_PER_CONNECTION if gib < 64 else gib * GIB * 0.93
    value = _evaluated(text, memory)
    if value is None:
        reason = f"max_connections is the formula {text!r}, which is not evaluated"
        return _Limit(max_connections=unknown(reason, where), formula=text)
    formula = f"{text} for about {memory / GIB:.1f} GiB."
    return _Limit(
        max_connections=known(value, parameter.origin, where), formula=formula, carried=carried
    )


def _evaluated(text: str, memory: float) -> int | None:
    """Evaluate RDS's formulas: LEAST, GREATEST and SUM of numbers and shares of the memory."""
    text = text.strip()
    if match := re.fullmatch(r"(LEAST|GREATEST|SUM)\((.*)\)", text, re.IGNORECASE):
        parts = [_evaluated(part, memory) for part in match[2].split(",")]
        numbers = [part for part in parts if part is not None]
        if len(numbers) < len(parts):
            return None
        functions: dict[str, Callable[[list[int]], int]]
        functions = {"LEAST": min, "GREATEST": max, "SUM": sum}
        return functions[match[1].upper()](numbers)
    if match := _MEMORY.fullmatch(text):
        factor = int(match[2] or 1)
        if factor == 0:
            return None
        return int(memory * factor) if match[1] == "*" else int(memory // factor)
    return int(text) if text.isdecimal() else None


def _by_acu(cluster: Resource, groups: list[Resource]) -> _Limit:
    section = "ServerlessV2ScalingConfiguration"
    origin, where = cluster.origin(section, "MaxCapacity"), cluster.where(section, "MaxCapacity")
    bounds: list[float] = []
    for name, least in (("MaxCapacity", 1), ("MinCapacity", 0)):
        found, own = cluster.get(section, name), cluster.where(section, name)
        why = f"the cluster has no {name}" if found is None else why_unknown(found)
        if why:
            return _Limit(max_connections=unknown(why, where))
        try:
            bounds.append(float(found))
        except (TypeError, ValueError):
            raise TemplateError(f"{own}: {name} must be a number of ACU, not {found!r}") from None
        if not least <= bounds[-1] <= 256:
            raise TemplateError(f"{own}: {name} must be from {least} to 256 ACU, not {found}")
    high, low = bounds
    if low > high:
        raise TemplateError(f"{where}: MinCapacity {low:g} is more than MaxCapacity {high:g}")
    cap = SMALL_MINIMUM_CAP if low < 1 else MOST_BY_FORMULA
    capped = f" A minimum of {low:g} ACU caps it at {cap:,}." if low < 1 else ""
    parameter = _parameter(groups, "max_connections")
    if parameter is None:
        value = min(cap, serverless_connections(high))
        formula = f"For a maximum of {high:g} ACU ({PUBLISHED_IN}).{capped}"
        return _Limit(max_connections=known(value, origin, where), formula=formula)
    limit = _set_by_parameter(parameter, high * 2)
    quantity = limit.max_connections
    if quantity.value is not None and low < 1 and quantity.value > cap:
        quantity = known(cap, quantity.origin, quantity.where)
    return dataclasses.replace(limit, max_connections=quantity, formula=limit.formula + capped)


# -- RDS Proxy ------------------------------------------------------------------------------


def rds_proxies(stack: Stack) -> Iterator[Pooler]:
    """Return the RDS proxies of a stack.

    Raises:
        TemplateError: a number is wrong.
    """
    for proxy in stack.of_type("AWS::RDS::DBProxy"):
        percent = known(100, "MaxConnectionsPercent is 100 by default", proxy.where())
        for group in stack.of_type("AWS::RDS::DBProxyTargetGroup"):
            named = group.get("DBProxyName")
            is_own = any(each.resource == proxy.key for each in references(named))
            if is_own or (isinstance(named, str) and named == proxy.get("DBProxyName")):
                path = ("ConnectionPoolConfigurationInfo", "MaxConnectionsPercent")
                percent = group.quantity(*path, default=100, why=percent.origin)
                if percent.value is not None and not 1 <= percent.value <= 100:
                    where = group.where(*path)
                    raise TemplateError(
                        f"{where}: MaxConnectionsPercent must be from 1 to 100, not {percent}"
                    )
                break
        yield Pooler(
            name=proxy.logical_id,
            kind="RDS Proxy",
            where=proxy.where(),
            instances=known(1, "RDS runs it"),
            overlap=Overlap(),
            percent=percent,
            resource=proxy.key,
        )
