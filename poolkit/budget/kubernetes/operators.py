"""The database clusters and poolers of operators; tables/kubernetes.toml has their sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.budget.kubernetes.objects import host_names, name_of, namespace_of, table, type_of
from poolkit.budget.kubernetes.pods import number, surge
from poolkit.budget.model import Database, ResourceKey, Workload, known, total, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.kubernetes.objects import Objects
    from poolkit.budget.model import Quantity
    from poolkit.budget.read.documents import Document, ValuePath

_CLOUDNATIVE = ("postgresql.cnpg.io", "postgresql.k8s.enterprisedb.io")
_SUPERUSER_RESERVED = 3
_ZALANDO_POOLERS, _ZALANDO_CONNECTIONS, _ZALANDO_CLIENTS = 2, 60, 10_000


def key_of(document: Document) -> ResourceKey:
    """Return the key of an object."""
    return ResourceKey(namespace_of(document), f"{type_of(document)}/{name_of(document)}")


def clusters(objects: Objects) -> dict[ResourceKey, Database]:
    """Return the primary server of every operator's cluster."""
    found = {}
    for type_name, operator in table("operators").items():
        for document in objects.of_type(type_name):
            name, where = name_of(document), document.where("spec")
            paths = [tuple(path.split(".")) for path in operator["parameters"]]
            limits = [(*path, "max_connections") for path in paths]
            limit = next((path for path in limits if document.at(*path) is not None), None)
            if limit is not None:
                most = number(document, limit, None, "")
            elif operator.get("limit"):
                most = known(operator["limit"], f"{where}: PostgreSQL's default", where)
            else:
                most = unknown(f"{operator['name']} computes max_connections of {name}", where)
            hosts = [form.format(name) for form in operator["hosts"]]
            found[key_of(document)] = Database(
                name=name,
                kind=f"{operator['name']} cluster",
                where=where,
                max_connections=most,
                reserved=_reserved(document, paths),
                engine=operator.get("engine", "postgres"),
                resources=(key_of(document),),
                hosts=tuple(
                    each for host in hosts for each in host_names(host, namespace_of(document))
                ),
            )
    return found


def _reserved(document: Document, paths: list[ValuePath]) -> Quantity:
    defaults = {"superuser_reserved_connections": _SUPERUSER_RESERVED, "reserved_connections": 0}
    numbers = []
    for name, default in defaults.items():
        path = next((path for path in paths if document.at(*path, name) is not None), ())
        numbers.append(number(document, (*path, name), default, f"the default {name}"))
    both = total(*(each.value for each in numbers))
    if both is None:
        return next(each for each in numbers if each.value is None)
    labels = [f"{each} {name}" for name, each in zip(defaults, numbers, strict=True) if each.value]
    return known(both, " + ".join(labels), document.where("spec"))


def poolers(objects: Objects) -> Iterator[Workload]:
    """Return the PgBouncer of every cluster, with the settings that the operator gives to it."""
    for group in _CLOUDNATIVE:
        for document in objects.of_type(f"Pooler.{group}"):
            cluster = str(document.at("spec", "cluster", "name"))
            settings = document.mapping("spec", "pgbouncer", "parameters")
            ini = _ini(f"{cluster}-rw", _pairs(objects, document, group, cluster), settings)
            count = number(document, ("spec", "instances"), 1, "1, the default of instances")
            path: ValuePath = ("spec", "deploymentStrategy", "rollingUpdate", "maxSurge")
            yield _pooler(document, name_of(document), count, path, ini)
    for document in objects.of_type("postgresql.acid.zalan.do"):
        spec, name = document.mapping("spec"), name_of(document)
        if spec.get("enableConnectionPooler", "connectionPooler" in spec):
            own: ValuePath = ("spec", "connectionPooler")
            count = number(document, (*own, "numberOfInstances"), _ZALANDO_POOLERS, "the default")
            most = number(document, (*own, "maxDBConnections"), _ZALANDO_CONNECTIONS, "the default")
            # The operator divides the maximum among the pods; each database has it.
            each = (most.value or 0) // (count.value or 1)
            databases = {*document.mapping("spec", "databases")}
            databases |= {*document.mapping("spec", "preparedDatabases")}
            settings = {
                "max_db_connections": each or "unknown",
                "max_client_conn": _ZALANDO_CLIENTS,
            }
            yield _pooler(
                document, f"{name}-pooler", count, (), _ini(name, len(databases) or 1, settings)
            )
    for type_name in (
        "PostgresCluster.postgres-operator.crunchydata.com",
        "PerconaPGCluster.pgv2.percona.com",
    ):
        for document in objects.of_type(type_name):
            if not document.mapping("spec", "proxy", "pgBouncer"):
                continue
            path = ("spec", "proxy", "pgBouncer")
            users = document.mappings("spec", "users")
            names = {str(name) for user in users for name in user.get("databases") or ()}
            # Without users there is one, with a database of the same name.
            pairs = max(1, len(users)) * max(1, len(names))
            settings = document.mapping(*path, "config", "global")
            count = number(document, (*path, "replicas"), 1, "1, the default of replicas")
            host = f"{name_of(document)}-primary"
            yield _pooler(
                document, f"{name_of(document)}-pgbouncer", count, (), _ini(host, pairs, settings)
            )


def _pairs(objects: Objects, pooler: Document, group: str, cluster: str) -> int | None:
    """Return the pairs of database and user; None if they are not in the files."""
    found = objects.named(f"Cluster.{group}", cluster, pooler)
    if (
        not found
        or found[0].at("spec", "bootstrap", "recovery")
        or found[0].at("spec", "bootstrap", "pg_basebackup")
    ):
        return None
    roles = [each for each in found[0].mappings("spec", "managed", "roles") if each.get("login")]
    databases = [
        each
        for each in objects.of_type(f"Database.{group}")
        if each.at("spec", "cluster", "name") == cluster
    ]
    superuser = bool(found[0].at("spec", "enableSuperuserAccess"))
    return (1 + len(databases)) * (1 + len(roles) + superuser)


def _ini(host: str, pairs: int | None, settings: dict[str, Any]) -> str:
    """Return a pgbouncer.ini: one entry for each pool, or * for any number of them."""
    names = ["*"] if pairs is None else [f"d{n}" for n in range(pairs)]
    user = "" if pairs is None else " user=u"
    lines = [f"{name} = host={host}{user}" for name in names]
    return "\n".join(
        [
            "[databases]",
            *lines,
            "[pgbouncer]",
            *(f"{key} = {each}" for key, each in settings.items()),
        ]
    )


def _pooler(
    document: Document, name: str, instances: Quantity, path: ValuePath, ini: str
) -> Workload:
    namespace = namespace_of(document)
    return Workload(
        name=name,
        platform=f"pooler of {name_of(document)}",
        unit="pod",
        where=document.where("spec"),
        instances=instances,
        overlap=surge(document, path or ("spec", "none")),
        variables={},
        image="pgbouncer",
        mounted={"pgbouncer.ini": ini},
        resource=ResourceKey(namespace, f"pooler/{name}"),
        hosts=host_names(name, namespace),
    )
