"""The database clusters and poolers of operators; tables/kubernetes.toml has their sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.budget.kubernetes.objects import fields, items, kinds, mappings
from poolkit.budget.kubernetes.pods import number, surge
from poolkit.budget.model import Database, Workload, known, total, unknown
from poolkit.budget.read.values import get_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poolkit.budget.kubernetes.objects import Manifest, Objects
    from poolkit.budget.model import Quantity, ResourceKey

_RESERVES = {"superuser_reserved_connections": 3, "reserved_connections": 0}


def clusters(objects: Objects) -> dict[ResourceKey, Database]:
    """Return the primary server of every operator's cluster."""
    found = {}
    for type_name, operator in kinds("operators").items():
        for each in objects.of_type(type_name):
            where, label = each.where("spec"), operator["name"]
            why = "PostgreSQL's default" if "limit" in operator else f"{label} computes it"
            limits = [
                number(each, path, operator.get("limit"), why)
                for path in _paths(each, operator, "max_connections")
            ]
            found[each.key()] = Database(
                name=each.name,
                kind=f"{label} cluster",
                where=where,
                max_connections=limits[0] if limits else unknown(why, where),
                reserved=_reserved(each, operator),
                engine=operator.get("engine", "postgres"),
                resources=(each.key(),),
                hosts=tuple(each.hosts(*(form.format(each.name) for form in operator["hosts"]))),
            )
    return found


def _paths(cluster: Manifest, operator: dict[str, Any], name: str) -> list[str]:
    """Return the paths at which a parameter can stand, the one at which it does first."""
    paths = [f"{path}.{name}" for path in operator["parameters"]]
    return sorted(paths, key=lambda path: cluster.at(*path.split(".")) is None)


def _reserved(cluster: Manifest, operator: dict[str, Any]) -> Quantity:
    if operator.get("engine") == "mysql":
        return known(0, "MySQL keeps one connection beside max_connections", cluster.where("spec"))
    numbers = {
        name: number(
            cluster, (_paths(cluster, operator, name) or [name])[0], default, "the default"
        )
        for name, default in _RESERVES.items()
    }
    both = total(*(each.value for each in numbers.values()))
    if both is None:
        return next(each for each in numbers.values() if each.value is None)
    origin = " + ".join(f"{each} {name}" for name, each in numbers.items() if each.value)
    return known(both, origin, cluster.where("spec"))


def poolers(objects: Objects) -> Iterator[Workload]:
    """Return the PgBouncer of every cluster, with the settings that its operator gives to it."""
    for type_name, form in kinds("poolers").items():
        for each in objects.of_type(type_name):
            own, enabled = each.at(*form["of"].split(".")), each.at("spec", form.get("enabled", ""))
            if enabled is False or (own is None and not enabled):
                continue
            pods = number(each, f"{form['of']}.{form['pods']}", form["default"], "the default")
            settings = get_path(own, *form["settings"].split("."))
            cluster = each.name
            pairs: int | None = _declared_pairs(each.at("spec", "users"))
            if type_name.startswith("Pooler."):
                cluster = str(each.at("spec", "cluster", "name"))
                pairs = _pairs(objects, each, cluster)
            elif form.get("divided"):
                # The operator divides the maximum among the pods; each database has it.
                most = number(each, f"{form['of']}.{form['divided']}", 60, "the default").value
                databases = {**fields(each.at("spec", "databases"))}
                databases |= fields(each.at("spec", "preparedDatabases"))
                pairs = max(1, len(databases))
                share = most // pods.value if most and pods.value else "unknown"
                settings = {"max_db_connections": share, "max_client_conn": 10_000}
            name = form["name"].format(each.name)
            ini = _ini(form["host"].format(cluster), pairs, fields(settings))
            yield Workload(
                name=name,
                platform="operator's pooler",
                unit="pod",
                where=each.where("spec"),
                instances=pods,
                overlap=surge(each, form.get("surge", "spec.none")),
                variables={},
                image="pgbouncer",
                mounted={"pgbouncer.ini": ini},
                resource=each.key("pooler"),
                hosts=tuple(each.hosts(name)),
            )


def _declared_pairs(declared: Any) -> int:
    """Return the pairs of Crunchy's users; without users there is one, with its own database."""
    users = mappings(declared)
    names = {str(name) for user in users for name in items(user.get("databases"))}
    return max(1, len(users)) * max(1, len(names))


def _pairs(objects: Objects, pooler: Manifest, cluster: str) -> int | None:
    """Return the pairs of CloudNativePG; None if the files do not have all of them."""
    group = pooler.type.partition(".")[2]
    found = objects.named(f"Cluster.{group}", cluster, pooler.namespace)
    # A recovered cluster has the databases of its backup.
    if not found or set(fields(found[0].at("spec", "bootstrap"))) - {"initdb"}:
        return None
    roles = [
        each for each in mappings(found[0].at("spec", "managed", "roles")) if each.get("login")
    ]
    users = 1 + len(roles) + bool(found[0].at("spec", "enableSuperuserAccess"))
    others = objects.of_type(f"Database.{group}")
    own = [each for each in others if each.at("spec", "cluster", "name") == cluster]
    return users * (1 + len(own))


def _ini(host: str, pairs: int | None, settings: dict[str, Any]) -> str:
    """Return a pgbouncer.ini: one entry for each pool, or * for any number of them."""
    names = ["* ="] if pairs is None else [f"pool{n} = user=app" for n in range(pairs)]
    lines = [f"{name} host={host}" for name in names]
    options = [f"{key} = {value}" for key, value in settings.items()]
    return "\n".join(["[databases]", *lines, "[pgbouncer]", *options])
