"""The number of pods: the autoscaling maximum, and the additional ones of a rollout.

Sources: Kubernetes documentation, "Deployments" (maxSurge 25 % by default, rounded up),
"Horizontal Pod Autoscaling" (maxReplicas), "CronJob" (concurrencyPolicy Allow by default),
"Jobs" (parallelism); KEDA, "ScaledObject" (maxReplicaCount 100 by default); Argo Rollouts,
"BlueGreen", "Canary" and "Migrating to Rollouts" (workloadRef); Knative, "Configuring scale bounds"
(no bound by default); Cloud Run, "Set maximum instances" (100 by default for each revision).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from poolkit.budget.kubernetes.objects import kind_of, name_of, table, type_of
from poolkit.budget.model import Overlap, known, unknown
from poolkit.budget.read.values import whole_number
from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from poolkit.budget.kubernetes.objects import Objects
    from poolkit.budget.model import Quantity
    from poolkit.budget.read.documents import Document, ValuePath

_PERCENT = re.compile(r"(\d+)%")
_KNATIVE, _CLOUD_RUN = "autoscaling.knative.dev/", "run.googleapis.com/"


def most_pods(document: Document, objects: Objects) -> Quantity:
    """Return the most pods outside a rollout."""
    kind, where = kind_of(document), document.where("spec")
    known_type = table("pods").get(type_of(document), {})
    scalers = objects.about(document)
    # Argo's Rollout runs the pods of a Deployment in its place.
    rollout = next((each for each in scalers if each.at("spec", "workloadRef")), None)
    reason = (
        known_type.get("unknown", "")
        if known_type
        else f"the number of pods of a {kind} is unknown"
    )
    if rollout is not None:
        reason = f"{kind_of(rollout)} {name_of(rollout)} runs its pods, and their number is unknown"
        where = rollout.where("kind")
    elif kind == "CronJob" and (document.at("spec", "concurrencyPolicy") or "Allow") == "Allow":
        reason = "concurrencyPolicy is Allow, so a run that hangs adds to the next ones; set Forbid"
        where = document.where("spec", "concurrencyPolicy")
    if reason:
        return unknown(reason, where)
    if "pods" not in known_type:
        return known(1, str(where), where) if kind == "Pod" else _serverless(document)
    path: ValuePath = tuple(known_type["pods"].split("."))
    replicas = number(document, path, 1, f"1, the default of {path[-1]}")
    # An autoscaler also reduces replicas that are above its maximum. An unknown one is the most.
    maxima = [_maximum(each) for each in scalers]
    unlimited = float("inf")
    return max(
        maxima,
        key=lambda each: unlimited if each.value is None else each.value,
        default=replicas,
    )


def _maximum(scaler: Document) -> Quantity:
    """Return the most pods of an autoscaler."""
    if kind_of(scaler) == "ScaledObject":
        return number(scaler, ("spec", "maxReplicaCount"), 100, "100, KEDA's default")
    return number(scaler, ("spec", "maxReplicas"), None, f"{name_of(scaler)} has no maxReplicas")


def _serverless(document: Document) -> Quantity:
    """Return the most instances of a Knative or Cloud Run object."""
    own: ValuePath = ("metadata", "annotations")
    revision: ValuePath = ("spec", "template", "metadata", "annotations")
    if kind_of(document) == "Job":
        # All tasks run at once unless parallelism is less.
        job: ValuePath = ("spec", "template", "spec")
        tasks = number(document, (*job, "taskCount"), 1, "1, the default of taskCount")
        most = number(document, (*job, "parallelism"), tasks.value, tasks.origin)
        return most if most.value != 0 else tasks
    for path in (
        (*own, f"{_CLOUD_RUN}manualInstanceCount"),
        (*revision, f"{_KNATIVE}maxScale"),
        (*revision, f"{_KNATIVE}max-scale"),
        (*own, f"{_CLOUD_RUN}maxScale"),
    ):
        if document.at(*path) not in (None, 0, "0"):
            return number(document, path, None, "")
    is_cloud_run = any(_CLOUD_RUN in str(document.at(*path)) for path in (own, revision))
    if is_cloud_run and kind_of(document) == "Service":
        where = document.where("spec")
        return known(100, f"{where}: 100, the default of Cloud Run", where)
    reason = "it has no maximum number of instances; set autoscaling.knative.dev/max-scale"
    return unknown(reason, document.where("spec"))


def number(document: Document, path: ValuePath, default: int | None, why: str) -> Quantity:
    """Return the whole number at a path, or the default with its reason."""
    found, where = document.at(*path), document.where(*path)
    if found is None:
        return unknown(why, where) if default is None else known(default, f"{where}: {why}", where)
    try:
        return whole_number(found, str(path[-1]), str(where), where)
    except TemplateError as error:
        return unknown(str(error), where)


def overlap(document: Document) -> Overlap:
    """Return the additional pods of a rollout."""
    strategy: ValuePath = ("spec", "strategy")
    kind = type_of(document)
    if kind == "Rollout.argoproj.io":
        for path in (("blueGreen",), ("canary", "trafficRouting")):
            if document.at(*strategy, *path) is not None:
                origin = f"{document.where(*strategy, *path)} (old and new pods side by side)"
                return Overlap(kind="percent", amount=100, origin=origin)
        return surge(document, (*strategy, "canary", "maxSurge"))
    if kind.endswith(".serving.knative.dev"):
        origin = f"{document.where('spec')} (old and new revision side by side)"
        return Overlap(kind="percent", amount=100, origin=origin)
    if kind == "Deployment" and document.at(*strategy, "type") != "Recreate":
        return surge(document, (*strategy, "rollingUpdate", "maxSurge"))
    return Overlap()


def surge(document: Document, path: ValuePath) -> Overlap:
    """Return the additional pods of a rolling update."""
    found, where = document.at(*path), document.where(*path)
    text = "25%" if found is None else str(found)
    origin = f"{where} (maxSurge {text}{'' if found is not None else ', the default'})"
    if match := _PERCENT.fullmatch(text):
        return Overlap(kind="surge_percent", amount=int(match[1]), origin=origin)
    if not text.isdecimal():
        reason = f"{where}: maxSurge must be a whole number or a percentage, not {found!r}"
        return Overlap(kind="unknown", origin=origin, reason=reason)
    return Overlap(kind="count", amount=int(text), origin=origin)
