"""Kubernetes manifests: pods at the autoscaling maximum, and old and new ones in a rollout.

Sources: Kubernetes documentation, "Deployments" (maxSurge 25 % by default, rounded up),
"Horizontal Pod Autoscaling" (maxReplicas), "CronJob" (concurrencyPolicy Allow by default),
"Jobs" (parallelism); KEDA, "ScaledObject" (maxReplicaCount 100 by default).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeAlias

from poolkit.budget.model import Overlap, Variable, Workload
from poolkit.budget.quantity import Quantity, known, unknown
from poolkit.budget.stacks import dig, whole
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poolkit.budget.located import Document, Steps

Name: TypeAlias = tuple[str, str]

_PODS: dict[str, Steps] = {
    "Deployment": ("spec", "template", "spec"),
    "StatefulSet": ("spec", "template", "spec"),
    "DaemonSet": ("spec", "template", "spec"),
    "ReplicaSet": ("spec", "template", "spec"),
    "Job": ("spec", "template", "spec"),
    "CronJob": ("spec", "jobTemplate", "spec", "template", "spec"),
    "Pod": ("spec",),
}
_PERCENT = re.compile(r"(\d+)%")


def kubernetes_workloads(documents: Sequence[Document]) -> Iterator[Workload]:
    """Give every container of every pod.

    Raises:
        TemplateError: a number is negative or none.
    """
    manifests = [document for document in documents if document.data.get("kind") in _PODS]
    for document in manifests:
        pod = dig(document.data, *_PODS[document.data["kind"]])
        containers = dig(pod, "containers")
        if not isinstance(containers, list):
            raise TemplateError(f"{document.where('spec')}: {_name(document)} has no containers")
        for number in range(len(containers)):
            yield _container(document, number, len(containers), documents)


def _name(document: Document) -> str:
    return str(dig(document.data, "metadata", "name") or document.data.get("kind"))


def _container(
    document: Document, number: int, count: int, documents: Sequence[Document]
) -> Workload:
    kind, name = document.data["kind"], _name(document)
    steps = (*_PODS[kind], "containers", number)
    container = dig(document.data, *steps)
    variables, unread = _variables(document, steps, documents)
    return Workload(
        name=name if count == 1 else f"{name}/{dig(container, 'name') or number}",
        platform=kind,
        where=document.where("spec"),
        instances=_pods(document, documents),
        overlap=_overlap(document),
        variables=variables,
        image=str(dig(container, "image") or ""),
        command=_command(container),
        command_origin=str(document.where(*steps, "args" if dig(container, "args") else "command")),
        unread_variables=unread,
        mounted=_mounted(document, documents),
        hosts=_hosts(document, documents),
    )


def _command(container: Any) -> tuple[str, ...] | None:
    words = [*(dig(container, "command") or []), *(dig(container, "args") or [])]
    # Kubernetes writes a variable $(NAME).
    return tuple(re.sub(r"\$\((\w+)\)", r"${\1}", str(word)) for word in words) or None


# -- how many pods --------------------------------------------------------------------------


def _pods(document: Document, documents: Sequence[Document]) -> Quantity:
    kind = document.data["kind"]
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
        kind = scaler.data.get("kind")
        target = dig(scaler.data, "spec", "scaleTargetRef") or {}
        same = target.get("name") == _name(document)
        if not same or target.get("kind", "Deployment") != document.data["kind"]:
            continue
        if kind == "HorizontalPodAutoscaler":
            steps: Steps = ("spec", "maxReplicas")
            if dig(scaler.data, *steps) is None:
                raise TemplateError(f"{scaler.where('spec')}: {_name(scaler)} has no maxReplicas")
            return _number(scaler, steps, 0, "")
        if kind == "ScaledObject":
            return _number(scaler, ("spec", "maxReplicaCount"), 100, "KEDA's default of 100")
    return None


def _job_pods(document: Document) -> Quantity:
    before = ("spec", "jobTemplate") if document.data["kind"] == "CronJob" else ()
    parallel = _number(document, (*before, "spec", "parallelism"), 1, "no parallelism given: 1")
    policy = dig(document.data, "spec", "concurrencyPolicy") or "Allow"
    if document.data["kind"] == "CronJob" and policy == "Allow":
        return unknown(
            "concurrencyPolicy is Allow, so a run that hangs and the next ones add up; set Forbid",
            document.where("spec", "concurrencyPolicy"),
        )
    return parallel


def _number(document: Document, steps: Steps, default: int, why: str) -> Quantity:
    found, where = dig(document.data, *steps), document.where(*steps)
    if found is None:
        return known(default, f"{where}: {why}", where)
    return whole(found, str(steps[-1]), str(where), where)


def _overlap(document: Document) -> Overlap:
    if document.data["kind"] != "Deployment":
        return Overlap()
    strategy = dig(document.data, "spec", "strategy") or {}
    if strategy.get("type") == "Recreate":
        return Overlap()
    steps = ("spec", "strategy", "rollingUpdate", "maxSurge")
    found, where = dig(document.data, *steps), document.where(*steps)
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
    return {_name(each): each for each in documents if each.data.get("kind") == "ConfigMap"}


def _variables(
    document: Document, steps: Steps, documents: Sequence[Document]
) -> tuple[Mapping[str, Variable], str]:
    maps = _config_maps(documents)
    found: dict[str, Variable] = {}
    unread = ""
    for source in dig(document.data, *steps, "envFrom") or []:
        prefix = source.get("prefix", "")
        named = dig(source, "configMapRef", "name")
        if named is None:
            continue  # a Secret: its names are in nobody's manifest
        if named not in maps:
            unread = f"ConfigMap {named} is not in the manifests"
            continue
        for key, value in (maps[named].data.get("data") or {}).items():
            origin = str(maps[named].where("data", key))
            found[prefix + key] = Variable(text=str(value), origin=origin)
    for number, each in enumerate(dig(document.data, *steps, "env") or []):
        where = str(document.where(*steps, "env", number))
        found[str(each.get("name"))] = _variable(each, where, maps)
    return found, unread


def _variable(each: dict[str, Any], origin: str, maps: Mapping[str, Document]) -> Variable:
    if "value" in each:
        return Variable(text=str(each["value"]), origin=origin)
    key = dig(each, "valueFrom", "configMapKeyRef") or {}
    config = maps.get(str(key.get("name")))
    if config is not None and key.get("key") in (config.data.get("data") or {}):
        where = config.where("data", key["key"])
        return Variable(text=str(config.data["data"][key["key"]]), origin=str(where))
    source = next(iter(each.get("valueFrom") or {"nothing": None}))
    return Variable(text=None, origin=origin, reason=f"its value is from {source}")


def _mounted(document: Document, documents: Sequence[Document]) -> dict[str, str]:
    """Return the files of the ConfigMaps that the pod mounts."""
    maps = _config_maps(documents)
    volumes = dig(document.data, *_PODS[document.data["kind"]], "volumes") or []
    named = [dig(volume, "configMap", "name") for volume in volumes]
    return {
        key: str(text)
        for name in named
        if name in maps
        for key, text in (maps[name].data.get("data") or {}).items()
    }


def _hosts(document: Document, documents: Sequence[Document]) -> tuple[str, ...]:
    """Return the names of the Services that lead to the pod, as far as selectors tell."""
    labels = dig(document.data, "spec", "template", "metadata", "labels") or {}
    found = []
    for service in documents:
        selector = dig(service.data, "spec", "selector")
        if service.data.get("kind") != "Service" or not isinstance(selector, dict):
            continue
        if selector and all(labels.get(key) == value for key, value in selector.items()):
            found.append(_name(service))
    return tuple(found)
