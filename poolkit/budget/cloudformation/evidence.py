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
from typing import TYPE_CHECKING, Any, NamedTuple

from poolkit.budget.model import Evidence, ResourceKey
from poolkit.budget.read.values import Joined, Reference, Unknown, get_path, identity, walk
from poolkit.budget.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from poolkit.budget.cloudformation.stacks import Resource, Stack
    from poolkit.budget.model import Database, Pooler

TASK = "AWS::ECS::TaskDefinition"
_GROUP = "AWS::EC2::SecurityGroup"
_GROUP_PROPERTY = re.compile(r"SecurityGroup|^GroupSet$|^Groups$")
_NETWORK = re.compile(r"SecurityGroup|Subnet|^GroupSet$|^Groups$")
_MAY_READ = re.compile(r"(secretsmanager|ssm):(get.*|\*)$|rds-db:")
_MAY_RUN = re.compile(r"ecs:(run|start)task$|ecs:\*$")
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


class _Facts(NamedTuple):
    """What the evaluated properties of a resource show, found in one walk."""

    mentions: frozenset[ResourceKey]
    """The other resources that it refers to or depends on."""
    groups: frozenset[str]
    """The identities of its security groups."""
    is_inside: bool
    """True if it has a place in a network."""


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
        self._known: dict[ResourceKey, _Facts] = {}
        self._names: dict[str, set[ResourceKey]] = defaultdict(set)
        holders = [each for each in self.resources.values() if each.type in types()["transparent"]]
        for each in holders:
            for part in (each.properties, *_listed(each.get("RecordSets"))):
                name = identity(get_path(part, "Name")).rstrip(".")
                if _NAME.fullmatch(name):
                    self._names[name].add(each.key)
        # Only a client needs the server's password. One that is a word counts if it stands alone.
        for key in self._behind:
            for each in _listed(self.resources[key].get("MasterUserPassword")):
                if len(text := identity(each)) >= 8:  # RDS refuses a shorter one
                    self._names[text].add(key)
        parts = [name for name in self._names if not name.isalpha()]
        longest = sorted(map(re.escape, parts), key=len, reverse=True)
        # A secret's ARN ends in six random characters, and a policy has ? or * for them.
        before, after = r"(?<![\w.-])(?=\w)|(?=[/<])", r"(?![\w/.-])|(?=-(?:\?|\*|\w{6}\b))"
        self._named = re.compile(f"(?:{before})({'|'.join(longest)})(?:{after})")
        self.aliases: dict[ResourceKey, frozenset[ResourceKey]] = {}
        self._find_aliases(holders)
        # Custom resources and rotation schedules by the function that they call.
        self._callers: dict[ResourceKey, list[Resource]] = defaultdict(list)
        for each in self.resources.values():
            for key in self.named_in([each.get("ServiceToken"), each.get("RotationLambdaARN")]):
                if self.resources[key].type == "AWS::Lambda::Function":
                    self._callers[key].append(each)
        self.only_calls = {each.key for callers in self._callers.values() for each in callers}

    def _find_aliases(self, holders: Sequence[Resource]) -> None:
        """Find what each secret, parameter, record and endpoint leads to.

        It takes three rounds: a parameter holds the ARN of a secret, which is attached to a database.
        """
        names = ("DBProxyName", "DBClusterIdentifier")
        named = ((self.resources[key].get(name), key) for key in self._behind for name in names)
        servers = {identity(text): key for text, key in named if text is not None}
        for _ in range(3):
            for each in holders:
                name = each.get("DBProxyName") or each.get("DBClusterIdentifier")
                by_name = [servers[text] for text in [identity(name)] if text in servers]
                to = self.leads_to([*self.mentions(each), *by_name])
                is_attachment = each.type == "AWS::SecretsManager::SecretTargetAttachment"
                secrets = self.named_in(each.get("SecretId")) if is_attachment else ()
                for key in (each.key, *secrets):
                    self._add_alias(key, to)
            for server, behind in self._behind.items():
                for key in self.mentions(self.resources[server]):
                    if self.resources[key].type in types()["transparent"]:
                        self._add_alias(key, frozenset(behind))

    def _add_alias(self, key: ResourceKey, to: frozenset[ResourceKey]) -> None:
        if to:
            self.aliases[key] = self.aliases.get(key, frozenset()) | to

    # -- references -------------------------------------------------------------------------

    def named_in(self, value: Any) -> set[ResourceKey]:
        """Return the resources that a value refers to, or has the names of."""
        found = set[ResourceKey]()
        for _, each in walk(value):
            if isinstance(each, Reference):
                found.add(each.resource)
            elif self._names and isinstance(each, str | Joined | Unknown):
                # A policy template of SAM takes a parameter's name without the first slash.
                text = identity(each)
                names = {*self._named.findall(text), text, f"/{text}"} & self._names.keys()
                found.update(*(self._names[name] for name in names))
        return found & self.resources.keys()

    def mentions(self, resource: Resource) -> frozenset[ResourceKey]:
        """Return the other resources that a resource refers to or depends on."""
        return self._facts(resource).mentions

    def _facts(self, resource: Resource) -> _Facts:
        if resource.key in self._known:
            return self._known[resource.key]
        # What cfn-init writes on a machine, and no other metadata, is evaluated.
        init = ("Metadata", "AWS::CloudFormation::Init")
        written = get_path(resource.definition, *init)
        files = resource.stack.value(written, ("Resources", resource.logical_id, *init))
        beside = resource.stack.resources
        after = [n for n in _listed(resource.definition.get("DependsOn")) if isinstance(n, str)]
        found = self.named_in([resource.properties, files])
        found |= {beside[name].key for name in after if name in beside}
        every = [(key, each) for key, each in walk(resource.properties) if _NETWORK.search(key)]
        groups = [each for key, each in every if _GROUP_PROPERTY.search(key)]
        groups += [Reference(*key) for key in found if self.resources[key].type == _GROUP]
        is_inside = resource.type in ("AWS::ECS::Service", "AWS::EC2::Instance") or bool(every)
        own = frozenset(_group_ids(groups))
        facts = _Facts(frozenset(found - {resource.key}), own, is_inside or bool(own))
        self._known[resource.key] = facts
        return facts

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
        found = [resource, *self._callers.get(resource.key, ())]
        for each in found:  # it grows during the loop
            mentioned = [self.resources[key] for key in self.mentions(each)]
            found += [one for one in mentioned if one.type in types()["parts"] and one not in found]
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
        roles = sorted(keys & self._grants.keys())
        granted = [(f"its role {key.logical_id}", self._grants[key]) for key in roles]
        own = [set(self._granted(each.get("Policies"))) for each in resources]
        granted += [("its policies", servers) for servers in own]
        for holder, servers in granted:
            # A grant for every secret is about any database.
            to = () if None in servers else tuple(sorted(each for each in servers if each))
            reason = f"{holder} may log on to the database or read its secret"
            found += [Evidence(reason=reason, where=where, leads_to=to)] if servers else []
        facts = [self._facts(each) for each in resources]
        groups = frozenset[str]().union(*(each.groups for each in facts))
        for server, (sources, is_wide) in self._doors.items():
            if groups & sources or (is_wide and any(each.is_inside for each in facts)):
                reason = f"the security group of {server.logical_id} lets it in"
                to = (server,)
                found.append(Evidence(reason=reason, where=where, leads_to=to, is_network=True))
        return tuple(found)

    # -- roles ------------------------------------------------------------------------------

    @cached_property
    def _grants(self) -> dict[ResourceKey, set[ResourceKey | None]]:
        """The servers that each role, policy and profile gives access to; None: any."""
        every = self.resources.values()
        giving = types()["gives_to"]
        owned = [each for each in every if each.type in giving or each.type[:10] == "AWS::IAM::"]
        grants = {each.key: set(self._granted(each.properties)) for each in owned}
        for each in owned:
            if secret := each.get("SecretId"):  # the policy of one secret
                grants[each.key] = {*self.leads_to(self.named_in(secret))}
        for _ in range(2):  # a profile has a role, and the role has policies
            for each in owned:
                for name in types()["gives_to"].get(each.type, ()):
                    for key in self.named_in(each.get(name)) & grants.keys():
                        grants[key] |= grants[each.key]
                for name in types()["takes_from"].get(each.type, ()):
                    for key in self.named_in(each.get(name)) & grants.keys():
                        grants[each.key] |= grants[key]
        return {key: found for key, found in grants.items() if found}

    def _granted(self, value: Any) -> Iterator[ResourceKey | None]:
        """Yield the servers that the statements inside a value give access to; None: any."""
        inside = (identity(each) for _, each in walk(value) if isinstance(each, str | Joined))
        if any(each.rpartition("/")[2] in types()["grants"] for each in inside):
            yield None
        for services, on in _allowed(value, _MAY_READ):
            keys, texts = self.named_in(on), [identity(each) for each in _listed(on)]
            for text in texts:
                if text.endswith("*") and (found := _ANY_SUCH.search(text)):
                    named_so = (name for name in self._names if name.startswith(found[1]))
                    keys.update(*(self._names[name] for name in named_so))
            named = self.leads_to(keys)
            yield from named
            is_any = any(each == "*" or each.endswith(":*") or ":rds!" in each for each in texts)
            if not named and ("rds-db" in services or (is_any and "secretsmanager" in services)):
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
        # A person, a pipeline or CloudFormation starts a task by hand, outside the deployment.
        every = [each for each in self.resources.values() if not _is_for_deploying(each)]
        policies = [each.get(name) for each in every for name in ("Policies", "PolicyDocument")]
        return [on for _, on in _allowed(policies, _MAY_RUN)]

    # -- security groups --------------------------------------------------------------------

    @cached_property
    def _doors(self) -> dict[ResourceKey, tuple[set[str], bool]]:
        """The security groups that may reach each server's port, and whether its network may."""
        rules: dict[str, list[Any]] = defaultdict(list)
        written_here = set[str]()
        networks: list[Any] = []
        for each in self.resources.values():
            if each.type == _GROUP:
                written_here.add(group := identity(Reference(*each.key)))
                rules[group] += _listed(each.get("SecurityGroupIngress"))
            elif each.type == "AWS::EC2::SecurityGroupIngress":
                for group in _group_ids(each.get("GroupId")):
                    rules[group].append(each.properties)
            elif each.type == "AWS::EC2::VPC":
                networks += [_network(each.get("CidrBlock"))]
        doors: dict[ResourceKey, tuple[set[str], bool]] = {}
        for key in self._behind:
            server = self.resources[key]
            groups, ports = self._facts(server).groups, _ports(server)
            # The members of a group may reach each other if its rules stand elsewhere.
            sources = {group for group in groups if group not in written_here}
            is_wide = False
            for written in (rule for group in groups for rule in rules[group]):
                # A rule that is unknown may let in all.
                rule = written if isinstance(written, dict) else {}
                if _allows(rule, ports):
                    own = set(_group_ids(rule.get("SourceSecurityGroupId")))
                    cidr = rule.get("CidrIp") or rule.get("CidrIpv6")
                    sources |= own
                    is_wide = is_wide or (not own and _is_wide(cidr, networks))
            doors[key] = sources, is_wide
        return doors


def _allowed(value: Any, actions: re.Pattern[str]) -> Iterator[tuple[set[str], Any]]:
    """Yield the services and resources of the statements in a value that allow some actions."""
    for _, each in walk(value):
        if isinstance(each, dict) and "Action" in each and each.get("Effect") != "Deny":
            names = [str(name).lower() for name in _listed(each["Action"])]
            found = {name.partition(":")[0] for name in names if actions.match(name)}
            if found:
                yield found, each.get("Resource")


def _listed(value: Any) -> list[Any]:
    """Return a list's items, or the only item; of an open condition, those of both branches."""
    if isinstance(value, Unknown) and value.about:
        value = list(value.about)
    if not isinstance(value, list):
        return [] if value is None else [value]
    return [
        inner
        for each in value
        for inner in (_listed(each) if isinstance(each, list | Unknown) else [each])
    ]


def _group_ids(value: Any) -> Iterator[str]:
    """Yield the identities of security groups that stand in a property."""
    for each in _listed(value):
        # A group's id and its name are the same group; a VPC's default group is no resource.
        if isinstance(each, Reference) and each.attribute != "DefaultSecurityGroup":
            yield identity(Reference(*each.resource))
        elif isinstance(each, str | Unknown | Joined | Reference):
            yield identity(each)


def _ports(server: Resource) -> list[Any]:
    """Return the ports that a server may listen on."""
    engine = server.get("Engine") or server.get("EngineFamily")
    name = engine.lower() if isinstance(engine, str) else "aurora"
    default = next(ports for part, ports in types()["ports"].items() if part in name)
    return [server.get("Port")] if server.get("Port") else default


def _allows(rule: dict[str, Any], ports: Iterable[Any]) -> bool:
    """Return whether a rule may open one of some ports; an unknown number may be any."""
    protocol = rule.get("IpProtocol")
    if protocol in ("-1", -1, None) or isinstance(protocol, Unknown):
        return True
    try:
        low, high = int(rule["FromPort"]), int(rule["ToPort"])
        is_open = any(low <= int(port) <= high for port in ports)
        return is_open and str(protocol).lower() in ("tcp", "6")
    except (KeyError, TypeError, ValueError):
        return True


def _network(cidr: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(cidr, strict=False)
    except ValueError:
        return None


def _is_wide(cidr: Any, networks: Sequence[Any]) -> bool:
    """Return whether a CIDR may cover compute in the VPC; an unknown one may."""
    network = _network(cidr)
    if network is None or not network.prefixlen:
        return True
    if networks and all(networks):
        return any(each.version == network.version and each.overlaps(network) for each in networks)
    return network.is_private


def _is_for_deploying(role: Resource) -> bool:
    """Return whether a role is only for CloudFormation, or for identities outside of AWS."""
    trusted = [
        get_path(statement, "Principal")
        for statement in _listed(role.get("AssumeRolePolicyDocument", "Statement"))
    ]
    return bool(trusted) and all(
        get_path(each, "Federated") is not None
        or get_path(each, "Service") == "cloudformation.amazonaws.com"
        for each in trusted
    )
