"""Kubernetes manifests as workloads: pods at the autoscaling maximum, plus those of a rollout.

Sources: Kubernetes documentation, "Deployments" (maxSurge 25 % by default, rounded up),
"Horizontal Pod Autoscaling" (maxReplicas), "CronJob" (concurrencyPolicy Allow by default),
"Jobs" (parallelism); KEDA, "ScaledObject" (maxReplicaCount 100 by default); Argo Rollouts,
"Migrating to Rollouts" (workloadRef).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

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
        BudgetError: there are several overlays, and none is called as the environment.
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
            mounted=self._mounted(path),
            hosts=self._hosts(),
        )

    # -- how many pods ----------------------------------------------------------------------

    def _pods(self) -> Quantity:
        """Return the most pods outside a rollout."""
        document, kind = self._document, kind_of(self._document)
        own = (kind, name_of(document))
        for each in self._objects:
            # Argo's Rollout runs the pods of a Deployment in its place.
            if (
                each.at("spec", "workloadRef", "kind"),
                each.at("spec", "workloadRef", "name"),
            ) == own:
                reason = (
                    f"{kind_of(each)} {name_of(each)} runs its pods, and their number is unknown"
                )
                return unknown(reason, each.where("kind"))
        spec = document.where("spec")
        if kind not in PODS:
            return unknown(f"the number of pods of a {kind} is unknown", document.where("kind"))
        if kind == "DaemonSet":
            return unknown("a DaemonSet has a pod on every node", spec)
        if kind == "Pod":
            return known(1, str(spec), spec)
        if kind in ("Job", "CronJob"):
            return self._job_pods()
        replicas = _number(document, ("spec", "replicas"), 1, "1, the default of replicas")
        maxima = [
            _maximum(each)
            for each in self._of_kind("HorizontalPodAutoscaler", "ScaledObject")
            for target in (each.mapping("spec", "scaleTargetRef"),)
            if (target.get("kind", "Deployment"), target.get("name")) == own
        ]
        # An autoscaler also reduces replicas that are above its maximum. An unknown one is the most.
        return max(
            maxima,
            key=lambda each: float("inf") if each.value is None else each.value,
            default=replicas,
        )

    def _job_pods(self) -> Quantity:
        document = self._document
        if kind_of(document) == "Job":
            path: ValuePath = ("spec", "parallelism")
        elif (document.at("spec", "concurrencyPolicy") or "Allow") == "Allow":
            return unknown(
                "concurrencyPolicy is Allow, so a run that hangs adds to the next ones; set Forbid",
                document.where("spec", "concurrencyPolicy"),
            )
        else:
            path = ("spec", "jobTemplate", "spec", "parallelism")
        return _number(document, path, 1, "1, the default of parallelism")

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
        found: dict[str, Variable] = {}
        unread = hidden = ""
        for number, source in enumerate(document.mappings(*path, "envFrom")):
            prefix = str(source.get("prefix") or "")
            secret_name = document.at(*path, "envFrom", number, "secretRef", "name")
            if secret_name is not None:
                secrets = self._of_kind("Secret")
                secret = next((each for each in secrets if name_of(each) == secret_name), None)
                if secret is None:
                    hidden = hidden or f"Secret {secret_name}"
                else:
                    found |= _of_secret(secret, prefix)
            named = document.at(*path, "envFrom", number, "configMapRef", "name")
            if not isinstance(named, str):
                continue
            config = self._config_maps.get(named)
            if config is None:
                unread = f"ConfigMap {named} is not in the manifests, or more than once"
                continue
            for key, value in config.mapping("data").items():
                origin = str(config.where("data", key))
                found[f"{prefix}{key}"] = Variable(text=str(value), origin=origin)
        for number, each in enumerate(document.mappings(*path, "env")):
            where = str(document.where(*path, "env", number))
            found[str(each.get("name"))] = self._variable(each, where)
        return found, unread, hidden

    def _variable(self, each: dict[str, Any], origin: str) -> Variable:
        if "value" in each:
            return Variable(text=str(each["value"]), origin=origin)
        config = self._config_maps.get(str(get_path(each, "valueFrom", "configMapKeyRef", "name")))
        key = str(get_path(each, "valueFrom", "configMapKeyRef", "key"))
        if config is not None and key in config.mapping("data"):
            where = str(config.where("data", key))
            return Variable(text=str(config.at("data", key)), origin=where)
        source = each.get("valueFrom")
        shown = next(iter(source), "") if isinstance(source, dict) else "nothing"
        return Variable(text=None, origin=origin, reason=f"its value is from {shown}")

    def _mounted(self, container: ValuePath) -> dict[str, str]:
        """Return the files of the ConfigMaps that the pod mounts."""
        pod = container[:-2] if isinstance(container[-1], int) else container[:-1]
        volumes = self._document.mappings(*pod, "volumes")
        named = {str(get_path(volume, "configMap", "name")) for volume in volumes}
        return {
            str(key): str(text)
            for name, config in self._config_maps.items()
            if name in named
            for key, text in config.mapping("data").items()
        }

    def _hosts(self) -> tuple[str, ...]:
        """Return the names of the Services whose selectors match the pod's labels."""
        labels = self._document.mapping("spec", "template", "metadata", "labels")
        found = []
        for service in self._of_kind("Service"):
            selector = service.at("spec", "selector")
            wanted = selector.items() if isinstance(selector, dict) else ()
            if wanted and all(labels.get(key) == value for key, value in wanted):
                found.append(name_of(service))
        return tuple(found)


def _of_secret(secret: Document, prefix: str) -> dict[str, Variable]:
    """Return the variables of a Secret in the manifests; their values are not looked at."""
    return {
        f"{prefix}{key}": Variable(
            text=None, origin=str(secret.where(section, key)), reason="it is in a secret"
        )
        for section in ("data", "stringData")
        for key in secret.mapping(section)
    }


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
