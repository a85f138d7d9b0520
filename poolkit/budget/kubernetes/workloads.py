"""Kubernetes manifests as workloads: every container of every pod."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from poolkit.budget.kubernetes.evidence import Signs, service_hosts
from poolkit.budget.kubernetes.objects import Objects, kinds, mappings, pod_path
from poolkit.budget.kubernetes.operators import clusters, poolers
from poolkit.budget.kubernetes.pods import most_pods, overlap
from poolkit.budget.kubernetes.renderers import rendered
from poolkit.budget.model import Description, Unread, Variable, Workload
from poolkit.budget.read.values import get_path
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from poolkit.budget.kubernetes.objects import Manifest, Pod
    from poolkit.budget.read.documents import Document, ValuePath


def describe_manifests(
    documents: Sequence[Document], environment: str, named: Sequence[Path] = ()
) -> Description:
    """Return every container of every pod as a workload, after Kustomize and Helm.

    Raises:
        BudgetError: Kustomize refuses a kustomization that was named.
    """
    found, unread = rendered(documents, environment, named)
    objects = Objects(found)
    hosts = service_hosts(objects)
    made: list[tuple[Pod, ValuePath, Workload]] = []
    for pod in objects.pods:
        try:
            made += [(pod, *each) for each in _workloads(pod, objects, hosts[id(pod)])]
        except TemplateError as error:
            # One object that no API server accepts leaves the others as they are.
            unread.append(Unread(pod.object.where(), error.problem))
    for each in objects:
        path = pod_path(each)
        if each.type in kinds("makers")["kinds"]:
            reason = f"the objects that a {each.kind} makes are in no file; name them, rendered"
            unread.append(Unread(each.where("kind"), reason))
        elif path and not (each.at(*path, "containers") or each.at("spec", "workloadRef")):
            # It may be a patch.
            reason = f"{each.kind} {each.name} has no containers"
            unread.append(Unread(each.where("spec"), reason))
    databases = clusters(objects)
    signs = Signs(objects, databases, made)
    workloads = [signs.of(*each) for each in made]
    return Description(
        workloads=(*workloads, *poolers(objects), *signs.custom()),
        databases=tuple(
            replace(each, hosts=signs.own_hosts(each.hosts)) for each in databases.values()
        ),
        unread=tuple(dict.fromkeys(unread)),
    )


def _workloads(
    pod: Pod, objects: Objects, hosts: list[str]
) -> Iterator[tuple[ValuePath, Workload]]:
    """Return the containers of a pod; the only one that keeps running has the pod's name."""
    manifest = pod.object
    alone = len([each for each in pod.containers if not pod.runs_before(each)]) == 1
    volumes = mappings(manifest.at(*pod.path, "volumes"))
    maps = dict.fromkeys(str(get_path(each, "configMap", "name")) for each in volumes)
    files = [_entries("configMapRef", name, manifest, objects) or {} for name in maps]
    instances = most_pods(manifest, objects.about(manifest))
    for path in pod.containers:
        container, before = manifest.mapping(*path), pod.runs_before(path)
        variables, unread, hidden = _variables(manifest, path, objects)
        words = [*manifest.items(*path, "command"), *manifest.items(*path, "args")]
        # Kubernetes writes a variable $(NAME).
        command = tuple(re.sub(r"\$\((\w+)\)", r"${\1}", str(word)) for word in words)
        inner = str(container.get("name") or path[-1])
        origin = manifest.where(*path, "args" if "args" in container else "command")
        workload = Workload(
            name=manifest.name if alone and not before else f"{manifest.name}/{inner}",
            platform="init container" if before else manifest.kind,
            unit="init container" if before else "pod",
            where=manifest.where("spec"),
            instances=instances,
            overlap=overlap(manifest),
            variables=variables,
            image=str(container.get("image") or ""),
            command=command or None,
            command_origin=str(origin),
            unread_variables=unread,
            hidden_variables=hidden,
            mounted={key: each.text or "" for file in files for key, each in file.items()},
            resource=manifest.key(inner),
            hosts=tuple(dict.fromkeys(hosts)),
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
        for kind in ("configMapRef", "secretRef"):
            name = get_path(source, kind, "name")
            entries = _entries(kind, name, manifest, objects)
            prefix = str(source.get("prefix") or "")
            found |= {f"{prefix}{key}": each for key, each in (entries or {}).items()}
            if name is not None and entries is None and kind == "secretRef":
                hidden = hidden or f"Secret {name}"
            elif name is not None and entries is None:
                unread = f"ConfigMap {name} is not in the manifests, or more than once"
    for index, each in enumerate(manifest.mappings(*path, "env")):
        # A text, or a key of a ConfigMap or Secret.
        origin, value_from = str(manifest.where(*path, "env", index)), each.get("valueFrom")
        named = get_path(value_from, "configMapKeyRef", "name")
        entries = _entries("configMapRef", named, manifest, objects) or {}
        kind = next(iter(value_from), "") if isinstance(value_from, dict) else "nothing"
        variable = Variable(text=None, origin=origin, reason=f"its value is from {kind}")
        if "value" in each:
            variable = Variable(text=str(each["value"]), origin=origin)
        key = str(get_path(value_from, "configMapKeyRef", "key"))
        found[str(each.get("name"))] = entries.get(key, variable)
    return found, unread, hidden


def _entries(
    reference: str, name: object, like: Manifest, objects: Objects
) -> dict[str, Variable] | None:
    """Return the entries of a ConfigMap or Secret; None if the files do not have all of them.

    The values of a Secret are not read. A SealedSecret or ExternalSecret makes the Secret of its name,
    or of its target's.
    """
    if reference == "configMapRef":
        maps = objects.named("ConfigMap", name, like.namespace)
        if not maps or any(each.at("data") != maps[0].at("data") for each in maps):
            return None
        return {
            str(key): Variable(text=str(value), origin=str(maps[0].where("data", key)))
            for key, value in maps[0].mapping("data").items()
        }
    secrets = objects.named("Secret", name, like.namespace)
    secrets += objects.named("SealedSecret.bitnami.com", name, like.namespace)
    external = objects.of_type("ExternalSecret.external-secrets.io")
    secrets += [
        each for each in external if name == (each.at("spec", "target", "name") or each.name)
    ]
    found: dict[str, Variable] = {}
    for each in secrets:
        keys: list[tuple[str, ...]] = [("data", key) for key in each.mapping("data")]
        keys += [("stringData", key) for key in each.mapping("stringData")]
        keys += [("spec", "encryptedData", key) for key in each.mapping("spec", "encryptedData")]
        for entry in mappings(each.at("spec", "data")):
            keys.append(("spec", str(entry.get("secretKey"))))
        for path in keys:
            where = str(each.where(*path))
            found[path[-1]] = Variable(text=None, origin=where, reason="it is in a secret")
    is_complete = secrets and not any(each.at("spec", "dataFrom") for each in secrets)
    return found if is_complete else None
