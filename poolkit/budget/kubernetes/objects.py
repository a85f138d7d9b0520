"""Kubernetes objects: their kinds, names and containers, and an index of all of them.

A List, as `kubectl get -o yaml` writes it, is its items. Sources: Kubernetes documentation,
"Sidecar Containers" (an init container with restartPolicy Always runs beside the others), "Owners
and Dependents", "Labels and Selectors".
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from poolkit.budget.model import ResourceKey
from poolkit.budget.read.documents import Document
from poolkit.budget.read.values import get_path
from poolkit.budget.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from poolkit.budget.read.documents import ValuePath


class Manifest(Document):
    """A Kubernetes object."""

    @cached_property
    def kind(self) -> str:
        """Its kind, such as Deployment."""
        return str(self.data.get("kind"))

    @cached_property
    def type(self) -> str:
        """Its kind, with the API group unless that is a built-in one."""
        group = str(self.data.get("apiVersion") or "").rpartition("/")[0]
        is_built_in = "." not in group or group.endswith(("networking.k8s.io", "ation.k8s.io"))
        return self.kind if is_built_in else f"{self.kind}.{group}"

    @cached_property
    def name(self) -> str:
        """Its name, or its kind if it has no name."""
        return str(self.at("metadata", "name") or self.kind)

    @cached_property
    def namespace(self) -> str:
        """Its namespace, empty if it is not in the file."""
        return str(self.at("metadata", "namespace") or "")

    @property
    def pod_path(self) -> ValuePath:
        """The path to the pod of an object of a known kind; empty for other kinds."""
        known = kinds("pods").get(self.type)
        return tuple(known["pod"].split()) if known else ()

    def key(self, *inner: object) -> ResourceKey:
        """Return the key of the object, or of a container in it."""
        # An object without a name gets another one each time.
        name = self.name if self.at("metadata", "name") else f"{self.name} of {self.where()}"
        return ResourceKey(self.namespace, "/".join([self.type, name, *map(str, inner)]))

    def is_near(self, namespace: str) -> bool:
        """Return whether it can be in a namespace."""
        return can_be_same(self.namespace, namespace)

    def hosts(self, *names: str) -> list[str]:
        """Return the DNS names of Services in its namespace."""
        forms = ("{0}", "{0}.{1}", "{0}.{1}.svc", "{0}.{1}.svc.cluster.local")
        return [form.format(name, self.namespace or "default") for name in names for form in forms]


def objects(document: Document) -> Iterator[Manifest]:
    """Return the items of a List, and of lists within it; any other document as an object."""
    kind, found = str(document.at("kind")), document.at("items")
    if not kind.endswith("List") or not isinstance(found, list):
        yield Manifest(
            document.path, document.file, document.data, document.lines, document.elsewhere
        )
        return
    # The API's own lists, such as a DeploymentList, leave out the kind of their items.
    implied = {"apiVersion": document.at("apiVersion"), "kind": kind.removesuffix("List")}
    for number, item in enumerate(found):
        if isinstance(item, dict):
            own = document.inside("items", number)
            yield from objects(replace(own, data={**implied, **item}))


def can_be_same(one: str, other: str) -> bool:
    """Return whether two namespaces can be the same; one that is not in the file can be any."""
    return one == other or not (one and other)


def kinds(name: str) -> dict[str, Any]:
    """Return a table of kinds."""
    found: dict[str, Any] = table("kubernetes")[name]
    return found


def fields(found: Any) -> dict[str, Any]:
    """Return a mapping; no API server accepts anything else, which counts as an empty one."""
    return found if isinstance(found, dict) else {}


def items(found: Any) -> list[Any]:
    """Return a list; anything else counts as an empty one."""
    return found if isinstance(found, list) else []


def mappings(found: Any) -> list[dict[str, Any]]:
    """Return the mappings of a list."""
    return [each for each in items(found) if isinstance(each, dict)]


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
    has_parts = bool(selector.keys() & {"matchLabels", "matchExpressions"})
    wanted = fields(selector.get("matchLabels")) if has_parts else selector
    for each in mappings(selector.get("matchExpressions")):
        operator, value = str(each.get("operator")), get_path(labels, str(each.get("key")))
        is_one = value in items(each.get("values")) if "In" in operator else value is not None
        if is_one == (operator in ("NotIn", "DoesNotExist")):
            return False
    return all(str(get_path(labels, key)) == str(value) for key, value in wanted.items())


# -- pods -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pod:
    """A pod as an object describes it, with the paths to its containers."""

    object: Manifest
    path: ValuePath
    containers: tuple[ValuePath, ...]

    @property
    def labels(self) -> Any:
        """The labels of the pod, not of the object that makes it."""
        return self.object.at(*self.path[:-1], "metadata", "labels")

    def runs_before(self, container: ValuePath) -> bool:
        """Return whether a container ends before the others start."""
        is_init = "initContainers" in container[-2:]
        return is_init and bool(self.object.at(*container, "restartPolicy") != "Always")


def has_pods(document: Document) -> bool:
    """Return whether an object runs containers."""
    return any(each.pod_path or any(_containers(each.data, (), ())) for each in objects(document))


def _containers(found: Any, pod: ValuePath, path: ValuePath) -> Iterator[ValuePath]:
    """Find the containers of an object, also single ones as Argo's Workflow has them.

    Unknown kinds may have pods too, anywhere: Argo's Workflow, KEDA's ScaledJob.
    """
    for number, each in enumerate(items(found)):
        yield from _containers(each, pod, (*path, number))
    for key, value in fields(found).items():
        inner = mappings(value)
        is_list = key in ("containers", "initContainers") and inner
        if is_list and ("image" in inner[0] or path == pod):
            yield from ((*path, key, index) for index, each in enumerate(value) if each in inner)
        elif key in ("container", "script") and get_path(value, "image"):
            yield (*path, key)
        elif path or key != "status":
            yield from _containers(value, pod, (*path, key))


# -- all objects ----------------------------------------------------------------------------


class Objects:
    """The objects of all manifests, found by their kind, name and labels."""

    def __init__(self, documents: Iterable[Document]) -> None:
        # By type, by type and name, and by what an autoscaler or rollout is about.
        self._index: dict[tuple[str, ...], list[Manifest]] = defaultdict(list)
        self._by_label: dict[tuple[str, str], list[Pod]] = defaultdict(list)
        for each in (each for document in documents for each in objects(document)):
            same = self._index[each.type, each.name]
            # One object can stand in two files: a release beside the sources that it was made from.
            if each.at("metadata", "name") and each.data in [one.data for one in same]:
                continue
            same.append(each)
            self._index[each.type,].append(each)
            for reference in ("scaleTargetRef", "workloadRef"):
                if target := fields(each.at("spec", reference)):
                    kind = str(target.get("kind", "Deployment"))
                    self._index["about", kind, str(target.get("name"))].append(each)
        self.pods = [pod for each in self for pod in self._pods_of(each)]
        for pod in self.pods:
            for key, value in fields(pod.labels).items():
                self._by_label[key, str(value)].append(pod)
        self.hosts: dict[int, list[str]] = defaultdict(list)
        """The names by which each pod is reached, by the pod's `id`."""
        self._add_hosts()
        named = [(each.at("spec", "externalName"), each) for each in self.of_type("Service")]
        external = [(name.rstrip("."), each) for name, each in named if isinstance(name, str)]
        self._external = sorted(external, key=lambda pair: pair[0])

    def __iter__(self) -> Iterator[Manifest]:
        return (each for key, found in self._index.items() if len(key) == 1 for each in found)

    def of_type(self, name: str) -> list[Manifest]:
        """Return the objects of a type."""
        return self._index.get((name,), [])

    def named(self, type_name: str, name: object, namespace: str) -> list[Manifest]:
        """Return the objects of a type and name that can be in a namespace."""
        return self._near(namespace, type_name, str(name))

    def about(self, manifest: Manifest) -> list[Manifest]:
        """Return the autoscalers of an object, and the rollouts that run its pods."""
        return self._near(manifest.namespace, "about", manifest.kind, manifest.name)

    def external_names(self, namespace: str) -> dict[str, str]:
        """Return the outside hosts that Services stand for, by the names within a namespace."""
        return {
            host: external
            for external, each in self._external
            for host in each.hosts(each.name)
            if "." in host or each.is_near(namespace)
        }

    def _near(self, namespace: str, *key: str) -> list[Manifest]:
        return [each for each in self._index.get(key, ()) if each.is_near(namespace)]

    def selected(self, selector: Any) -> list[Pod]:
        """Return the pods of all namespaces that a selector selects."""
        wanted = get_path(selector, "matchLabels") or selector
        pods = self.pods
        if isinstance(wanted, dict) and wanted and "matchExpressions" not in wanted:
            key, value = next(iter(wanted.items()))
            pods = self._by_label.get((key, str(value)), [])
        return [pod for pod in pods if selects(selector, pod.labels)]

    def _pods_of(self, manifest: Manifest) -> list[Pod]:
        """Return the pods of an object; those of a test, or of another object's copy, never run."""
        owners = mappings(manifest.at("metadata", "ownerReferences"))
        is_owned = any(
            self.named(replace(manifest, data=owner).type, owner.get("name"), manifest.namespace)
            for owner in owners
        )
        if is_owned or "test" in str(manifest.at("metadata", "annotations", "helm.sh/hook")):
            return []
        found: dict[ValuePath, list[ValuePath]] = defaultdict(list)
        for path in _containers(manifest.data, manifest.pod_path, ()):
            found[path[:-2] if isinstance(path[-1], int) else path[:-1]].append(path)
        return [Pod(manifest, path, tuple(paths)) for path, paths in found.items()]

    def _add_hosts(self) -> None:
        services = self.of_type("Service")
        for service in services:
            selector = service.at("spec", "selector")
            for pod in self.selected(selector) if selector else ():
                if service.is_near(pod.object.namespace):
                    owner = service if service.namespace else pod.object
                    self.hosts[id(pod)] += owner.hosts(service.name)
        for pod in self.pods:
            name = pod.object.at("spec", "serviceName")
            if name and pod.object.kind == "StatefulSet":
                self.hosts[id(pod)] += [*pod.object.hosts(str(name)), f"{pod.object.name}-0"]
        for service in services:
            # An ExternalName may stand for a Service of another namespace.
            name = ".".join(str(service.at("spec", "externalName")).split(".")[:2])
            for hosts in self.hosts.values() if "." in name else ():
                hosts.extend(service.hosts(service.name) if name in hosts else ())
