"""Kubernetes objects: the items of a list, names and namespaces, and the containers in them.

A List, as `kubectl get -o yaml` writes it, is its items. Sources: Kubernetes documentation,
"Sidecar Containers" (an init container with restartPolicy Always runs beside the others),
"Owners and Dependents".
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from poolkit.errors import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from poolkit.budget.model import SourceLocation
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
"""The known kinds, and the path to the pod of each."""


def objects(document: Document) -> Iterator[Document]:
    """Return the items of a List, and of lists within it; any other document unchanged.

    Raises:
        TemplateError: the items are no list of mappings.
    """
    kind = str(document.at("kind"))
    if not kind.endswith("List") or document.at("items") is None:
        yield document
        return
    lines: dict[ValuePath, dict[ValuePath, int]] = defaultdict(dict)
    elsewhere: dict[ValuePath, dict[ValuePath, SourceLocation]] = defaultdict(dict)
    for path, line in document.lines.items():
        lines[path[:2]][path[2:]] = line
    for path, where in document.elsewhere.items():
        elsewhere[path[:2]][path[2:]] = where
    # The API's own lists, such as a DeploymentList, leave out the kind of their items.
    implied = {"apiVersion": document.at("apiVersion"), "kind": kind.removesuffix("List")}
    for number, item in enumerate(document.mappings("items")):
        own = ("items", number)
        yield from objects(
            dataclasses.replace(
                document, data={**implied, **item}, lines=lines[own], elsewhere=elsewhere[own]
            )
        )


def kind_of(document: Document) -> str:
    """Return an object's kind."""
    return str(document.data.get("kind"))


def name_of(document: Document) -> str:
    """Return an object's name, or its kind if it has no name."""
    return str(document.at("metadata", "name") or kind_of(document))


def can_share_namespace(one: Document, other: Document) -> bool:
    """Return whether two objects can be in one namespace; without a name it can be any."""
    namespaces = {str(each.at("metadata", "namespace") or "") for each in (one, other)} - {""}
    return len(namespaces) < 2


def has_pods(document: Document) -> bool:
    """Return whether an object runs containers."""
    return kind_of(document) in PODS or any(True for _ in _anywhere(document.data, ()))


def containers(document: Document) -> list[ValuePath]:
    """Return the path to each container of an object.

    Unknown kinds may have pods too, anywhere: Argo's Rollout and Workflow, Knative's Service,
    KEDA's ScaledJob.

    Raises:
        TemplateError: an object of a known kind has no containers.
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
    """Return whether a container ends before the others of its pod start."""
    if "initContainers" not in container[-2:]:
        return False
    return bool(document.at(*container, "restartPolicy") != "Always")


def is_owned(document: Document, documents: Sequence[Document]) -> bool:
    """Return whether another of the objects created this one, as a Deployment its ReplicaSets."""
    owners = {
        (str(owner.get("kind")), str(owner.get("name")))
        for owner in document.mappings("metadata", "ownerReferences")
    }
    return any(
        (kind_of(each), name_of(each)) in owners and can_share_namespace(each, document)
        for each in documents
    )


def _anywhere(found: Any, path: ValuePath) -> Iterator[ValuePath]:
    """Find lists of containers, and single ones as Argo's Workflow has them."""
    if isinstance(found, list):
        for number, each in enumerate(found):
            yield from _anywhere(each, (*path, number))
    if not isinstance(found, dict):
        return
    for key, value in found.items():
        if key in ("containers", "initContainers") and _are_containers(value):
            yield from ((*path, key, number) for number in range(len(value)))
        elif key in ("container", "script") and _are_containers([value]):
            yield (*path, key)
        elif path or key != "status":
            yield from _anywhere(value, (*path, key))


def _are_containers(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(each, dict) and "image" in each for each in found
    )
