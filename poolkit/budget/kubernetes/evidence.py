"""Signs that pods connect to a database, beside their variables.

They are host names in commands and mounted files, Secrets that the database uses too or that its
operator makes, NetworkPolicies, the proxy of Cloud SQL, and the texts of custom resources.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from poolkit.budget.kubernetes.objects import (
    can_share_namespace,
    host_names,
    kind_of,
    name_of,
    namespace_of,
    runs_before,
    selects,
    table,
    texts,
    type_of,
)
from poolkit.budget.model import Evidence, Overlap, Variable, Workload, unknown
from poolkit.budget.read.values import get_path
from poolkit.budget.signs import is_about_database
from poolkit.budget.software import is_pooler, is_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from poolkit.budget.kubernetes.objects import Objects, Pod
    from poolkit.budget.model import Database, ResourceKey, SourceLocation
    from poolkit.budget.read.documents import Document, ValuePath

_WORD = re.compile(r"[A-Za-z0-9][\w.-]*")
_HOST = re.compile(r"(?:@|//|[=:]\s*[\"']?|^)([A-Za-z0-9][\w.-]*)", re.MULTILINE)
_LOCAL = re.compile(r"\b(localhost|127\.0\.0\.1)\b")
_PROXY = re.compile(r"cloud-?sql-proxy|gce-proxy|alloydb-auth-proxy")
_CLOUD_SQL = "run.googleapis.com/cloudsql-instances"
_SECRET = re.compile(r"secret(name|ref|keyref)?$", re.IGNORECASE)
_PORTS = {"3306", "5432", "6432"}


def service_hosts(objects: Objects) -> dict[int, list[str]]:
    """Return the names by which each pod is reached, by the pod's `id`."""
    found: dict[int, list[str]] = defaultdict(list)
    for service in objects.of_type("Service"):
        selector = service.at("spec", "selector")
        for pod in objects.selected(selector) if selector else ():
            if can_share_namespace(pod.document, service):
                namespace = namespace_of(service) or namespace_of(pod.document)
                found[id(pod)] += host_names(name_of(service), namespace)
    for service in objects.of_type("Service"):
        # An ExternalName may stand for a Service of another namespace.
        name = ".".join(str(service.at("spec", "externalName")).split(".")[:2])
        for hosts in found.values() if "." in name else ():
            if name in hosts:
                hosts.extend(host_names(name_of(service), namespace_of(service)))
    for pod in objects.pods:
        name = pod.document.at("spec", "serviceName")
        if name and kind_of(pod.document) == "StatefulSet":
            found[id(pod)] += host_names(str(name), namespace_of(pod.document))
            found[id(pod)].append(f"{name_of(pod.document)}-0")
    return found


class Signs:
    """What leads to each server and pooler: host names, Secrets and NetworkPolicies."""

    def __init__(
        self,
        objects: Objects,
        clusters: Mapping[ResourceKey, Database],
        made: Sequence[tuple[Pod, ValuePath, Workload]],
    ) -> None:
        self._objects = objects
        # By host name, Secret or pod: the namespaces and keys of servers and poolers.
        self._hosts: dict[str, list[ResourceKey]] = defaultdict(list)
        self._secrets: dict[str, list[tuple[str, ResourceKey]]] = defaultdict(list)
        self._in_pod: dict[int, list[ResourceKey]] = defaultdict(list)
        self._network: dict[int, list[Evidence]] = defaultdict(list)
        self._patterns = [
            (form.format(each.name), key)
            for key, each in clusters.items()
            for form in table("operators")[key.logical_id.partition("/")[0]]["secrets"]
        ]
        for key, database in clusters.items():
            for host in database.hosts:
                self._hosts[host].append(key)
        for pod, path, workload in made:
            if is_server(workload) or is_pooler(workload):
                key = pod.key(path)
                self._in_pod[id(pod)].append(key)
                for host in workload.hosts:
                    self._hosts[host].append(key)
                for secret, part in _secrets_of(pod, path):
                    self._secrets[secret].append((part, key))
        for policy in objects.of_type("NetworkPolicy"):
            self._add_policy(policy, clusters)

    def of(self, pod: Pod, path: ValuePath, workload: Workload) -> Workload:
        """Return a container with its evidence."""
        document, where = pod.document, workload.where
        before = [each for each in pod.containers if each == path or runs_before(document, each)]
        words = [each for every in before for each in texts(document.at(*every, "command"))]
        words += [each for every in before for each in texts(document.at(*every, "args"))]
        hosts = [host for _, word in words for host in _WORD.findall(word)]
        mounted = [host for text in workload.mounted.values() for host in _HOST.findall(text)]
        found = [
            *self._of_hosts("its command", hosts, document, where),
            *self._of_hosts("a mounted file", mounted, document, where),
            *self._network[id(pod)],
        ]
        for secret, part in _secrets_of(pod, path):
            found += self._of_secret(secret, part, document, where)
        images = [str(document.at(*each, "image")) for each in pod.containers]
        proxy = next((each for each in images if _PROXY.search(each)), "")
        instances = document.at(*pod.path[:-1], "metadata", "annotations", _CLOUD_SQL)
        if instances or (proxy and not _PROXY.search(workload.image)):
            reason = f"Cloud SQL instance {instances}" if instances else f"its sidecar {proxy}"
            found.append(Evidence(reason=reason, where=where))
        # A server or pooler beside the container is reached by localhost.
        beside = tuple(each for each in self._in_pod[id(pod)] if each != workload.resource)
        variables = {
            name: dataclasses.replace(each, leads_to=beside)
            if beside and _LOCAL.search(each.text or "")
            else each
            for name, each in workload.variables.items()
        }
        return dataclasses.replace(
            workload, evidence=tuple(dict.fromkeys(found)), variables=variables
        )

    def custom(self) -> Iterator[Workload]:
        """Return the objects of unknown kinds that lead to a database, as unknown clients."""
        silent, pods = table("silent"), {id(each.document) for each in self._objects.pods}
        quiet = {*table("pods"), *table("operators"), *table("makers")["kinds"], *silent["kinds"]}
        for document in self._objects:
            kind, _, group = type_of(document).partition(".")
            is_quiet = not group or group in silent["groups"] or group.endswith("k8s.io")
            if is_quiet or type_of(document) in quiet or id(document) in pods:
                continue
            where, found = document.where("spec"), list[Evidence]()
            for path, text in texts(document.at("spec")):
                name = next((each for each in reversed(path) if isinstance(each, str)), "spec")
                if any(_SECRET.search(str(each)) for each in path):
                    found += self._of_secret(text, "*", document, where)
                found += self._of_hosts(name, _HOST.findall(text), document, where)
                if is_about_database("", Variable(text=text, origin="")):
                    found.append(Evidence(reason=name, where=where))
            if found:
                reason = f"the number of instances of a {kind} is unknown"
                yield Workload(
                    name=name_of(document),
                    platform=kind,
                    unit="instance",
                    where=where,
                    instances=unknown(reason, where),
                    overlap=Overlap(),
                    variables={},
                    evidence=tuple(dict.fromkeys(found)),
                )

    def _of_hosts(
        self, reason: str, hosts: Sequence[str], like: Document, where: SourceLocation | None
    ) -> Iterator[Evidence]:
        for host in dict.fromkeys(hosts):
            # Without a namespace in it, a name is one of the pod's own namespace.
            keys = self._hosts.get(host, ())
            keys = [each for each in keys if "." in host or _is_near(each, like)]
            if keys:
                yield Evidence(reason=f"{reason} names {host}", where=where, leads_to=tuple(keys))

    def _of_secret(
        self, name: str, part: str, like: Document, where: SourceLocation | None
    ) -> Iterator[Evidence]:
        users = self._secrets.get(name, ())
        keys = [key for own, key in users if own == part or "*" in (own, part)]
        keys += [key for pattern, key in self._patterns if fnmatchcase(name, pattern)]
        keys = [each for each in keys if _is_near(each, like)]
        is_about = is_about_database(name.replace("-", "_"), Variable(text=None, origin=""))
        if keys or (is_about and part == "*"):
            yield Evidence(reason=f"Secret {name}", where=where, leads_to=tuple(keys))

    def _add_policy(self, policy: Document, clusters: Mapping[ResourceKey, Database]) -> None:
        """Add the signs of a NetworkPolicy: whom it lets in to a server, or out to one."""
        own = [
            pod
            for pod in self._objects.selected(policy.at("spec", "podSelector") or {})
            if can_share_namespace(pod.document, policy)
        ]
        reason, where = f"NetworkPolicy {name_of(policy)}", policy.where("spec")
        for path, rules in (
            ("from", policy.at("spec", "ingress")),
            ("to", policy.at("spec", "egress")),
        ):
            for rule in rules if isinstance(rules, list) else ():
                peers = get_path(rule, path) or ()
                for peer in peers:
                    others = self._peers(peer, policy)
                    servers, clients = (own, others) if path == "from" else (others, own)
                    selector = policy.at("spec", "podSelector") if path == "from" else peer
                    labels = {text for _, text in texts(selector)}
                    keys = [key for pod in servers for key in self._in_pod[id(pod)]]
                    keys += [key for key, each in clusters.items() if each.name in labels]
                    # A policy for all pods of a namespace says nothing about a server.
                    for pod in clients if labels and keys else ():
                        sign = Evidence(
                            reason=reason, where=where, leads_to=tuple(keys), is_network=True
                        )
                        self._network[id(pod)].append(sign)
                ports = {str(get_path(each, "port")) for each in get_path(rule, "ports") or ()}
                if (
                    path == "to"
                    and ports & _PORTS
                    and not any("podSelector" in each for each in peers)
                ):
                    for pod in own:
                        sign = Evidence(reason=reason, where=where, is_network=True)
                        self._network[id(pod)].append(sign)

    def _peers(self, peer: Any, policy: Document) -> list[Pod]:
        """Return the pods that a rule of a NetworkPolicy names."""
        pods, namespaces = get_path(peer, "podSelector"), get_path(peer, "namespaceSelector")
        if pods is None and namespaces is None:
            return []
        found = []
        for pod in self._objects.selected(pods or {}):
            namespace = namespace_of(pod.document)
            known = self._objects.named("Namespace", namespace, policy)
            labels = {"kubernetes.io/metadata.name": namespace}
            for each in known:
                labels |= each.mapping("metadata", "labels")
            is_unknown = not namespace or not (known or str(namespaces).count("metadata.name"))
            if namespaces is None:
                is_in = can_share_namespace(pod.document, policy)
            else:
                is_in = is_unknown or selects(namespaces, labels)
            found += [pod] if is_in else []
        return found


def _is_near(key: ResourceKey, document: Document) -> bool:
    """Return whether a server can be in the namespace of an object."""
    return len({key.stack, namespace_of(document)} - {""}) < 2


def _secrets_of(pod: Pod, path: ValuePath) -> Iterator[tuple[str, str]]:
    """Return the Secrets that a container uses, each with the key; * for all keys."""
    container = pod.document.at(*path)
    mounts = {get_path(each, "name") for each in container.get("volumeMounts") or ()}
    volumes = pod.document.at(*pod.path, "volumes") or ()
    own = [each for each in volumes if get_path(each, "name") in mounts]
    parts = {"env": container.get("env"), "envFrom": container.get("envFrom"), "volumes": own}
    for written, text in texts(parts):
        holder = str(written[-2]) if len(written) > 1 else ""
        if holder.startswith("secret") and written[-1] in ("name", "secretName", "secret"):
            key = get_path(parts, *written[:-1], "key") if holder == "secretKeyRef" else "*"
            yield text, str(key or "*")
