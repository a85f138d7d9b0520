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

from poolkit.budget.kubernetes.objects import fields, kinds
from poolkit.budget.model import Overlap, known, unknown
from poolkit.budget.read.values import whole_number

if TYPE_CHECKING:
    from poolkit.budget.kubernetes.objects import Manifest
    from poolkit.budget.model import Quantity

_PERCENT = re.compile(r"(\d+)%")


def most_pods(manifest: Manifest, scalers: list[Manifest]) -> Quantity:
    """Return the most pods outside a rollout."""
    known_type = kinds("pods").get(manifest.type, {})
    where = manifest.where("spec")
    reason = known_type.get("unknown") or f"the number of pods of a {manifest.kind} is unknown"
    # Argo's Rollout runs the pods of a Deployment in its place.
    rollout = next((each for each in scalers if each.at("spec", "workloadRef")), None)
    is_open = (manifest.at("spec", "concurrencyPolicy") or "Allow") == "Allow"
    if rollout is not None:
        reason = f"{rollout.kind} {rollout.name} runs its pods, and their number is unknown"
        return unknown(reason, rollout.where("kind"))
    if manifest.kind == "CronJob" and is_open:
        reason = "concurrencyPolicy is Allow, so a run that hangs adds to the next ones; set Forbid"
        return unknown(reason, manifest.where("spec", "concurrencyPolicy"))
    if "unknown" in known_type or not known_type:
        return unknown(reason, where)
    # An autoscaler also reduces replicas that are above its maximum. An unknown one is the most.
    maxima = [
        number(each, "spec.maxReplicaCount", 100, "KEDA's default")
        if each.kind == "ScaledObject"
        else number(each, "spec.maxReplicas", None, f"{each.name} has no maxReplicas")
        for each in scalers
    ]
    if maxima:
        return max(maxima, key=lambda each: float("inf") if each.value is None else each.value)
    if "pods" in known_type:
        path = known_type["pods"]
        return number(manifest, path, 1, f"the default of {path.rpartition('.')[2]}")
    return known(1, str(where), where) if manifest.kind == "Pod" else _serverless(manifest)


def _serverless(manifest: Manifest) -> Quantity:
    """Return the most instances of a Knative or Cloud Run object."""
    if manifest.kind == "Job":
        # All tasks run at once unless parallelism is less.
        tasks = number(manifest, "spec.template.spec.taskCount", 1, "the default of taskCount")
        most = number(manifest, "spec.template.spec.parallelism", 0, "")
        return most if most.value != 0 else tasks
    own = manifest.at("metadata", "annotations")
    revision = manifest.at("spec", "template", "metadata", "annotations")
    where = manifest.where("spec")
    for name in kinds("serverless")["limits"]:
        for found in (own, revision):
            if fields(found).get(name) not in (None, 0, "0"):
                return whole_number(found[name], name, f"{where} ({name})", where)
    if manifest.kind == "Service" and "run.googleapis.com/" in f"{own} {revision}":
        return known(100, f"{where}: the default of Cloud Run", where)
    reason = "it has no maximum number of instances; set autoscaling.knative.dev/max-scale"
    return unknown(reason, where)


def number(manifest: Manifest, dotted: str, default: int | None, why: str) -> Quantity:
    """Return the whole number at a path, or the default with its reason."""
    path = dotted.split(".")
    found, where = manifest.at(*path), manifest.where(*path)
    if found is not None:
        return whole_number(found, path[-1], str(where), where)
    return (
        unknown(why, where)
        if default is None
        else known(default, f"{where}: {default}, {why}", where)
    )


def overlap(manifest: Manifest) -> Overlap:
    """Return the additional pods of a rollout."""
    strategy = manifest.at("spec", "strategy")
    is_canary = manifest.at("spec", "strategy", "canary") is not None
    if manifest.type.endswith(".serving.knative.dev") or (
        manifest.type == "Rollout.argoproj.io"
        and (not is_canary or manifest.at("spec", "strategy", "canary", "trafficRouting"))
    ):
        origin = f"{manifest.where('spec', 'strategy')} (old and new pods side by side)"
        return Overlap(kind="percent", amount=100, origin=origin)
    if is_canary:
        return surge(manifest, "spec.strategy.canary.maxSurge")
    if manifest.type == "Deployment" and "Recreate" not in str(strategy):
        return surge(manifest, "spec.strategy.rollingUpdate.maxSurge")
    return Overlap()


def surge(manifest: Manifest, dotted: str) -> Overlap:
    """Return the additional pods of a rolling update."""
    found, where = manifest.at(*dotted.split(".")), manifest.where(*dotted.split("."))
    text = "25%" if found is None else str(found)
    origin = f"{where} (maxSurge {text}{'' if found is not None else ', the default'})"
    if match := _PERCENT.fullmatch(text):
        return Overlap(kind="surge_percent", amount=int(match[1]), origin=origin)
    if text.isdecimal():
        return Overlap(kind="count", amount=int(text), origin=origin)
    reason = f"{where}: maxSurge must be a whole number or a percentage, not {found!r}"
    return Overlap(kind="unknown", origin=origin, reason=reason)
