"""What a linter does not look for: the rules that the templates keep in every environment."""

import json
import re

import pytest
from infra.deployed import (
    ENVIRONMENTS,
    INFRA,
    ROOT,
    answer_of,
    deployment_of,
    worker_settings,
)

from poolkit.budget.read.values import Reference, references
from poolkit.config import presets
from poolkit.config.presets import TARGETS, preset
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError

HTTP_API_LIMIT = 30.0  # s; API Gateway Developer Guide, "Quotas for HTTP APIs"
CLIENT_PATIENCE = 65.0  # s; docs/infrastructure.md, "Timeouts"
PARAMETER_GROUPS = ("AWS::RDS::DBParameterGroup", "AWS::RDS::DBClusterParameterGroup")
LONGEST_STOP = 120  # s; Amazon ECS API Reference, ContainerDefinition, stopTimeout on Fargate


def as_list(value):
    return value if isinstance(value, list) else [value]


def statements(deployment):
    """Give every statement of every role and policy of the deployed, with where it stands.

    The roles of those who deploy have rules of their own, in test_bootstrap.py.
    """
    for role in deployment.of_type("AWS::IAM::Role", "AWS::IAM::ManagedPolicy"):
        if role.stack.name == "access":
            continue
        policies = [each["PolicyDocument"] for each in role.get("Policies") or []]
        policies += [role.get("PolicyDocument")] if role.get("PolicyDocument") else []
        for policy in policies:
            for statement in policy["Statement"]:
                yield f"{role.stack.name}.{role.logical_id}", statement


# -- secrets and TLS ------------------------------------------------------------------------

SECRET = re.compile(r"PASSWORD|PASSWD|TOKEN|PRIVATE|CREDENTIAL|API_?KEY|(SECRET(?!_ARN))|_URL$")
HOLDS_NO_SECRET = {"WORKER_BROKER_URL": "sqs://", "WORKER_QUEUE_URL": Reference}


def test_no_password_is_in_a_variable(any_deployment):
    """Containers and functions are told where a secret is, never what it is."""
    for each in any_deployment.deployables():
        assert "Secrets" not in each.definition, "ECS would put the secret into a variable"
        for name, value in each.variables.items():
            if name in HOLDS_NO_SECRET:
                wanted = HOLDS_NO_SECRET[name]
                assert value == wanted or isinstance(value, wanted)
            else:
                assert not SECRET.search(name), name


def test_rds_makes_and_rotates_the_password(any_deployment):
    """No template has a master password: RDS keeps it in Secrets Manager."""
    databases = any_deployment.of_type("AWS::RDS::DBInstance", "AWS::RDS::DBCluster")
    assert databases
    for database in databases:
        managed = None if is_of_a_cluster(database) else True
        assert database.get("ManageMasterUserPassword") is managed
        assert database.get("MasterUserPassword") is None


def is_of_a_cluster(database):
    """Tell whether an instance is a cluster's, which has the data and the password."""
    return database.get("DBInstanceClass") == "db.serverless"


def test_the_server_refuses_connections_without_tls(any_deployment):
    """rds.force_ssl is on, and so is RequireTLS of a proxy."""
    groups = any_deployment.of_type(*PARAMETER_GROUPS)
    assert [group.get("Parameters", "rds.force_ssl") for group in groups] == ["1"]
    proxies = any_deployment.of_type("AWS::RDS::DBProxy")
    assert all(proxy.get("RequireTLS") is True for proxy in proxies)


def test_clients_verify_the_server(any_deployment):
    """sslmode is verify-full with a certificate; only PgBouncer's own is taken unverified."""
    for each in any_deployment.deployables():
        if "DATABASE_SSLMODE" not in each.variables:
            assert each.name in {"pgbouncer", "metrics", "load", "ReleaseCheckFunction"}
            continue
        host = each.variables["DATABASE_HOST"]
        if any(found.stack == "pgbouncer" for found in references(host)):
            assert each.variables["DATABASE_SSLMODE"] == "require"
            assert "DATABASE_SSLROOTCERT" not in each.variables
        else:
            assert each.variables["DATABASE_SSLMODE"] == "verify-full"
            assert each.variables["DATABASE_SSLROOTCERT"].endswith("certificates/database-ca.crt")


def test_every_preset_requires_tls_outside_dev():
    """A URL without TLS to another machine is refused, whatever the target."""
    for target in TARGETS:
        for environment in ENVIRONMENTS[1:]:
            environ = {"POOLKIT_TARGET": target, "POOLKIT_ENVIRONMENT": environment}
            environ["DATABASE_URL"] = "postgresql://u:long@db.example/d"
            with pytest.raises(ConfigurationError, match="no TLS"):
                Settings.from_environ(environ)


# -- networks -------------------------------------------------------------------------------


def test_only_the_load_balancer_is_open_to_addresses(any_deployment):
    """Everything else lets in other security groups by reference."""
    for group in any_deployment.of_type("AWS::EC2::SecurityGroup"):
        for rule in group.get("SecurityGroupIngress") or []:
            if "CidrIp" in rule or "CidrIpv6" in rule:
                assert (group.stack.name, group.logical_id) == ("web", "LoadBalancerSecurityGroup")
                assert rule["FromPort"] == rule["ToPort"]
                assert rule["FromPort"] in (80, 443)
    for rule in any_deployment.of_type("AWS::EC2::SecurityGroupIngress"):
        assert rule.get("CidrIp") is None
        assert isinstance(rule.get("SourceSecurityGroupId"), Reference)


def test_the_database_is_reached_by_its_clients_alone(any_deployment):
    """Its group lets in the clients' group and the proxy's, on its port."""
    allowed = {("network", "DatabaseClientSecurityGroup"), ("proxy", "ProxySecurityGroup")}
    rules = [
        rule
        for rule in any_deployment.of_type("AWS::EC2::SecurityGroupIngress")
        if rule.get("GroupId") == Reference("database", "DatabaseSecurityGroup")
    ]
    assert rules
    for rule in rules:
        assert rule.get("SourceSecurityGroupId").resource in allowed
        assert rule.get("FromPort") == rule.get("ToPort") == 5432
    for database in any_deployment.of_type("AWS::RDS::DBInstance"):
        assert database.get("PubliclyAccessible") is False


def test_tasks_and_functions_have_no_public_address(deployment):
    """They run in private subnets."""
    private = {("network", f"PrivateSubnet{zone}") for zone in "ABC"}
    for service in deployment.of_type("AWS::ECS::Service"):
        where = service.get("NetworkConfiguration", "AwsvpcConfiguration")
        assert where["AssignPublicIp"] == "DISABLED"
        assert {each.resource for each in references(where["Subnets"])} <= private
    for function in deployment.of_type("AWS::Lambda::Function"):
        subnets = references(function.get("VpcConfig", "SubnetIds"))
        assert {each.resource for each in subnets} <= private


def test_nothing_needs_a_nat_gateway(any_deployment):
    """No environment has one; the AWS APIs that tasks and functions call have endpoints."""
    assert any_deployment.of_type("AWS::EC2::NatGateway") == []
    services = {
        str(each.get("ServiceName")).rpartition("eu-central-1.")[2]
        for each in any_deployment.of_type("AWS::EC2::VPCEndpoint")
    }
    called = {
        action.partition(":")[0]
        for where, statement in statements(any_deployment)
        for action in as_list(statement["Action"])
        # The check of a release runs outside the VPC.
        if not where.startswith(("network.", "proxy.ProxyRole", "lambda.ReleaseCheckRole"))
    }
    # Signed without a call (rds-db), called by Lambda itself (ec2, xray), or by AWS for us (kms).
    endpoint = {name: name for name in ("logs", "s3", "secretsmanager", "sqs")} | {"ecr": "ecr.api"}
    assert {endpoint[name] for name in called - {"rds-db", "ec2", "xray", "kms"}} <= services
    assert {"ecr.dkr", "s3"} <= services


# -- IAM ------------------------------------------------------------------------------------

WITHOUT_RESOURCES = {
    *("ecr:GetAuthorizationToken", "xray:PutTelemetryRecords", "xray:PutTraceSegments")
}


def test_no_action_is_a_wildcard(any_deployment):
    """Every action that is allowed is named."""
    found = list(statements(any_deployment))
    assert found
    for where, statement in found:
        assert not any("*" in action for action in as_list(statement["Action"])), where


def test_resources_are_named_where_a_service_has_any(any_deployment):
    """A resource is `*` only for actions that know no resources, and joining a VPC."""
    for where, statement in statements(any_deployment):
        if "*" in as_list(statement["Resource"]) and statement["Effect"] == "Allow":
            actions = set(as_list(statement["Action"]))
            assert actions <= WITHOUT_RESOURCES or statement.get("Sid") == "JoinVpc", where


def test_what_may_be_done_with_data_is_bound_to_the_stacks_own(any_deployment):
    """A resource is another's output or spelt out; wildcards are objects, and versions of a function."""
    for where, statement in statements(any_deployment):
        for resource in as_list(statement["Resource"]):
            if isinstance(resource, Reference) or resource == "*":
                continue  # "*" is what the test above is about
            assert not isinstance(resource, str), f"{where}: {resource} belongs to no stack"
            written = "".join(part for part in resource.parts if isinstance(part, str))
            own = written.removesuffix("/*") if ":s3:" in written else written
            if statement["Action"] == "lambda:InvokeFunction":
                own = own.removesuffix(":*")
            assert "*" not in own, where


def test_an_endpoint_serves_this_account_alone(deployment):
    """Callers and buckets are of this account: no data leaves through the endpoint."""
    endpoints = deployment.of_type("AWS::EC2::VPCEndpoint")
    assert endpoints
    for endpoint in endpoints:
        wanted = {"aws:PrincipalAccount"}
        if endpoint.logical_id == "S3Endpoint":
            wanted |= {"aws:ResourceAccount"}
        for statement in endpoint.get("PolicyDocument", "Statement"):
            if statement["Resource"] == "*":
                assert set(statement["Condition"]["StringEquals"]) == wanted, endpoint.logical_id
            else:
                assert statement["Action"] == "s3:GetObject"


def test_with_tokens_only_migrations_read_the_secret():
    """With "iam" the deployables log in as one user of one database, and are told no secret."""
    deployment = deployment_of("iam")
    containers = [deployment.container(name) for name in ("web", "worker")]
    for each in containers + deployment.functions():
        assert each.settings.credentials == "iam"
        assert each.variables["DATABASE_USER"] == "articles_app"
        assert "DATABASE_SECRET_ARN" not in each.variables
    user = (Reference("database", "Instance", "DbiResourceId"), "/articles_app")
    connecting = list(allowed(deployment, "rds-db:connect"))
    assert all(statement["Resource"].parts[-2:] == user for _, statement in connecting)
    assert {where for where, _ in connecting} == {
        *("lambda.FunctionPolicy", "web.TaskRole", "worker.TaskRole")
    }
    reading = {where for where, _ in allowed(deployment, "secretsmanager:GetSecretValue")}
    assert reading == {"loadtest.MasterRole", "migrate.TaskRole"}


def allowed(deployment, action):
    return (each for each in statements(deployment) if action in as_list(each[1]["Action"]))


def test_the_functions_code_may_not_use_what_lambda_needs(deployment):
    """What joins the VPC is denied to the code itself."""
    by_sid = {s["Sid"]: s for _, s in statements(deployment) if "Sid" in s}
    denied = by_sid["NotFromTheCode"]
    assert denied["Effect"] == "Deny"
    assert denied["Action"] == by_sid["JoinVpc"]["Action"]
    assert "lambda:SourceFunctionArn" in denied["Condition"]["ArnLike"]


def test_managed_policies_of_aws_are_the_one_that_is_needed(any_deployment):
    """Enhanced Monitoring alone has a managed policy of AWS."""
    for role in any_deployment.of_type("AWS::IAM::Role"):
        for arn in role.get("ManagedPolicyArns") or []:
            if not isinstance(arn, Reference):
                parts = getattr(arn, "parts", (arn,))
                assert parts[-1].endswith(
                    ("AmazonRDSEnhancedMonitoringRole", "AWSCodeDeployRoleForLambda")
                ), role


# -- connections ----------------------------------------------------------------------------


def test_every_environment_of_the_presets_is_deployed():
    """An environment has a file of parameters, and a file is an environment's."""
    files = sorted(file.stem for file in INFRA.glob("environments/*.toml"))
    assert sorted(presets.ENVIRONMENTS) == files == sorted(ENVIRONMENTS)


def test_every_environment_fits(deployment):
    """No number is unknown, and old and new instances together are within max_connections."""
    budget = deployment.budget
    assert (budget.gaps, budget.unread, budget.verdict) == ((), (), "fits")


def test_the_numbers_are_those_of_the_presets(deployment):
    """A process holds the connections of its preset, unless the template overrides it."""
    for service in deployment.budget.services:
        chosen = preset(service.target, deployment.environment)
        if service.target == "worker":
            assert service.per_process == 1
        elif "POOLKIT_" not in service.pool_size.origin + service.max_overflow.origin:
            assert service.per_process == chosen.max_connections_per_process


def test_a_preset_for_a_proxy_connects_to_one(deployment):
    """A function with lambda_proxy leads to a proxy in the templates."""
    for service in deployment.budget.services:
        if service.target == "lambda_proxy":
            assert service.through


def test_max_connections_is_what_the_memory_carries(deployment):
    """The parameter group sets no more than RDS's own formula would give."""
    assert not deployment.budget.database.is_set_too_high


def test_reserved_concurrency_is_what_the_budget_counts(deployment):
    """Every function has it, and the budget's ceiling comes from the same number."""
    counted = {each.name: each.instances.value for each in deployment.budget.services}
    for function in deployment.of_type("AWS::Lambda::Function"):
        reserved = int(function.get("ReservedConcurrentExecutions"))
        if "POOLKIT_TARGET" in function.get("Environment", "Variables"):
            assert counted[function.get("FunctionName")] == reserved
        else:
            assert function.get("FunctionName") not in counted


def test_the_sum_in_each_environments_file_is_the_budgets(deployment):
    """The comment's total, worked out by hand, is what `poolkit budget` finds."""
    text = (INFRA / "environments" / f"{deployment.environment}.toml").read_text()
    written = re.search(r"^#\s+(\d+) of (\d+), less (\d+) reserved$", text, re.MULTILINE)
    budget = deployment.budget
    found = (budget.needed, budget.database.max_connections.value, budget.database.reserved.value)
    assert tuple(map(int, written.groups())) == found


def test_max_connections_is_one_number(any_deployment):
    """The server, its alarm and the dashboard have the same one."""
    (group,) = any_deployment.of_type(*PARAMETER_GROUPS)
    most = group.get("Parameters", "max_connections")
    alarm = any_deployment.resource("database", "ConnectionsAlarm")
    assert alarm.get("Metrics", 1, "Expression") == f"100 * connections / {most}"
    body = json.loads(dashboard(any_deployment))
    lines = body["widgets"][0]["properties"]["annotations"]["horizontal"]
    assert [line["value"] for line in lines] == [int(most)]


def test_a_server_ends_idle_sessions_later_than_a_pool_recycles(any_deployment):
    """idle_session_timeout exceeds pool_recycle, so that a pool is not surprised."""
    (group,) = any_deployment.of_type(*PARAMETER_GROUPS)
    idle = int(group.get("Parameters", "idle_session_timeout"))
    for target in TARGETS:
        assert idle > preset(target, any_deployment.environment).pool_recycle * 1000


def test_pgbouncer_and_the_proxy_take_all_clients(deployment):
    """One PgBouncer alone takes every client, because its sisters may be away."""
    for pooler in deployment.budget.poolers:
        if pooler.kind == "PgBouncer":
            clients = sum(each.ceiling for each in deployment.budget.clients_of(pooler.name))
            assert clients <= pooler.clients.value


def test_services_behind_a_pooler_use_transaction_pooling(any_deployment):
    """Clients of PgBouncer and RDS Proxy send no startup options; others do."""
    for each in any_deployment.deployables():
        if "POOLKIT_TARGET" in each.variables:
            host = next(references(each.variables["DATABASE_HOST"]))
            pooled = host.stack == "pgbouncer" or host.logical_id == "Proxy"
            assert each.settings.preset.transaction_pooling is pooled, each.name


# -- settings -------------------------------------------------------------------------------


@pytest.mark.sample
def test_every_deployable_starts_with_its_variables(deployment):
    """What the templates set is what the deployables accept."""
    for each in deployment.deployables():
        if "POOLKIT_TARGET" in each.variables:
            assert each.settings.environment == deployment.environment
            assert each.settings.credentials == "secret"
    worker_settings(deployment.container("worker").text())


def test_the_command_is_the_presets_application(deployment):
    """web_async runs the asynchronous application, web the other one."""
    web = deployment.container("web")
    asynchronous = web.variables["POOLKIT_TARGET"] == "web_async"
    wanted = "webapp.async_app:app" if asynchronous else "webapp.app:app"
    assert wanted in web.definition["Command"]


# -- timeouts, from the inside out ----------------------------------------------------------


def web_presets(deployment):
    """Give both presets that the web template can run with: `Preset` changes nothing else."""
    return [preset(target, deployment.environment) for target in ("web", "web_async")]


def test_timeouts_of_the_web_service_grow_outwards(deployment):
    """statement < checkout + statement < application < load balancer < client."""
    balancer = attribute(deployment.resource("web", "LoadBalancer"), "idle_timeout.timeout_seconds")
    for chosen in [deployment.container("web").settings.preset, *web_presets(deployment)]:
        statement = chosen.statement_timeout / 1000
        waited = chosen.pool_timeout + statement
        chain = [statement, waited, answer_of(chosen), balancer, CLIENT_PATIENCE]
        assert chain == sorted(set(chain))


def test_timeouts_of_the_functions_grow_outwards(deployment):
    """statement < checkout + statement <= connect too < function < HTTP API < client."""
    integration = deployment.resource("lambda", "ApiIntegration").get("TimeoutInMillis") / 1000
    for function in deployment.functions():
        chosen = function.settings.preset
        statement = chosen.statement_timeout / 1000
        waits = chosen.pool_timeout if chosen.pool == "queue" else chosen.connect_timeout
        chain = [statement, waits + statement, function.definition["Timeout"]]
        assert chain == sorted(set(chain))
    api = deployment.resource("lambda", "ApiFunction").get("Timeout")
    assert api < integration < HTTP_API_LIMIT < CLIENT_PATIENCE


@pytest.mark.sample
def test_timeouts_of_the_worker_grow_outwards(deployment):
    """statement < soft limit < hard limit < stop, and the queue waits longest."""
    container = deployment.container("worker")
    worker = worker_settings(container.text())
    chain = [
        container.settings.preset.statement_timeout / 1000,
        worker.task_soft_time_limit * 0.9,  # where the worker itself would cut it off
        worker.task_time_limit,
        container.definition["StopTimeout"],
        worker.visibility_timeout,
    ]
    assert chain == sorted(set(chain))
    queue = deployment.resource("worker", "Queue")
    assert queue.get("VisibilityTimeout") == worker.visibility_timeout
    assert worker.visibility_timeout >= 6 * worker.task_time_limit


def test_pooled_sessions_have_the_presets_statement_timeout(deployment):
    """What a client behind a pooler cannot say, the pooler says with the same number."""
    if deployment.environment != "high_traffic":
        assert deployment.of_type("AWS::RDS::DBProxy") == []
        return
    proxied = deployment.functions()[0].settings.preset.statement_timeout
    # The role's own setting: RDS Proxy opens its sessions as this role, and cannot set any.
    role = deployment.container("migration").variables["APPLICATION_STATEMENT_TIMEOUT"]
    assert int(role) == proxied
    pooled = deployment.container("web").settings.preset.statement_timeout
    assert int(deployment.container("pgbouncer").variables["STATEMENT_TIMEOUT"]) == pooled


def test_an_idle_connection_outlives_the_load_balancers(deployment):
    """The application keeps a connection longer than the load balancer, or it would answer 502."""
    keep_alive = int(deployment.container("web").text()["UVICORN_TIMEOUT_KEEP_ALIVE"])
    balancer = attribute(deployment.resource("web", "LoadBalancer"), "idle_timeout.timeout_seconds")
    assert keep_alive > balancer


def test_stopping_lasts_longer_than_draining(deployment):
    """A stopped task has the time to answer, to drain and to close its pool."""
    web = deployment.container("web")
    graceful = int(web.text()["UVICORN_TIMEOUT_GRACEFUL_SHUTDOWN"])
    slowest = max(map(answer_of, [web.settings.preset, *web_presets(deployment)]))
    group = deployment.resource("web", "TargetGroup")
    assert attribute(group, "deregistration_delay.timeout_seconds") >= slowest
    assert slowest <= graceful < web.definition["StopTimeout"] <= LONGEST_STOP
    for container in deployment.containers():
        if container.name == "pgbouncer":
            timeout = int(container.variables["STATEMENT_TIMEOUT"]) / 1000
            assert container.definition["StopTimeout"] > timeout


def test_a_message_stays_invisible_for_six_times_the_functions_timeout(deployment):
    """And for the batching window on top of it."""
    queues = {queue.logical_id: queue for queue in deployment.of_type("AWS::SQS::Queue")}
    for source in deployment.of_type("AWS::Lambda::EventSourceMapping"):
        (function,) = references(source.get("FunctionName"))
        name = function.logical_id.replace("Aliaslive", "")
        timeout = deployment.resource("lambda", name).get("Timeout")
        (queue,) = references(source.get("EventSourceArn"))
        window = source.get("MaximumBatchingWindowInSeconds")
        assert queues[queue.logical_id].get("VisibilityTimeout") >= 6 * timeout + window
        assert source.get("FunctionResponseTypes") == ["ReportBatchItemFailures"]
        most = int(source.get("ScalingConfig", "MaximumConcurrency"))
        assert most <= int(deployment.resource("lambda", name).get("ReservedConcurrentExecutions"))


def attribute(resource, key):
    """Give a whole number among a load balancer's or a target group's attributes."""
    name = f"{resource.type.rpartition('::')[2]}Attributes"
    return int(next(each["Value"] for each in resource.get(name) if each["Key"] == key))


# -- keeping data, and coming back from a bad deployment ------------------------------------


def test_every_queue_has_a_dead_letter_queue_that_stays(deployment):
    """What cannot be worked off is kept for two weeks, and not deleted with the stack."""
    for queue in deployment.of_type("AWS::SQS::Queue"):
        if queue.get("RedrivePolicy") is None:
            assert queue.definition["DeletionPolicy"] == "Retain"
            assert queue.get("MessageRetentionPeriod") == 1_209_600


def test_the_database_outlives_its_stack(any_deployment):
    """A snapshot is made when it goes, and outside dev it does not go."""
    databases = any_deployment.of_type("AWS::RDS::DBInstance", "AWS::RDS::DBCluster")
    # An instance of Aurora's holds nothing: the data is the cluster's.
    (database,) = (each for each in databases if not is_of_a_cluster(each))
    assert database.definition["DeletionPolicy"] == "Snapshot"
    assert database.definition["UpdateReplacePolicy"] == "Snapshot"
    protected = "false" if any_deployment.environment == "dev" else "true"
    assert database.get("DeletionProtection") == protected
    assert database.get("StorageEncrypted") is True
    assert database.get("EnableIAMDatabaseAuthentication") is True


def test_logs_end_and_can_have_a_key_of_ones_own(any_deployment):
    """Every log group has a retention, and a key by parameter."""
    for group in any_deployment.of_type("AWS::Logs::LogGroup"):
        assert group.get("RetentionInDays")
        assert group.definition["Properties"]["KmsKeyId"]["Fn::If"][1] == {"Ref": "KmsKeyArn"}


def test_every_log_of_a_database_has_a_group_of_the_stack(any_deployment):
    """RDS would make one itself: without a retention, and it would outlive the stack."""
    groups = {each.get("LogGroupName") for each in any_deployment.of_type("AWS::Logs::LogGroup")}
    exports = set()
    for database in any_deployment.of_type("AWS::RDS::DBInstance", "AWS::RDS::DBCluster"):
        kind = database.type.rpartition("::DB")[2].lower()
        for log in database.get("EnableCloudwatchLogsExports") or []:
            exports.add(f"/aws/rds/{kind}/{database.stack.name}/{log}")
    assert exports
    assert exports <= groups


def test_a_bad_deployment_goes_back(deployment):
    """Services have circuit breakers; old tasks stay until new ones are healthy."""
    for service in deployment.of_type("AWS::ECS::Service"):
        configuration = service.get("DeploymentConfiguration")
        assert configuration["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}
        # Two masters, or more workers than were asked for, would be another load.
        bounds = (0, 100) if service.stack.name == "loadtest" else (100, 200)
        assert (configuration["MinimumHealthyPercent"], configuration["MaximumPercent"]) == bounds


def test_a_stack_update_leaves_autoscalings_count_alone(deployment):
    """A scaled service has no DesiredCount of its own."""
    scaled = {
        found.resource
        for target in deployment.of_type("AWS::ApplicationAutoScaling::ScalableTarget")
        for found in references(target.get("ResourceId"))
    }
    for service in deployment.of_type("AWS::ECS::Service"):
        assert (service.get("DesiredCount") is None) is (service.key in scaled)


def test_everything_runs_on_arm(deployment):
    """Functions and tasks, as the images and the zip are built; the load generator cannot."""
    for function in deployment.of_type("AWS::Lambda::Function"):
        assert function.get("Architectures") == ["arm64"]
    for task in deployment.of_type("AWS::ECS::TaskDefinition"):
        built = "X86_64" if task.stack.name == "loadtest" else "ARM64"
        assert task.get("RuntimePlatform", "CpuArchitecture") == built


def test_containers_can_write_nowhere_but_tmp(deployment):
    """They are no root, have no capabilities, and their file system is read-only."""
    for container in deployment.containers():
        assert container.definition["ReadonlyRootFilesystem"] is True
        assert container.definition["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
        if container.name != "metrics":
            assert container.definition["User"] == "10001"


def test_migrations_go_straight_to_the_database(any_deployment):
    """They need a session of their own, with the secret and without a pooler."""
    migration = any_deployment.container("migration")
    (host,) = references(migration.variables["DATABASE_HOST"])
    assert host.resource in {("database", "Instance"), ("database", "Cluster")}
    assert host.attribute == "Endpoint.Address"
    assert "DATABASE_SECRET_ARN" in migration.variables
    assert migration.definition["Command"][-2:] == ["db", "upgrade"]


def test_dev_is_cheap(deployment):
    """One small instance in one zone, endpoints in one zone, one task of each service."""
    if deployment.environment != "dev":
        return
    assert deployment.resource("database", "Instance").get("DBInstanceClass") == "db.t4g.micro"
    assert deployment.resource("database", "Instance").get("MultiAZ") == "false"
    for endpoint in deployment.of_type("AWS::EC2::VPCEndpoint"):
        assert len(endpoint.get("SubnetIds") or []) <= 1
    for target in deployment.of_type("AWS::ApplicationAutoScaling::ScalableTarget"):
        assert target.get("MaxCapacity") == "1"


# -- alarms and the dashboard ---------------------------------------------------------------


def test_what_needs_attention_has_an_alarm(deployment):
    """Connections, processor, storage, pinning, errors, throttles, ages and dead letters."""
    metrics = {
        name for alarm in deployment.of_type("AWS::CloudWatch::Alarm") for name in names(alarm)
    }
    wanted = {"CPUUtilization", "FreeStorageSpace", "FreeableMemory", "Errors", "Throttles"}
    wanted |= {"MaximumUsedTransactionIDs"}
    wanted |= {"ApproximateAgeOfOldestMessage", "ApproximateNumberOfMessagesVisible"}
    wanted |= {"HTTPCode_Target_5XX_Count", "UnHealthyHostCount", "TargetResponseTime"}
    if deployment.of_type("AWS::RDS::DBProxy"):
        wanted |= {"DatabaseConnectionsCurrentlySessionPinned"}
    assert wanted <= metrics


def names(alarm):
    """Give the names of the metrics that an alarm watches."""
    return {alarm.get("MetricName")} | {
        each["MetricStat"]["Metric"]["MetricName"]
        for each in alarm.get("Metrics") or []
        if "MetricStat" in each
    }


def test_alarms_notify_a_topic_where_there_is_one(deployment):
    """Every alarm has actions by parameter, or drives autoscaling."""
    for alarm in deployment.of_type("AWS::CloudWatch::Alarm"):
        actions = alarm.definition["Properties"]["AlarmActions"]
        choice = ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]
        assert actions in ({"Fn::If": choice}, [{"Ref": "ScaleOut"}], [{"Ref": "ScaleIn"}])


def test_alarms_scale_in_their_own_direction(deployment):
    """What rises above a threshold adds tasks, what falls below takes some away."""
    driven = set()
    for alarm in deployment.of_type("AWS::CloudWatch::Alarm"):
        for action in alarm.get("AlarmActions") or []:
            policy = deployment.resource(*action.resource)
            if policy.type == "AWS::SNS::Topic":
                continue
            steps = policy.get("StepScalingPolicyConfiguration", "StepAdjustments")
            is_above = alarm.get("ComparisonOperator").startswith("GreaterThan")
            assert all((step["ScalingAdjustment"] > 0) is is_above for step in steps)
            driven.add(policy.logical_id)
    assert driven == {"ScaleOut", "ScaleIn"}


def dashboard(deployment):
    """Give the dashboard's text, with a name for what only a deployment knows."""
    body = deployment.resource("dashboard", "Dashboard").get("DashboardBody")
    parts = getattr(body, "parts", (body,))
    return "".join(part if isinstance(part, str) else "later" for part in parts)


def test_the_dashboard_draws_metrics_that_the_deployables_write(deployment):
    """Names in the namespace poolkit are those of the code."""
    text = (ROOT / "poolkit/powertools/telemetry.py").read_text()
    for widget in json.loads(dashboard(deployment))["widgets"]:
        for metric in widget["properties"]["metrics"]:
            if isinstance(metric[0], dict):
                continue  # a search: tests/infra/test_alarms.py
            namespace, name = metric[0], metric[1]
            # Those of Prometheus: tests/infra/test_monitoring.py.
            if namespace == "poolkit" and not name.startswith("poolkit_"):
                assert f'"{name}"' in text


def test_an_alarm_watches_a_metric_that_the_functions_write(deployment):
    """A wrong name or dimension would leave it silent for ever."""
    text = (ROOT / "poolkit/powertools/telemetry.py").read_text()
    alarms = [
        alarm
        for alarm in deployment.of_type("AWS::CloudWatch::Alarm")
        if alarm.get("Namespace") == "poolkit"
    ]
    assert alarms
    services = {
        function.variables.get("POWERTOOLS_SERVICE_NAME") for function in deployment.functions()
    }
    for alarm in alarms:
        assert f'"{alarm.get("MetricName")}"' in text
        dimensions = {each["Name"]: each["Value"] for each in alarm.get("Dimensions")}
        # "version" is of the metrics that watch a release.
        assert set(dimensions) - {"version"} == {"target", "environment", "service"}
        assert ("version" in dimensions) is (alarm.get("MetricName") == "ServerErrors")
        assert dimensions["service"] in services


# -- parameters and suppressions ------------------------------------------------------------


GIVEN_BY_HAND = {"loadtest": {"Host", "Run", "YesLoadThisHost"}}
"""What is loaded, and that it may be, is said anew for each run."""


def test_every_parameter_without_a_default_is_given(deployment):
    """An environment's file has all that a deployment needs."""
    for name, table in deployment.tables.items():
        declared = deployment.stacks[name].section("Parameters")
        needed = {key for key, each in declared.items() if "Default" not in each}
        assert needed - set(table) == GIVEN_BY_HAND.get(name, set()), name


def test_every_value_is_one_that_its_parameter_allows(deployment):
    """Allowed values, patterns and bounds hold for what an environment's file says."""
    for name, table in deployment.tables.items():
        declared = deployment.stacks[name].section("Parameters")
        for key, given in table.items():
            value = str(given.value).lower() if isinstance(given.value, bool) else given.value
            if not str(value).startswith("{"):
                check_allowed(declared[key], value)


def check_allowed(declared, value):
    allowed = declared.get("AllowedValues")
    assert allowed is None or str(value) in map(str, allowed)
    assert re.search(declared.get("AllowedPattern", ""), str(value))
    if declared["Type"] == "Number":
        assert declared.get("MinValue", value) <= value <= declared.get("MaxValue", value)


def test_parameters_and_outputs_are_described():
    """Who deploys by hand reads what each is for."""
    for stack in deployment_of("high_traffic").stacks.values():
        for section in ("Parameters", "Outputs"):
            for name, each in stack.section(section).items():
                assert each.get("Description"), name


@pytest.mark.parametrize("file", sorted(INFRA.glob("*.yaml")), ids=lambda file: file.name)
def test_templates_are_plain_cloudformation(file):
    """No anchors, which CloudFormation does not read, and no reference to another stack."""
    text = file.read_text()
    assert not re.search(r"^\s*[\w.-]+: [&*]\w", text, re.MULTILINE)
    assert "Fn::ImportValue" not in text
    assert "!ImportValue" not in text


def test_every_suppression_says_why():
    """A check that is switched off has its reason beside it."""
    texts = [file.read_text() for file in [*INFRA.rglob("*.yaml"), *INFRA.rglob("Dockerfile*")]]
    text = "\n".join(texts)
    skipped = re.findall(r"- id: CKV\w+\n\s+comment: (.*)", text)
    assert len(skipped) == text.count("- id: CKV")
    skipped += re.findall(r"checkov[:.]\S*?skip\S*?[:=] ?CKV\w+[:=] ?(.*)", text)
    assert len(skipped) == text.count("CKV") - len(re.findall(r"[Aa]s CKV", text))
    assert all(len(reason.split()) >= 4 for reason in skipped)
    assert "ignore_checks" not in text
