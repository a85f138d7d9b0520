"""Resources of plans and states as workloads, databases and poolers.

AWS resources become a CloudFormation template, and containers of other platforms Kubernetes
manifests, so that those readers count them. A resource of any other type that leads to a database
is a workload with unknown numbers. What a type is stands in `tables/terraform.toml`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.workloads import describe_templates
from poolkit.budget.kubernetes.workloads import describe_manifests
from poolkit.budget.limits import engine_kind, platform_limit, reserve
from poolkit.budget.model import (
    Database,
    Evidence,
    Limit,
    Overlap,
    ResourceKey,
    SourceLocation,
    Unread,
    Variable,
    Workload,
    unknown,
)
from poolkit.budget.read.documents import Document
from poolkit.budget.read.parameters import Environment
from poolkit.budget.read.values import Reference, Unknown, get_path, references, why_unknown
from poolkit.budget.software import is_no_client
from poolkit.budget.tables import table
from poolkit.budget.terraform.graph import Graph, resources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from poolkit.budget.model import Description
    from poolkit.budget.terraform.graph import Node

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
"""A reference in a manifest, as Terraform writes it."""


HINT = "run: terraform plan -out plan && terraform show -json plan > plan.json"
SOURCES = (".tf", ".tofu", ".hcl", ".tf.json")
_BLOCK = re.compile(
    r'^[ \t]*(?:resource[ \t]+"?(\w+)|module[ \t]|terraform[ \t]*\{\s*source)', re.MULTILINE
)


def may_hold_services(file: Path) -> bool:
    """Return whether a file that Terraform plans from has resources that may use a database."""
    types = _BLOCK.findall(file.read_text(errors="replace"))
    # A module may have any type, and JSON is not searched.
    return file.suffix == ".json" or not all(
        each and (_is(each, "never") or _is(each, "carriers")) for each in types
    )


def is_binary_plan(file: Path) -> bool:
    """Return whether a file is a plan as Terraform stores it: a ZIP archive."""
    with file.open("rb") as opened:
        return opened.read(2) == b"PK"


def is_terraform(data: Any) -> bool:
    """Return whether a document is a plan or state, as `terraform show -json` writes it."""
    roots = (get_path(data, key, "root_module") for key in ("planned_values", "values"))
    # Without a root module it is the state of nothing.
    is_empty = isinstance(data, dict) and data.keys() == {"format_version"}
    return is_empty or any(isinstance(each, dict) for each in roots)


def planned_folders(document: Document) -> Iterator[Path]:
    """Yield the folders that a plan or state is made from, with all folders below them.

    They are its own folder, and those of the local modules that a plan names elsewhere.
    """
    waiting = [(document.path.resolve().parent, document.at("configuration", "root_module"))]
    for folder, module in waiting:  # it grows during the loop
        yield folder
        calls = get_path(module, "module_calls")
        for call in calls.values() if isinstance(calls, dict) else ():
            source = str(get_path(call, "source"))
            if source.startswith(("./", "../")):
                waiting.append(((folder / source).resolve(), get_path(call, "module")))


def without_copies(documents: Sequence[Document]) -> list[Document]:
    """Return the documents without the states that a plan among them is made for."""
    plans = {each.file for each in documents if each.at("planned_values")}
    planned = set[Any]().union(*(_identified(each) for each in documents if each.file in plans))
    return [each for each in documents if each.file in plans or not planned & _identified(each)]


def _identified(document: Document) -> set[tuple[str, str]]:
    """Return the address and id of each resource that exists."""
    every = [each for _, each in resources(document) if each.get("mode") != "data"]
    found = [(str(each.get("address")), str(get_path(each, "values", "id"))) for each in every]
    return {(address, name) for address, name in found if name not in ("None", "none")}


def describe_terraform(document: Document) -> Description:
    """Return the workloads, databases and poolers of a plan or state."""
    plan = _Plan(Graph(document))
    nodes, path = plan.nodes, Path(plan.stack)
    places: dict[Any, SourceLocation] = {
        ("Resources", name): each.where for name, each in nodes.items()
    }
    template = Document(path, str(path), {"Resources": plan.template()}, None, places)
    found = describe_templates([template], Environment(), {})
    pods = describe_manifests([*plan.manifests()], "")
    aliases = {
        plan.key(name): frozenset(map(plan.key, plan.reached(name)[0]))
        for name, each in nodes.items()
        if each.is_data or _is(each.type, "carriers")
    }
    workloads = [*found.workloads, *map(plan.placed, pods.workloads), *plan.others()]
    databases = [*found.databases, *plan.databases()]
    return dataclasses.replace(
        found,
        workloads=tuple(plan.with_signs(workloads)),
        databases=tuple(map(plan.named_by_platform, databases)),
        poolers=tuple(map(plan.named_by_platform, found.poolers)),
        aliases={**found.aliases, **aliases},
        unread=(*found.unread, *map(plan.placed, pods.unread), *plan.unread()),
    )


@cache
def _is(node_type: str, section: str) -> bool:
    return any(fnmatch(node_type, pattern) for pattern in table("terraform")[section])


def _rule(section: str, node_type: str) -> Any:
    return table("terraform")[section].get(re.sub(r"_v\d+((alpha|beta)\d+)?$", "", node_type))


class _Plan:
    """One plan or state, with the ways to its databases that no expression shows."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self.nodes, self.stack = graph, graph.nodes, graph.stack
        self._servers = {
            name: each for name, each in self.nodes.items() if _is(each.type, "servers")
        }
        # The texts that identify a server or what leads to it, such as its host name.
        self._identities = {
            text: name
            for name, each in self.nodes.items()
            if name in self._servers or _is(each.type, "carriers")
            for text in _identities(each)
        }
        self._add_edges()
        self._network = self._let_in()

    def key(self, address: str) -> ResourceKey:
        """Return the key of a resource in the model."""
        return ResourceKey(self.stack, address)

    def _named(self, text: str) -> set[str]:
        """Return the servers, and what leads to them, that a text names."""
        return {name for identity, name in self._identities.items() if identity in text}

    def _add_edges(self) -> None:
        """Add what a resource leads to by its values, its parts, and the password that it has."""
        nodes = self.nodes
        for name, node in nodes.items():
            node.refers_to |= self._named("\n".join(_texts(node.values))) - {name}
        for node in nodes.values():
            # A secret leads to what its version refers to, and a role to what its policy does.
            holder = table("terraform")["holders"].get(node.type)
            for each in (each for each in node.refers_to if nodes[each].type == holder):
                nodes[each].refers_to |= node.refers_to - {each}
        for name, server in self._servers.items():
            # What has the server's own password has it for connections to the server.
            todo = [*server.refers_to]
            while todo:
                node = nodes[todo.pop()]
                if _is(node.type, "credentials") and name not in node.refers_to:
                    todo += node.refers_to
                    node.refers_to.add(name)

    def _let_in(self) -> dict[str, set[str]]:
        """Return the servers that each security group may reach."""
        every = {name for name, each in self.nodes.items() if _is(each.type, "security_groups")}
        peers, found = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        for name in every:
            # A group, or a rule, lets in the groups that it refers to. A range lets in all.
            node = self.nodes[name]
            ranges = _texts(
                [node.values.get(each) for each in ("ingress", "cidr_blocks", "cidr_ipv4")]
            )
            is_out = node.values.get("type") == "egress" or "egress" in node.type
            is_wide = not is_out and any(re.search(r"/(?!32$)\d+$", each) for each in ranges)
            own = {name, *node.refers_to} & every
            for each in own:
                peers[each] |= every if is_wide else own
        for name, server in self._servers.items():
            for each in {peer for group in server.refers_to & every for peer in peers[group]}:
                found[each].add(name)
        return found

    def reached(self, address: str) -> tuple[set[str], set[str]]:
        """Return the servers that a resource leads to, and the secrets and the like on the way."""
        found, passed, todo = set[str](), {address}, [address]
        while todo:
            node = self.nodes.get(todo.pop())
            for each in node.refers_to - passed if node else ():
                if each in self._servers:
                    found.add(each)
                elif self.nodes[each].is_data or _is(self.nodes[each].type, "carriers"):
                    passed.add(each)
                    todo.append(each)
        return found - {address}, passed

    # -- workloads --------------------------------------------------------------------------

    def template(self) -> dict[str, Any]:
        """Return the resources as a CloudFormation template has them."""
        found: dict[str, Any] = {}
        for address, node in self.nodes.items():
            rule = _rule("cloudformation", node.type)
            if rule is None or node.is_data:
                continue
            properties: dict[str, Any] = {}
            for path, target in rule.get("properties", {}).items():
                types = table("terraform")["links"].get(path)
                value = self._graph.linked(node, path, types) if types else node.get(path)
                # These are the provider's forms of what is not set.
                if value not in (None, -1, "", []):
                    _put(properties, target, value)
            if rule.get("needs", "") not in {"", *properties}:
                continue
            owner = properties.get(rule.get("part_of"))
            name = address
            if isinstance(owner, Reference):
                name = owner.logical_id + rule.get("suffix", " targets")
            whole = found.setdefault(name, {"Type": rule["type"], "Properties": {}})["Properties"]
            # One policy is attached to several roles.
            roles = [*whole.get("Roles", ()), *properties.get("Roles", ())]
            whole.update(properties | ({"Roles": roles} if roles else {}))
        return found

    def manifests(self) -> Iterator[Document]:
        """Return the resources that run containers as manifests, with their addresses as files."""
        for address, node in self.nodes.items():
            kind, rule = _rule("kinds", node.type), _rule("deployments", node.type)
            data = _leaf("", node.values.get("manifest"))
            if kind or rule:
                blocks = [_deployment(node, rule) if rule else node.values]
                data = _blocks(
                    "", blocks, _kubernetes_name, table("terraform")["lists"].__contains__, _leaf
                )
                data["kind"] = kind or "Deployment"
            if isinstance(data, dict) and not node.is_data:
                yield Document(Path(address), address, data)

    def placed(self, part: Any) -> Any:
        """Return a part that a manifest describes with the place and platform of its resource."""
        node = self.nodes[part.where.file]
        changes: dict[str, Any] = {"where": node.where}
        if isinstance(part, Workload):
            changes["resource"] = self.key(node.address)
            if rule := _rule("deployments", node.type):
                origin = "old and new revisions run together"
                overlap = Overlap(kind="percent", amount=rule.get("overlap", 100), origin=origin)
                changes |= {"platform": rule["platform"], "unit": "instance", "overlap": overlap}
        return dataclasses.replace(part, **changes)

    def others(self) -> Iterator[Workload]:
        """Return the resources of all other types that lead to a database, or have variables."""
        for name, node in self.nodes.items():
            read = ("cloudformation", "kinds", "deployments")
            is_read = any(_rule(each, node.type) for each in read) or "manifest" in node.values
            passed = ("servers", "carriers", "never")
            if node.is_data or is_read or any(_is(node.type, each) for each in passed):
                continue
            texts: dict[str, list[str]] = defaultdict(list)
            for attribute in node.values.keys() & {*table("terraform")["variables"]}:
                for variable, text in _pairs(attribute, node.values[attribute]):
                    texts[variable].append(str(_leaf("value", text)))
            is_led = self.reached(name)[0] or node.hidden or node.refers_to & self._network.keys()
            if is_led or (texts and not _is(node.type, "makers")):
                reason = f"the number of connections of {node.type} is unknown"
                yield Workload(
                    name=name,
                    platform=node.type,
                    unit="instance",
                    where=node.where,
                    instances=unknown(reason, node.where),
                    overlap=Overlap(),
                    variables={
                        each: Variable(text="\n".join(found), origin=str(node.where))
                        for each, found in sorted(texts.items())
                    },
                    resource=self.key(name),
                )

    def unread(self) -> Iterator[Unread]:
        """Return the resources that make others, and lead to no database themselves."""
        for name, node in self.nodes.items():
            is_maker = _is(node.type, "makers") and not node.is_data
            if is_maker and not (self.reached(name)[0] or node.hidden):
                yield Unread(node.where, f"{name}: the plan does not show what it deploys")
        if self._graph.is_partial:
            where = SourceLocation(self._graph.file, 1)
            yield Unread(where, "the plan is not complete: make one without -target")

    def with_signs(self, workloads: Sequence[Workload]) -> Iterator[Workload]:
        """Add what the values and references of the workloads' resources lead to."""
        shown, changed = defaultdict[Any, set[str]](set), list[Workload]()
        count = Counter(each.resource for each in workloads)
        for workload in workloads:
            variables = {name: self._led(each) for name, each in workload.variables.items()}
            changed.append(dataclasses.replace(workload, variables=variables))
            for _, name in (key for each in variables.values() for key in each.leads_to):
                shown[workload.resource] |= {name} | self.reached(name)[0]
        for workload in changed:
            name = workload.resource.logical_id if workload.resource else ""
            # A task that nothing starts is run by hand. A known sidecar does not use what the
            # resource as a whole refers to, and the connections of a connector are the clients'.
            is_sidecar = count[workload.resource] > 1 and bool(is_no_client(workload))
            is_sidecar = is_sidecar or _is(workload.image, "connectors")
            if name not in self.nodes or workload.unit == "one-off task" or is_sidecar:
                yield workload
                continue
            servers, passed = self.reached(name)
            evidence = [
                Evidence(reason=f"it refers to {each}", leads_to=(self.key(each),))
                for each in sorted(servers - shown[workload.resource])
            ]
            for group in sorted(self.nodes[name].refers_to & self._network.keys()):
                keys = tuple(map(self.key, sorted(self._network[group])))
                reason = f"{group} may reach {keys[0].logical_id}"
                evidence += [Evidence(reason=reason, leads_to=keys, is_network=True)]
            hidden = {self.nodes[each].hidden for each in passed} - {""}
            evidence += [Evidence(reason=each) for each in sorted(hidden)]
            yield dataclasses.replace(workload, evidence=(*workload.evidence, *evidence))

    def _led(self, variable: Variable) -> Variable:
        """Return a variable with all resources that its text names."""
        text, reason = variable.text or "", variable.reason
        names = _REFERENCE.findall(text)
        found = sorted({*names, *self._named(text)} & self.nodes.keys())
        leads_to = (*variable.leads_to, *map(self.key, found))
        if not names:
            return dataclasses.replace(variable, leads_to=leads_to)
        reason = "it is known only after apply, or sensitive"
        return dataclasses.replace(variable, text=None, reason=reason, leads_to=leads_to)

    # -- databases --------------------------------------------------------------------------

    def databases(self) -> Iterator[Database]:
        """Return the databases that exist already, or that CloudFormation has no type for."""
        for name, node in self._servers.items():
            is_replica = node.get("master_instance_name") or node.get("create_mode") == "Replica"
            if is_replica or (_rule("cloudformation", node.type) and not node.is_data):
                continue
            engine = str(node.get("database_version") or node.get("engine") or node.type)
            size = node.get("settings tier") or node.get("sku_name")
            flags = node.get("settings database_flags") or []
            flags = flags if isinstance(flags, list) else [{"name": "max_connections"}]
            beside = (each for each in self.nodes.values() if name in each.refers_to)
            flags += [each.values for each in beside if each.type == f"{node.type}_configuration"]
            found = {str(get_path(each, "name")): get_path(each, "value") for each in flags}
            settings = {each: None if why_unknown(to) else to for each, to in found.items()}
            limit = Limit(
                max_connections=unknown(f"the limit of {name} is not in the file", node.where),
                reserved=reserve(engine_kind(engine)),
                engine=engine_kind(engine),
            )
            if isinstance(size, str) and node.type.endswith(
                ("flexible_server", "_sql_database_instance")
            ):
                platform = "cloud_sql" if node.type.startswith("google") else "azure"
                limit = platform_limit(platform, engine, size, settings, node.where)
            kind, keys = table("terraform")["servers"][node.type], (self.key(name),)
            yield Database(name=name, kind=kind, where=node.where, resources=keys, **vars(limit))

    def named_by_platform(self, part: Any) -> Any:
        """Return a database or pooler with its own name, and the hosts that other files know it by."""
        keys = part.resources if isinstance(part, Database) else (part.resource,)
        nodes = [self.nodes[key.logical_id] for key in keys if key.logical_id in self.nodes]
        texts = {text.partition(":")[0] for node in nodes for text in _identities(node)}
        hosts = sorted(text for text in texts if "." in text and "/" not in text)
        node = self.nodes.get(part.name)
        own = [node.get(each) for each in table("terraform")["names"]] if node else []
        name = next((each for each in own if isinstance(each, str)), part.name)
        return dataclasses.replace(part, name=name, hosts=(*part.hosts, *hosts))


# -- values -----------------------------------------------------------------------------------


def _identities(node: Node) -> list[str]:
    """Return the texts that no other resource has, such as an ARN or a host name."""
    found = [node.values.get(name) for name in table("terraform")["identities"]]
    return [each for each in found if isinstance(each, str) and re.search(r"\w[.:/]\w", each)]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _texts(each)


def _pairs(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Return the values of mappings with their names, and of blocks with a name and a value."""
    if isinstance(value, dict):
        if isinstance(value.get("name"), str) and "value" in value:
            yield value["name"], value["value"]
        for key, inner in value.items():
            yield from _pairs(key, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(name, inner)
    elif value not in (None, ""):
        yield name, value


def _put(properties: dict[str, Any], target: str, value: Any) -> None:
    """Set a property of a CloudFormation resource; the table has the forms of a target."""
    *outer, last = target.split(".")
    for each in outer:
        properties = properties.setdefault(each, {})
    if last.endswith("*") and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = Unknown("it is no JSON text")
    elif last.endswith("{}") and isinstance(value, list):
        value = {str(get_path(each, "name")): get_path(each, "value") for each in value}
    elif last.endswith("[]") and not isinstance(value, list):
        value = [value]
    name = last.rstrip("[]{}*")
    if last.endswith(("*", "}")) and why_unknown(value):
        value = Unknown(f"{name} is known only after apply: plan again then, or name the state")
    has_lists = last.endswith(("]", "*"))
    value = _blocks("", value, _cloudformation_name, lambda _: has_lists, lambda _, each: each)
    properties[name] = value


def _cloudformation_name(name: str) -> str:
    return re.sub("(?:^|_)([a-z])", lambda match: match[1].upper(), name)


def _kubernetes_name(name: str) -> str:
    name = table("terraform")["lists"].get(name, name)
    return re.sub("_([a-z])", lambda match: match[1].upper(), name)


def _blocks(
    key: str,
    value: Any,
    rename: Callable[[str], str],
    is_list: Callable[[str], bool],
    leaf: Callable[[str, Any], Any],
) -> Any:
    """Return blocks with other names; of a key that is no list, the only block."""
    if not (isinstance(value, list) and any(isinstance(each, dict) for each in value)):
        return leaf(key, value)
    blocks = [
        {
            rename(name): _blocks(name, inner, rename, is_list, leaf)
            for name, inner in each.items()
            # Providers set the value of a variable to "" if it comes from a secret.
            if inner not in (None, []) and (inner != "" or len(each) < 3)
        }
        for each in value
        if isinstance(each, dict)
    ]
    return blocks if is_list(key) else blocks[0]


def _deployment(node: Node, rule: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resource that runs containers in the blocks of a Deployment."""
    set_to = [node.get(path) for path in rule["most"]]
    most = next((each for each in set_to if each not in (None, "", 0, "0")), rule.get("default"))
    if most is None:
        most = Unknown("the files do not limit how many run at once")
    if node.get("revision_mode") == "Multiple":
        most = Unknown("old revisions keep running in the revision mode Multiple")
    containers = node.get(rule.get("containers", "containers"))
    variables = node.get(rule.get("variables", "variables"))
    if isinstance(variables, dict):
        env = [{"name": name, "value": value} for name, value in variables.items()]
        containers = [{"env": env}]
    is_known = isinstance(containers, list) and any(isinstance(each, dict) for each in containers)
    template = [{"spec": [{"containers": containers if is_known else [{"name": "?"}]}]}]
    name = node.get("name")
    name = name if isinstance(name, str) else node.address
    return {"metadata": [{"name": name}], "spec": [{"replicas": most, "template": template}]}


def _leaf(key: str, value: Any) -> Any:
    """Return a value of a manifest; an open one as Terraform writes a reference."""
    if isinstance(value, dict):
        return {name: _leaf(name, each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_leaf(key, each) for each in value if each is not None]
    if not (why := why_unknown(value)):
        return value
    if key in ("replicas", "max_replicas", "parallelism", "max_surge"):
        return Unknown(why)
    names = [each.logical_id for each in references(value)] or [""]
    return "" if key in ("image", "name") else "".join(f"${{{each}}}" for each in names)
