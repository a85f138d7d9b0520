"""Amazon RDS and Aurora in a stack: what max_connections comes to; RDS Proxy before them.

Sources: as `instance_classes`; PostgreSQL, 19.3.1 (superuser_reserved_connections, 3;
reserved_connections, from PostgreSQL 16); Amazon RDS User Guide, "Working with parameters on
your RDS for PostgreSQL DB instance" (rds.rds_superuser_reserved_connections, 2);
ConnectionPoolConfiguration (MaxConnectionsPercent, 100).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.stacks import whole_number
from poolkit.budget.instance_classes import (
    BYTES_PER_CONNECTION,
    GIB,
    MOST_BY_FORMULA,
    SMALL_MINIMUM_CAP,
    memory_gib,
    nominal_connections,
    planned_connections,
    serverless_connections,
)
from poolkit.budget.model import Database, Overlap, Pooler
from poolkit.budget.quantity import Quantity, known, unknown
from poolkit.budget.read.values import Reference, Unknown, references, why_unknown
from poolkit.errors import BudgetError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poolkit.budget.cloudformation.stacks import Resource, Stack


@dataclass(frozen=True)
class Derived:
    """max_connections, and how it comes about."""

    quantity: Quantity
    formula: str = ""
    nominal: int | None = None
    """What the formula gives for all of the class's memory."""
    carried: int | None = None
    """What the memory carries, where that could be less than what is set."""


SUPERUSER_RESERVED = 3
RDS_RESERVED = 2
_RESERVES = {
    "superuser_reserved_connections": SUPERUSER_RESERVED,
    "rds.rds_superuser_reserved_connections": RDS_RESERVED,
    "reserved_connections": 0,
}
"""The parameters that keep connections back, and what each is where nothing sets it."""
_PARAMETER_GROUPS = ("DBParameterGroupName", "DBClusterParameterGroupName")
_MEMORY = re.compile(r"\{?\s*DBInstanceClassMemory\s*(?:([*/])\s*(\d+))?\s*\}?")
_SOURCE = "Aurora User Guide, Maximum connections for Aurora Serverless v2"


def rds_databases(stack: Stack) -> Iterator[Database]:
    """Give the databases of a stack; replicas and members of a cluster are none of their own.

    Raises:
        BudgetError: an instance class is unknown.
        TemplateError: a number is wrong.
    """
    clusters = list(stack.of_type("AWS::RDS::DBCluster"))
    for cluster in clusters:
        yield _cluster(cluster, _members(cluster))
    for instance in stack.of_type("AWS::RDS::DBInstance"):
        if instance.get("SourceDBInstanceIdentifier") or instance.get("DBClusterIdentifier"):
            continue
        yield _database(instance, "RDS", _by_class(instance, [instance]), [instance])


def _members(cluster: Resource) -> list[Resource]:
    found = cluster.stack.of_type("AWS::RDS::DBInstance")
    return [each for each in found if _leads_to(each.get("DBClusterIdentifier"), cluster)]


def _leads_to(value: Any, resource: Resource) -> bool:
    if any(each.resource == resource.key for each in references(value)):
        return True
    names = (resource.get("DBClusterIdentifier"), resource.get("DBInstanceIdentifier"))
    return isinstance(value, str) and value in names


def _cluster(cluster: Resource, members: list[Resource]) -> Database:
    """Any member may become the writer, so the smallest one counts."""
    if cluster.get("ServerlessV2ScalingConfiguration") is not None and _has_serverless(members):
        derived = _by_acu(cluster, [cluster, *members])
        return _database(cluster, "Aurora Serverless v2", derived, members)
    own = [cluster] if cluster.get("DBClusterInstanceClass") else []
    found = [_by_class(each, [each, cluster]) for each in members or own]
    if not found:
        nothing = unknown("the cluster has no instance in the templates", cluster.where())
        return _database(cluster, "Aurora", Derived(nothing), members)
    return _database(cluster, "Aurora", min(found, key=_smallest), members)


def _smallest(found: Derived) -> int:
    # An unknown one comes first: it could be the smallest.
    value, carried = found.quantity.value, found.carried
    return -1 if value is None else min(value, value if carried is None else carried)


def _has_serverless(members: list[Resource]) -> bool:
    return not members or any(each.get("DBInstanceClass") == "db.serverless" for each in members)


def _database(
    resource: Resource,
    kind: str,
    derived: Derived,
    members: list[Resource],
) -> Database:
    quantity = derived.quantity
    engine = str(resource.get("Engine") or "postgres")
    if "postgres" not in engine:
        quantity = unknown(
            f"engine {engine}: the rules here are PostgreSQL's; give --max-connections"
        )
    if unread := _unread_group([resource, *members]):
        quantity = unknown(f"max_connections: {unread}; give --max-connections", resource.where())
    if isinstance(resource.present, Unknown):
        quantity = unknown(f"whether it is there: {resource.present.reason}", resource.where())
    return Database(
        name=resource.logical_id,
        kind=kind,
        where=resource.where(),
        max_connections=quantity,
        formula=derived.formula,
        nominal=derived.nominal,
        carried=derived.carried,
        reserved=_reserved(resource, members),
        resources=tuple({resource.key, *(each.key for each in members)}),
    )


def _reserved(resource: Resource, members: list[Resource]) -> Quantity:
    """Add up what the server keeps back from roles that are none of its administrators'."""
    labels, reserved = [], 0
    for name, default in _RESERVES.items():
        found = _parameter([resource, *members], name)
        set_to = known(default, "") if found is None else _as_set(found, name)
        if set_to.value is None:
            return set_to
        reserved += set_to.value
        if set_to.value:
            labels.append(f"{set_to.value} {name}{f' ({set_to.origin})' if set_to.origin else ''}")
    return known(reserved, " + ".join(labels), resource.where())


def _as_set(found: tuple[Any, str, Resource], name: str) -> Quantity:
    value, origin, group = found
    return whole_number(value, name, origin, group.where("Parameters", name))


# -- max_connections ------------------------------------------------------------------------


def _parameter(resources: list[Resource], name: str) -> tuple[Any, str, Resource] | None:
    """Find a parameter in the parameter groups of some resources: value, origin, group."""
    for resource in resources:
        for property_ in _PARAMETER_GROUPS:
            named = resource.get(property_)
            group = (
                resource.stack.resources.get(named.logical_id)
                if isinstance(named, Reference) and named.stack == resource.stack.name
                else None
            )
            found = group.get("Parameters", name) if group else None
            if group is not None and found is not None:
                return found, group.origin("Parameters", name), group
    return None


def _unread_group(resources: list[Resource]) -> str:
    """Say which parameter group is named and cannot be read; RDS's own set nothing."""
    for resource in resources:
        for property_ in _PARAMETER_GROUPS:
            named = resource.get(property_)
            if named is None or (isinstance(named, str) and named.startswith("default")):
                continue
            if not (isinstance(named, Reference) and named.stack == resource.stack.name):
                shown = f" {named}" if isinstance(named, str) else ""
                return f"its parameter group{shown} ({resource.where(property_)}) is not read"
    return ""


def _by_class(instance: Resource, groups: list[Resource]) -> Derived:
    name = "DBInstanceClass" if instance.get("DBInstanceClass") else "DBClusterInstanceClass"
    named = instance.get(name)
    where, origin = instance.where(name), instance.origin(name)
    override = _parameter(groups, "max_connections")
    if not isinstance(named, str):
        gib, why = None, why_unknown(named) or "it has no instance class"
    else:
        gib, why = _memory(named, instance), ""
    if override is not None:
        return _overridden(override, gib)
    if gib is None:
        return Derived(unknown(f"instance class: {why}", where))
    return Derived(
        known(planned_connections(gib), origin, where),
        by_class_formula(str(named), gib),
        nominal_connections(gib),
    )


def by_class_formula(instance_class: str, gib: float) -> str:
    """Return how max_connections of a class comes about, in words."""
    return (
        f"{instance_class}, {gib:g} GiB: LEAST(DBInstanceClassMemory/{BYTES_PER_CONNECTION}, "
        f"{MOST_BY_FORMULA}) is {nominal_connections(gib):,} for all of it, about "
        f"{planned_connections(gib):,} for what RDS leaves ({_SOURCE}; 1 ACU = 2 GiB)"
    )


def _memory(named: str, instance: Resource) -> float:
    try:
        return memory_gib(named)
    except BudgetError as error:
        raise TemplateError(f"{instance.where('DBInstanceClass')}: {error}") from None


def _overridden(override: tuple[Any, str, Resource], gib: float | None) -> Derived:
    found, origin, group = override
    where = group.where("Parameters", "max_connections")
    text = str(found)
    carried = planned_connections(gib) if gib is not None else None
    if "DBInstanceClassMemory" not in text:
        quantity = whole_number(found, "max_connections", origin, where)
        formula = f"set in {group.logical_id}{_against_memory(quantity.value, gib)}"
        return Derived(quantity, formula, carried=carried)
    if gib is None:
        return Derived(
            unknown("max_connections is a formula of an unknown class's memory", where), text
        )
    # The same share of the memory is missing as in the default formula.
    memory = planned_connections(gib) * BYTES_PER_CONNECTION if gib < 64 else gib * GIB * 0.93
    value = _evaluated(text, memory)
    if value is None:
        return Derived(
            unknown(f"max_connections is {text!r}, which is not understood", where), text
        )
    formula = f"{text} for about {memory / GIB:.1f} GiB"
    return Derived(known(value, origin, where), formula, carried=carried)


def _against_memory(value: int | None, gib: float | None) -> str:
    """Say what the memory would give, and when that is less than what is set."""
    if gib is None or value is None:
        return ""
    planned = planned_connections(gib)
    above = (
        ", which is LESS: a server that runs out of memory takes none" if value > planned else ""
    )
    return f"; RDS's own formula would give about {planned:,} for {gib:g} GiB{above}"


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


def _by_acu(cluster: Resource, groups: list[Resource]) -> Derived:
    override = _parameter(groups, "max_connections")
    steps = "ServerlessV2ScalingConfiguration"
    low, high = (_acu(cluster, name) for name in ("MinCapacity", "MaxCapacity"))
    origin, where = cluster.origin(steps, "MaxCapacity"), cluster.where(steps, "MaxCapacity")
    if isinstance(low, str) or isinstance(high, str):
        reason = next(each for each in (high, low) if isinstance(each, str))
        return Derived(unknown(reason, where))
    if low > high:
        raise TemplateError(f"{where}: MinCapacity {low:g} is more than MaxCapacity {high:g}")
    capped = f"; capped at {SMALL_MINIMUM_CAP:,} by a minimum of {low:g} ACU" if low < 1 else ""
    cap = SMALL_MINIMUM_CAP if low < 1 else MOST_BY_FORMULA
    if override is not None:
        set_to = _overridden(override, high * 2)
        quantity = set_to.quantity
        if quantity.value is not None and low < 1 and quantity.value > cap:
            quantity = known(cap, quantity.origin, quantity.where)
        return Derived(quantity, set_to.formula + capped, carried=set_to.carried)
    value = min(cap, serverless_connections(high))
    return Derived(known(value, origin, where), f"maximum of {high:g} ACU{capped} ({_SOURCE})")


def _acu(cluster: Resource, name: str) -> float | str:
    found = cluster.get("ServerlessV2ScalingConfiguration", name)
    if why := why_unknown(found):
        return f"{name}: {why}"
    if found is None:
        return f"the cluster has no {name}"
    where = cluster.where("ServerlessV2ScalingConfiguration", name)
    try:
        value = float(found)
    except (TypeError, ValueError):
        raise TemplateError(f"{where}: {name} must be a number of ACU, not {found!r}") from None
    if not 0 <= value <= 256 or (name == "MaxCapacity" and value < 1):
        raise TemplateError(
            f"{where}: {name} must be from {int(name[1] == 'a')} to 256 ACU, not {found}"
        )
    return value


# -- RDS Proxy ------------------------------------------------------------------------------


def rds_proxies(stack: Stack) -> Iterator[Pooler]:
    """Give the RDS proxies of a stack.

    Raises:
        TemplateError: a number is negative or none.
    """
    for proxy in stack.of_type("AWS::RDS::DBProxy"):
        group = _target_group(proxy)
        default = known(100, "MaxConnectionsPercent is 100 by default", proxy.where())
        percent = default
        if group is not None:
            steps = ("ConnectionPoolConfigurationInfo", "MaxConnectionsPercent")
            percent = group.quantity(*steps, default=100, why=default.origin)
            if percent.value is not None and not 1 <= percent.value <= 100:
                raise TemplateError(
                    f"{group.where(*steps)}: MaxConnectionsPercent must be from 1 to 100, not {percent}"
                )
        yield Pooler(
            name=proxy.logical_id,
            kind="RDS Proxy",
            where=proxy.where(),
            instances=known(1, "RDS runs it"),
            overlap=Overlap(),
            percent=percent,
            resource=proxy.key,
        )


def _target_group(proxy: Resource) -> Resource | None:
    for group in proxy.stack.of_type("AWS::RDS::DBProxyTargetGroup"):
        named = group.get("DBProxyName")
        if any(each.resource == proxy.key for each in references(named)) or (
            isinstance(named, str) and named == proxy.get("DBProxyName")
        ):
            return group
    return None
