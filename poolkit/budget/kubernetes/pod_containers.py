"""Which containers a Kubernetes object runs, and which objects stand in one namespace.

Sources: Kubernetes documentation, "Sidecar Containers" (an init container with restartPolicy
Always runs beside the others), "Owners and Dependents".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.budget.read.documents import Document, ValuePath

_TEMPLATE: ValuePath = ("spec", "template", "spec")
_CONTROLLERS = (
    *("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController"),
    "Job",
)
PODS: dict[str, ValuePath] = {
    **dict.fromkeys(_CONTROLLERS, _TEMPLATE),
    "CronJob": ("spec", "jobTemplate", "spec", "template", "spec"),
    "Pod": ("spec",),
}
"""The kinds that are known, and where each has its pod."""


def kind_of(document: Document) -> str:
    """Return an object's kind."""
    return str(document.data.get("kind"))


def name_of(document: Document) -> str:
    """Return an object's name, its kind if it has none."""
    return str(document.at("metadata", "name") or kind_of(document))


def in_one_namespace(one: Document, other: Document) -> bool:
    """Tell whether two objects can be in one namespace: one that names none goes where it is put."""
    namespaces = {str(each.at("metadata", "namespace") or "") for each in (one, other)} - {""}
    return len(namespaces) < 2


def has_pods(document: Document) -> bool:
    """Tell whether an object runs containers."""
    return kind_of(document) in PODS or any(True for _ in _anywhere(document.data, ()))


def containers(document: Document) -> list[ValuePath]:
    """Return the way to each container of an object; to none if it runs none.

    Kinds that nobody here knows may have pods too, anywhere: Argo's Rollout and Workflow,
    Knative's Service, KEDA's ScaledJob.

    Raises:
        TemplateError: a kind that is known has no containers, or something else in their place.
    """
    pod = PODS.get(kind_of(document))
    if pod is None:
        return list(_anywhere(document.data, ()))
    if not document.items(*pod, "containers"):
        raise TemplateError(f"{document.where('spec')}: {name_of(document)} has no containers")
    return [
        (*pod, key, number)
        for key in ("containers", "initContainers")
        for number in range(len(document.mappings(*pod, key)))
    ]


def runs_before(document: Document, container: ValuePath) -> bool:
    """Tell whether a container ends before the others of its pod start."""
    if "initContainers" not in container[-2:]:
        return False
    return bool(document.at(*container, "restartPolicy") != "Always")


def pod_of(container: ValuePath) -> ValuePath:
    """Return the way to the pod of a container."""
    return container[:-2] if isinstance(container[-1], int) else container[:-1]


def is_part_of_another(document: Document, documents: Sequence[Document]) -> bool:
    """Tell whether another of the objects has made this one, as a Deployment its ReplicaSets."""
    owners = {
        (str(owner.get("kind")), str(owner.get("name")))
        for owner in document.mappings("metadata", "ownerReferences")
    }
    return any(
        (kind_of(each), name_of(each)) in owners and in_one_namespace(each, document)
        for each in documents
    )


def _anywhere(found: Any, steps: ValuePath) -> Iterator[ValuePath]:
    """Find lists of containers, and single ones as Argo's Workflow has them."""
    if isinstance(found, list):
        for number, each in enumerate(found):
            yield from _anywhere(each, (*steps, number))
    if not isinstance(found, dict):
        return
    for key, value in found.items():
        if key in ("containers", "initContainers") and _are_containers(value):
            yield from ((*steps, key, number) for number in range(len(value)))
        elif key in ("container", "script") and _are_containers([value]):
            yield (*steps, key)
        elif steps or key != "status":
            yield from _anywhere(value, (*steps, key))


def _are_containers(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(each, dict) and "image" in each for each in found
    )
