"""Kubernetes manifests: pods at the autoscaling maximum, and old and new ones in a rollout.

Sources: Kubernetes documentation, "Deployments" (maxSurge 25 % by default, rounded up),
"Horizontal Pod Autoscaling" (maxReplicas), "CronJob" (concurrencyPolicy Allow by default),
"Jobs" (parallelism); KEDA, "ScaledObject" (maxReplicaCount 100 by default); Argo Rollouts,
"Migrating to Rollouts" (workloadRef).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.stacks import get_path, whole_number
from poolkit.budget.kubernetes.pod_containers import (
    PODS,
    containers,
    in_one_namespace,
    is_part_of_another,
    kind_of,
    name_of,
    pod_of,
    runs_before,
)
from poolkit.budget.model import Overlap, Variable, Workload
from poolkit.budget.quantity import Quantity, known, unknown
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poolkit.budget.read.documents import Document, ValuePath

INIT_CONTAINER = "init container"
_PERCENT = re.compile(r"(\d+)%")


def kubernetes_workloads(documents: Sequence[Document]) -> Iterator[Workload]:
    """Give every container of every pod.

    Raises:
        TemplateError: a number is negative or none.
    """
    for document in documents:
        found = containers(document)
        if not found or is_part_of_another(document, documents):
            continue
        alone = len([each for each in found if not runs_before(document, each)]) == 1
        for steps in found:
            yield _container(document, steps, documents, alone=alone)


def _container(
    document: Document, steps: ValuePath, documents: Sequence[Document], *, alone: bool
) -> Workload:
    container = document.mapping(*steps)
    variables, unread = _variables(document, steps, documents)
    before = runs_before(document, steps)
    inner = f"{name_of(document)}/{container.get('name') or steps[-1]}"
    return Workload(
        name=name_of(document) if alone and not before else inner,
        platform=INIT_CONTAINER if before else kind_of(document),
        where=document.where("spec"),
        instances=_pods(document, documents),
        overlap=_overlap(document),
        variables=variables,
        image=str(container.get("image") or ""),
        command=_command(document, steps),
        command_origin=str(document.where(*steps, "args" if "args" in container else "command")),
        unread_variables=unread,
        hidden_variables=_hidden(document, steps, documents),
        mounted=_mounted(document, steps, documents),
        hosts=_hosts(document, documents),
    )


def _command(document: Document, steps: ValuePath) -> tuple[str, ...] | None:
    words = [*document.items(*steps, "command"), *document.items(*steps, "args")]
    # Kubernetes writes a variable $(NAME).
    return tuple(re.sub(r"\$\((\w+)\)", r"${\1}", str(word)) for word in words) or None


# -- how many pods --------------------------------------------------------------------------


def _pods(document: Document, documents: Sequence[Document]) -> Quantity:
    kind = kind_of(document)
    if (other := _taken_over(document, documents)) is not None:
        reason = f"{kind_of(other)} {name_of(other)} runs its pods, and how many is not known here"
        return unknown(reason, other.where("kind"))
    if kind not in PODS:
        return unknown(f"how many pods a {kind} has is not known here", document.where("kind"))
    if kind == "DaemonSet":
        return unknown("a DaemonSet has a pod on every node", document.where("spec"))
    if kind in ("Job", "CronJob"):
        return _job_pods(document)
    if kind == "Pod":
        return known(1, str(document.where("spec")), document.where("spec"))
    replicas = _number(document, ("spec", "replicas"), 1, "no replicas given: 1")
    # The autoscaler brings what is above its maximum down to it.
    return _scaled(document, documents) or replicas


def _scaled(document: Document, documents: Sequence[Document]) -> Quantity | None:
    """Return what the autoscalers of an object bring it to at most; None without any."""
    found = [_maximum(each) for each in documents if _scales(each, document)]
    if not found:
        return None
    return max(found, key=lambda each: float("inf") if each.value is None else each.value)


def _scales(scaler: Document, document: Document) -> bool:
    if kind_of(scaler) not in ("HorizontalPodAutoscaler", "ScaledObject"):
        return False
    target = scaler.mapping("spec", "scaleTargetRef")
    named = (target.get("kind", "Deployment"), target.get("name"))
    return named == (kind_of(document), name_of(document)) and in_one_namespace(scaler, document)


def _maximum(scaler: Document) -> Quantity:
    if kind_of(scaler) == "ScaledObject":
        return _number(scaler, ("spec", "maxReplicaCount"), 100, "KEDA's default of 100")
    steps: ValuePath = ("spec", "maxReplicas")
    if scaler.at(*steps) is None:
        raise TemplateError(f"{scaler.where('spec')}: {name_of(scaler)} has no maxReplicas")
    return _number(scaler, steps, 0, "")


def _taken_over(document: Document, documents: Sequence[Document]) -> Document | None:
    """Find what makes pods of an object's template in its place, as Argo's Rollout may."""
    own = (kind_of(document), name_of(document))
    for each in documents:
        named = tuple(each.at("spec", "workloadRef", key) for key in ("kind", "name"))
        if named == own and in_one_namespace(each, document):
            return each
    return None


def _job_pods(document: Document) -> Quantity:
    before = ("spec", "jobTemplate") if kind_of(document) == "CronJob" else ()
    parallel = _number(document, (*before, "spec", "parallelism"), 1, "no parallelism given: 1")
    policy = document.at("spec", "concurrencyPolicy") or "Allow"
    if kind_of(document) == "CronJob" and policy == "Allow":
        return unknown(
            "concurrencyPolicy is Allow, so a run that hangs and the next ones add up; set Forbid",
            document.where("spec", "concurrencyPolicy"),
        )
    return parallel


def _number(document: Document, steps: ValuePath, default: int, why: str) -> Quantity:
    found, where = document.at(*steps), document.where(*steps)
    if found is None:
        return known(default, f"{where}: {why}", where)
    return whole_number(found, str(steps[-1]), str(where), where)


def _overlap(document: Document) -> Overlap:
    if kind_of(document) != "Deployment":
        return Overlap()
    if document.mapping("spec", "strategy").get("type") == "Recreate":
        return Overlap()
    steps = ("spec", "strategy", "rollingUpdate", "maxSurge")
    found, where = document.at(*steps), document.where(*steps)
    text = "25%" if found is None else str(found)
    origin = f"{where} (maxSurge {text}{'' if found is not None else ', the default'})"
    if match := _PERCENT.fullmatch(text):
        return Overlap(kind="surge_percent", amount=int(match[1]), origin=origin)
    if not text.isdecimal():
        raise TemplateError(
            f"{where}: maxSurge must be a whole number or a percentage, not {found!r}"
        )
    return Overlap(kind="count", amount=int(text), origin=origin)


# -- variables ------------------------------------------------------------------------------


def _config_maps(document: Document, documents: Sequence[Document]) -> dict[str, Document]:
    """Return the ConfigMaps that an object can name, without those it cannot tell apart."""
    found: dict[str, list[Document]] = {}
    for each in documents:
        if kind_of(each) == "ConfigMap" and in_one_namespace(each, document):
            found.setdefault(name_of(each), []).append(each)
    return {
        name: several[0]
        for name, several in found.items()
        if all(each.at("data") == several[0].at("data") for each in several)
    }


def _variables(
    document: Document, steps: ValuePath, documents: Sequence[Document]
) -> tuple[Mapping[str, Variable], str]:
    maps = _config_maps(document, documents)
    found: dict[str, Variable] = {}
    unread = ""
    for number, source in enumerate(document.mappings(*steps, "envFrom")):
        named = document.at(*steps, "envFrom", number, "configMapRef", "name")
        found |= _of_secret(document, (*steps, "envFrom", number), documents)
        if not isinstance(named, str):
            continue
        if named not in maps:
            unread = f"ConfigMap {named} is not in the manifests, or more than once"
            continue
        for key, value in maps[named].mapping("data").items():
            origin = str(maps[named].where("data", key))
            found[f"{source.get('prefix', '')}{key}"] = Variable(text=str(value), origin=origin)
    for number, each in enumerate(document.mappings(*steps, "env")):
        where = str(document.where(*steps, "env", number))
        found[str(each.get("name"))] = _variable(each, where, maps)
    return found, unread


def _secret(
    document: Document, source: ValuePath, documents: Sequence[Document]
) -> Document | None:
    named = document.at(*source, "secretRef", "name")
    found = (each for each in documents if kind_of(each) == "Secret" and name_of(each) == named)
    return next((each for each in found if in_one_namespace(each, document)), None)


def _of_secret(
    document: Document, source: ValuePath, documents: Sequence[Document]
) -> dict[str, Variable]:
    """Return the variables of a Secret that is in the manifests; what they hold is not looked at."""
    secret = _secret(document, source, documents)
    prefix = str(document.at(*source, "prefix") or "")
    return {
        f"{prefix}{key}": Variable(
            text=None, origin=str(secret.where(section, key)), reason="it is in a secret"
        )
        for section in ("data", "stringData")
        if secret is not None
        for key in secret.mapping(section)
    }


def _hidden(document: Document, steps: ValuePath, documents: Sequence[Document]) -> str:
    """Name a Secret that becomes variables, and is in no manifest: its names may be any."""
    for number in range(len(document.mappings(*steps, "envFrom"))):
        source = (*steps, "envFrom", number)
        named = document.at(*source, "secretRef", "name")
        if named is not None and _secret(document, source, documents) is None:
            return f"Secret {named}"
    return ""


def _variable(each: dict[str, Any], origin: str, maps: Mapping[str, Document]) -> Variable:
    if "value" in each:
        return Variable(text=str(each["value"]), origin=origin)
    config = maps.get(str(get_path(each, "valueFrom", "configMapKeyRef", "name")))
    key = str(get_path(each, "valueFrom", "configMapKeyRef", "key"))
    if config is not None and key in config.mapping("data"):
        where = config.where("data", key)
        return Variable(text=str(config.at("data", key)), origin=str(where))
    way = each.get("valueFrom")
    source = next(iter(way), "") if isinstance(way, dict) else "nothing"
    return Variable(text=None, origin=origin, reason=f"its value is from {source}")


def _mounted(
    document: Document, container: ValuePath, documents: Sequence[Document]
) -> dict[str, str]:
    """Return the files of the ConfigMaps that the pod mounts."""
    maps = _config_maps(document, documents)
    volumes = document.mappings(*pod_of(container), "volumes")
    named = {str(get_path(volume, "configMap", "name")) for volume in volumes}
    mounted = [config for name, config in maps.items() if name in named]
    return {
        str(key): str(text) for config in mounted for key, text in config.mapping("data").items()
    }


def _hosts(document: Document, documents: Sequence[Document]) -> tuple[str, ...]:
    """Return the names of the Services that lead to the pod, as far as selectors tell."""
    labels = document.mapping("spec", "template", "metadata", "labels")
    found = []
    for service in documents:
        selector = service.at("spec", "selector")
        if kind_of(service) != "Service" or not isinstance(selector, dict):
            continue
        if not in_one_namespace(service, document):
            continue
        if selector and all(labels.get(key) == value for key, value in selector.items()):
            found.append(name_of(service))
    return tuple(found)
