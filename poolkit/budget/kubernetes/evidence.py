"""Signs that pods connect to a database, beside their variables.

They are host names in commands and mounted files, Secrets that the database uses too or that its
operator makes, NetworkPolicies, the proxy of Cloud SQL, and the texts of custom resources.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from poolkit.budget.kubernetes.objects import can_be_same, items, kinds, mappings, texts
from poolkit.budget.model import Evidence, Variable
from poolkit.budget.read.values import get_path
from poolkit.budget.signs import hosts_in, is_about_database, with_other_hosts
from poolkit.budget.software import is_pooler, is_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from poolkit.budget.kubernetes.objects import Manifest, Objects, Pod
    from poolkit.budget.model import Database, ResourceKey, Workload
    from poolkit.budget.read.documents import ValuePath

_WORD = re.compile(r"[A-Za-z0-9][\w.-]*")
_HOST = re.compile(r"(?:@|//|[=:]\s*[\"']?|^)([A-Za-z0-9][\w.-]*)", re.MULTILINE)
_LOCAL = re.compile(r"\b(localhost|127\.0\.0\.1)\b")
_PROXY = re.compile(r"cloud-?sql-proxy|gce-proxy|alloydb-auth-proxy")
_CLOUD_SQL = "run.googleapis.com/cloudsql-instances"
_SECRET = re.compile(r"secret(name|ref|keyref)?$", re.IGNORECASE)
_PORTS = {"3306", "5432", "6432"}


class Signs:
    """What leads to each server and pooler: host names, Secrets and NetworkPolicies."""

    def __init__(
        self,
        objects: Objects,
        clusters: Mapping[ResourceKey, Database],
        made: Sequence[tuple[Pod, ValuePath, Workload]],
    ) -> None:
        self._objects, self._clusters = objects, clusters
        # By host name, Secret or pod: the keys of servers and poolers.
        self._hosts: dict[str, list[ResourceKey]] = defaultdict(list)
        self._secrets: list[tuple[str, str, ResourceKey]] = []
        self._in_pod: dict[int, list[ResourceKey]] = defaultdict(list)
        self._network: dict[int, list[Evidence]] = defaultdict(list)
        for key, database in clusters.items():
            operator = kinds("operators")[key.logical_id.partition("/")[0]]
            names = [(each.format(database.name), "*") for each in operator["secrets"]]
            self._add_server(key, database.hosts, names)
        for pod, path, workload in made:
            own = workload.resource
            if own and (is_server(workload) or is_pooler(workload)):
                self._in_pod[id(pod)].append(own)
                self._add_server(own, workload.hosts, _secrets_of(pod, path))
        # Names without a namespace that stand for another server in each namespace.
        self._shared = {
            host
            for host, keys in self._hosts.items()
            if "." not in host and len({key.stack for key in keys}) > 1
        }
        self._add_networks()

    def _add_server(
        self, key: ResourceKey, hosts: Iterable[str], secrets: Iterable[tuple[str, str]]
    ) -> None:
        self._secrets += [(name, part, key) for name, part in secrets]
        for host in hosts:
            self._hosts[host].append(key)

    def of(self, pod: Pod, path: ValuePath, workload: Workload) -> Workload:
        """Return a container with its evidence."""
        manifest, namespace = pod.object, pod.object.namespace
        before = [each for each in pod.containers if each == path or pod.runs_before(each)]
        words = [manifest.at(*each, key) for each in before for key in ("command", "args")]
        mounted = [host for text in workload.mounted.values() for host in _HOST.findall(text)]
        found = [
            *self._of_hosts("its command", _WORD.findall(str(words)), namespace),
            *self._of_hosts("a mounted file", mounted, namespace),
            *self._network[id(pod)],
        ]
        for secret, part in _secrets_of(pod, path):
            found += self._of_secret(secret, part, namespace)
        images = [str(manifest.at(*each, "image")) for each in pod.containers]
        instances = manifest.at(*pod.path[:-1], "metadata", "annotations", _CLOUD_SQL)
        if instances or (_PROXY.search(str(images)) and not _PROXY.search(workload.image)):
            found.append(Evidence(reason=f"Cloud SQL {instances or 'proxy beside it'}"))
        # A server or pooler beside the container is reached by localhost.
        beside = tuple(each for each in self._in_pod[id(pod)] if each != workload.resource)
        variables, external = {}, self._objects.external_names(namespace)
        for name, variable in workload.variables.items():
            each = with_other_hosts(name, variable, external)
            keys = beside if _LOCAL.search(each.text or "") else ()
            for host in sorted(hosts_in(each.text or "") & self._shared):
                keys += tuple(key for key in self._hosts[host] if can_be_same(key.stack, namespace))
            variables[name] = replace(each, leads_to=keys) if keys else each
        evidence = tuple(replace(each, where=workload.where) for each in dict.fromkeys(found))
        hosts = self.own_hosts(workload.hosts)
        return replace(workload, evidence=evidence, variables=variables, hosts=hosts)

    def own_hosts(self, hosts: Iterable[str]) -> tuple[str, ...]:
        """Return host names without those that another namespace has, too."""
        return tuple(each for each in hosts if each not in self._shared)

    def custom(self) -> Iterator[tuple[Manifest, tuple[Evidence, ...]]]:
        """Return the objects of unknown kinds that lead to a database, each with its signs."""
        silent, pods = kinds("silent"), {id(pod.object) for pod in self._objects.pods}
        quiet = {*kinds("pods"), *kinds("operators"), *kinds("poolers"), *silent["kinds"]}
        for each in self._objects:
            group = each.type.partition(".")[2]
            is_quiet = not group or group in silent["groups"] or group.endswith("k8s.io")
            if is_quiet or each.type in quiet or id(each) in pods:
                continue
            found: list[Evidence] = []
            for path, text in texts(each.at("spec")):
                name = f"spec.{'.'.join(map(str, path))}"
                if any(_SECRET.search(str(key)) for key in path):
                    found += self._of_secret(text, "*", each.namespace)
                found += self._of_hosts(name, _HOST.findall(text), each.namespace)
                if is_about_database("", Variable(text=text, origin="")):
                    found.append(Evidence(reason=name))
            if found:
                yield each, tuple(dict.fromkeys(found))

    def _of_hosts(self, reason: str, hosts: Iterable[str], namespace: str) -> Iterator[Evidence]:
        external = self._objects.external_names(namespace)
        for host in dict.fromkeys(hosts):
            # Without a namespace in it, a name is one of the pod's own namespace.
            keys = self._hosts.get(host, ())
            keys = [each for each in keys if "." in host or can_be_same(each.stack, namespace)]
            if keys:
                yield Evidence(reason=f"{reason} names {host}", leads_to=tuple(keys))
            elif host in external:
                yield Evidence(reason=f"{reason} names {host}", hosts=(external[host],))

    def _of_secret(self, name: str, part: str, namespace: str) -> Iterator[Evidence]:
        keys = tuple(
            key
            for pattern, own, key in self._secrets
            if (own == part or "*" in (own, part))
            and can_be_same(key.stack, namespace)
            and fnmatchcase(name, pattern)
        )
        is_about = is_about_database(name.replace("-", "_"), Variable(text=None, origin=""))
        if keys or (is_about and part == "*"):
            yield Evidence(reason=f"Secret {name}", leads_to=keys)

    def _add_networks(self) -> None:
        """Add the signs of the network: policies, and servers that none of them isolates."""
        isolated: set[int] = set()
        for policy in self._objects.of_type("NetworkPolicy"):
            own = self._peers({"podSelector": policy.at("spec", "podSelector")}, policy)
            self._add_policy(policy, own)
            if "Ingress" in (items(policy.at("spec", "policyTypes")) or ["Ingress"]):
                isolated |= set(map(id, own))
        reached = [*self._clusters]
        for pod in self._objects.pods:
            reached += () if id(pod) in isolated else self._in_pod[id(pod)]
        for key in reached:
            near = [
                each for each in self._objects.pods if can_be_same(key.stack, each.object.namespace)
            ]
            self._add_sign(near, "its network", (key,))

    def _add_policy(self, policy: Manifest, own: list[Pod]) -> None:
        """Add the signs of a NetworkPolicy: whom it lets in to a server, or out to one."""
        reason = f"NetworkPolicy {policy.name}"
        rules = [(each, "from") for each in mappings(policy.at("spec", "ingress"))]
        rules += [(each, "to") for each in mappings(policy.at("spec", "egress"))]
        for rule, key in rules:
            peers = mappings(rule.get(key))
            for peer in peers:
                others, selector = self._peers(peer, policy), policy.at("spec", "podSelector")
                servers, clients = (own, others) if key == "from" else (others, own)
                labels = {text for _, text in texts(selector if key == "from" else peer)}
                keys = [each for pod in servers for each in self._in_pod[id(pod)]]
                keys += [each for each, one in self._clusters.items() if one.name in labels]
                # A policy for all pods of a namespace says nothing about a server.
                if labels and keys:
                    self._add_sign(clients, reason, tuple(keys))
            ports = {str(each.get("port")) for each in mappings(rule.get("ports"))}
            if key == "to" and _PORTS & ports and not any("podSelector" in each for each in peers):
                self._add_sign(own, reason, ())

    def _add_sign(self, pods: list[Pod], reason: str, keys: tuple[ResourceKey, ...]) -> None:
        sign = Evidence(reason=reason, leads_to=keys, is_network=True)
        for pod in pods:
            self._network[id(pod)].append(sign)

    def _peers(self, peer: dict[str, Any], policy: Manifest) -> list[Pod]:
        """Return the pods that a rule of a NetworkPolicy names."""
        if not peer.keys() & {"podSelector", "namespaceSelector"}:
            return []
        pods = self._objects.selected(peer.get("podSelector") or {})
        namespaces, namespace = peer.get("namespaceSelector"), policy.namespace
        if namespaces is not None:
            # Of a namespace, only its name is known: it may have any other label.
            name = "kubernetes.io/metadata.name"
            namespace = str(get_path(namespaces, "matchLabels", name) or "")
        return [each for each in pods if each.object.is_near(namespace)]


def _secrets_of(pod: Pod, path: ValuePath) -> Iterator[tuple[str, str]]:
    """Return the Secrets that a container uses, each with the key; * for all keys."""
    container = pod.object.at(*path)
    mounts = {str(each.get("name")) for each in mappings(container.get("volumeMounts"))}
    volumes = mappings(pod.object.at(*pod.path, "volumes"))
    own = [each for each in volumes if str(each.get("name")) in mounts]
    parts = {"env": container.get("env"), "envFrom": container.get("envFrom"), "volumes": own}
    for written, text in texts(parts):
        *holder, name = written
        if name in ("name", "secretName") and str(holder[-1:]).startswith("['secret"):
            key = get_path(parts, *holder, "key") if holder[-1] == "secretKeyRef" else "*"
            yield text, str(key or "*")
