"""Kubernetes manifests as workloads: pods at the autoscaling maximum, plus those of a rollout.

Sources: Kubernetes documentation, "Deployments" (maxSurge 25 % by default, rounded up),
"Horizontal Pod Autoscaling" (maxReplicas), "CronJob" (concurrencyPolicy Allow by default),
"Jobs" (parallelism); KEDA, "ScaledObject" (maxReplicaCount 100 by default); Argo Rollouts,
"Migrating to Rollouts" (workloadRef).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from poolkit.budget.kubernetes.kustomize import rendered, unread_parts
from poolkit.budget.kubernetes.objects import (
    PODS,
    can_share_namespace,
    containers,
    is_owned,
    kind_of,
    name_of,
    runs_before,
)
from poolkit.budget.model import Description, Overlap, Variable, Workload, known, unknown
from poolkit.budget.read.values import get_path, whole_number
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.budget.model import Quantity
    from poolkit.budget.read.documents import Document, ValuePath

_PERCENT = re.compile(r"(\d+)%")


def describe_manifests(documents: Sequence[Document], environment: str) -> Description:
    """Return every container of every pod as a workload, after Kustomize.

    Raises:
        BudgetError: there are several overlays, and none has the environment's name.
        TemplateError: a manifest is wrong; the message names the line.
    """
    objects = rendered(documents, environment)
    workloads: list[Workload] = []
    for document in objects:
        found = containers(document)
        if not found or is_owned(document, objects):
            continue
        pod = _Pod(document, objects)
        alone = len([each for each in found if not runs_before(document, each)]) == 1
        workloads += [pod.workload(path, alone=alone) for path in found]
    unread = tuple(unread_parts(documents, environment))
    return Description(workloads=tuple(workloads), unread=unread)


class _Pod:
    """An object with a pod, and the other objects that it can name."""

    def __init__(self, document: Document, objects: Sequence[Document]) -> None:
        self._document = document
        self._objects = [each for each in objects if can_share_namespace(each, document)]
        self._config_maps: dict[str, Document] = {}
        ambiguous = set()
        for each in self._of_kind("ConfigMap"):
            first = self._config_maps.setdefault(name_of(each), each)
            if first.at("data") != each.at("data"):
                ambiguous.add(name_of(each))
        for name in ambiguous:
            del self._config_maps[name]

    def _of_kind(self, *kinds: str) -> Iterator[Document]:
        return (each for each in self._objects if kind_of(each) in kinds)

    def workload(self, path: ValuePath, *, alone: bool) -> Workload:
        """Return a container; `alone` says that it is the only one that keeps running."""
        document = self._document
        container = document.mapping(*path)
        before = runs_before(document, path)
        inner = f"{name_of(document)}/{container.get('name') or path[-1]}"
        variables, unread, hidden = self._variables(path)
        words = [*document.items(*path, "command"), *document.items(*path, "args")]
        # Kubernetes writes a variable $(NAME).
        command = tuple(re.sub(r"\$\((\w+)\)", r"${\1}", str(word)) for word in words)
        pod = path[:-2] if isinstance(path[-1], int) else path[:-1]
        volumes = document.mappings(*pod, "volumes")
        volume_maps = {str(get_path(volume, "configMap", "name")) for volume in volumes}
        labels = document.mapping("spec", "template", "metadata", "labels")
        return Workload(
            name=name_of(document) if alone and not before else inner,
            platform="init container" if before else kind_of(document),
            unit="init container" if before else "pod",
            where=document.where("spec"),
            instances=self._pods(),
            overlap=self._overlap(),
            variables=variables,
            image=str(container.get("image") or ""),
            command=command or None,
            command_origin=str(document.where(*path, "args" if "args" in container else "command")),
            unread_variables=unread,
            hidden_variables=hidden,
            mounted={
                str(key): str(text)
                for name, config in self._config_maps.items()
                if name in volume_maps
                for key, text in config.mapping("data").items()
            },
            hosts=tuple(
                name_of(service)
                for service in self._of_kind("Service")
                for selector in (service.at("spec", "selector"),)
                if isinstance(selector, dict)
                and selector
                and all(labels.get(key) == value for key, value in selector.items())
            ),
        )

    # -- how many pods ----------------------------------------------------------------------

    def _pods(self) -> Quantity:
        """Return the most pods outside a rollout."""
        document, kind = self._document, kind_of(self._document)
        own, where, reason = (kind, name_of(document)), document.where("spec"), ""
        policy = document.at("spec", "concurrencyPolicy") or "Allow"
        # Argo's Rollout runs the pods of a Deployment in its place.
        rollouts = [
            each
            for each in self._objects
            if tuple(each.at("spec", "workloadRef", key) for key in ("kind", "name")) == own
        ]
        if rollouts:
            other = rollouts[0]
            reason = f"{kind_of(other)} {name_of(other)} runs its pods, and their number is unknown"
            where = other.where("kind")
        elif kind not in PODS:
            reason, where = f"the number of pods of a {kind} is unknown", document.where("kind")
        elif kind == "DaemonSet":
            reason = "a DaemonSet has a pod on every node"
        elif kind == "CronJob" and policy == "Allow":
            reason = (
                "concurrencyPolicy is Allow, so a run that hangs adds to the next ones; set Forbid"
            )
            where = document.where("spec", "concurrencyPolicy")
        if reason:
            return unknown(reason, where)
        if kind == "Pod":
            return known(1, str(where), where)
        if kind in ("Job", "CronJob"):
            path: ValuePath = ("spec", "jobTemplate", "spec") if kind == "CronJob" else ("spec",)
            return _number(document, (*path, "parallelism"), 1, "1, the default of parallelism")
        replicas = _number(document, ("spec", "replicas"), 1, "1, the default of replicas")
        maxima = [
            _maximum(each)
            for each in self._of_kind("HorizontalPodAutoscaler", "ScaledObject")
            for target in (each.mapping("spec", "scaleTargetRef"),)
            if (target.get("kind", "Deployment"), target.get("name")) == own
        ]
        # An autoscaler also reduces replicas that are above its maximum. An unknown one is the most.
        unlimited = float("inf")
        return max(
            maxima,
            key=lambda each: unlimited if each.value is None else each.value,
            default=replicas,
        )

    def _overlap(self) -> Overlap:
        document = self._document
        is_recreated = document.mapping("spec", "strategy").get("type") == "Recreate"
        if kind_of(document) != "Deployment" or is_recreated:
            return Overlap()
        path = ("spec", "strategy", "rollingUpdate", "maxSurge")
        found, where = document.at(*path), document.where(*path)
        text = "25%" if found is None else str(found)
        origin = f"{where} (maxSurge {text}{'' if found is not None else ', the default'})"
        if match := _PERCENT.fullmatch(text):
            return Overlap(kind="surge_percent", amount=int(match[1]), origin=origin)
        if not text.isdecimal():
            raise TemplateError(
                f"{where}: maxSurge must be a whole number or a percentage, not {found!r}"
            )
        return Overlap(kind="count", amount=int(text), origin=origin)

    # -- variables --------------------------------------------------------------------------

    def _variables(self, path: ValuePath) -> tuple[dict[str, Variable], str, str]:
        """Return the variables, which ConfigMap is not read, and which Secret is not."""
        document = self._document
        secrets = {name_of(each): each for each in reversed(list(self._of_kind("Secret")))}
        found: dict[str, Variable] = {}
        unread = hidden = ""
        for number, source in enumerate(document.mappings(*path, "envFrom")):
            prefix = str(source.get("prefix") or "")
            named = document.at(*path, "envFrom", number, "secretRef", "name")
            secret = secrets.get(str(named))
            if secret is not None:
                keys = [("data", key) for key in secret.mapping("data")]
                keys += [("stringData", key) for key in secret.mapping("stringData")]
                for section, key in keys:
                    # The values are not read.
                    where = str(secret.where(section, key))
                    variable = Variable(text=None, origin=where, reason="it is in a secret")
                    found[f"{prefix}{key}"] = variable
            elif named is not None:
                hidden = hidden or f"Secret {named}"
            named = document.at(*path, "envFrom", number, "configMapRef", "name")
            config = self._config_maps.get(str(named))
            if config is not None:
                found |= {
                    f"{prefix}{key}": Variable(
                        text=str(value), origin=str(config.where("data", key))
                    )
                    for key, value in config.mapping("data").items()
                }
            elif named is not None:
                unread = f"ConfigMap {named} is not in the manifests, or more than once"
        for number, each in enumerate(document.mappings(*path, "env")):
            # A text, or a key of a ConfigMap or Secret.
            origin, value_from = str(document.where(*path, "env", number)), each.get("valueFrom")
            config = self._config_maps.get(str(get_path(value_from, "configMapKeyRef", "name")))
            key = str(get_path(value_from, "configMapKeyRef", "key"))
            if "value" in each:
                variable = Variable(text=str(each["value"]), origin=origin)
            elif config is not None and key in config.mapping("data"):
                origin = str(config.where("data", key))
                variable = Variable(text=str(config.at("data", key)), origin=origin)
            else:
                kind = next(iter(value_from), "") if isinstance(value_from, dict) else "nothing"
                reason = f"its value is from {kind}"
                variable = Variable(text=None, origin=origin, reason=reason)
            found[str(each.get("name"))] = variable
        return found, unread, hidden


def _maximum(scaler: Document) -> Quantity:
    """Return the most pods of an autoscaler."""
    if kind_of(scaler) == "ScaledObject":
        return _number(scaler, ("spec", "maxReplicaCount"), 100, "100, KEDA's default")
    path: ValuePath = ("spec", "maxReplicas")
    if scaler.at(*path) is None:
        raise TemplateError(f"{scaler.where('spec')}: {name_of(scaler)} has no maxReplicas")
    return _number(scaler, path, 0, "")


def _number(document: Document, path: ValuePath, default: int, why: str) -> Quantity:
    found, where = document.at(*path), document.where(*path)
    if found is None:
        return known(default, f"{where}: {why}", where)
    return whole_number(found, str(path[-1]), str(where), where)
