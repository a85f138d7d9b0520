"""Kubernetes manifests: pods at the autoscaling maximum, and old and new ones in a rollout.

Sources: Kubernetes documentation, "Deployments" (maxSurge 25 % by default, rounded up),
"Horizontal Pod Autoscaling" (maxReplicas), "CronJob" (concurrencyPolicy Allow by default),
"Jobs" (parallelism); KEDA, "ScaledObject" (maxReplicaCount 100 by default).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from poolkit.budget.model import Overlap, Variable, Workload
from poolkit.budget.quantity import Quantity, known, unknown
from poolkit.budget.stacks import dig, whole
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poolkit.budget.located import Document, Steps

_TEMPLATE: Steps = ("spec", "template", "spec")
_PODS: dict[str, Steps] = {
    **dict.fromkeys(("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"), _TEMPLATE),
    "CronJob": ("spec", "jobTemplate", "spec", "template", "spec"),
    "Pod": ("spec",),
}
_PERCENT = re.compile(r"(\d+)%")


def kubernetes_workloads(documents: Sequence[Document]) -> Iterator[Workload]:
    """Give every container of every pod.

    Raises:
        TemplateError: a number is negative or none.
    """
    for document in documents:
        if not has_pods(document):
            continue
        containers = document.mappings(*_pod(document), "containers")
        if not containers:
            raise TemplateError(f"{document.where('spec')}: {_name(document)} has no containers")
        for number in range(len(containers)):
            yield _container(document, number, len(containers), documents)


def _kind(document: Document) -> str:
    return str(document.data.get("kind"))


def has_pods(document: Document) -> bool:
    """Tell whether pods are made of it.

    Kinds that nobody here knows may have a pod's template too: Argo's Rollout, Knative's Service.
    """
    return _kind(document) in _PODS or document.at(*_TEMPLATE, "containers") is not None


def _pod(document: Document) -> Steps:
    return _PODS.get(_kind(document), _TEMPLATE)


def _name(document: Document) -> str:
    return str(document.at("metadata", "name") or _kind(document))


def _container(
    document: Document, number: int, count: int, documents: Sequence[Document]
) -> Workload:
    kind, name = _kind(document), _name(document)
    steps = (*_pod(document), "containers", number)
    container = document.mapping(*steps)
    variables, unread = _variables(document, steps, documents)
    return Workload(
        name=name if count == 1 else f"{name}/{container.get('name') or number}",
        platform=kind,
        where=document.where("spec"),
        instances=_pods(document, documents),
        overlap=_overlap(document),
        variables=variables,
        image=str(container.get("image") or ""),
        command=_command(document, steps),
        command_origin=str(document.where(*steps, "args" if "args" in container else "command")),
        unread_variables=unread,
        mounted=_mounted(document, documents),
        hosts=_hosts(document, documents),
    )


def _command(document: Document, steps: Steps) -> tuple[str, ...] | None:
    words = [*document.items(*steps, "command"), *document.items(*steps, "args")]
    # Kubernetes writes a variable $(NAME).
    return tuple(re.sub(r"\$\((\w+)\)", r"${\1}", str(word)) for word in words) or None


# -- how many pods --------------------------------------------------------------------------


def _pods(document: Document, documents: Sequence[Document]) -> Quantity:
    kind = _kind(document)
    if kind not in _PODS:
        return unknown(f"how many pods a {kind} has is not known here", document.where("kind"))
    if kind == "DaemonSet":
        return unknown("a DaemonSet has a pod on every node", document.where("spec"))
    if kind in ("Job", "CronJob"):
        return _job_pods(document)
    if kind == "Pod":
        return known(1, str(document.where("spec")), document.where("spec"))
    replicas = _number(document, ("spec", "replicas"), 1, "no replicas given: 1")
    scaled = _scaled(document, documents)
    if scaled is None:
        return replicas
    known_more = replicas.value is not None and scaled.value is not None
    # The autoscaler brings what is above its maximum down to it.
    return scaled if known_more or scaled.value is None else replicas


def _scaled(document: Document, documents: Sequence[Document]) -> Quantity | None:
    for scaler in documents:
        kind = _kind(scaler)
        if kind not in ("HorizontalPodAutoscaler", "ScaledObject"):
            continue
        target = scaler.mapping("spec", "scaleTargetRef")
        same = target.get("name") == _name(document)
        if not same or target.get("kind", "Deployment") != _kind(document):
            continue
        if kind == "HorizontalPodAutoscaler":
            steps: Steps = ("spec", "maxReplicas")
            if scaler.at(*steps) is None:
                raise TemplateError(f"{scaler.where('spec')}: {_name(scaler)} has no maxReplicas")
            return _number(scaler, steps, 0, "")
        return _number(scaler, ("spec", "maxReplicaCount"), 100, "KEDA's default of 100")
    return None


def _job_pods(document: Document) -> Quantity:
    before = ("spec", "jobTemplate") if _kind(document) == "CronJob" else ()
    parallel = _number(document, (*before, "spec", "parallelism"), 1, "no parallelism given: 1")
    policy = document.at("spec", "concurrencyPolicy") or "Allow"
    if _kind(document) == "CronJob" and policy == "Allow":
        return unknown(
            "concurrencyPolicy is Allow, so a run that hangs and the next ones add up; set Forbid",
            document.where("spec", "concurrencyPolicy"),
        )
    return parallel


def _number(document: Document, steps: Steps, default: int, why: str) -> Quantity:
    found, where = document.at(*steps), document.where(*steps)
    if found is None:
        return known(default, f"{where}: {why}", where)
    return whole(found, str(steps[-1]), str(where), where)


def _overlap(document: Document) -> Overlap:
    if _kind(document) != "Deployment":
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


def _config_maps(documents: Sequence[Document]) -> dict[str, Document]:
    return {_name(each): each for each in documents if _kind(each) == "ConfigMap"}


def _variables(
    document: Document, steps: Steps, documents: Sequence[Document]
) -> tuple[Mapping[str, Variable], str]:
    maps = _config_maps(documents)
    found: dict[str, Variable] = {}
    unread = ""
    for number, source in enumerate(document.mappings(*steps, "envFrom")):
        named = document.at(*steps, "envFrom", number, "configMapRef", "name")
        if not isinstance(named, str):
            continue  # a Secret: its names are in nobody's manifest
        if named not in maps:
            unread = f"ConfigMap {named} is not in the manifests"
            continue
        for key, value in maps[named].mapping("data").items():
            origin = str(maps[named].where("data", key))
            found[f"{source.get('prefix', '')}{key}"] = Variable(text=str(value), origin=origin)
    for number, each in enumerate(document.mappings(*steps, "env")):
        where = str(document.where(*steps, "env", number))
        found[str(each.get("name"))] = _variable(each, where, maps)
    return found, unread


def _variable(each: dict[str, Any], origin: str, maps: Mapping[str, Document]) -> Variable:
    if "value" in each:
        return Variable(text=str(each["value"]), origin=origin)
    config = maps.get(str(dig(each, "valueFrom", "configMapKeyRef", "name")))
    key = str(dig(each, "valueFrom", "configMapKeyRef", "key"))
    if config is not None and key in config.mapping("data"):
        where = config.where("data", key)
        return Variable(text=str(config.at("data", key)), origin=str(where))
    way = each.get("valueFrom")
    source = next(iter(way), "") if isinstance(way, dict) else "nothing"
    return Variable(text=None, origin=origin, reason=f"its value is from {source}")


def _mounted(document: Document, documents: Sequence[Document]) -> dict[str, str]:
    """Return the files of the ConfigMaps that the pod mounts."""
    maps = _config_maps(documents)
    volumes = document.mappings(*_pod(document), "volumes")
    named = {str(dig(volume, "configMap", "name")) for volume in volumes}
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
        if _kind(service) != "Service" or not isinstance(selector, dict):
            continue
        if selector and all(labels.get(key) == value for key, value in selector.items()):
            found.append(_name(service))
    return tuple(found)
