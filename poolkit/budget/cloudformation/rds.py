"""Amazon RDS and Aurora in stacks: their max_connections, and RDS Proxy in front of them.

Sources: as `limits`; PostgreSQL, 19.3.1 (reserved_connections, from PostgreSQL 16);
ConnectionPoolConfiguration (MaxConnectionsPercent, from 1 to 100, 100 by default).
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.budget.limits import (
    MOST,
    RESERVES,
    Limit,
    class_limit,
    class_size,
    formula_limit,
    serverless_limit,
    setting,
)
from poolkit.budget.model import Database, Overlap, Pooler, known, unknown
from poolkit.budget.read.values import Unknown, references, why_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.model import Quantity, ResourceKey, SourceLocation

_CLUSTER, _INSTANCE = "AWS::RDS::DBCluster", "AWS::RDS::DBInstance"
_GROUPS = ("DBParameterGroupName", "DBClusterParameterGroupName")
_IDENTIFIERS = ("DBInstanceIdentifier", "DBClusterIdentifier")
_SOURCES = (
    "SourceDBInstanceIdentifier",
    "SourceDBClusterIdentifier",
    "ReplicationSourceIdentifier",
)
_SCALING = "ServerlessV2ScalingConfiguration"


class _Parameter(NamedTuple):
    """A parameter that a parameter group sets."""

    value: Any
    group: str
    origin: str
    where: SourceLocation


def rds_databases(stacks: Sequence[Stack]) -> Iterator[Database]:
    """Return the databases of some stacks; a cluster with its instances is one of them.

    A read replica is none: it has a limit and clients of its own.
    """
    servers, in_cluster = _servers(stacks), set()
    for resource in servers:
        members = [
            each
            for each in servers
            if each is not resource and _names(each.get("DBClusterIdentifier"), resource)
        ]
        if resource.key not in in_cluster and not any(map(resource.get, _SOURCES)):
            yield _database(resource, members)
        in_cluster |= {each.key for each in members}


def _servers(stacks: Sequence[Stack]) -> list[Resource]:
    """Return clusters and instances; clusters come first."""
    types = (_CLUSTER, _INSTANCE)
    return [each for kind in types for stack in stacks for each in stack.of_type(kind)]


def _names(value: Any, resource: Resource, *properties: str) -> bool:
    """Return whether a value is the identifier of a resource, or a reference to it."""
    own = [resource.get(name) for name in properties or _IDENTIFIERS]
    refers = any(each.resource == resource.key for each in references(value))
    return refers or (isinstance(value, str) and value in own)


def _database(resource: Resource, members: list[Resource]) -> Database:
    """Return an instance, or a cluster with its instances."""
    groups = [*members, resource]
    engine = next((each.get("Engine") for each in groups if each.get("Engine")), None)
    if engine is None:
        # AWS wants an engine, unless a snapshot has one.
        snapshot = resource.get("DBSnapshotIdentifier") or resource.get("SnapshotIdentifier")
        engine = Unknown("its snapshot decides") if snapshot else "postgres"
    # Any member may become the writer, so the smallest one counts; an unknown one may be that one.
    limits = [_limit(each, resource, str(engine)) for each in members or [resource]]
    limit = min(limits, key=_least)
    reason, where = _why_unknown(resource, members, engine)
    changes: dict[str, Any] = {"reserved": _reserved(groups, limit)}
    if reason:
        changes["max_connections"] = unknown(reason, where)
    if len({each.instance_class for each in limits}) > 1:
        changes["instance_class"] = ""
    return Database(
        name=resource.logical_id,
        kind="Aurora" if "aurora" in str(engine) else "RDS",
        where=resource.where(),
        resources=tuple({each.key for each in groups}),
        **vars(dataclasses.replace(limit, **changes)),
    )


def _least(limit: Limit) -> int:
    value = limit.max_connections.value
    return -1 if value is None else min(value, limit.carried or value)


def _why_unknown(
    resource: Resource, members: list[Resource], engine: Any
) -> tuple[str, SourceLocation]:
    """Return the reason why the limit is unknown whatever the class is, and its line."""
    is_cluster, where = resource.type == _CLUSTER, resource.where()
    reason = ""
    if isinstance(resource.present, Unknown):
        reason = f"it is unknown whether the database exists: {resource.present.reason}"
    elif why := why_unknown(engine):
        reason, where = f"its engine is unknown: {why}", resource.where("Engine")
    elif resource.get("EngineMode") == "serverless":
        reason, where = (
            "EngineMode serverless is Aurora Serverless v1",
            resource.where("EngineMode"),
        )
        reason += ", whose limit changes with its capacity; give --max-connections"
    elif not is_cluster and resource.get("DBClusterIdentifier"):
        reason = "its cluster is not in the templates; give --max-connections"
    elif is_cluster and not any(
        [members, *map(resource.get, (_SCALING, "DBClusterInstanceClass"))]
    ):
        reason = "the cluster has no instance in the templates; give --max-connections"
    if reason:
        return reason, where
    for each, key in itertools.product([*members, resource], _GROUPS):
        named, line = each.get(key), each.where(key)
        # RDS's own groups set nothing.
        is_default = isinstance(named, str) and named.startswith("default")
        if named is not None and not is_default and each.stack.referenced(named) is None:
            shown = f" {named}" if isinstance(named, str) else ""
            reason = f"the parameter group{shown} ({line}) is not in the templates"
            return f"{reason}; give --max-connections", where
    return "", where


# -- parameter groups -----------------------------------------------------------------------


def _parameter(resources: Iterable[Resource], name: str) -> _Parameter | None:
    """Find a parameter in the parameter groups of some resources; an instance's group wins."""
    for resource, key in itertools.product(resources, _GROUPS):
        group = resource.stack.referenced(resource.get(key))
        found = group.get("Parameters", name) if group else None
        if group is not None and found is not None:
            path = ("Parameters", name)
            return _Parameter(found, group.logical_id, group.origin(*path), group.where(*path))
    return None


def _reserved(groups: list[Resource], limit: Limit) -> Quantity:
    """Return the connections that a server reserves, as the parameter groups set them."""
    if limit.engine != "postgres":
        return limit.reserved
    total, labels = 0, []
    for name, default in {**RESERVES, "reserved_connections": 0}.items():
        number, found = known(default, ""), _parameter(groups, name)
        if found is not None:
            number = setting(found.value, name, found.origin, found.where)
        if number.value is None:
            return number
        total += number.value
        if number.value:
            labels.append(f"{number} {name}{f' ({number.origin})' if number.origin else ''}")
    return known(total, " + ".join(labels), groups[-1].where())


# -- max_connections ------------------------------------------------------------------------


def _limit(server: Resource, resource: Resource, engine: str) -> Limit:
    """Return the limits of an instance, which may be in a cluster."""
    named = server if server.get("DBInstanceClass") else resource
    path: tuple[str, ...] = ("DBInstanceClass",)
    path = path if named.get(*path) else ("DBClusterInstanceClass",)
    found, version, gib = named.get(*path), str(resource.get("EngineVersion") or ""), None
    if resource.get(_SCALING) and found in (None, "db.serverless"):
        named, path = resource, (_SCALING, "MaxCapacity")
        low, high, why = _capacity(resource)
        limit = serverless_limit(engine, low, high, named.where(*path))
        gib = high * 2
    else:
        why = why_unknown(found) or ("" if isinstance(found, str) else "it has none")
        why = f"instance class: {why}" if why else ""
        limit = class_limit(engine, str(found), version, named.where(*path))
        gib = size.gib if (size := class_size(str(found))) else None
    quantity = dataclasses.replace(limit.max_connections, origin=named.origin(*path))
    if why:
        gib, quantity = None, unknown(why, named.where(*path))
    limit = dataclasses.replace(limit, max_connections=quantity)
    # An instance's group wins over its cluster's.
    parameter = _parameter((server, resource), "max_connections")
    if parameter is None:
        return limit
    text, most = str(parameter.value), MOST.get(limit.engine, max(MOST.values()))
    own = Limit(max_connections=quantity, reserved=limit.reserved, engine=limit.engine)
    own = dataclasses.replace(own, formula=f"Set in {parameter.group}.")
    if "DBInstanceClassMemory" not in text:
        quantity = setting(parameter.value, "max_connections", *parameter[2:], most)
    elif gib is None:
        why = "max_connections is a formula of the memory, and the instance class is unknown"
        quantity = unknown(why, parameter.where)
    else:
        own = formula_limit(engine, gib, text, parameter.where)
        quantity = dataclasses.replace(own.max_connections, origin=parameter.origin)
    carried = limit.max_connections.value
    return dataclasses.replace(own, max_connections=quantity, carried=carried, vcpus=limit.vcpus)


def _capacity(resource: Resource) -> tuple[float, float, str]:
    """Return the least and most capacity units of a cluster, or why they are unknown."""
    bounds = {"MinCapacity": 0.0, "MaxCapacity": 1.0}
    for name, least in bounds.items():
        found, where = resource.get(_SCALING, name), resource.where(_SCALING, name)
        try:
            bounds[name] = float(found)
        except (TypeError, ValueError):
            why = why_unknown(found) or f"{name} must be a number of ACU, not {found!r} ({where})"
            return 1, 1, why
        if not max(least, bounds["MinCapacity"]) <= bounds[name] <= 256:
            return 1, 1, f"{name} must be from {least:g} to 256 ACU, not {found} ({where})"
    return bounds["MinCapacity"], bounds["MaxCapacity"], ""


# -- RDS Proxy ------------------------------------------------------------------------------


def rds_proxies(stacks: Sequence[Stack]) -> Iterator[Pooler]:
    """Return the RDS proxies of some stacks, each with the databases of its target group."""
    kinds = ("AWS::RDS::DBProxy", "AWS::RDS::DBProxyTargetGroup")
    proxies, groups = ([e for stack in stacks for e in stack.of_type(kind)] for kind in kinds)
    for proxy in proxies:
        percent = known(100, "MaxConnectionsPercent is 100 by default", proxy.where())
        behind: list[ResourceKey] = []
        for group in groups:
            if not _names(group.get("DBProxyName"), proxy, "DBProxyName"):
                continue
            path = ("ConnectionPoolConfigurationInfo", "MaxConnectionsPercent")
            if (found := group.get(*path)) is not None:
                percent = setting(found, path[1], group.origin(*path), group.where(*path), 100)
            targets = [group.get(f"{name}s") for name in _IDENTIFIERS]
            behind += [each.resource for each in references(targets)]
            texts = [item for items in targets if isinstance(items, list) for item in items]
            servers = _servers(stacks)
            behind += [each.key for each in servers for text in texts if _names(text, each)]
        yield Pooler(
            name=proxy.logical_id,
            kind="RDS Proxy",
            where=proxy.where(),
            instances=known(1, "RDS runs it"),
            overlap=Overlap(),
            percent=percent,
            resource=proxy.key,
            leads_to=tuple(dict.fromkeys(behind)),
        )
