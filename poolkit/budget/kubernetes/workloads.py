"""Kubernetes manifests as workloads: every container of every pod, and operators' own pods.

Sources of the number of pods: Kubernetes documentation, "Deployments" (maxSurge 25 % by default,
rounded up), "Horizontal Pod Autoscaling" (maxReplicas), "CronJob" (concurrencyPolicy Allow by
default); KEDA, "ScaledObject" (maxReplicaCount 100 by default); Argo Rollouts, "BlueGreen", "Canary"
and "Migrating to Rollouts" (workloadRef); Knative, "Configuring scale bounds" (no bound by
default); Cloud Run, "Set maximum instances" (100 by default for each revision).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from poolkit.budget.kubernetes.evidence import Signs
from poolkit.budget.kubernetes.objects import Objects, fields, items, kinds, mappings
from poolkit.budget.kubernetes.renderers import rendered
from poolkit.budget.model import Description, Overlap, Unread, Variable, Workload, known, unknown
from poolkit.budget.read.values import get_path, whole_number
from poolkit.budget.software import own_server
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from poolkit.budget.kubernetes.objects import Manifest, Pod
    from poolkit.budget.model import Database, Quantity, ResourceKey, Unit
    from poolkit.budget.read.documents import Document, ValuePath

_PERCENT = re.compile(r"(\d+)%")
_ANNOTATED = (("metadata",), ("spec", "template", "metadata"))
_VARIABLE = re.compile(r"\$\((\w+)\)")


def describe_manifests(
    documents: Sequence[Document], environment: str, named: Sequence[Path] = ()
) -> Description:
    """Return every container of every pod as a workload, after Kustomize and Helm.

    Raises:
        BudgetError: Kustomize refuses a kustomization that was named.
    """
    found, unread = rendered(documents, environment, named)
    objects = Objects(found)
    made: list[tuple[Pod, ValuePath, Workload]] = []
    for pod in objects.pods:
        try:
            made += [(pod, *each) for each in _containers(pod, objects)]
        except TemplateError as error:
            # One object that no API server accepts leaves the others as they are.
            unread.append(Unread(pod.object.where(), error.problem))
    for each in objects:
        path = each.pod_path
        if each.type in kinds("makers")["kinds"]:
            reason = f"the objects that a {each.kind} makes are in no file; name them, rendered"
            unread.append(Unread(each.where("kind"), reason))
        elif path and not (
            mappings(each.at(*path, "containers")) or each.at("spec", "workloadRef")
        ):
            # It may be a patch.
            reason = f"{each.kind} {each.name} has no containers"
            unread.append(Unread(each.where("spec"), reason))
    databases = _clusters(objects)
    signs = Signs(objects, databases, made)
    workloads = [signs.of(*each) for each in made]
    custom = [
        _made_by_operator(each, each.kind, "instance", evidence=evidence)
        for each, evidence in signs.custom()
    ]
    return Description(
        workloads=(*workloads, *_poolers(objects), *custom),
        databases=tuple(
            replace(each, hosts=signs.own_hosts(each.hosts)) for each in databases.values()
        ),
        unread=tuple(dict.fromkeys(unread)),
    )


def _containers(pod: Pod, objects: Objects) -> Iterator[tuple[ValuePath, Workload]]:
    """Return the containers of a pod; the only one that keeps running has the pod's name."""
    manifest = pod.object
    alone = len([each for each in pod.containers if not pod.runs_before(each)]) == 1
    volumes = mappings(manifest.at(*pod.path, "volumes"))
    maps = dict.fromkeys(str(get_path(each, "configMap", "name")) for each in volumes)
    files = [_entries("ConfigMap", name, manifest, objects) or {} for name in maps]
    for path in pod.containers:
        container, before = manifest.mapping(*path), pod.runs_before(path)
        variables, unread, hidden = _variables(manifest, path, objects)
        words = [*manifest.items(*path, "command"), *manifest.items(*path, "args")]
        # Kubernetes writes a variable $(NAME).
        command = tuple(_VARIABLE.sub(r"${\1}", str(word)) for word in words)
        inner = str(container.get("name") or path[-1])
        origin = manifest.where(*path, "args" if "args" in container else "command")
        workload = Workload(
            name=manifest.name if alone and not before else f"{manifest.name}/{inner}",
            platform="init container" if before else manifest.kind,
            unit="init container" if before else "pod",
            where=manifest.where("spec"),
            instances=_most_pods(manifest, objects.about(manifest)),
            overlap=_overlap(manifest),
            variables=variables,
            image=str(container.get("image") or ""),
            command=command or None,
            command_origin=str(origin),
            unread_variables=unread,
            hidden_variables=hidden,
            mounted={key: each.text or "" for file in files for key, each in file.items()},
            resource=manifest.key(*path[:-1], inner),
            hosts=tuple(dict.fromkeys(objects.hosts[id(pod)])),
        )
        yield path, workload


# -- variables ------------------------------------------------------------------------------


def _variables(
    manifest: Manifest, path: ValuePath, objects: Objects
) -> tuple[dict[str, Variable], str, str]:
    """Return the variables, which ConfigMap is not read, and which Secret is not."""
    found: dict[str, Variable] = {}
    unread = hidden = ""
    for source in manifest.mappings(*path, "envFrom"):
        for reference, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            name = get_path(source, reference, "name")
            entries, prefix = _entries(kind, name, manifest, objects), source.get("prefix") or ""
            found |= {f"{prefix}{key}": each for key, each in (entries or {}).items()}
            if name is not None and entries is None and kind == "Secret":
                hidden = hidden or f"Secret {name}"
            elif name is not None and entries is None:
                unread = f"ConfigMap {name} is not in the manifests, or more than once"
    for index, each in enumerate(manifest.mappings(*path, "env")):
        # A text, or a key of a ConfigMap or Secret.
        origin, value_from = str(manifest.where(*path, "env", index)), fields(each.get("valueFrom"))
        reason = f"its value is from {next(iter(value_from), 'nothing')}"
        variable = Variable(text=None, origin=origin, reason=reason)
        if "value" in each:
            variable = Variable(text=str(each["value"]), origin=origin)
        named = fields(value_from.get("configMapKeyRef"))
        entries = _entries("ConfigMap", named.get("name"), manifest, objects) or {}
        found[str(each.get("name"))] = entries.get(str(named.get("key")), variable)
    return found, unread, hidden


def _entries(
    kind: str, name: object, like: Manifest, objects: Objects
) -> dict[str, Variable] | None:
    """Return the entries of a ConfigMap or Secret; None if the files do not have all of them.

    The values of a Secret are not read. A SealedSecret or ExternalSecret makes the Secret of its name,
    or of its target's.
    """
    sources = objects.named(kind, name, like.namespace)
    if kind == "ConfigMap" and any(each.at("data") != sources[0].at("data") for each in sources):
        return None
    if kind == "Secret":
        sources += objects.named("SealedSecret.bitnami.com", name, like.namespace)
        external = objects.of_type("ExternalSecret.external-secrets.io")
        sources += [
            each for each in external if name == (each.at("spec", "target", "name") or each.name)
        ]
    if not sources or any(each.at("spec", "dataFrom") for each in sources):
        return None
    secret = Variable(text=None, origin="", reason="it is in a secret")
    found: dict[str, Variable] = {}
    for each in sources:
        for way in (("data",), ("stringData",), ("spec", "encryptedData")):
            for key, value in fields(each.at(*way)).items():
                variable = secret if kind == "Secret" else replace(secret, text=str(value))
                found[str(key)] = replace(variable, origin=str(each.where(*way, key)))
        for entry in mappings(each.at("spec", "data")):
            found[str(entry.get("secretKey"))] = replace(secret, origin=str(each.where("spec")))
    return found


# -- the number of pods ---------------------------------------------------------------------


def _most_pods(manifest: Manifest, scalers: list[Manifest]) -> Quantity:
    """Return the most pods outside a rollout."""
    where, other = manifest.where("spec"), f"the number of pods of a {manifest.kind} is unknown"
    kind = kinds("pods").get(manifest.type) or {"unknown": other, "pods": []}
    rollout = next((each for each in scalers if each.at("spec", "workloadRef")), None)
    if rollout is not None:
        # Argo's Rollout runs the pods of a Deployment in its place.
        reason = f"{rollout.kind} {rollout.name} runs its pods, and their number is unknown"
        return unknown(reason, rollout.where("kind"))
    if manifest.kind == "CronJob" and manifest.at("spec", "concurrencyPolicy") in (None, "Allow"):
        reason = "concurrencyPolicy is Allow, so a run that hangs adds to the next ones; set Forbid"
        return unknown(reason, manifest.where("spec", "concurrencyPolicy"))
    # An autoscaler also reduces replicas that are above its maximum. An unknown one is the most.
    maxima = [
        _number(each, "spec maxReplicaCount", 100)
        if each.kind == "ScaledObject"
        else _number(each, "spec maxReplicas", None)
        for each in scalers
    ]
    if maxima and "pod" in kind:
        return max(maxima, key=lambda each: float("inf") if each.value is None else each.value)
    paths: list[str] = kind["pods"]
    path = next((each for each in paths if manifest.at(*each.split()) not in (None, 0, "0")), None)
    if path is None and "unknown" in kind:
        annotations = [manifest.at(*each, "annotations") for each in _ANNOTATED]
        if manifest.kind == "Service" and "run.googleapis.com/" in str(annotations):
            return known(100, f"{where}: the default of Cloud Run", where)
        return unknown(kind["unknown"], where)
    return _number(manifest, path or paths[-1], 1) if paths else known(1, str(where), where)


def _number(manifest: Manifest, words: str, default: int | None) -> Quantity:
    """Return the whole number at a path, or the default."""
    *_, name = path = words.split()
    found, where = manifest.at(*path), manifest.where(*path)
    if found is None and default is not None:
        return known(default, f"{where}: {default}, the default of {name}", where)
    return whole_number(found, name, str(where), where)


def _overlap(manifest: Manifest) -> Overlap:
    """Return the additional pods of a rollout."""
    path = kinds("pods").get(manifest.type, {}).get("surge")
    strategy = fields(manifest.at("spec", "strategy"))
    canary = strategy.get("canary")
    is_rollout = manifest.type == "Rollout.argoproj.io"
    if path is None or strategy.get("type") == "Recreate":
        return Overlap()
    if path == "all" or (is_rollout and (canary is None or get_path(canary, "trafficRouting"))):
        origin = f"{manifest.where('spec', 'strategy')} (old and new pods side by side)"
        return Overlap(kind="percent", amount=100, origin=origin)
    return _surge(manifest, path)


def _surge(manifest: Manifest, words: str) -> Overlap:
    """Return the additional pods of a rolling update."""
    path = words.split()
    found, where = manifest.at(*path), manifest.where(*path)
    text = "25%" if found is None else str(found)
    origin = f"{where} (maxSurge {text}{'' if found is not None else ', the default'})"
    if match := _PERCENT.fullmatch(text):
        return Overlap(kind="surge_percent", amount=int(match[1]), origin=origin)
    if text.isdecimal():
        return Overlap(kind="count", amount=int(text), origin=origin)
    reason = f"{where}: maxSurge must be a whole number or a percentage, not {found!r}"
    return Overlap(kind="unknown", origin=origin, reason=reason)


# -- operators ------------------------------------------------------------------------------


def _made_by_operator(
    manifest: Manifest, platform: str, unit: Unit = "pod", **known_parts: Any
) -> Workload:
    """Return what an operator starts for a custom resource, as far as it is known."""
    where = manifest.where("spec")
    workload = Workload(
        name=manifest.name,
        platform=platform,
        unit=unit,
        where=where,
        instances=unknown(f"the instances of a {manifest.kind} are unknown", where),
        overlap=Overlap(),
        variables={},
    )
    return replace(workload, **known_parts)


def _clusters(objects: Objects) -> dict[ResourceKey, Database]:
    """Return the primary server of every operator's cluster, with its settings."""
    found: dict[ResourceKey, Database] = {}
    for type_name, operator in kinds("operators").items():
        for each in objects.of_type(type_name):
            parameters = {
                name: (value, each.where(*path.split(), name))
                for path in operator["parameters"]
                for name, value in fields(each.at(*path.split())).items()
            }
            lines = [f"{name} = {value}" for name, (value, _) in parameters.items()]
            _, where = parameters.get("max_connections", ("", each.where("spec")))
            server = _made_by_operator(each, "server", image=operator["image"])
            conf = {"server.conf": "\n".join(lines)} if lines else {}
            database = own_server(replace(server, mounted=conf, command_origin=str(where)))
            if operator["computes"] and "max_connections" not in parameters:
                limit = unknown(f"{operator['name']} computes max_connections", where)
                database = replace(database, max_connections=limit)
            database = replace(
                database,
                kind=f"{operator['name']} cluster",
                resources=(each.key(),),
                hosts=tuple(each.hosts(*(form.format(each.name) for form in operator["hosts"]))),
            )
            # Another manifest of the same cluster replaces it; the least limit is the safe one.
            same = sorted(
                [database, found.get(each.key(), database)], key=lambda one: str(one.where)
            )
            found[each.key()] = min(
                same, key=lambda one: -1 if one.available is None else one.available
            )
    return found


def _poolers(objects: Objects) -> Iterator[Workload]:
    """Return the PgBouncer of every cluster, with the settings that its operator gives to it."""
    for type_name, form in kinds("poolers").items():
        for each in objects.of_type(type_name):
            own, enabled = each.at(*form["of"].split()), each.at("spec", form.get("enabled", ""))
            if enabled is False or (own is None and not enabled):
                continue
            pods = _number(each, f"{form['of']} {form['pods']}", form["default"])
            settings = fields(get_path(own, *form["settings"].split()))
            if "divided" in form:
                # The operator divides the maximum among the pods; each database has it.
                most = _number(each, f"{form['of']} {form['divided']}", 60).value
                share = most // pods.value if most and pods.value else "unknown"
                settings = {"max_db_connections": share, "max_client_conn": 10_000}
            cluster = str(each.at("spec", "cluster", "name") or each.name)
            pairs = _pairs(each, cluster, objects)
            # One entry for each pool, or * for any number of them.
            pools = ["* ="] if pairs is None else [f"pool{n} = user=app" for n in range(pairs)]
            host = form["host"].format(cluster)
            lines = ["[databases]", *(f"{pool} host={host}" for pool in pools)]
            lines += ["[pgbouncer]", *(f"{key} = {value}" for key, value in settings.items())]
            name = form["name"].format(each.name)
            yield _made_by_operator(
                each,
                "operator's pooler",
                name=name,
                image="pgbouncer",
                instances=pods,
                overlap=_surge(each, form.get("surge", "spec none")),
                mounted={"pgbouncer.ini": "\n".join(lines)},
                resource=each.key("pooler"),
                hosts=tuple(each.hosts(name)),
            )


def _pairs(pooler: Manifest, cluster: str, objects: Objects) -> int | None:
    """Return a pooler's pairs of database and user; None if the files do not have all of them."""
    # Without users or databases in the files, the operator makes one.
    declared = mappings(pooler.at("spec", "users"))
    databases = {str(name) for user in declared for name in items(user.get("databases"))}
    for part in ("databases", "preparedDatabases"):
        databases |= fields(pooler.at("spec", part)).keys()
    if pooler.kind != "Pooler":
        return max(1, len(declared)) * max(1, len(databases))
    group = pooler.type.partition(".")[2]
    found = objects.named(f"Cluster.{group}", cluster, pooler.namespace)
    # A recovered cluster has the databases of its backup.
    if not found or any(set(fields(each.at("spec", "bootstrap"))) - {"initdb"} for each in found):
        return None
    # Any version of the cluster or of a Database may be the one that is applied.
    roles = {
        str(role.get("name"))
        for each in found
        for role in mappings(each.at("spec", "managed", "roles"))
        if role.get("login")
    }
    others = objects.of_type(f"Database.{group}")
    own = {each.key() for each in others if each.at("spec", "cluster", "name") == cluster}
    is_open = any(each.at("spec", "enableSuperuserAccess") for each in found)
    return (1 + len(roles) + is_open) * (1 + len(own))
