"""Rules that hold for every deployment: drawn templates and compose files, read by the command."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolkit.budget.command import compute_budget
from poolkit.budget.model import Options

pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
bounded = settings(max_examples=20)

NAMES = st.text("abcdefghijklmnop", min_size=4, max_size=9).map(str.capitalize)
UNKNOWN_VERDICTS = ("cannot be shown to fit", "does not fit")


def budgets_of(files, **options):
    """Write files, whose contents are data or texts, and return their budgets."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=1)
            Path(folder, name).write_text(text)
        paths = tuple(Path(folder, name) for name in files)
        return compute_budget(Options(paths=paths[:1], **options))


def facts(budgets):
    """Return all numbers that do not depend on names."""
    ceilings = [service.ceiling for budget in budgets.each for service in budget.services]
    sums = [(budget.available, budget.known, budget.verdict) for budget in budgets.each]
    return sorted(ceilings, key=str), sorted(sums, key=str)


# -- templates ------------------------------------------------------------------------------


def att(name, attribute):
    return {"Fn::GetAtt": [name, attribute]}


def database(name="Store", limit=200):
    properties = {"Engine": "postgres", "DBInstanceClass": "db.m7g.large"}
    properties["DBParameterGroupName"] = {"Ref": f"{name}Settings"}
    properties["VPCSecurityGroups"] = [{"Ref": f"{name}Group"}]
    group = {"Family": "postgres17", "Parameters": {"max_connections": str(limit)}}
    login = {"GenerateSecretString": {"GenerateStringKey": "password"}}
    attachment = {"SecretId": {"Ref": f"{name}Login"}, "TargetId": {"Ref": name}}
    attachment["TargetType"] = "AWS::RDS::DBInstance"
    return {
        name: {"Type": "AWS::RDS::DBInstance", "Properties": properties},
        f"{name}Settings": {"Type": "AWS::RDS::DBParameterGroup", "Properties": group},
        f"{name}Group": {
            "Type": "AWS::EC2::SecurityGroup",
            "Properties": {"GroupDescription": "d"},
        },
        f"{name}Login": {"Type": "AWS::SecretsManager::Secret", "Properties": login},
        f"{name}Attachment": {
            "Type": "AWS::SecretsManager::SecretTargetAttachment",
            "Properties": attachment,
        },
    }


def signs(name="Store"):
    """Return the values that lead to the database."""
    return [
        att(name, "Endpoint.Address"),
        {"Ref": f"{name}Login"},
        {"Ref": f"{name}Attachment"},
        {"Fn::Sub": f"postgresql://app@${{{name}.Endpoint.Address}}/app"},
        {"Fn::Join": ["", ["host=", att(name, "Endpoint.Address")]]},
    ]


PRESET = {"POOLKIT_TARGET": "lambda_warm", "POOLKIT_ENVIRONMENT": "prod"}


@st.composite
def functions(draw, name):
    """A Lambda function with or without a limit, a preset, and a sign of the database."""
    variables = dict(draw(st.sampled_from([PRESET, {}])))
    if draw(st.booleans()):
        variables["SETTING"] = draw(st.sampled_from(signs()))
    properties = {
        "Runtime": "python3.13",
        "Handler": "app.handler",
        "Role": "arn:aws:iam::1:role/r",
    }
    properties |= {"Code": {"S3Bucket": "b", "S3Key": "k"}, "Environment": {"Variables": variables}}
    if draw(st.booleans()):
        properties["ReservedConcurrentExecutions"] = draw(st.integers(1, 60))
    return {name: {"Type": "AWS::Lambda::Function", "Properties": properties}}


def readers(name):
    """A function that reaches the database by its role or its security group alone."""
    statement = {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue"}
    policy = {"PolicyName": "p", "PolicyDocument": {"Statement": [statement]}}
    statement["Resource"] = {"Ref": "StoreLogin"}
    role = {"AssumeRolePolicyDocument": {}, "Policies": [policy]}
    rule = {"GroupId": {"Ref": "StoreGroup"}, "IpProtocol": "tcp", "FromPort": 5432, "ToPort": 5432}
    rule["SourceSecurityGroupId"] = {"Ref": f"{name}Group"}
    group = {"Type": "AWS::EC2::SecurityGroup", "Properties": {"GroupDescription": "d"}}
    function = {"Runtime": "python3.13", "Handler": "app.handler", "Role": "arn:aws:iam::1:role/r"}
    function |= {"Code": {"S3Bucket": "b", "S3Key": "k"}, "ReservedConcurrentExecutions": 5}
    by_role = {**function, "Role": att(f"{name}Role", "Arn")}
    by_group = {**function, "VpcConfig": {"SecurityGroupIds": [{"Ref": f"{name}Group"}]}}
    return st.sampled_from(
        [
            {
                name: {"Type": "AWS::Lambda::Function", "Properties": by_role},
                f"{name}Role": {"Type": "AWS::IAM::Role", "Properties": role},
            },
            {
                name: {"Type": "AWS::Lambda::Function", "Properties": by_group},
                f"{name}Group": group,
                f"{name}Rule": {"Type": "AWS::EC2::SecurityGroupIngress", "Properties": rule},
            },
        ]
    )


@st.composite
def ecs_services(draw, name):
    """An ECS service with or without autoscaling, a preset, and a sign of the database."""
    variables = {"POOLKIT_TARGET": "web", "POOLKIT_ENVIRONMENT": "prod"}
    variables = dict(draw(st.sampled_from([variables, {}])))
    if draw(st.booleans()):
        variables["SETTING"] = draw(st.sampled_from(signs()))
    container = {"Name": "main", "Image": "example/app:1", "Command": ["uvicorn", "app:app"]}
    container["Environment"] = [{"Name": key, "Value": value} for key, value in variables.items()]
    tasks = draw(st.integers(0, 5))
    service = {"TaskDefinition": {"Ref": f"{name}Task"}, "DesiredCount": tasks}
    made = {
        f"{name}Task": {
            "Type": "AWS::ECS::TaskDefinition",
            "Properties": {"ContainerDefinitions": [container]},
        },
        name: {"Type": "AWS::ECS::Service", "Properties": service},
    }
    if draw(st.booleans()):
        target = {"ServiceNamespace": "ecs", "MaxCapacity": tasks + draw(st.integers(0, 5))}
        parts = ["service", "shop", att(name, "Name")]
        target["ResourceId"] = {"Fn::Join": ["/", parts]}
        scalable = {"Type": "AWS::ApplicationAutoScaling::ScalableTarget", "Properties": target}
        made[f"{name}Scaling"] = scalable
    return made


def others(name):
    """Resources that open no connection themselves, and some of a type without a rule."""
    types = ["AWS::S3::Bucket", "AWS::SNS::Topic", "AWS::Logs::LogGroup", "Acme::Shop::Window"]
    return st.sampled_from(types).map(lambda kind: {name: {"Type": kind, "Properties": {}}})


def parts(name):
    return st.one_of(functions(name), ecs_services(name), readers(name), others(name))


@st.composite
def stacks(draw, *, least=0):
    """The resources of a stack with a database, part by part."""
    limit = draw(st.sampled_from([60, 200, 800]))
    number = draw(st.integers(least, 3))
    return [database(limit=limit), *(draw(parts(f"Part{n}")) for n in range(number))]


def template(*resources, **sections):
    merged = {name: found for each in resources for name, found in each.items()}
    return {"AWSTemplateFormatVersion": "2010-09-09", **sections, "Resources": merged}


@bounded
@given(stacks(), parts("Another"), st.booleans())
def test_another_resource_never_lowers_a_ceiling(stack, part, is_first):
    """No ceiling and no sum shrinks, unknown ones stay unknown, and no verdict becomes "fits"."""
    before = budgets_of({"stack.json": template(*stack)})
    larger = [part, *stack] if is_first else [*stack, part]
    check_larger(before, budgets_of({"stack.json": template(*larger)}))


def check_larger(before, after):
    old, new = before.only, after.each[0]
    ceilings = {service.name: service.ceiling for service in new.services}
    for service in old.services:
        ceiling = ceilings[service.name]
        assert ceiling is None or (service.ceiling is not None and ceiling >= service.ceiling)
    assert new.known >= old.known
    assert old.needed is not None or new.needed is None
    if before.verdict in UNKNOWN_VERDICTS:
        assert after.verdict in UNKNOWN_VERDICTS


@bounded
@given(stacks(), stacks())
def test_another_database_never_turns_unknown_into_fits(stack, other):
    """A second server with its own clients does not answer what is unknown about the first one."""
    text = json.dumps(template(*other))
    for name in ("Store", "Part"):
        text = text.replace(name, f"Second{name}")
    second = json.loads(text)["Resources"]
    before = budgets_of({"stack.json": template(*stack)})
    after = budgets_of({"stack.json": template(*stack, second)})
    if before.verdict in UNKNOWN_VERDICTS:
        assert after.verdict in UNKNOWN_VERDICTS


@bounded
@given(stacks(least=1))
def test_a_nested_stack_is_the_same_as_its_resources(stack):
    """Clients in a nested stack that receives the database's values give the same numbers."""
    flat = budgets_of({"root.json": template(*stack)})
    passed = [*signs(), {"Ref": "StoreGroup"}]
    values = {f"P{number}": value for number, value in enumerate(passed)}
    text = json.dumps(stack[1:])
    for name, value in values.items():
        text = text.replace(json.dumps(value), json.dumps({"Ref": name}))
    declared = {name: {"Type": "String"} for name in values}
    child = {"TemplateURL": "child.json", "Parameters": values}
    nested = {"Apps": {"Type": "AWS::CloudFormation::Stack", "Properties": child}}
    files = {
        "root.json": template(stack[0], nested),
        "child.json": template(*json.loads(text), Parameters=declared),
    }
    assert facts(budgets_of(files)) == facts(flat)


@bounded
@given(stacks(), st.lists(NAMES, min_size=4, max_size=4, unique=True))
def test_names_change_no_number(stack, names):
    """The same template with other logical IDs gives the same numbers."""
    text = json.dumps(template(*stack))
    for old, new in zip(("Store", "Part0", "Part1", "Part2"), names, strict=True):
        text = text.replace(old, f"X{new}X")
    renamed = budgets_of({"stack.json": text})
    assert facts(renamed) == facts(budgets_of({"stack.json": template(*stack)}))


@st.composite
def nested_in(draw, value):
    """A value inside any lists and mappings."""
    for key in draw(st.lists(NAMES, min_size=1, max_size=4)):
        value = draw(st.sampled_from([{key: value}, {key: [value]}, {key: [1, {"Id": value}]}]))
    return value


@bounded
@given(stacks(), st.tuples(NAMES, NAMES, NAMES), st.sampled_from(signs()).flatmap(nested_in))
def test_a_made_up_type_that_refers_to_the_database_is_unknown(stack, words, properties):
    """A type without a rule counts, with an unknown ceiling, whatever it is called."""
    made_up = {"Fleet": {"Type": "::".join(("Z" + words[0], *words[1:])), "Properties": properties}}
    budgets = budgets_of({"stack.json": template(*stack, made_up)})
    ceilings = {service.name: service.ceiling for service in budgets.only.services}
    assert ceilings["Fleet"] is None
    assert budgets.verdict in UNKNOWN_VERDICTS


@bounded
@given(stacks(), readers("Another"))
def test_a_function_that_only_its_rights_betray_is_unknown(stack, reader):
    """A role that may read the secret, or a security group that is let in, makes a client."""
    budgets = budgets_of({"stack.json": template(*stack, reader)})
    ceilings = {service.name: service.ceiling for service in budgets.only.services}
    assert ceilings["Another"] is None
    assert budgets.verdict in UNKNOWN_VERDICTS


# -- compose files --------------------------------------------------------------------------


@st.composite
def compose_services(draw):
    """A service with or without a sign of the database, known processes and a preset."""
    variables = {"POOLKIT_TARGET": "web", "POOLKIT_ENVIRONMENT": "prod"}
    service = {"image": "example/app:1", "environment": draw(st.sampled_from([variables, {}]))}
    service |= draw(st.sampled_from([{}, {"depends_on": ["store"]}, {"links": ["store:sql"]}]))
    commands = [{}, {"command": "uvicorn app:app --workers 3"}, {"command": "./start.sh"}]
    service |= draw(st.sampled_from(commands))
    if draw(st.booleans()):
        service["environment"] = {**service["environment"], "UPSTREAM": "store"}
    return service | draw(st.sampled_from([{}, {"deploy": {"replicas": 4}}, {"scale": 2}]))


def project(services, limit):
    store = {"image": "postgres:18", "command": f"postgres -c max_connections={limit}"}
    return {"compose.yaml": {"services": {"store": store, **services}}}


projects = st.dictionaries(NAMES.map(str.lower), compose_services(), max_size=3)


@bounded
@given(projects, compose_services(), st.sampled_from([40, 400]))
def test_another_compose_service_never_lowers_a_ceiling(services, another, limit):
    """The same rule for a compose file."""
    before = budgets_of(project(services, limit))
    check_larger(before, budgets_of(project({**services, "zz-another": another}, limit)))


@bounded
@given(projects, st.sampled_from([40, 400]))
def test_names_of_compose_services_change_no_number(services, limit):
    """The same compose file with other names gives the same numbers, the server's included."""
    text = json.dumps(project(services, limit)["compose.yaml"])
    renamed = json.loads(text.replace('"store', '"zebra'))
    for number, name in enumerate(services):
        renamed["services"][f"x{number}"] = renamed["services"].pop(name)
    assert facts(budgets_of({"compose.yaml": renamed})) == facts(
        budgets_of(project(services, limit))
    )


# -- Kubernetes and Terraform -----------------------------------------------------------------


def pods(name, variables, image="example/app:1", command=("uvicorn", "app:app")):
    container = {"name": name, "image": image, "command": list(command)}
    container["env"] = [{"name": key, "value": value} for key, value in variables.items()]
    labels = {"app": name}
    return {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }


def manifest(kind, name, api="apps/v1", **spec):
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec}


STORE = [
    manifest("StatefulSet", "store", **pods("store", {}, "postgres:18", ["postgres"])),
    manifest("Service", "store", "v1", selector={"app": "store"}, ports=[{"port": 5432}]),
]


@st.composite
def manifests(draw, name):
    """A Deployment with or without a preset and a sign of the database, and its autoscaler."""
    variables = {"POOLKIT_TARGET": "web", "POOLKIT_ENVIRONMENT": "prod"}
    variables = dict(draw(st.sampled_from([variables, {}])))
    if draw(st.booleans()):
        variables["UPSTREAM"] = "store"
    replicas = draw(st.integers(0, 5))
    made = [manifest("Deployment", name, replicas=replicas, **pods(name, variables))]
    if draw(st.booleans()):
        target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        most = replicas + draw(st.integers(1, 5))
        api = "autoscaling/v2"
        made.append(
            manifest("HorizontalPodAutoscaler", name, api, scaleTargetRef=target, maxReplicas=most)
        )
    return made


def listed(*parts):
    items = [each for part in parts for each in part]
    return {"all.json": {"apiVersion": "v1", "kind": "List", "items": items}}


@bounded
@given(st.lists(st.integers(0, 9), max_size=3, unique=True), st.data(), st.booleans())
def test_another_manifest_never_lowers_a_ceiling(numbers, data, is_first):
    """The same rule for Kubernetes."""
    parts = [data.draw(manifests(f"part{number}")) for number in numbers]
    another = data.draw(manifests("another"))
    larger = [another, *parts] if is_first else [*parts, another]
    check_larger(budgets_of(listed(STORE, *parts)), budgets_of(listed(STORE, *larger)))


@bounded
@given(NAMES, st.sampled_from(["store", "postgresql://app@store/app"]).flatmap(nested_in))
def test_a_made_up_kind_that_names_the_database_is_unknown(kind, spec):
    """An object of a kind without a rule counts, with an unknown ceiling."""
    made_up = manifest("Z" + kind, "fleet", "shops.acme.example/v1", **spec)
    budgets = budgets_of(listed(STORE, [made_up]))
    assert {each.name: each.ceiling for each in budgets.only.services} == {"fleet": None}
    assert budgets.verdict in UNKNOWN_VERDICTS


@bounded
@given(NAMES, st.sampled_from(["store.internal:5432", "store.internal"]).flatmap(nested_in))
def test_a_made_up_type_of_terraform_that_names_the_database_is_unknown(word, values):
    """The same for a Terraform state, in which the address of the server is known."""
    server = {"identifier": "store", "engine": "postgres", "instance_class": "db.m7g.large"}
    server |= {"address": "store.internal", "endpoint": "store.internal:5432"}
    kinds = [("aws_db_instance", "store", server), (f"acme_z{word.lower()}", "fleet", values)]
    resources = [
        {
            "address": f"{kind}.{name}",
            "mode": "managed",
            "type": kind,
            "name": name,
            "provider_name": f"registry.terraform.io/hashicorp/{kind.partition('_')[0]}",
            "values": found,
        }
        for kind, name, found in kinds
    ]
    state = {"format_version": "1.0", "terraform_version": "1.14.0"}
    state["values"] = {"root_module": {"resources": resources}}
    budgets = budgets_of({"state.json": state})
    assert [each.ceiling for each in budgets.only.services] == [None]
    assert budgets.verdict in UNKNOWN_VERDICTS


# -- files ----------------------------------------------------------------------------------


FOLDER = {
    "app.json": {
        "Resources": {
            "Fn": {
                "Type": "AWS::Lambda::Function",
                "Properties": {
                    "ReservedConcurrentExecutions": 5,
                    "Environment": {"Variables": {**PRESET, "DATABASE_URL": "x"}},
                },
            }
        }
    },
    "compose.yaml": "services:\n  db: {image: postgres:17}\n  web: {image: x, depends_on: [db]}\n",
    "web.yaml": json.dumps(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {"template": {"spec": {"containers": [{"name": "web", "image": "x"}]}}},
        }
    ),
}


@bounded
@given(st.permutations(sorted(FOLDER)))
def test_the_order_of_named_files_does_not_matter(names):
    """Names, ceilings and the verdict stay the same."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in FOLDER.items():
            text = content if isinstance(content, str) else json.dumps(content)
            Path(folder, name).write_text(text)
        orders = [
            compute_budget(Options(paths=tuple(Path(folder, name) for name in order)))
            for order in (sorted(FOLDER), names)
        ]
    one, other = (
        [(each.name, each.ceiling) for budget in budgets.each for each in budget.services]
        for budgets in orders
    )
    assert sorted(one, key=str) == sorted(other, key=str)
    assert facts(orders[0]) == facts(orders[1])


WORDS = ["services", "Resources", "apiVersion", "kind", "image", "&a", "*a", "<<", "!Ref", "{", "}"]
WORDS += [
    "[",
    "]",
    ":",
    ": ",
    ",",
    '"',
    "- ",
    "\n",
    "\n  ",
    "\t",
    "#",
    "|",
    "?",
    "{{",
    "%",
    "\x00",
    "\xf6",
]
CONTENTS = st.binary(max_size=60) | st.lists(
    st.sampled_from([each.encode("latin-1") for each in WORDS]), max_size=25
).map(b"".join)


@settings(max_examples=150)
@given(CONTENTS, st.sampled_from(["x.yaml", "x.json", "compose.yml", "x.template", "cdk.json"]))
def test_any_file_in_a_folder_never_makes_the_verdict_fits(content, name):
    """What cannot be read stays unknown or is listed; it stops nothing and hides nothing."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "app.json").write_text(json.dumps(FOLDER["app.json"]))
        for limit in (6, 100):
            before = compute_budget(Options(paths=(Path(folder),), max_connections=limit))
            Path(folder, name).write_bytes(content)
            after = compute_budget(Options(paths=(Path(folder),), max_connections=limit))
            Path(folder, name).unlink()
            services = [each.name for budget in after.each for each in budget.services]
            assert "Fn" in services
            assert after.verdict in {before.verdict, *UNKNOWN_VERDICTS}
