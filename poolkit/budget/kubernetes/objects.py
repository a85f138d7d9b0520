"""Kubernetes objects: their kinds, names and containers, and an index of all of them.

A List, as `kubectl get -o yaml` writes it, is its items. Sources: Kubernetes documentation,
"Sidecar Containers" (an init container with restartPolicy Always runs beside the others), "Owners
and Dependents", "Labels and Selectors".
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from poolkit.budget.model import ResourceKey
from poolkit.budget.tables import table as _table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from poolkit.budget.read.documents import Document, ValuePath


def table(name: str) -> dict[str, Any]:
    """Return a table of kinds."""
    found: dict[str, Any] = _table("kubernetes")[name]
    return found


def objects(document: Document) -> Iterator[Document]:
    """Return the items of a List, and of lists within it; any other document unchanged."""
    kind = str(document.at("kind"))
    if not kind.endswith("List") or not isinstance(document.at("items"), list):
        yield document
        return
    # The API's own lists, such as a DeploymentList, leave out the kind of their items.
    implied = {"apiVersion": document.at("apiVersion"), "kind": kind.removesuffix("List")}
    for number, item in enumerate(document.items("items")):
        if isinstance(item, dict):
            own = document.inside("items", number)
            yield from objects(replace(own, data={**implied, **item}))


# -- one object -----------------------------------------------------------------------------


def kind_of(document: Document) -> str:
    """Return an object's kind."""
    return str(document.data.get("kind"))


def type_of(document: Document) -> str:
    """Return an object's kind, with its API group unless that is a built-in one."""
    group = str(document.data.get("apiVersion") or "").rpartition("/")[0]
    is_built_in = "." not in group or group.endswith(("networking.k8s.io", "authorization.k8s.io"))
    return kind_of(document) if is_built_in else f"{kind_of(document)}.{group}"


def name_of(document: Document) -> str:
    """Return an object's name, or its kind if it has no name."""
    return str(document.at("metadata", "name") or kind_of(document))


def namespace_of(document: Document) -> str:
    """Return an object's namespace, empty if it is not in the file."""
    return str(document.at("metadata", "namespace") or "")


def can_share_namespace(one: Document, other: Document) -> bool:
    """Return whether two objects can be in one namespace; without a name it can be any."""
    return len({namespace_of(one), namespace_of(other)} - {""}) < 2


def host_names(name: str, namespace: str) -> tuple[str, ...]:
    """Return the DNS names of a Service."""
    long = f"{name}.{namespace or 'default'}"
    return name, long, f"{long}.svc", f"{long}.svc.cluster.local"


def pod_path(document: Document) -> ValuePath:
    """Return the path to the pod of an object of a known kind; empty for other kinds."""
    known = table("pods").get(type_of(document))
    return tuple(known["pod"].split(".")) if known else ()


def has_pods(document: Document) -> bool:
    """Return whether an object runs containers."""
    return bool(pod_path(document)) or any(True for _ in _anywhere(document.data, ()))


def containers(document: Document) -> list[ValuePath]:
    """Return the path to each container of an object.

    Unknown kinds may have pods too, anywhere: Argo's Workflow, KEDA's ScaledJob.
    """
    pod = pod_path(document)
    if not pod:
        return list(_anywhere(document.data, ()))
    return [
        (*pod, key, number)
        for key in ("containers", "initContainers")
        for number, each in enumerate(document.at(*pod, key) or ())
        if isinstance(each, dict)
    ]


def runs_before(document: Document, container: ValuePath) -> bool:
    """Return whether a container ends before the others of its pod start."""
    if "initContainers" not in container[-2:]:
        return False
    return bool(document.at(*container, "restartPolicy") != "Always")


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


def texts(found: Any, path: ValuePath = ()) -> Iterator[tuple[ValuePath, str]]:
    """Return every text inside a value, with its path."""
    if isinstance(found, str):
        yield path, found
    elif isinstance(found, dict | list):
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            yield from texts(value, (*path, key))


def selects(selector: Any, labels: Any) -> bool:
    """Return whether a selector, a Service's too, selects labels; an empty one selects all."""
    if not isinstance(selector, dict):
        return False
    labels = labels if isinstance(labels, dict) else {}
    has_parts = bool(selector.keys() & {"matchLabels", "matchExpressions"})
    wanted = (selector.get("matchLabels") or {}) if has_parts else selector
    for each in (selector.get("matchExpressions") or ()) if has_parts else ():
        value, values = labels.get(each.get("key")), each.get("values") or ()
        is_match = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not is_match.get(each.get("operator"), True):
            return False
    return all(str(labels.get(key)) == str(value) for key, value in wanted.items())


# -- all objects ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Pod:
    """A pod as an object describes it, with the paths to its containers."""

    document: Document
    path: ValuePath
    containers: tuple[ValuePath, ...]

    @property
    def labels(self) -> Any:
        """The labels of the pod, not of the object that makes it."""
        return self.document.at(*self.path[:-1], "metadata", "labels")

    def key(self, container: ValuePath) -> ResourceKey:
        """Return the key of a container."""
        name = self.document.at(*container, "name") or container[-1]
        whole = f"{type_of(self.document)}/{name_of(self.document)}/{name}"
        return ResourceKey(namespace_of(self.document), whole)


class Objects:
    """The objects of all manifests, found by their kind, name and labels.

    An object without a namespace can be in any.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        self._by_type: dict[str, list[Document]] = defaultdict(list)
        self._by_name: dict[tuple[str, str], list[Document]] = defaultdict(list)
        self._by_target: dict[tuple[str, str], list[Document]] = defaultdict(list)
        for document in documents:
            same = self._by_name[type_of(document), name_of(document)]
            # One object can stand in two files: a release beside the sources that it was made from.
            if document.at("metadata", "name") and document.data in [each.data for each in same]:
                continue
            same.append(document)
            self._by_type[type_of(document)].append(document)
            for reference in ("scaleTargetRef", "workloadRef"):
                target = document.at("spec", reference)
                if isinstance(target, dict):
                    kind = str(target.get("kind", "Deployment"))
                    self._by_target[kind, str(target.get("name"))].append(document)
        self.pods = [pod for each in self for pod in self._pods_of(each)]
        self._by_label: dict[tuple[str, str], list[Pod]] = defaultdict(list)
        for pod in self.pods:
            for label in pod.labels.items() if isinstance(pod.labels, dict) else ():
                self._by_label[label[0], str(label[1])].append(pod)

    def __iter__(self) -> Iterator[Document]:
        return (each for found in self._by_type.values() for each in found)

    def of_type(self, type_name: str) -> list[Document]:
        """Return the objects of a type."""
        return self._by_type.get(type_name, [])

    def named(self, type_name: str, name: object, like: Document) -> list[Document]:
        """Return the objects of a type and name that can be in an object's namespace."""
        found = self._by_name.get((type_name, str(name)), ())
        return [each for each in found if can_share_namespace(each, like)]

    def about(self, document: Document) -> list[Document]:
        """Return the autoscalers of an object, and the rollouts that run its pods."""
        found = self._by_target.get((kind_of(document), name_of(document)), ())
        return [each for each in found if can_share_namespace(each, document)]

    def selected(self, selector: Any) -> list[Pod]:
        """Return the pods of all namespaces that a selector selects."""
        wanted = selector.get("matchLabels", selector) if isinstance(selector, dict) else None
        pods = self.pods
        if isinstance(wanted, dict) and wanted and "matchExpressions" not in wanted:
            key, value = next(iter(wanted.items()))
            pods = self._by_label.get((key, str(value)), [])
        return [pod for pod in pods if selects(selector, pod.labels)]

    def _pods_of(self, document: Document) -> list[Pod]:
        """Return the pods of an object; those of a test, or of another object's copy, never run."""
        owners = document.at("metadata", "ownerReferences")
        for owner in owners if isinstance(owners, list) else ():
            if isinstance(owner, dict):
                type_name = type_of(replace(document, data=owner))
                if self.named(type_name, owner.get("name"), document):
                    return []
        if "test" in str(document.at("metadata", "annotations", "helm.sh/hook")):
            return []
        found: dict[ValuePath, list[ValuePath]] = defaultdict(list)
        for path in containers(document):
            found[path[:-2] if isinstance(path[-1], int) else path[:-1]].append(path)
        return [Pod(document, path, tuple(paths)) for path, paths in found.items()]
