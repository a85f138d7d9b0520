"""What moto's CloudFormation leaves out, filled in as AWS documents it.

Each entry of GAPS is something that AWS does and moto 5.2 does not; the functions below do it
for tests and rehearsals, and everything else is moto's own. `tests/deploy/test_moto_gaps.py` shows
each gap, so that the filling goes when moto has closed it. It never accepts what AWS refuses.
"""

import ipaddress
import itertools
import json
import re
import uuid

import yaml
from moto.cloudformation import parsing
from moto.cloudformation.exceptions import ValidationError
from moto.cloudformation.models import Change, ChangeSet, CloudFormationBackend, Event
from moto.cloudformation.responses import CloudFormationResponse
from moto.cloudformation.utils import yaml_tag_constructor
from moto.core.responses import ActionResult, EmptyResult
from moto.elbv2.models import FakeLoadBalancer
from moto.rds.models import DBParameterGroup, MasterUserSecret
from moto.ssm.models import ssm_backends
from samtranslator.translator.transform import transform

from poolkit.deploy.rehearsal import moto_stacks
from poolkit.deploy.rehearsal.moto_reboots import fill_static_parameters
from poolkit.deploy.rehearsal.moto_secrets import with_secrets

STACK_NAME = r"[a-zA-Z][-a-zA-Z0-9]*"
"""The pattern of a stack's name in the description of the service."""

GAPS = {
    "outputs": "a stack made or updated by a change set has no new outputs",
    "failures": "a failing resource is an error of ExecuteChangeSet: no events, no rollback",
    "deletions": "a resource that cannot be removed is an error of DeleteStack: no events",
    "resource events": "only the stack itself has events",
    "duration": "a change set is executed within the call",
    "transforms": "the SAM transform is not run",
    "protection": "UpdateTerminationProtection is not there, and DeleteStack ignores it",
    "a database's protection": "an instance's DeletionProtection is not handed on",
    "a load balancer's": "its type and attributes are not handed on; DeleteLoadBalancer heeds none",
    "rollback": "CancelUpdateStack, RollbackStack, ContinueUpdateRollback are not there",
    "plans": "change sets know no replacements",
    "changed parameters": "change sets do not list what parameters alone change",
    "functions": "no Fn::Cidr; Fn::GetAZs knows one region; AWS::NoValue stays in lists",
    "types": "many types and attributes are unknown; references to them come to nothing",
    "aliases": "AWS::Lambda::Alias is one of them: what is meant for it gets its function",
    "secrets": "AWS::SecretsManager::Secret is one of them: none is made",
    "a database's secret": "MasterUserSecret.SecretArn is no attribute of an instance or a cluster",
    "tasks": "RunTask runs nothing, and fails for Fargate; see moto_tasks.py",
    "parameter groups": "a reference to one is an object where RDS instances want its name",
    "reboots": "a static parameter of RDS is applied at once, and no group is pending-reboot",
    "names": "a stack may have any name",
    "proxy targets": "one of RDS Proxy is available without the role that the proxy logs in as",
    "route tables": "one stays when its stack is removed, and its VPC with it",
    "statuses": "calls are accepted in any status of a stack; a resource has one status only",
    "change sets": "a second CREATE makes a second stack; one executed does not end the others",
    "metadata": "a change of Metadata alone is a change, and a summary has no JSON of it",
    "masked parameters": "a parameter with NoEcho is shown",
    "lists": "a parameter that is a list is described as Python writes lists",
    "layers": "GetDownloadUrlForLayer of ECR is not there",
    "conditions": "a change set lists resources whose condition is false",
}
"""Plans and conditions are not filled: how a plan with replacements is shown is tested on
answers in AWS's documented form."""


def _fast(name):
    """Return a class of PyYAML's, the one in C where there is one: moto reads templates often."""
    return getattr(yaml, f"C{name}", getattr(yaml, name))


def fill_gaps(monkeypatch, gate):
    loader = type("Loader", (_fast("Loader"),), {})
    loader.add_multi_constructor("", yaml_tag_constructor)
    monkeypatch.setattr(yaml, "Loader", loader)
    create = CloudFormationBackend.create_change_set
    describe = CloudFormationBackend.describe_stacks
    delete = CloudFormationBackend.delete_stack

    def describe_stacks(self, name_or_stack_id):
        _require_name(name_or_stack_id)
        return describe(self, name_or_stack_id)

    def create_change_set(self, **arguments):
        name, kind = arguments["stack_name"], arguments["change_set_type"]
        _require_name(name)
        stacks = [each for each in self.stacks.values() if name in {each.name, each.stack_id}]
        stack = stacks[0] if stacks else None
        change_set_name = arguments["change_set_name"]
        moto_stacks.require_change_set_type(stack, name, change_set_name, kind)
        arguments["template"] = _transformed(arguments["template"])
        id_, stack_id = create(self, **arguments)
        if kind == "CREATE" and stack is not None:
            # Both belong to the one stack that is planned.
            del self.stacks[stack_id]
            self.change_sets[id_].stack = stack
            self.change_sets[id_].stack_id = stack.stack_id
            return id_, stack.stack_id
        return id_, stack_id

    def execute_change_set(self, change_set_name, stack_name=None):
        change_set = moto_stacks.require_executable(self, change_set_name)
        stack = change_set.stack
        _stack_event(stack, f"{change_set.change_set_type}_IN_PROGRESS")
        gate.start(lambda: _execute(stack, change_set))

    def delete_stack(self, name_or_stack_id, retain=()):
        if name_or_stack_id in self.deleted_stacks:
            return
        stack = self.get_stack(name_or_stack_id)
        moto_stacks.require_deletable(stack, retain)
        for name in retain:
            stack.resource_map._parsed_resources.pop(name, None)
        try:
            delete(self, stack.stack_id)
        except Exception as error:  # noqa: BLE001 - whatever moto refuses with
            self.stacks[stack.stack_id] = stack
            _fail_deletion(stack, str(getattr(error, "description", error)))

    monkeypatch.setattr(CloudFormationBackend, "create_change_set", create_change_set)
    monkeypatch.setattr(CloudFormationBackend, "describe_stacks", describe_stacks)
    monkeypatch.setattr(CloudFormationBackend, "execute_change_set", execute_change_set)
    monkeypatch.setattr(CloudFormationBackend, "delete_stack", delete_stack)
    monkeypatch.setattr(parsing, "clean_json", _with_functions(parsing.clean_json))
    fill_static_parameters(monkeypatch)
    monkeypatch.setattr(ChangeSet, "diff", _changes)
    created = _logging_in(_protecting(parsing.parse_and_create_resource))
    named = _naming_what_fails(created)
    monkeypatch.setattr(parsing, "parse_and_create_resource", named)
    class_of = with_secrets(parsing.resource_class_from_type)
    monkeypatch.setattr(parsing, "resource_class_from_type", class_of)
    updated = _logging_in(_protecting(parsing.parse_and_update_resource))
    monkeypatch.setattr(parsing, "parse_and_update_resource", updated)
    removed = _removing_route_tables(parsing.ResourceMap._delete_resource)
    monkeypatch.setattr(parsing.ResourceMap, "_delete_resource", removed)
    monkeypatch.setattr(FakeLoadBalancer, "delete", _unless_protected(FakeLoadBalancer.delete))
    actions = {"update_termination_protection": _update_termination_protection}
    actions |= {name: _rolling_back(name) for name in moto_stacks.ROLL_BACK_FROM}
    for name, action in actions.items():
        monkeypatch.setattr(CloudFormationResponse, name, action, raising=False)
    moto_stacks.fill(monkeypatch)


def _protecting(make):
    """Hand on a load balancer's type and what protects it or a database, at every change."""

    def make_resource(logical_id, declared, resources, *account, **where):
        # A resource that moto cannot update stays unchanged.
        before = resources._parsed_resources.get(logical_id)
        made = make(logical_id, declared, resources, *account, **where)
        if declared["Type"] in {"AWS::RDS::DBInstance", LOAD_BALANCER} and (made or before):
            made = made or before
            _protect(made, parsing.clean_json(declared["Properties"], resources))
        return made

    return make_resource


def _protect(made, properties):
    if isinstance(made, FakeLoadBalancer):
        made.type = properties.get("Type", made.type)
        attributes = properties.get("LoadBalancerAttributes", ())
        made.attrs |= {each["Key"]: each["Value"] for each in attributes}
    else:
        made.deletion_protection = str(properties.get("DeletionProtection")).lower() == "true"


def _unless_protected(delete):
    def delete_load_balancer(self, account_id, region):
        if self.attrs["deletion_protection.enabled"] == "true":
            raise ValidationError(
                message=f"Load balancer '{self.arn}' cannot be deleted because deletion protection "
                "is enabled"
            )
        delete(self, account_id, region)

    return delete_load_balancer


def _removing_route_tables(remove):
    def delete_resource(self, parsed_resource, declared):
        if declared["Type"] == "AWS::EC2::RouteTable":
            backend = parsed_resource.ec2_backend
            del backend.route_tables[parsed_resource.id]
        else:
            remove(self, parsed_resource, declared)

    return delete_resource


LOAD_BALANCER = "AWS::ElasticLoadBalancingV2::LoadBalancer"


def _require_name(name_or_id):
    """Refuse what the service's own description refuses, in its words."""
    if name_or_id and not re.fullmatch(rf"{STACK_NAME}|arn:[-a-zA-Z0-9:/._+]*", name_or_id):
        raise ValidationError(
            message=f"1 validation error detected: Value '{name_or_id}' at 'stackName' failed to "
            f"satisfy constraint: Member must satisfy regular expression pattern: {STACK_NAME}"
        )


def _logging_in(make):
    """Refuse a target group of RDS Proxy while there is no role for the proxy.

    CloudFormation waits until the targets are AVAILABLE, and a failed login makes one UNAVAILABLE
    (RDS API Reference, TargetHealth: AUTH_FAILURE).
    """

    def make_resource(logical_id, declared, resources, *account, **where):
        made = make(logical_id, declared, resources, *account, **where)
        condition = declared.get("Condition")
        if (
            declared["Type"] == "AWS::RDS::DBProxyTargetGroup"
            and (condition is None or resources.lazy_condition_map[condition])
            and not _has_role(resources)
        ):
            raise ValidationError(message="Timed out waiting for target group to become available.")
        return made

    return make_resource


def _has_role(resources):
    """Return whether poolkit's record beside a database's stack names a login."""
    ssm = ssm_backends[resources._account_id][resources._region_name]
    family = resources["AWS::StackName"].rpartition("-")[0]
    found = ssm.get_parameters([f"/{family}-migrate/record"])
    return any("login" in json.loads(each.value) for each in found.values())


def _naming_what_fails(create):
    def create_resource(logical_id, *arguments, **where):
        try:
            return create(logical_id, *arguments, **where)
        except Exception as error:
            # The innermost: one resource is made on the way to another that refers to it.
            error.logical_id = getattr(error, "logical_id", logical_id)
            raise

    return create_resource


def _with_functions(clean):
    """Return moto's evaluation with the functions it lacks, and names for what it lacks."""

    def evaluate(node, resources):
        if isinstance(node, list):
            return [value for value in clean(node, resources) if value is not None]
        if not (isinstance(node, dict) and len(node) == 1):
            return clean(node, resources)
        ((name, argument),) = node.items()
        if name == "Fn::Cidr":
            return _cidr(*parsing.clean_json(argument, resources))
        if name == "Fn::GetAZs":
            return [f"{resources['AWS::Region']}{letter}" for letter in "abc"]
        if name == "Fn::GetAtt":
            return _attribute(clean, argument, resources)
        found = clean(node, resources)
        as_it_is = name != "Ref" or argument == "AWS::NoValue"
        return found if as_it_is else _reference(argument, found, resources)

    return evaluate


def _reference(name, found, resources):
    if found is not None:
        return found.name if isinstance(found, DBParameterGroup) else found
    declared = resources._resource_json_map.get(name, {})
    if declared.get("Type") == "AWS::Lambda::Alias":
        return parsing.clean_json(declared["Properties"]["FunctionName"], resources)
    return f"id-of-{name}".lower()


def _cidr(block, count, bits):
    subnets = ipaddress.ip_network(block).subnets(new_prefix=32 - int(bits))
    return [str(subnet) for subnet in itertools.islice(subnets, int(count))]


def _attribute(clean, argument, resources):
    words = argument.split(".") if isinstance(argument, str) else argument
    parts = [words[0], ".".join(words[1:])]
    if parts[1] == "MasterUserSecret.SecretArn" and (database := resources[parts[0]]) is not None:
        if not hasattr(database, "master_user_secret"):
            database.master_user_secret = made = MasterUserSecret(database, None)
            # moto's own says "admin", whatever the template says.
            named = parsing.clean_json(
                resources._resource_json_map[parts[0]]["Properties"]["MasterUsername"], resources
            )
            login = {"username": named, "password": uuid.uuid4().hex}
            secret = json.dumps(login)
            made.secretsmanager.put_secret_value(
                made.secret_arn, secret, None, None, ["AWSCURRENT"]
            )
        return database.master_user_secret.secret_arn
    try:
        found = clean({"Fn::GetAtt": parts}, resources)
    except Exception:  # noqa: BLE001 - each type of moto's has its own way not to know
        found = None
    if not (found is None or isinstance(found, dict)):
        return found
    name = "-".join(parts).replace(".", "-").lower()
    if not parts[1].endswith("Arn"):
        return name
    # The longer of the two forms of ARNs, so that each part can be selected.
    return f"arn:aws:unknown:{resources['AWS::Region']}:123456789012:unknown:{name}"


def _transformed(template):
    from moto.cloudformation.models import Stack

    parsed = Stack.parse_template(template)
    if "Transform" not in parsed:
        return template

    class NoManagedPolicies:
        def load(self):
            return {}

    return yaml.dump(transform(parsed, {}, NoManagedPolicies()), Dumper=_fast("SafeDumper"))


def _changes(change_set):
    """Return what a template and its parameters change; moto compares templates alone."""
    resources, template = change_set.stack.resource_map, change_set.template_dict
    names = resources.build_resource_diff(template, change_set.parameters)
    return [
        Change(
            action,
            name,
            (template["Resources"].get(name) or resources._resource_json_map[name])["Type"],
        )
        for action in names
        for name in names[action]
    ]


def _execute(stack, change_set):
    if stack.status.startswith("DELETE"):
        return  # it was removed before it was made
    resources = stack.resource_map
    before = resources._template, resources._resource_json_map, resources.input_parameters
    parameters = dict(resources.resolved_parameters)
    kind = change_set.change_set_type
    if kind == "CREATE":
        # A stack has them from the beginning, also if its creation fails.
        stack.template, stack.parameters = change_set.template, change_set.parameters
        stack.template_dict = change_set.template_dict
    for change in change_set.changes:
        _resource_event(stack, change, f"{_verb(change)}_IN_PROGRESS")
    try:
        change_set.apply()
    except Exception as error:  # noqa: BLE001 - whatever moto refuses a resource with
        said = str(getattr(error, "description", "") or f"{type(error).__name__}: {error}")
        kept = _undo(stack) if kind == "CREATE" else {}
        _fail(stack, change_set, getattr(error, "logical_id", None), said, kept)
        resources._template, resources._resource_json_map, resources.input_parameters = before
        if kind == "CREATE":
            declared = change_set.template_dict["Resources"]
            resources._resource_json_map = {name: declared[name] for name in kept}
        resources.resolved_parameters = parameters
        return
    for change in change_set.changes:
        _resource_event(stack, change, f"{_verb(change)}_COMPLETE")
    stack.template, stack.parameters = change_set.template, change_set.parameters
    stack._parse_template()
    stack.description = stack.template_dict.get("Description")
    stack.tags = change_set.tags or stack.tags
    stack.output_map = stack._create_output_map()
    _stack_event(stack, f"{kind}_COMPLETE")


def _undo(stack):
    """Remove what was made, in the reverse order; return what could not be, with the reasons."""
    resources, kept = stack.resource_map, {}
    made = [name for name in resources._parsed_resources if name in resources._resource_json_map]
    for name in reversed(made):
        declared = resources._resource_json_map[name]
        if declared.get("DeletionPolicy") == "Retain":
            continue
        try:
            resources._delete_resource(resources._parsed_resources[name], declared)
        except Exception as error:  # noqa: BLE001 - whatever moto refuses with
            reason = str(getattr(error, "description", "") or error)
            kept[name] = (declared["Type"], reason)
            moto_stacks.mark(stack, name, "DELETE_FAILED")
        else:
            moto_stacks.mark(stack, name, "DELETE_COMPLETE")
            del resources._parsed_resources[name]
    return kept


def _fail(stack, change_set, failed, reason, kept):
    kind = change_set.change_set_type
    done = stack.resource_map._parsed_resources
    left = [change for change in change_set.changes if change.logical_resource_id not in done]
    left.sort(key=lambda change: change.logical_resource_id != failed)
    for number, change in enumerate(left):
        said = f"Resource handler returned message: {reason}" if number == 0 else None
        said = said or f"Resource {_verb(change).lower()} cancelled".replace("create", "creation")
        _resource_event(stack, change, f"{_verb(change)}_FAILED", said)
    names = ", ".join(change.logical_resource_id for change in left)
    rollback = "ROLLBACK" if kind == "CREATE" else "UPDATE_ROLLBACK"
    said = f"The following resource(s) failed to {kind.lower()}: [{names}]. "
    _stack_event(stack, f"{rollback}_IN_PROGRESS", said)
    for name, (type_, refusal) in kept.items():
        text = f"Resource handler returned message: {refusal}"
        _resource_event(stack, Change("Remove", name, type_), "DELETE_FAILED", text)
    _stack_event(stack, f"{rollback}_{'FAILED' if kept else 'COMPLETE'}")


def _fail_deletion(stack, reason):
    left = [
        Change("Remove", name, stack.resource_map._resource_json_map[name]["Type"])
        for name in stack.resource_map._resource_json_map
        if name in stack.resource_map._parsed_resources
    ]
    moto_stacks.mark(stack, left[0].logical_resource_id, "DELETE_FAILED")
    _resource_event(stack, left[0], "DELETE_FAILED", f"Resource handler returned message: {reason}")
    _stack_event(stack, "DELETE_FAILED", f"The following resource(s) failed to delete: [{left}].")


def _verb(change):
    return {"Add": "CREATE", "Modify": "UPDATE", "Remove": "DELETE"}[change.action]


def _stack_event(stack, status, reason=None):
    stack._add_stack_event(status, resource_status_reason=reason)
    # After the event, so that a reader of the status finds the event too.
    stack.status = status


def _resource_event(stack, change, status, reason=None):
    stack.events.append(
        Event(
            stack_id=stack.stack_id,
            stack_name=stack.name,
            logical_resource_id=change.logical_resource_id,
            physical_resource_id=f"physical-{change.logical_resource_id}",
            resource_type=change.resource_type,
            resource_status=status,
            resource_status_reason=reason,
            resource_properties=None,
        )
    )


def _update_termination_protection(self):
    stack = self.cloudformation_backend.get_stack(self._get_param("StackName"))
    stack.enable_termination_protection = self._get_bool_param("EnableTerminationProtection")
    return ActionResult({"StackId": stack.stack_id})


def _rolling_back(action):
    def roll_back(self):
        stack = self.cloudformation_backend.get_stack(self._get_param("StackName"))
        skip = self._get_param("ResourcesToSkip", [])
        moto_stacks.require_roll_back(stack, action, skip)
        prefix = "ROLLBACK" if stack.status.startswith("CREATE") else "UPDATE_ROLLBACK"
        for name in skip:
            moto_stacks.mark(stack, name, "UPDATE_COMPLETE")
        _stack_event(stack, f"{prefix}_IN_PROGRESS", "User Initiated")
        _stack_event(stack, f"{prefix}_COMPLETE")
        return EmptyResult()

    return roll_back
