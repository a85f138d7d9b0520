"""The evidence graph of all stacks: which resources may connect to which servers, and by what sign.

A resource refers to another one by its name, an attribute, an import, a nested stack's parameter, or
the text of a name (`{{resolve:ssm:/shop/host}}`). Signs are: a reference to a server or to what leads
to it; a role that may read its secret or log on to it; a security group that may reach its port.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from poolkit.budget.model import Evidence, ResourceKey
from poolkit.budget.read.values import (
    Joined,
    Reference,
    Unknown,
    get_path,
    identity,
    references,
    walk,
)
from poolkit.budget.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.model import Database, Pooler

TASK = "AWS::ECS::TaskDefinition"
_GROUP = "AWS::EC2::SecurityGroup"
_GROUP_PROPERTY = re.compile(r"SecurityGroup|^GroupSet$|^Groups$")
_IN_A_NETWORK = re.compile(r"SecurityGroup|Subnet")
_MAY_READ = re.compile(r"(secretsmanager|ssm):(get.*|\*)$|rds-db:", re.IGNORECASE)
_MAY_RUN = re.compile(r"ecs:(run|start)task$|ecs:\*$", re.IGNORECASE)
_ANY_SUCH = re.compile(r":(?:secret:|parameter(?=/))(.*?)[*?-]*$")
_NAME = re.compile(r"(?=.*[-/._]).{4,}")
"""The names that are looked for in texts: `shop/db`, not `db`, which is a word of any text."""


def types() -> dict[str, Any]:
    """Return the table of resource types; the file explains each list."""
    return table("cloudformation_types")


@functools.cache
def is_one_of(kind: str, *lists: str) -> bool:
    """Return whether a type stands in one of the lists of the table."""
    return any(
        kind.startswith(each[:-1]) if each.endswith("*") else kind == each
        for name in lists
        for each in types()[name]
    )


def never_connects(kind: str) -> bool:
    """Return whether resources of a type never open a connection to a database server."""
    return is_one_of(kind, "never", "stores", "transparent")


class Graph:
    """The resources of all stacks, and what leads from each of them to a server.

    Args:
        stacks: all stacks, the nested ones too.
        databases: the servers.
        poolers: the proxies.
    """

    def __init__(
        self, stacks: Iterable[Stack], databases: Sequence[Database], poolers: Sequence[Pooler]
    ) -> None:
        self.resources = {each.key: each for one in stacks for each in one.resources.values()}
        self._behind: dict[ResourceKey, tuple[ResourceKey, ...]] = {
            key: (key,) for each in databases for key in each.resources
        }
        # A secret beside a proxy is the one of the database behind it.
        self._behind |= {each.resource: each.leads_to for each in poolers if each.resource}
        self._mentions: dict[ResourceKey, frozenset[ResourceKey]] = {}
        self._names: dict[str, ResourceKey] = {}
        self.aliases: dict[ResourceKey, frozenset[ResourceKey]] = {}
        holders = [each for each in self.resources.values() if each.type in types()["transparent"]]
        for each in holders:
            for part in (each.properties, *_listed(each.get("RecordSets"))):
                name = identity(part.get("Name")).rstrip(".") if isinstance(part, dict) else ""
                if _NAME.fullmatch(name):
                    self._names[name] = each.key
        longest = sorted(map(re.escape, self._names), key=len, reverse=True)
        # A secret's ARN ends in six random characters, and a policy has ? or * for them.
        before, after = r"(?<![\w.-])(?=\w)|(?=[/<])", r"(?![\w/.-])|(?=-(?:\?|\*|\w{6}\b))"
        self._named = re.compile(f"(?:{before})({'|'.join(longest)})(?:{after})")
        self._find_aliases(holders)
        self._callers: dict[ResourceKey, list[ResourceKey]] = defaultdict(list)
        self.only_calls: set[ResourceKey] = set()
        for each in self.resources.values():
            for key in self.named_in([each.get("ServiceToken"), each.get("RotationLambdaARN")]):
                if self.resources[key].type == "AWS::Lambda::Function":
                    self._callers[key].append(each.key)
                    self.only_calls.add(each.key)

    def _find_aliases(self, holders: Sequence[Resource]) -> None:
        by_name = {
            identity(self.resources[key].get(name)): key
            for key in self._behind
            for name in ("DBProxyName", "DBClusterIdentifier")
            if self.resources[key].get(name) is not None
        }
        for _ in range(3):  # a parameter holds the ARN of a secret that is attached to a database
            for each in holders:
                named = [each.get("DBProxyName"), each.get("DBClusterIdentifier")]
                by_text = {by_name[text] for text in map(identity, named) if text in by_name}
                to = self.leads_to(self.mentions(each)) | by_text
                self._add_alias(each.key, to)
                if each.type == "AWS::SecretsManager::SecretTargetAttachment":
                    for key in self.named_in(each.get("SecretId")):
                        self._add_alias(key, to)
            for key, behind in self._behind.items():
                for secret in self.mentions(self.resources[key]):
                    if self.resources[secret].type in types()["transparent"]:
                        self._add_alias(secret, frozenset(behind))

    def _add_alias(self, key: ResourceKey, to: frozenset[ResourceKey]) -> None:
        if to:
            self.aliases[key] = self.aliases.get(key, frozenset()) | to

    # -- references -------------------------------------------------------------------------

    def named_in(self, value: Any) -> set[ResourceKey]:
        """Return the resources that a value refers to, or has the names of."""
        found = {each.resource for each in references(value)}
        if self._names:
            texts = (identity(each) for _, each in walk(value) if isinstance(each, str | Joined))
            for text in texts:
                # A policy template of SAM takes a parameter's name without the first slash.
                names = [*self._named.findall(text), f"/{text}"]
                found |= {self._names[name] for name in names if name in self._names}
        return found & self.resources.keys()

    def mentions(self, resource: Resource) -> frozenset[ResourceKey]:
        """Return the other resources that a resource refers to or depends on."""
        key = resource.key
        if key not in self._mentions:
            # What cfn-init writes on a machine, and no other metadata, is evaluated.
            init = ("Metadata", "AWS::CloudFormation::Init")
            written = get_path(resource.definition, *init)
            files = resource.stack.value(written, ("Resources", resource.logical_id, *init))
            found = self.named_in([resource.properties, files])
            for name in _listed(resource.definition.get("DependsOn")):
                if isinstance(name, str) and name in resource.stack.resources:
                    found.add(resource.stack.resources[name].key)
            self._mentions[key] = frozenset(found - {key})
        return self._mentions[key]

    def leads_to(self, keys: Iterable[ResourceKey]) -> frozenset[ResourceKey]:
        """Return the servers and proxies among some resources and behind them."""
        nothing = frozenset[ResourceKey]()
        return frozenset().union(
            *({key} if key in self._behind else self.aliases.get(key, nothing) for key in keys)
        )

    def parts(self, resource: Resource) -> list[Resource]:
        """Return a resource and the parts that it starts with, such as its launch template.

        A function is called by a custom resource, which has the database's address.
        """
        callers = [self.resources[key] for key in self._callers.get(resource.key, ())]
        found, number = [resource, *callers], 0
        while number < len(found):
            for key in self.mentions(found[number]):
                part = self.resources[key]
                if part.type in types()["parts"] and part not in found:
                    found.append(part)
            number += 1
        return found

    def is_other_store(self, keys: Iterable[ResourceKey]) -> bool:
        """Return whether resources are stores that are no database servers."""
        kinds = [self.resources[key].type for key in keys]
        return bool(kinds) and all(is_one_of(kind, "stores") for kind in kinds)

    # -- signs ------------------------------------------------------------------------------

    def direct(self, keys: Iterable[ResourceKey], resource: Resource) -> tuple[Evidence, ...]:
        """Return the sign that a resource refers to servers."""
        named = [key for key in keys if self.leads_to([key])]
        names = ", ".join(sorted({key.logical_id for key in named}))
        to = tuple(sorted(self.leads_to(named)))
        sign = Evidence(reason=f"it refers to {names}", where=resource.where(), leads_to=to)
        return (sign,) if to else ()

    def indirect(self, resources: Sequence[Resource]) -> tuple[Evidence, ...]:
        """Return the signs of the roles and security groups of a resource and its parts."""
        where, found = resources[0].where(), list[Evidence]()
        keys = {key for each in resources for key in self.mentions(each)}
        for key in sorted(keys & self._grants.keys()):
            granted = self._grants[key]
            reason = f"its role {key.logical_id} may log on to the database or read its secret"
            # A grant for every secret is about any database.
            to = () if None in granted else tuple(sorted(each for each in granted if each))
            found.append(Evidence(reason=reason, where=where, leads_to=to))
        for own in (each.get("Policies") for each in resources):
            if any(True for _ in self._granted(own)):
                reason = "its policies may log on to a database or read its secret"
                found.append(Evidence(reason=reason, where=where))
        groups = {group for each in resources for group in self._groups(each)}
        is_inside = groups or any(
            each.type in ("AWS::ECS::Service", "AWS::EC2::Instance")
            or any(_IN_A_NETWORK.search(key) for key, _ in walk(each.properties))
            for each in resources
        )
        for server, (sources, is_wide) in self._doors.items():
            if groups & sources or (is_wide and is_inside):
                reason = f"the security group of {server.logical_id} lets it in"
                to = (server,)
                found.append(Evidence(reason=reason, where=where, leads_to=to, is_network=True))
        return tuple(found)

    # -- roles ------------------------------------------------------------------------------

    @cached_property
    def _grants(self) -> dict[ResourceKey, set[ResourceKey | None]]:
        """The servers that each role, policy and profile gives access to; None: any."""
        grants: dict[ResourceKey, set[ResourceKey | None]] = defaultdict(set)
        owned = [each for each in self.resources.values() if each.type.startswith("AWS::IAM::")]
        for each in owned:
            holders = self.named_in([each.get("Roles"), each.get("RoleName")])
            for key in (each.key, *(holders if "Profile" not in each.type else ())):
                grants[key] |= set(self._granted(each.properties))
        for _ in range(2):  # a profile has a role, and the role has policies
            for each in owned:
                inner = [each.get("ManagedPolicyArns")]
                inner += [each.get("Roles")] if "Profile" in each.type else []
                for key in self.named_in(inner) & grants.keys():
                    grants[each.key] |= grants[key]
        return {key: found for key, found in grants.items() if found}

    def _granted(self, value: Any) -> Iterator[ResourceKey | None]:
        """Yield the servers that the statements inside a value give access to; None: any."""
        for _, each in walk(value):
            if not (isinstance(each, dict) and "Action" in each) or each.get("Effect") == "Deny":
                continue
            actions = [a for a in _listed(each["Action"]) if _MAY_READ.match(str(a))]
            on = each.get("Resource") if actions else None
            keys, texts = self.named_in(on), [identity(text) for text in _listed(on)]
            for text in texts:
                if text.endswith("*") and (found := _ANY_SUCH.search(text)):
                    keys |= {k for name, k in self._names.items() if name.startswith(found[1])}
            named = self.leads_to(keys)
            yield from named
            is_any = any(each == "*" or each.endswith(":*") or ":rds!" in each for each in texts)
            kinds = {str(action).lower().partition(":")[0] for action in actions}
            if not named and ("rds-db" in kinds or (is_any and "secretsmanager" in kinds)):
                yield None

    def may_be_run(self, task: Resource) -> bool:
        """Return whether a role may run a task definition, any number of times at once."""
        family = identity(task.get("Family")) if task.get("Family") else "/*"
        return any(
            task.key in self.named_in(on) or text == "*" or text.endswith("/*") or family in text
            for on in self._runs
            for text in map(identity, _listed(on))
        )

    @cached_property
    def _runs(self) -> list[Any]:
        """What the statements of all policies allow to run as a task."""
        policies = ("Policies", "PolicyDocument")
        return [
            each.get("Resource")
            for resource in self.resources.values()
            for _, each in walk([resource.get(name) for name in policies])
            if isinstance(each, dict)
            and each.get("Effect") != "Deny"
            and any(_MAY_RUN.match(str(action)) for action in _listed(each.get("Action")))
        ]

    # -- security groups --------------------------------------------------------------------

    def _groups(self, resource: Resource) -> set[str]:
        """Return the identities of a resource's security groups."""
        mentioned = [
            Reference(*key) for key in self.mentions(resource) if self.resources[key].type == _GROUP
        ]
        named = (each for key, each in walk(resource.properties) if _GROUP_PROPERTY.search(key))
        return {*_group_ids(mentioned)}.union(*map(_group_ids, named))

    @cached_property
    def _doors(self) -> dict[ResourceKey, tuple[set[str], bool]]:
        """The security groups that may reach each server's port, and whether its network may."""
        rules: dict[str, list[Any]] = defaultdict(list)
        networks: list[Any] = []
        for each in self.resources.values():
            if each.type == _GROUP:
                rules[identity(Reference(*each.key))] += _listed(each.get("SecurityGroupIngress"))
            elif each.type == "AWS::EC2::SecurityGroupIngress":
                for group in _group_ids(each.get("GroupId")):
                    rules[group].append(each.properties)
            elif each.type == "AWS::EC2::VPC":
                networks += [_network(each.get("CidrBlock"))]
        doors: dict[ResourceKey, tuple[set[str], bool]] = {}
        for key in self._behind:
            server, sources, is_wide = self.resources[key], set[str](), False
            ports = [server.get("Port")] if server.get("Port") else _default_ports(server)
            for group in self._groups(server):
                # The members of a VPC's default group reach each other.
                sources |= {group} if group.endswith(".DefaultSecurityGroup>") else set()
                for written in rules[group]:
                    # A rule that is unknown may let in all.
                    rule = written if isinstance(written, dict) else {}
                    if not _allows(rule, ports):
                        continue
                    own = {*_group_ids(rule.get("SourceSecurityGroupId"))}
                    sources |= own
                    cidr = rule.get("CidrIp") or rule.get("CidrIpv6")
                    is_wide = is_wide or (not own and _is_wide(cidr, networks))
            doors[key] = sources, is_wide
        return doors


def _listed(value: Any) -> list[Any]:
    """Return a list's items, or the only item; of an open condition, those of both branches."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    return [
        inner
        for each in found
        for inner in (
            _listed(list(each.about)) if isinstance(each, Unknown) and each.about else [each]
        )
    ]


def _group_ids(value: Any) -> Iterator[str]:
    """Yield the identities of security groups that stand in a property."""
    for each in _listed(value):
        if isinstance(each, list):
            yield from _group_ids(each)
        elif isinstance(each, str | Unknown | Joined):
            yield identity(each)
        elif isinstance(each, Reference):
            # A group's id and its name are the same group; a VPC's default group is none of its own.
            is_default = each.attribute == "DefaultSecurityGroup"
            yield identity(each if is_default else Reference(each.stack, each.logical_id))


def _default_ports(server: Resource) -> list[int]:
    engine = server.get("Engine") or server.get("EngineFamily")
    engine = engine.lower() if isinstance(engine, str) else "aurora"
    if "mysql" in engine or "maria" in engine:
        return [3306]
    # AWS's pages disagree on the default of Aurora PostgreSQL.
    return [5432, 3306] if "aurora" in engine else [5432]


def _allows(rule: dict[str, Any], ports: Iterable[Any]) -> bool:
    """Return whether a rule may open one of some ports; an unknown number may be any."""
    if rule.get("IpProtocol") in ("-1", -1, None) or isinstance(rule["IpProtocol"], Unknown):
        return True
    try:
        low, high = int(rule["FromPort"]), int(rule["ToPort"])
        return str(rule["IpProtocol"]).lower() in ("tcp", "6") and any(
            low <= int(port) <= high for port in ports
        )
    except (KeyError, TypeError, ValueError):
        return True


def _network(cidr: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        return None


def _is_wide(cidr: Any, networks: Sequence[Any]) -> bool:
    """Return whether a CIDR may cover compute in the VPC; an unknown one may."""
    network = _network(cidr) if isinstance(cidr, str) else None
    if network is None or not network.prefixlen:
        return True
    if networks and all(networks):
        return any(each.version == network.version and each.overlaps(network) for each in networks)
    return network.is_private
