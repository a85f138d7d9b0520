"""Rules of the functions' stack: what a release must pass before it has all traffic, and names."""

import pytest
from infra.deployed import ENVIRONMENTS, deployment_of
from infra.transformed import references, transformed

HOOK_PREFIX = "CodeDeployHook_"
"""AWS Managed Policy Reference, AWSCodeDeployRoleForLambda: lambda:InvokeFunction on
function:CodeDeployHook_*, and on no other."""

FUNCTION_NAME_LENGTH = 64  # AWS Lambda API Reference, CreateFunction, FunctionName


def stack_of(environment):
    """Return the functions' stack of an environment as CloudFormation executes it."""
    table = deployment_of(environment).tables["lambda"]
    return transformed("lambda.yaml", **{name: str(each.value) for name, each in table.items()})


@pytest.fixture(params=ENVIRONMENTS)
def stack(request):
    return stack_of(request.param)


def deployment_groups(stack):
    groups = stack.of_type("AWS::CodeDeploy::DeploymentGroup")
    assert len(groups) == 2
    return groups


def watched(stack, group):
    """Return the alarms that undo a deployment, by name."""
    configuration = stack.properties(group)["AlarmConfiguration"]
    assert configuration["Enabled"] is True
    assert stack.properties(group)["AutoRollbackConfiguration"]["Enabled"] is True
    names = sorted(references(configuration["Alarms"]))
    return {name: stack.properties(name) for name in names}


def dimensions(alarm):
    return {each["Name"]: each["Value"] for each in alarm["Dimensions"]}


def test_a_new_version_is_asked_for_its_database_before_it_has_traffic(stack):
    """Each alias has the hook, and the hook has the versions that the aliases move to."""
    hook = stack.properties("ReleaseCheckFunction")
    asked = references(hook["Environment"]["Variables"]["POOLKIT_CHECKED_VERSIONS"])
    aliases = stack.of_type("AWS::Lambda::Alias")
    assert len(aliases) == 2
    for alias in aliases.values():
        update = alias["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]
        assert update["BeforeAllowTrafficHook"] == {"Ref": "ReleaseCheckFunction"}
    moved_to = {name for each in aliases.values() for name in references(each["Properties"])}
    versions = set(stack.of_type("AWS::Lambda::Version"))
    assert asked == versions == moved_to & versions


def test_a_repair_can_go_out_while_an_alarm_is_on():
    """CheckRelease "false" takes away the alarms and the hook; nothing else does."""
    stack = transformed("lambda.yaml", CheckRelease="false")
    for group in deployment_groups(stack):
        assert stack.properties(group)["AlarmConfiguration"] == {}
    for alias in stack.of_type("AWS::Lambda::Alias").values():
        assert "BeforeAllowTrafficHook" not in alias["UpdatePolicy"]["CodeDeployLambdaAliasUpdate"]
    for environment in ENVIRONMENTS:
        assert "CheckRelease" not in deployment_of(environment).tables["lambda"]


def test_codedeploy_may_invoke_the_hook(stack):
    """Its name begins as the role that SAM gives CodeDeploy demands."""
    (role,) = (
        role["Properties"]
        for name, role in stack.of_type("AWS::IAM::Role").items()
        if name == "CodeDeployServiceRole"
    )
    assert role["ManagedPolicyArns"] == [
        "arn:aws:iam::aws:policy/service-role/AWSCodeDeployRoleForLambda"
    ]
    name = stack.properties("ReleaseCheckFunction")["FunctionName"]["Fn::Sub"]
    assert name == HOOK_PREFIX + "${AWS::StackName}"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_names_of_functions_are_not_too_long(environment):
    """The longest is the hook's."""
    stack = f"poolkit-{environment}-lambda".replace("_", "-")
    assert len(HOOK_PREFIX + stack) <= FUNCTION_NAME_LENGTH


def test_the_hook_reaches_aws_without_endpoints(stack):
    """It is outside the VPC, with the package of the versions that it asks."""
    hook, api = stack.properties("ReleaseCheckFunction"), stack.properties("ApiFunction")
    assert "VpcConfig" not in hook
    for same in ("Code", "Runtime", "Architectures"):
        assert hook[same] == api[same]


def test_the_hook_has_the_time_for_all_its_tries(stack):
    """Three tries for each function, each as long as the function may take."""
    longest = sum(stack.properties(name)["Timeout"] for name in ("ApiFunction", "IngestFunction"))
    assert stack.properties("ReleaseCheckFunction")["Timeout"] >= 3 * longest + 2 * 2 * 5


def test_a_deployment_is_watched_by_the_version_that_it_deploys(stack):
    """Errors of the alias's new version alone: a tenth of the traffic is little among all errors."""
    for group in deployment_groups(stack):
        (alarm,) = (
            each for each in watched(stack, group).values() if each["MetricName"] == "Errors"
        )
        found = dimensions(alarm)
        assert set(found) == {"FunctionName", "Resource", "ExecutedVersion"}
        version, attribute = found["ExecutedVersion"]["Fn::GetAtt"]
        assert attribute == "Version"
        (function,) = references(stack.properties(version)["FunctionName"])
        assert found["FunctionName"] == {"Ref": function}
        # AWS Lambda Developer Guide, "Types of metrics": Resource is <function>:<alias>.
        (alias,) = (
            each["Properties"]["Name"]
            for each in stack.of_type("AWS::Lambda::Alias").values()
            if references(each["Properties"]["FunctionName"]) == {function}
        )
        assert found["Resource"] == {"Fn::Sub": f"${{{function}}}:{alias}"}


def test_an_answer_of_503_undoes_a_deployment_of_the_api(stack):
    """`Errors` stays 0 when a function answers 503: its own metric and the HTTP API's are watched."""
    alarms = watched(stack, "ApiFunctionDeploymentGroup")
    metrics = {(each["Namespace"], each["MetricName"]): each for each in alarms.values()}
    assert {("poolkit", "ServerErrors"), ("AWS/ApiGateway", "5xx")} <= metrics.keys()
    unavailable = dimensions(metrics["poolkit", "ServerErrors"])
    errors = dimensions(metrics["AWS/Lambda", "Errors"])
    assert set(unavailable) == {"target", "environment", "service", "version"}
    assert unavailable["version"] == errors["ExecutedVersion"]
    variables = stack.properties("ApiFunction")["Environment"]["Variables"]
    assert unavailable["service"] == variables["POWERTOOLS_SERVICE_NAME"]


def test_an_alarm_that_watches_a_deployment_is_faster_than_the_canary(stack):
    """It is on within three minutes of the first bad answer; the alias moves after five."""
    for group in deployment_groups(stack):
        for name, alarm in watched(stack, group).items():
            assert alarm["Period"] * alarm["EvaluationPeriods"] <= 180, name


def test_nothing_that_watches_a_deployment_waits_for_its_alias(stack):
    """An alarm, a hook or their roles that refer to the alias would wait for each other for ever."""
    needed, waiting = set(), set(stack.of_type("AWS::CodeDeploy::DeploymentGroup"))
    waiting |= {"ReleaseCheckFunction"}
    while waiting:
        name = waiting.pop()
        needed.add(name)
        waiting |= (references(stack.resources[name]) & stack.resources.keys()) - needed
    assert not needed & set(stack.of_type("AWS::Lambda::Alias"))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_provisioned_concurrency_that_is_too_small_has_an_alarm(environment):
    """Where there is any."""
    provisioned = int(deployment_of(environment).tables["lambda"]["ProvisionedConcurrency"].value)
    assert ("ApiSpilloverAlarm" in stack_of(environment).resources) is (provisioned > 0)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_two_versions_can_be_kept_ready_at_once(environment):
    """While an alias moves, the old and the new version have it: both within the reservation."""
    table = deployment_of(environment).tables["lambda"]
    provisioned, reserved = (
        int(table[name].value) for name in ("ProvisionedConcurrency", "ApiReservedConcurrency")
    )
    assert 2 * provisioned <= reserved
