"""Resources of plans and states as workloads, databases and poolers.

AWS resources become a CloudFormation template, and containers of other platforms Kubernetes
manifests, so that those readers count them. A resource of any other type that leads to a database
is a workload with unknown numbers. What a type is stands in `tables/terraform.toml`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import defaultdict
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poolkit.budget.cloudformation.workloads import describe_templates
from poolkit.budget.kubernetes.workloads import describe_manifests
from poolkit.budget.limits import platform_limit
from poolkit.budget.model import (
    Database,
    Evidence,
    Overlap,
    ResourceKey,
    SourceLocation,
    Unread,
    Workload,
)
from poolkit.budget.read.documents import Document
from poolkit.budget.read.parameters import Environment
from poolkit.budget.read.values import Reference, Unknown, get_path, references, walk, why_unknown
from poolkit.budget.signs import uses_database
from poolkit.budget.tables import table
from poolkit.budget.terraform.graph import Graph, resources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from poolkit.budget.model import Description
    from poolkit.budget.terraform.graph import Node

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
"""A reference in a manifest, as Terraform writes it."""
_GROUPS = re.compile(r"security_group(s|_ids)$")


HINT = "run: terraform plan -out plan && terraform show -json plan > plan.json"
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
    every = (each for _, _, each in resources(document) if each.get("mode") != "data")
    found = {(str(each.get("address")), str(get_path(each, "values", "id"))) for each in every}
    return {(address, name) for address, name in found if name not in ("None", "none")}


def describe_terraform(document: Document) -> Description:
    """Return the workloads, databases and poolers of a plan or state."""
    plan = _Plan(Graph(document))
    path = Path(plan.stack)
    places: dict[Any, SourceLocation] = {
        ("Resources", name): each.where for name, each in plan.nodes.items()
    }
    template = Document(path, str(path), {"Resources": plan.template()}, None, places)
    found = describe_templates([template], Environment(), {})
    pods = describe_manifests([*plan.manifests()], "")
    workloads = [*plan.workloads(found, pods)]
    return dataclasses.replace(
        found,
        workloads=tuple(workloads),
        databases=tuple(plan.named_by_platform(plan.limited(each)) for each in found.databases),
        poolers=tuple(map(plan.named_by_platform, found.poolers)),
        unread=(*found.unread, *map(plan.placed, pods.unread), *plan.unread(workloads)),
    )


@cache
def _is(node_type: str, section: str) -> bool:
    return any(fnmatch(node_type, pattern) for pattern in table("terraform")[section])


def _rule(section: str, node_type: str) -> Any:
    return table("terraform")[section].get(re.sub(r"_v\d+((alpha|beta)\d+)?$", "", node_type))


def _is_carrier(node: Node) -> bool:
    return node.is_data or _is(node.type, "carriers")


def _is_stand_in(node: Node) -> bool:
    """Return whether the template has a resource for its signs only: CloudFormation has no such type."""
    return node.is_data or not _rule("cloudformation", node.type)


def _connects(workload: Workload) -> bool:
    is_led = any(each.leads_to for each in workload.variables.values())
    return bool(is_led or workload.evidence or uses_database(workload))


class _Plan:
    """One plan or state, with the ways to its databases that no expression shows."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self.nodes, self.stack = graph, graph.nodes, graph.stack
        # The texts that identify a server or what leads to it, such as its host name.
        self._identities = {
            text: name
            for name, each in self.nodes.items()
            if _is(each.type, "servers") or _is_carrier(each)
            for text in _identities(each)
        }
        self._properties = {
            name: self._translated(each)
            for name, each in self.nodes.items()
            if not _is_stand_in(each)
        }
        self._add_edges()

    def key(self, address: str) -> ResourceKey:
        """Return the key of a resource in the model."""
        return ResourceKey(self.stack, address)

    def _named(self, text: str) -> set[str]:
        """Return the servers, and what leads to them, that a text names."""
        return {name for identity, name in self._identities.items() if identity in text}

    def _add_edges(self) -> None:
        """Add what a resource leads to by its values and its parts."""
        nodes, rules = self.nodes, table("terraform")
        passwords = {
            text: name
            for name, node in nodes.items()
            if _is(node.type, "servers") or rules["holders"].get(node.type) in rules["servers"]
            for key, text in walk(node.written.get("values"))
            if key.endswith("password") and isinstance(text, str)
            # A word stands in other texts too, and platforms refuse a short password.
            if len(text) >= 8 and not text.isalpha()
        }
        for name, node in nodes.items():
            node.refers_to |= self._named("\n".join(_texts(node.values))) - {name}
            if not _is(node.type, "servers"):
                # Only a client needs the password, which a plan has even if it is sensitive.
                written = "\n".join(_texts(node.written.get("values")))
                node.refers_to |= {to for text, to in passwords.items() if text in written} - {name}
        for node in nodes.values():
            for name in [*node.refers_to]:
                # A secret leads to what its version refers to, and a service to what its task does.
                if nodes[name].type == rules["holders"].get(node.type):
                    nodes[name].refers_to |= node.refers_to - {name}
                elif (node.type, nodes[name].type) == (
                    "aws_ecs_service",
                    "aws_ecs_task_definition",
                ):
                    node.refers_to |= nodes[name].refers_to
        for node in nodes.values():
            if _is(node.type, "servers"):
                # What has the server's own password has it for connections to the server. A
                # network that exists already, and the like, leads to no server.
                behind = [nodes[each].refers_to for each in node.refers_to if nodes[each].is_data]
                node.refers_to = {
                    each
                    for each in node.refers_to.union(*behind)
                    if _is(nodes[each].type, "credentials") or not _is_carrier(nodes[each])
                }

    # -- workloads --------------------------------------------------------------------------

    def _translated(self, node: Node) -> dict[str, Any]:
        """Return the properties that a resource has by the table."""
        properties = dict[str, Any]()
        for path, target in _rule("cloudformation", node.type).get("properties", {}).items():
            types = table("terraform")["links"].get(path)
            value = self._graph.linked(node, path, types) if types else node.get(path)
            # These are the provider's forms of what is not set.
            if value not in (None, -1, "", []):
                _put(properties, target, value)
        return properties

    def _stand_in(self, node: Node) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a type of CloudFormation that leads to databases as a resource of another type."""
        if _is(node.type, "servers"):
            is_replica = node.get("master_instance_name") or node.get("create_mode") == "Replica"
            return {"type": f"AWS::RDS::DB{'Snapshot' if is_replica else 'Instance'}"}, {}
        if _is_carrier(node):
            return {"type": "AWS::SSM::Parameter"}, {}
        if _is(node.type, "never"):
            return {"type": "AWS::CDK::Metadata"}, {}
        texts = defaultdict[str, list[str]](list)
        for attribute in node.values.keys() & {*table("terraform")["variables"]}:
            for key, value in walk(node.values[attribute], attribute):
                if isinstance(value, dict) and isinstance(value.get("name"), str):
                    texts[value["name"]].append(str(_leaf("value", value.get("value", ""))))
                elif not isinstance(value, dict | list) and value not in (None, ""):
                    texts[key].append(str(_leaf("value", value)))
        # Without a reference, its variables show whether it connects, or what the plan hides.
        is_open = bool(texts and not _is(node.type, "makers")) or node.hidden
        variables = {name: "\n".join(texts[name]) for name in sorted(texts)}
        kind = "AWS::AppRunner::Service" if is_open else node.type
        return {"type": kind}, {"Variables": variables}

    def template(self) -> dict[str, Any]:
        """Return the resources as a CloudFormation template has them.

        Those of other types are in it for what they refer to.
        """
        found: dict[str, Any] = {}
        for name, node in self.nodes.items():
            if name in self._properties:
                rule, properties = _rule("cloudformation", node.type), self._properties[name]
            else:
                rule, properties = self._stand_in(node)
            if rule.get("needs", "") not in {"", *properties}:
                continue
            owner = properties.get(rule.get("part_of"))
            if isinstance(owner, Reference):
                name = owner.logical_id + rule.get("suffix", " targets")  # noqa: PLW2901
            new = {"Type": rule["type"], "Properties": {}, "DependsOn": []}
            whole = found.setdefault(name, new)
            whole["DependsOn"] += sorted(node.refers_to)
            groups = [each for key, each in walk(node.values) if _GROUPS.search(key)]
            whole["Properties"] |= {"SecurityGroups": groups} if groups else {}
            # One policy is attached to several roles.
            roles = [*whole["Properties"].get("Roles", ()), *properties.get("Roles", ())]
            whole["Properties"].update(properties | ({"Roles": roles} if roles else {}))
            if _is(node.type, "security_groups"):
                found |= self._ingress(node)
        return found

    def _ingress(self, node: Node) -> dict[str, Any]:
        """Return a rule of CloudFormation for each source of a security group, or of its rule.

        A group, or a rule, lets in the groups that it refers to, on any port.
        """
        groups = [
            Reference(self.stack, each, "id")
            for each in sorted({node.address, *node.refers_to})
            if _is(self.nodes[each].type, "security_groups")
        ]
        is_out = node.values.get("type") == "egress" or "egress" in node.type
        inward = {} if is_out else {k: v for k, v in node.values.items() if k != "egress"}
        # A range that is known only after apply may let in all.
        ranges = [
            each
            for key, each in walk(inward)
            if ("cidr" in key or key == "ingress")
            and (why_unknown(each) or (isinstance(each, str) and not re.search(r"/32$|^$", each)))
        ]
        sources: dict[str, dict[str, Any]] = {
            "groups": {"SourceSecurityGroupId": groups},
            "ranges": {"CidrIp": ranges},
        }
        return {
            f"{node.address} {name}": {
                "Type": "AWS::EC2::SecurityGroupIngress",
                "Properties": {"GroupId": groups, **source},
            }
            for name, source in sources.items()
            if name == "groups" or ranges
        }

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

    def runs_pods(self, node: Node) -> bool:
        """Return whether manifests describe a resource."""
        is_known = any(_rule(each, node.type) for each in ("kinds", "deployments"))
        return not node.is_data and (is_known or "manifest" in node.values)

    def unread(self, workloads: Sequence[Workload]) -> Iterator[Unread]:
        """Return the resources that make others, and lead to no database themselves."""
        led = {each.resource for each in workloads}
        for name, node in self.nodes.items():
            if _is(node.type, "makers") and not node.is_data and self.key(name) not in led:
                yield Unread(node.where, f"{name}: the plan does not show what it deploys")
        if self._graph.is_partial:
            where = SourceLocation(self._graph.file, 1)
            yield Unread(where, "the plan is not complete: make one without -target")

    def workloads(self, found: Description, pods: Description) -> Iterator[Workload]:
        """Return the workloads of the template and of the manifests, with all their signs."""
        every, signs = list[Workload](), dict[ResourceKey | None, tuple[Evidence, ...]]()
        for each in found.workloads:
            node = self.nodes.get(each.resource.logical_id) if each.resource else None
            if node and self.runs_pods(node):
                signs[each.resource] = each.evidence
            elif node and _is_stand_in(node):
                every.append(self._led(dataclasses.replace(each, platform=node.type)))
            else:
                every.append(each)
        placed = [self._led(self.placed(each)) for each in pods.workloads]
        explained = {each.resource for each in placed if _connects(each)}
        for each in placed:
            # What a resource refers to is explained by its container that connects.
            is_open = _connects(each) or each.resource not in explained
            evidence = (*each.evidence, *(signs.get(each.resource, ()) if is_open else ()))
            every.append(dataclasses.replace(each, evidence=evidence))
        for each in every:
            node = self.nodes.get(each.resource.logical_id) if each.resource else None
            # A task that nothing starts is run by hand.
            is_hidden = node and node.hidden and each.unit != "one-off task"
            more = (Evidence(reason=node.hidden),) if node and is_hidden else ()
            yield dataclasses.replace(each, evidence=(*each.evidence, *more))

    def _led(self, workload: Workload) -> Workload:
        """Return a workload whose variables lead to the resources that their texts refer to."""
        variables = dict(workload.variables)
        for name, each in workload.variables.items():
            if names := _REFERENCE.findall(each.text or ""):
                keys = (self.key(address) for address in names if address in self.nodes)
                reason = "it is known only after apply, or sensitive"
                variables[name] = dataclasses.replace(
                    each, text=None, reason=reason, leads_to=(*each.leads_to, *keys)
                )
        return dataclasses.replace(workload, variables=variables)

    # -- databases --------------------------------------------------------------------------

    def limited(self, database: Database) -> Database:
        """Return a database with the limits of another platform; unknown if it exists already."""
        node = self.nodes[database.name]
        if not node.is_data and _rule("cloudformation", node.type):
            return database
        engine = str(node.get("database_version") or node.get("engine") or node.type)
        size = node.get("settings tier") or node.get("sku_name")
        size = size if isinstance(size, str) else "a size that is not in the file"
        flags = node.get("settings database_flags") or []
        flags = flags if isinstance(flags, list) else [{"name": "max_connections"}]
        flags += [
            each.values
            for each in self.nodes.values()
            if each.type == f"{node.type}_configuration" and node.address in each.refers_to
        ]
        found = {str(get_path(each, "name")): get_path(each, "value") for each in flags}
        settings = {each: None if why_unknown(to) else to for each, to in found.items()}
        platform = table("terraform")["limits"].get(node.type, "elsewhere")
        limit = platform_limit(platform, engine, size, settings, node.where)
        kind = table("terraform")["servers"][node.type]
        return dataclasses.replace(database, kind=kind, **vars(limit))

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
    return (each for _, each in walk(value) if isinstance(each, str))


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
    if last == "PolicyDocument*" and not isinstance(value, dict):
        # A policy that is not shown may let its role read all that it refers to.
        value = {"Statement": [{"Action": "secretsmanager:GetSecretValue", "Resource": value}]}
    elif last.endswith(("*", "}")) and why_unknown(value):
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
