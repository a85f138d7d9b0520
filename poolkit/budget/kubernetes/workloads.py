"""Kubernetes manifests as workloads: every container of every pod."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from poolkit.budget.kubernetes.evidence import Signs, service_hosts
from poolkit.budget.kubernetes.objects import (
    Objects,
    kind_of,
    name_of,
    pod_path,
    runs_before,
    table,
    type_of,
)
from poolkit.budget.kubernetes.operators import clusters, poolers
from poolkit.budget.kubernetes.pods import most_pods, overlap
from poolkit.budget.kubernetes.renderers import rendered
from poolkit.budget.model import Description, Unread, Variable, Workload
from poolkit.budget.read.values import get_path
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from poolkit.budget.kubernetes.objects import Pod
    from poolkit.budget.model import SourceLocation
    from poolkit.budget.read.documents import Document, ValuePath


def describe_manifests(
    documents: Sequence[Document], environment: str, named: Sequence[Path] = ()
) -> Description:
    """Return every container of every pod as a workload, after Kustomize and Helm.

    Raises:
        TemplateError: Kustomize refuses a kustomization that was named.
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
            unread.append(Unread(pod.document.where(), str(error)))
    databases = clusters(objects)
    signs = Signs(objects, databases, made)
    workloads = [signs.of(*each) for each in made]
    workloads += [*poolers(objects), *signs.custom()]
    for document in objects:
        if type_of(document) in table("makers")["kinds"]:
            what = f"the objects that a {kind_of(document)} makes are in no file"
            unread.append(Unread(document.where("kind"), f"{what}; name them, rendered"))
        elif (path := pod_path(document)) and not (
            document.at(*path, "containers") or document.at("spec", "workloadRef")
        ):
            # It may be a patch.
            reason = f"{kind_of(document)} {name_of(document)} has no containers"
            unread.append(Unread(document.where("spec"), reason))
    return Description(
        workloads=tuple(workloads),
        databases=tuple(databases.values()),
        unread=tuple(dict.fromkeys(unread)),
    )


def _workloads(
    pod: Pod, objects: Objects, hosts: list[str]
) -> Iterator[tuple[ValuePath, Workload]]:
    """Return the containers of a pod; the only one that keeps running has the pod's name."""
    document = pod.document
    alone = len([each for each in pod.containers if not runs_before(document, each)]) == 1
    volumes = {
        str(get_path(each, "configMap", "name")) for each in document.mappings(*pod.path, "volumes")
    }
    for path in pod.containers:
        container, before = document.mapping(*path), runs_before(document, path)
        variables, unread, hidden = _variables(document, path, objects)
        words = [*document.items(*path, "command"), *document.items(*path, "args")]
        # Kubernetes writes a variable $(NAME).
        command = tuple(re.sub(r"\$\((\w+)\)", r"${\1}", str(word)) for word in words)
        inner = f"{name_of(document)}/{container.get('name') or path[-1]}"
        yield (
            path,
            Workload(
                name=name_of(document) if alone and not before else inner,
                platform="init container" if before else kind_of(document),
                unit="init container" if before else "pod",
                where=document.where("spec"),
                instances=most_pods(document, objects),
                overlap=overlap(document),
                variables=variables,
                image=str(container.get("image") or ""),
                command=command or None,
                command_origin=str(
                    document.where(*path, "args" if "args" in container else "command")
                ),
                unread_variables=unread,
                hidden_variables=hidden,
                mounted={
                    str(key): str(text)
                    for name in volumes
                    for config in _only(objects.named("ConfigMap", name, document))
                    for key, text in config.mapping("data").items()
                },
                resource=pod.key(path),
                hosts=tuple(dict.fromkeys(hosts)),
            ),
        )


# -- variables ------------------------------------------------------------------------------


def _variables(
    document: Document, path: ValuePath, objects: Objects
) -> tuple[dict[str, Variable], str, str]:
    """Return the variables, which ConfigMap is not read, and which Secret is not."""
    found: dict[str, Variable] = {}
    unread = hidden = ""
    for source in document.mappings(*path, "envFrom"):
        prefix = str(source.get("prefix") or "")
        secret = get_path(source, "secretRef", "name")
        if secret is not None:
            keys, is_complete = _secret_keys(secret, document, objects)
            hidden = hidden or ("" if is_complete else f"Secret {secret}")
            for key, where in keys.items():
                # The values are not read.
                origin, reason = str(where), "it is in a secret"
                found[f"{prefix}{key}"] = Variable(text=None, origin=origin, reason=reason)
        name = get_path(source, "configMapRef", "name")
        configs = _only(objects.named("ConfigMap", name, document))
        for config in configs:
            found |= {
                f"{prefix}{key}": Variable(text=str(value), origin=str(config.where("data", key)))
                for key, value in config.mapping("data").items()
            }
        if name is not None and not configs:
            unread = f"ConfigMap {name} is not in the manifests, or more than once"
    for index, each in enumerate(document.mappings(*path, "env")):
        # A text, or a key of a ConfigMap or Secret.
        origin, value_from = str(document.where(*path, "env", index)), each.get("valueFrom")
        key = str(get_path(value_from, "configMapKeyRef", "key"))
        named = objects.named(
            "ConfigMap", get_path(value_from, "configMapKeyRef", "name"), document
        )
        texts = [config for config in _only(named) if key in config.mapping("data")]
        if "value" in each:
            variable = Variable(text=str(each["value"]), origin=origin)
        elif texts:
            origin = str(texts[0].where("data", key))
            variable = Variable(text=str(texts[0].at("data", key)), origin=origin)
        else:
            kind = next(iter(value_from), "") if isinstance(value_from, dict) else "nothing"
            variable = Variable(text=None, origin=origin, reason=f"its value is from {kind}")
        found[str(each.get("name"))] = variable
    return found, unread, hidden


def _only(configs: list[Document]) -> list[Document]:
    """Return the ConfigMap; none if there are several with other data."""
    return configs[:1] if all(each.at("data") == configs[0].at("data") for each in configs) else []


def _secret_keys(
    name: object, like: Document, objects: Objects
) -> tuple[dict[str, SourceLocation], bool]:
    """Return the keys of a Secret, and whether the files have all of them.

    A SealedSecret or ExternalSecret makes the Secret of its name, or of its target's.
    """
    keys: dict[str, SourceLocation] = {}
    is_complete = False
    for each in objects.named("Secret", name, like):
        is_complete = True
        for section in ("data", "stringData"):
            keys |= {key: each.where(section, key) for key in each.mapping(section)}
    for each in objects.named("SealedSecret.bitnami.com", name, like):
        is_complete = True
        path = ("spec", "encryptedData")
        keys |= {key: each.where(*path, key) for key in each.mapping(*path)}
    for each in objects.of_type("ExternalSecret.external-secrets.io"):
        if (each.at("spec", "target", "name") or name_of(each)) == name:
            is_complete = not each.at("spec", "dataFrom")
            for index, entry in enumerate(each.mappings("spec", "data")):
                keys[str(entry.get("secretKey"))] = each.where("spec", "data", index)
    return keys, is_complete
