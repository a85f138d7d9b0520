"""Amazon RDS and Aurora in stacks: their max_connections, and RDS Proxy in front of them.

Sources: as `limits`; PostgreSQL, 19.3.1 (reserved_connections, from PostgreSQL 16);
ConnectionPoolConfiguration (MaxConnectionsPercent, from 1 to 100, 100 by default).
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from typing import TYPE_CHECKING, Any

from poolkit.budget import limits
from poolkit.budget.model import Database, Overlap, Pooler, known, unknown
from poolkit.budget.read.values import Unknown, references, why_unknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.limits import Limit
    from poolkit.budget.model import Quantity, ResourceKey, SourceLocation

_CLUSTER = "AWS::RDS::DBCluster"
_GROUPS = ("DBParameterGroupName", "DBClusterParameterGroupName")
_IDENTIFIERS = ("DBInstanceIdentifier", "DBClusterIdentifier")
_SCALING = "ServerlessV2ScalingConfiguration"


def rds_databases(stacks: Sequence[Stack]) -> Iterator[Database]:
    """Return the databases of some stacks; a cluster with its instances is one of them.

    A read replica is none: it has a limit and clients of its own.
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
    groups = [*members, resource]
    engine = next((each.get("Engine") for each in groups if each.get("Engine")), None)
    if engine is None:
        # AWS wants an engine, unless a snapshot has one.
        copies = ("DBSnapshotIdentifier", "SnapshotIdentifier", "SourceDBClusterIdentifier")
        is_copy = any(map(resource.get, copies))
        engine = Unknown("its snapshot decides") if is_copy else "postgres"
    # Any member may become the writer, so the smallest one counts; an unknown one may be that one.
    name = engine if isinstance(engine, str) else ""
    found = [_limit(each, resource, name) for each in members or [resource]]
    counts = [min(each.max_connections.value or 0, each.carried or sys.maxsize) for each in found]
    limit = found[counts.index(min(counts))]
    changes: dict[str, Any] = {"reserved": _reserved(groups, limit)}
    reason, where = _why_unknown(resource, members, engine)
    if reason:
        changes["max_connections"] = unknown(reason, where)
    if reason or len({each.instance_class for each in found}) > 1:
        changes["instance_class"] = ""
    return Database(
        name=resource.logical_id,
        kind="Aurora" if "aurora" in name else "RDS",
        where=resource.where(),
        resources=tuple({each.key for each in groups}),
        **vars(dataclasses.replace(limit, **changes)),
    )


def _why_unknown(
    resource: Resource, members: list[Resource], engine: Any
) -> tuple[str, SourceLocation]:
    """Return the reason why the limit is unknown whatever the class is, and its line."""
    reason, where, give = "", resource.where(), "give --max-connections"
    for each, key in itertools.product([*members, resource], _GROUPS):
        named = each.get(key)
        # RDS's own groups set nothing.
        is_default = isinstance(named, str) and named.startswith("default")
        if named is not None and not is_default and each.stack.referenced(named) is None:
            shown = f"{named} " if isinstance(named, str) else ""
            reason = f"the parameter group {shown}({each.where(key)}) is not in the files; {give}"
    if resource.type == _CLUSTER:
        sizes = (_SCALING, "DBClusterInstanceClass", "EngineMode")
        if not members and not any(map(resource.get, sizes)):
            reason = f"the cluster has no instance in the files; {give}"
    elif resource.get("DBClusterIdentifier"):
        reason = f"its cluster is not in the files; {give}"
    if resource.get("EngineMode") == "serverless":
        reason = f"Aurora Serverless v1 (EngineMode serverless) has no fixed limit; {give}"
        where = resource.where("EngineMode")
    if why := why_unknown(engine):
        reason, where = f"its engine is unknown: {why}", resource.where("Engine")
    if isinstance(resource.present, Unknown):
        reason = f"it is unknown whether the database exists: {resource.present.reason}"
    return reason, where


# -- parameter groups -----------------------------------------------------------------------


def _group_with(resources: Iterable[Resource], name: str) -> Resource | None:
    """Return the parameter group that sets a parameter; an instance's wins over its cluster's."""
    for resource, key in itertools.product(resources, _GROUPS):
        group = resource.stack.referenced(resource.get(key))
        if group is not None and group.get("Parameters", name) is not None:
            return group
    return None


def _setting(resource: Resource, *path: str, most: int = limits.MOST["postgres"]) -> Quantity:
    """Return a property that is set as a number; unknown if it is none or not allowed."""
    origin, where = resource.origin(*path), resource.where(*path)
    return limits.setting(resource.get(*path), path[-1], origin, where, most)


def _reserved(resources: list[Resource], limit: Limit) -> Quantity:
    """Return the connections that a server reserves, as the parameter groups set them."""
    if limit.engine != "postgres":
        return limit.reserved
    total, labels = 0, []
    for name, default in {**limits.RESERVES, "reserved_connections": 0}.items():
        group = _group_with(resources, name)
        number = _setting(group, "Parameters", name) if group else known(default, "")
        if number.value is None:
            return number
        total += number.value
        if number.value:
            labels.append(f"{number} {name}{f' ({number.origin})' if number.origin else ''}")
    return known(total, " + ".join(labels), resources[-1].where())


# -- max_connections ------------------------------------------------------------------------


def _limit(server: Resource, resource: Resource, engine: str) -> Limit:
    """Return the limits of an instance, which may be in a cluster."""
    source: Resource = server
    path: tuple[str, ...] = ("DBInstanceClass",)
    if server.get(*path) is None:
        # A Multi-AZ DB cluster has one class for all its instances.
        source, path = resource, ("DBClusterInstanceClass",)
    found, version, gib = source.get(*path), str(resource.get("EngineVersion") or ""), 0.0
    why = why_unknown(found) or ("" if isinstance(found, str) else "it has none")
    why = why and f"instance class: {why}"
    if resource.get(_SCALING) and found in (None, "db.serverless"):
        source, path = resource, (_SCALING, "MaxCapacity")
        low, high, why = _capacity(resource)
        gib, limit = high * 2, limits.serverless_limit(engine, low, high, source.where(*path))
    else:
        limit = limits.class_limit(engine, str(found), version, source.where(*path))
        if size := limits.class_size(str(found)):
            gib = size.gib
    if why:
        gib, nothing = 0, unknown(why, source.where(*path))
        limit = dataclasses.replace(limit, max_connections=nothing, instance_class="")
    carried, vcpus = limit.max_connections.value, limit.vcpus
    group = _group_with((server, resource), "max_connections")
    if group is not None:
        source, path = group, ("Parameters", "max_connections")
        text, most = group.get(*path), limits.MOST.get(limit.engine, max(limits.MOST.values()))
        if isinstance(text, str) and "DBInstanceClassMemory" in text:
            limit = limits.formula_limit(engine, gib, text, group.where(*path))
        else:
            number, formula = _setting(group, *path, most=most), f"Set in {group.logical_id}."
            limit = dataclasses.replace(limit, max_connections=number, formula=formula)
            limit = dataclasses.replace(limit, lowest=None, highest=None)
        limit = dataclasses.replace(limit, carried=carried, vcpus=vcpus, instance_class="")
    quantity = dataclasses.replace(limit.max_connections, origin=source.origin(*path))
    return dataclasses.replace(limit, max_connections=quantity)


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
    path = ("ConnectionPoolConfigurationInfo", "MaxConnectionsPercent")
    for proxy in proxies:
        percent = known(100, "MaxConnectionsPercent is 100 by default", proxy.where())
        behind: list[ResourceKey] = []
        for group in groups:
            if not _names(group.get("DBProxyName"), proxy, ("DBProxyName",)):
                continue
            if group.get(*path) is not None:
                percent = _setting(group, *path, most=100)
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
