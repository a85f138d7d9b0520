"""Amazon RDS and Aurora in stacks: their max_connections, and RDS Proxy in front of them.

Sources: as `limits`; PostgreSQL, 19.3.1 (reserved_connections, from PostgreSQL 16);
ConnectionPoolConfiguration (MaxConnectionsPercent, from 1 to 100, 100 by default).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
from typing import TYPE_CHECKING, Any

from poolkit.budget import limits
from poolkit.budget.model import Database, Overlap, Pooler, known, unknown
from poolkit.budget.read.values import Unknown, references, walk, why_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.model import Limit, Quantity

_CLUSTER = "AWS::RDS::DBCluster"
_GROUPS = ("DBParameterGroupName", "DBClusterParameterGroupName")
_IDENTIFIERS = ("DBInstanceIdentifier", "DBClusterIdentifier")
_SCALING = "ServerlessV2ScalingConfiguration"


def rds_databases(stacks: Sequence[Stack]) -> Iterator[Database]:
    """Return the databases of some stacks; a cluster with its instances is one of them.

    A read replica is left out: it has a limit and clients of its own.
    """
    servers, in_cluster = _servers(stacks), set()
    for resource in servers:
        # SourceDBClusterIdentifier of a cluster is a backup, not a server that it follows.
        sources = [f"Source{name}" for name in _IDENTIFIERS]
        sources = ["ReplicationSourceIdentifier"] if resource.type == _CLUSTER else sources
        members = [
            each
            for each in servers
            if each is not resource and _names(each.get("DBClusterIdentifier"), resource)
        ]
        if resource.key not in in_cluster and not any(map(resource.get, sources)):
            yield _database(resource, members)
        in_cluster |= {each.key for each in members}


def _servers(stacks: Sequence[Stack]) -> list[Resource]:
    """Return clusters and instances; clusters come first."""
    types = (_CLUSTER, "AWS::RDS::DBInstance")
    return [each for kind in types for stack in stacks for each in stack.of_type(kind)]


def _names(value: Any, resource: Resource, properties: Sequence[str] = _IDENTIFIERS) -> bool:
    """Return whether a value is the identifier of a resource, or a reference to it."""
    refers = any(each.resource == resource.key for each in references(value))
    return refers or (isinstance(value, str) and value in map(resource.get, properties))


def _database(resource: Resource, members: list[Resource]) -> Database:
    """Return an instance, or a cluster with its instances."""
    together = [*members, resource]
    engine = next((each.get("Engine") for each in together if each.get("Engine")), None)
    if engine is None:
        # AWS wants an engine, unless a snapshot has one.
        copies = ("DBSnapshotIdentifier", "SnapshotIdentifier", "SourceDBClusterIdentifier")
        engine = Unknown("its snapshot decides") if any(map(resource.get, copies)) else "postgres"
    name = engine if isinstance(engine, str) else ""
    found = [_limit(each, resource, name) for each in members or [resource]]
    # Any member may become the writer, so the smallest one counts; an unknown one may be that one.
    limit = min(
        found, key=lambda each: min(each.max_connections.value or 0, each.carried or sys.maxsize)
    )
    nothing = _unknown_limit(resource, together, engine)
    if nothing or len({each.instance_class for each in found}) > 1:
        number = nothing or limit.max_connections
        limit = dataclasses.replace(limit, max_connections=number, instance_class="")
    set_there = {
        parameter: _setting(group, "Parameters", parameter)
        for parameter in (*limits.RDS_RESERVE, "reserved_connections")
        if (group := _group_with(together, parameter))
    }
    reserved = limits.reserve(limit.engine, {**limits.RDS_RESERVE, **set_there})
    return Database(
        name=resource.logical_id,
        kind="Aurora" if "aurora" in name else "RDS",
        where=resource.where(),
        resources=tuple({each.key for each in together}),
        **vars(dataclasses.replace(limit, reserved=reserved)),
    )


def _unknown_limit(resource: Resource, together: list[Resource], engine: Any) -> Quantity | None:
    """Return the limit if it is unknown whatever the instance class is, else None."""
    where = resource.where()
    if isinstance(resource.present, Unknown):
        reason = f"it is unknown whether the database exists: {resource.present.reason}"
        return unknown(reason, where)
    if why := why_unknown(engine):
        return unknown(f"its engine is unknown: {why}", where)
    if resource.get("EngineMode") == "serverless":
        return unknown("Aurora Serverless v1 (EngineMode serverless) has no fixed limit", where)
    if resource.type != _CLUSTER and resource.get("DBClusterIdentifier"):
        return unknown("its cluster is not in the files", where)
    for each, key in itertools.product(together, _GROUPS):
        named = each.get(key)
        # RDS's own groups set nothing.
        is_default = named is None or str(named).startswith("default")
        if not is_default and each.stack.referenced(named) is None:
            shown = f"{named} " if isinstance(named, str) else ""
            reason = f"the parameter group {shown}({each.where(key)}) is not in the files"
            return unknown(reason, where)
    return None


def _group_with(resources: Iterable[Resource], name: str) -> Resource | None:
    """Return the parameter group that sets a parameter; an instance's wins over its cluster's."""
    for resource, key in itertools.product(resources, _GROUPS):
        group = resource.stack.referenced(resource.get(key))
        if group is not None and group.get("Parameters", name) is not None:
            return group
    return None


def _setting(resource: Resource, *path: str, most: int = limits.MOST["postgres"]) -> Quantity:
    """Return a property as a number; unknown if it is no number or is not allowed."""
    origin, where = resource.origin(*path), resource.where(*path)
    return limits.setting(resource.get(*path), path[-1], origin, where, most)


# -- max_connections ------------------------------------------------------------------------


def _limit(server: Resource, resource: Resource, engine: str) -> Limit:
    """Return the limits of an instance, which may be in a cluster."""
    source, path = server, ["DBInstanceClass"]
    if server.get(*path) is None:
        # A Multi-AZ DB cluster has one class for all its instances.
        source, path = resource, ["DBClusterInstanceClass"]
    found, version, gib = source.get(*path), str(resource.get("EngineVersion") or ""), 0.0
    if resource.get(_SCALING) and found in (None, "db.serverless"):
        source, path = resource, [_SCALING, "MaxCapacity"]
        low, high, why = _capacity(resource)
        gib, limit = high * 2, limits.serverless_limit(engine, low, high, source.where(*path))
    else:
        why = "" if isinstance(found, str) else f"instance class: {why_unknown(found) or 'none'}"
        limit = limits.class_limit(engine, str(found), version, source.where(*path))
        gib = size.gib if (size := limits.class_size(str(found))) else 0
    if why:
        limit = limit.exact(unknown(why, source.where(*path)), instance_class="")
    if group := _group_with((server, resource), "max_connections"):
        source, path = group, ["Parameters", "max_connections"]
        number = group.get(*path)
        set_there = limits.formula_limit(
            engine, gib, number, group.origin(*path), group.where(*path)
        )
        carried, vcpus = limit.max_connections.value, limit.vcpus
        limit = dataclasses.replace(set_there, carried=carried, vcpus=vcpus)
    quantity = dataclasses.replace(limit.max_connections, origin=source.origin(*path))
    return dataclasses.replace(limit, max_connections=quantity)


def _capacity(resource: Resource) -> tuple[float, float, str]:
    """Return the least and most capacity units of a cluster, or why they are unknown."""
    found = [resource.get(_SCALING, name) for name in ("MinCapacity", "MaxCapacity")]
    with contextlib.suppress(TypeError, ValueError):
        low, high = map(float, found)
        if 0 <= low <= high <= 256 and high >= 1:
            return low, high, ""
    why = f"{_SCALING} must be a range of at most 256 ACU ({resource.where(_SCALING)})"
    return 0, 0, next(filter(None, map(why_unknown, found)), why)


# -- RDS Proxy ------------------------------------------------------------------------------


def rds_proxies(stacks: Sequence[Stack]) -> Iterator[Pooler]:
    """Return the RDS proxies of some stacks, each with the databases of its target group."""
    groups = [each for stack in stacks for each in stack.of_type("AWS::RDS::DBProxyTargetGroup")]
    path = ("ConnectionPoolConfigurationInfo", "MaxConnectionsPercent")
    for proxy in (each for stack in stacks for each in stack.of_type("AWS::RDS::DBProxy")):
        own = [each for each in groups if _names(each.get("DBProxyName"), proxy, ("DBProxyName",))]
        percents = [_setting(each, *path, most=100) for each in own if each.get(*path) is not None]
        default = known(100, "MaxConnectionsPercent is 100 by default", proxy.where())
        targets = [each.get(f"{name}s") for each in own for name in _IDENTIFIERS]
        values = [value for _, value in walk(targets)]
        yield Pooler(
            name=proxy.logical_id,
            kind="RDS Proxy",
            where=proxy.where(),
            instances=known(1, "RDS runs it"),
            overlap=Overlap(),
            percent=next(reversed(percents), default),
            resource=proxy.key,
            leads_to=tuple(
                each.key
                for each in _servers(stacks)
                if any(_names(value, each) for value in values)
            ),
        )
