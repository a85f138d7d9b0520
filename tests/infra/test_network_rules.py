"""The rules of the network: its addresses, its endpoints, and what roles need of them."""

import functools
import ipaddress
import itertools
import re

import pytest
import yaml
from infra.deployed import INFRA, Deployment
from infra.test_policies import as_list, statements

PREFIXES = {16: 20, 17: 21, 18: 22, 19: 23}
"""The prefix of the VPC's addresses, and of a subnet's."""

RESERVED = 5  # addresses of each subnet; Amazon VPC User Guide, "Subnet CIDR blocks"
LARGEST, SMALLEST = 16, 28  # prefixes of a subnet, as above
BALANCER = 8  # free addresses; Application Load Balancers, "Subnets for your load balancer"


class Loader(yaml.SafeLoader):
    """Reads a template with its functions in their long form."""


def _function(loader, suffix, node):
    name = suffix if suffix in {"Ref", "Condition"} else f"Fn::{suffix}"
    if isinstance(node, yaml.ScalarNode):
        return {name: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    return {name: loader.construct_mapping(node, deep=True)}


Loader.add_multi_constructor("!", _function)


@functools.cache
def template(name):
    return yaml.load((INFRA / f"{name}.yaml").read_text(), Loader=Loader)


class Evaluation:
    """Intrinsic functions of a template with parameters, as CloudFormation documents them."""

    def __init__(self, name, **parameters):
        self.template = template(name)
        declared = self.template["Parameters"]
        self.values = {key: each.get("Default") for key, each in declared.items()} | parameters

    def of(self, node):
        if not (isinstance(node, dict) and len(node) == 1):
            return node
        ((function, argument),) = node.items()
        return getattr(self, function.replace("::", "_").lower())(argument)

    def ref(self, name):
        return self.values[name]

    def condition(self, name):
        return self.of(self.template["Conditions"][name])

    def fn_equals(self, pair):
        one, two = map(self.of, pair)
        return one == two

    def fn_not(self, each):
        return not self.of(each[0])

    def fn_and(self, each):
        return all(map(self.of, each))

    def fn_if(self, choice):
        return self.of(choice[1 if self.condition(choice[0]) else 2])

    def fn_split(self, pair):
        return self.of(pair[1]).split(pair[0])

    def fn_sub(self, text):
        return text

    def fn_select(self, pair):
        return self.of(pair[1])[int(pair[0])]

    def fn_cidr(self, arguments):
        block, count, bits = map(self.of, arguments)
        subnets = ipaddress.ip_network(block).subnets(new_prefix=32 - int(bits))
        cut = list(itertools.islice(subnets, int(count)))
        assert len(cut) == count, f"Template error: Fn::Cidr cannot make {count} of {block}"
        return [str(each) for each in cut]

    def exists(self, resource):
        return "Condition" not in resource or self.condition(resource["Condition"])

    def of_type(self, wanted):
        return {
            name: each["Properties"]
            for name, each in self.template["Resources"].items()
            if each["Type"] == wanted and self.exists(each)
        }


# -- addresses ------------------------------------------------------------------------------


def blocks():
    """Give blocks of every size that the pattern allows: the first, one inside, and the last."""
    for prefix in PREFIXES:
        space = list(ipaddress.ip_network("10.0.0.0/15").subnets(new_prefix=prefix))
        yield from map(str, {space[0], space[len(space) // 2 - 1], space[-1]})


@pytest.mark.parametrize("third", ["true", "false"])
@pytest.mark.parametrize("block", sorted(blocks()))
def test_subnets_of_every_size_fit(block, third):
    """They are inside the VPC, do not overlap, and have the size that AWS and services need."""
    assert re.fullmatch(template("network")["Parameters"]["VpcCidr"]["AllowedPattern"], block)
    network = Evaluation("network", VpcCidr=block, ThirdZone=third)
    vpc = ipaddress.ip_network(block)
    subnets = {
        name: ipaddress.ip_network(network.of(each["CidrBlock"]))
        for name, each in network.of_type("AWS::EC2::Subnet").items()
    }
    assert len(subnets) == (9 if third == "true" else 6)
    for name, subnet in subnets.items():
        assert subnet.subnet_of(vpc), name
        assert subnet.prefixlen == PREFIXES[vpc.prefixlen]
        assert LARGEST <= subnet.prefixlen <= SMALLEST
        assert subnet.num_addresses - RESERVED >= BALANCER
    for one, two in itertools.combinations(subnets.values(), 2):
        assert not one.overlaps(two)


@pytest.mark.parametrize(
    "block",
    [
        "10.0.0.0/15",
        "10.0.0.0/20",
        "10.0.0.0/24",
        "10.40.1.0/16",
        "10.40.32.0/17",
        "10.40.0.128/19",
        "300.0.0.0/16",
        "10.256.0.0/16",
        "10.40.0.0",
        "0.0.0.0/16",
        "224.0.0.0/16",
    ],
)
def test_a_block_that_does_not_work_is_refused(block):
    """Another size, an address inside a block, and what is no address."""
    pattern = template("network")["Parameters"]["VpcCidr"]["AllowedPattern"]
    assert not re.fullmatch(pattern, block)


def test_a_zone_has_one_subnet_of_each_kind():
    """Subnets of a kind are in different zones, as RDS and load balancers want."""
    network = Evaluation("network", ThirdZone="true")
    for kind in ("Public", "Private", "Database"):
        zones = [
            each["AvailabilityZone"]["Fn::Select"][0]
            for name, each in network.of_type("AWS::EC2::Subnet").items()
            if name.startswith(kind)
        ]
        assert sorted(zones) == [0, 1, 2]


# -- routes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("third", ["true", "false"])
@pytest.mark.parametrize("nat", ["none", "one", "all"])
def test_each_private_subnet_has_a_way_out_or_none(nat, third):
    """With a NAT gateway in each zone, a subnet's way out is in its own zone."""
    network = Evaluation("network", NatGateway=nat, ThirdZone=third)
    routes = network.of_type("AWS::EC2::Route").values()
    gateways = network.of_type("AWS::EC2::NatGateway")

    def chosen(value):
        if "Fn::If" in value:
            condition, yes, no = value["Fn::If"]
            value = yes if network.condition(condition) else no
        return value["Ref"]

    ways = {
        chosen(each["RouteTableId"]): chosen(each["NatGatewayId"])
        for each in routes
        if "NatGatewayId" in each
    }
    associations = network.of_type("AWS::EC2::SubnetRouteTableAssociation")
    tables = network.of_type("AWS::EC2::RouteTable")
    seen = set()
    for name, each in associations.items():
        # EC2 refuses a second table of a subnet, and CloudFormation makes the new association first.
        table = each["RouteTableId"]["Ref"]
        assert table in tables, name
        zone = each["SubnetId"]["Ref"][-1]
        if name.startswith("Private"):
            gateway = ways.get(table)
            assert (gateway is None) == (nat == "none")
            if nat == "all":
                assert gateways[gateway]["SubnetId"]["Ref"] == f"PublicSubnet{zone}"
                seen.add(gateway)
        else:
            assert table not in ways, name
    assert len(gateways) == {"none": 0, "one": 1, "all": 3 if third == "true" else 2}[nat]
    assert nat != "all" or seen == gateways.keys()
    # S3 is reached by the gateway endpoint from every private subnet.
    served = network.template["Resources"]["S3Endpoint"]["Properties"]["RouteTableIds"]
    assert len(served) == 3


# -- endpoints ------------------------------------------------------------------------------

EVERYTHING = {
    "network": {"ExecuteCommand": "true"},
    **{
        name: {
            "MetricsImageUri": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/ecr-public/"
            "aws-observability/aws-otel-collector:v0.43.0",
            "EnableExecuteCommand": "true",
        }
        for name in ("web", "worker")
    },
}
CALLERS = ("ecs-tasks.amazonaws.com", "lambda.amazonaws.com")
OUTSIDE = {"ec2", "kms", "rds-db", "xray"}
"""Called by Lambda or by AWS for a caller, or signed without a call."""


@functools.cache
def deployment_with_everything():
    return Deployment("prod", EVERYTHING)


def endpoints(deployment):
    """Give what each endpoint allows, by the name of the service."""
    found = {}
    for each in deployment.of_type("AWS::EC2::VPCEndpoint"):
        service = str(each.get("ServiceName")).rpartition("eu-central-1.")[2]
        found[service] = {
            action
            for statement in each.get("PolicyDocument", "Statement")
            for action in as_list(statement["Action"])
        }
    return found


def called_from_inside(deployment):
    """Give the actions of the roles of tasks and functions of the VPC, with the role."""
    outside = {
        each.get("Role").resource
        for each in deployment.of_type("AWS::Lambda::Function")
        if each.get("VpcConfig") is None
    }
    inside = {
        f"{role.stack.name}.{role.logical_id}"
        for role in deployment.of_type("AWS::IAM::Role")
        for statement in role.get("AssumeRolePolicyDocument", "Statement")
        if as_list(statement["Principal"].get("Service"))[0] in CALLERS
        and (role.stack.name, role.logical_id) not in outside
    }
    policies = {
        f"{policy.stack.name}.{policy.logical_id}"
        for policy in deployment.of_type("AWS::IAM::ManagedPolicy")
        if policy.stack.name not in ("access", "bootstrap")
    }
    for where, statement in statements(deployment):
        if where in inside | policies and statement["Effect"] == "Allow":
            for action in as_list(statement["Action"]):
                yield where, action


def test_endpoints_allow_what_roles_may_do():
    """A call that a role allows and its endpoint does not would fail without a word of why."""
    deployment = deployment_with_everything()
    allowed = endpoints(deployment)
    checked = set()
    for where, action in called_from_inside(deployment):
        service = action.partition(":")[0]
        if service in OUTSIDE:
            continue
        names = ("ecr.api", "ecr.dkr") if service == "ecr" else (service,)
        for name in names:
            assert action in allowed[name], f"{where} may {action}, the endpoint {name} does not"
        checked.add(service)
    assert checked >= {"ecr", "logs", "secretsmanager", "sqs", "ssmmessages"}


def test_endpoints_allow_nothing_that_no_role_does():
    """What is left over in an endpoint's policy is a right without a use."""
    deployment = deployment_with_everything()
    used = {action for _, action in called_from_inside(deployment)}
    for name, actions in endpoints(deployment).items():
        # AWS itself reads layers and rotates with its own credentials, outside of this VPC.
        assert actions <= used | {"s3:GetObject"}, name


@pytest.mark.parametrize("name", ["web", "worker"])
def test_an_image_of_the_cache_can_be_pulled(name):
    """The execution role has what Amazon ECR documents, for the repository of the image."""
    deployment = deployment_with_everything()
    parameters = template(name)["Parameters"]
    repository = parameters["MetricsImageRepository"]["Default"]
    rule = template("bootstrap")["Resources"]["PublicImages"]["Properties"]
    assert repository.startswith(f"{rule['EcrRepositoryPrefix']}/")
    (granted,) = [
        statement
        for where, statement in statements(deployment)
        if where == f"{name}.ExecutionRole"
        and "ecr:BatchImportUpstreamImage" in as_list(statement["Action"])
    ]
    assert set(granted["Action"]) == {
        "ecr:BatchGetImage",
        "ecr:BatchImportUpstreamImage",
        "ecr:CreateRepository",
        "ecr:GetDownloadUrlForLayer",
    }
    assert "".join(map(str, granted["Resource"].parts)).endswith(f"repository/{repository}")


# -- a shell in a task ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web", "worker"])
def test_a_shell_has_all_that_it_needs(name):
    """The service, the role, the endpoint, an init process, and a root that can be written to."""
    deployment = deployment_with_everything()
    container = deployment.container(name).definition
    assert container["ReadonlyRootFilesystem"] is False
    assert container["LinuxParameters"]["InitProcessEnabled"] is True
    (service,) = [
        each for each in deployment.of_type("AWS::ECS::Service") if each.stack.name == name
    ]
    assert str(service.get("EnableExecuteCommand")).lower() == "true"
    channels = {action for where, action in called_from_inside(deployment) if name in where}
    assert endpoints(deployment)["ssmmessages"] <= channels


def test_without_a_shell_roots_are_read_only(any_deployment):
    """No environment has one, so no container can write but to /tmp."""
    assert "ssmmessages" not in endpoints(any_deployment)
    for container in any_deployment.containers():
        assert container.definition["ReadonlyRootFilesystem"] is True


# -- cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("traffic", ["ALL", "REJECT", "NONE"])
def test_the_flow_log_can_be_left_out(traffic):
    """With what it needs: the group that it writes to, and the role."""
    network = Evaluation("network", FlowLogTraffic=traffic)
    kinds = ("AWS::EC2::FlowLog", "AWS::Logs::LogGroup", "AWS::IAM::Role")
    counts = [len(network.of_type(kind)) for kind in kinds]
    assert counts == ([0, 0, 0] if traffic == "NONE" else [1, 1, 1])
