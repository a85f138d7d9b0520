"""Which resources of CloudFormation stacks may connect to a database, and how many at once."""

import json
import time

import pytest
from cloudformation_texts import DATABASE, ecs, function, stack

PLAIN = """
  %s:
    Type: AWS::Lambda::Function
    Properties: {Handler: app.handler, Role: %s, Environment: {Variables: {MODE: fast}}%s}
"""
LOGIN = """
  Login: {Type: AWS::SecretsManager::Secret, Properties: {Name: shop/login}}
  Attached:
    Type: AWS::SecretsManager::SecretTargetAttachment
    Properties: {SecretId: !Ref Login, TargetId: !Ref Db, TargetType: AWS::RDS::DBInstance}
  Host:
    Type: AWS::SSM::Parameter
    Properties: {Name: /shop/host, Type: String, Value: !GetAtt Db.Endpoint.Address}
  Record:
    Type: AWS::Route53::RecordSet
    Properties:
      {Name: db.shop.internal., Type: CNAME, ResourceRecords: [!GetAtt Db.Endpoint.Address]}
  Elsewhere: {Type: AWS::SecretsManager::Secret, Properties: {Name: mail/login}}
"""
CONDITIONS = "Conditions: {Open: !Equals [!Ref Unset, x]}\n"
UNSET = "  Unset: {Type: String}\n"


def lambda_function(name="Fn", role="r", more=""):
    return PLAIN % (name, role, more)


def clients(budget):
    """Return the names of the services that count."""
    return {service.name for service in budget.services}


# -- references -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "!Ref Db",
        "!GetAtt Db.Endpoint.Address",
        "!GetAtt Db.MasterUserSecret.SecretArn",
        "!Ref Login",
        "!Ref Attached",
        "!Ref Host",
        "'{{resolve:ssm:/shop/host}}'",
        "'{{resolve:secretsmanager:shop/login:SecretString:password}}'",
        "!Sub 'arn:aws:ssm:${AWS::Region}:${AWS::AccountId}:parameter/shop/host'",
        "'arn:aws:secretsmanager:eu-west-1:1:secret:shop/login-AbC123'",
        "db.shop.internal",
        "{Fn::Base64: !Sub 'psql -h ${Db.Endpoint.Address}'}",
        "!If [Open, !GetAtt Db.Endpoint.Address, x]",
        "!Select [0, !Split [':', !GetAtt Db.Endpoint.Address]]",
        "{Fn::Frobnicate: [!Ref Db]}",
        "{Fn::ToJsonString: {a: !Ref Db}}",
        "[1, {deep: [{er: !Ref Db}]}]",
    ],
)
def test_a_type_without_a_rule_that_refers_to_the_database_is_unknown(folder, value):
    """Whatever the form of the reference, the resource may connect."""
    thing = f"  Thing: {{Type: 'My::Own::Thing', Properties: {{Where: {value}}}}}\n"
    text = stack(DATABASE, LOGIN, thing, parameters=UNSET) + "\n" + CONDITIONS
    folder.write("app.yaml", text)
    budget = folder.budget()
    assert clients(budget) == {"Thing"}
    assert budget.verdict == "cannot be shown to fit"
    assert clients(folder.budget(ignored=("Thing",))) == set()


@pytest.mark.parametrize(
    "value", ["!Ref Elsewhere", "mail/login", "shop/login2", "xdb.shop.internal"]
)
def test_a_reference_to_something_else_is_no_sign(folder, value):
    """A secret of another service, and a text that only looks alike, lead nowhere."""
    thing = f"  Thing: {{Type: 'My::Own::Thing', Properties: {{Where: {value}}}}}\n"
    folder.write("app.yaml", stack(DATABASE, LOGIN, thing))
    assert clients(folder.budget()) == set()


def test_a_resource_that_depends_on_the_database_may_connect(folder):
    """DependsOn is a reference, whatever the properties hold."""
    box = "  Box:\n    Type: AWS::EC2::Instance\n    DependsOn: [Db]\n"
    folder.write("app.yaml", stack(DATABASE, box))
    assert clients(folder.budget()) == {"Box"}


@pytest.mark.parametrize(
    "kind",
    [
        "AWS::CloudWatch::Alarm",
        "AWS::Backup::BackupSelection",
        "AWS::RDS::EventSubscription",
        "AWS::SNS::Topic",
        "AWS::ApplicationAutoScaling::ScalableTarget",
    ],
)
def test_a_type_that_never_connects_is_left_out(folder, kind):
    """An alarm on the database opens no connection."""
    thing = f"  Thing: {{Type: '{kind}', Properties: {{Where: !Ref Db}}}}\n"
    folder.write("app.yaml", stack(DATABASE, thing))
    assert clients(folder.budget()) == set()


@pytest.mark.parametrize(
    "thing",
    [
        "AWS::SecretsManager::RotationSchedule\n    Properties: {SecretId: !Ref Attached}",
        "AWS::DMS::Endpoint\n    Properties: {ServerName: !GetAtt Db.Endpoint.Address}",
        "AWS::AppSync::DataSource\n    Properties: {Config: {Secret: !Ref Login}}",
        "AWS::Lambda::MicrovmImage\n    Properties: {EnvironmentVariables: [{Key: H, Value: !Ref Host}]}",
        "Custom::Schema\n    Properties: {ServiceToken: x, Host: !GetAtt Db.Endpoint.Address}",
        "AWS::EKS::Cluster\n    Properties: {Name: !Ref Login}",
    ],
)
def test_services_of_aws_that_connect_are_unknown(folder, thing):
    """Rotation, migration, custom resources and the like open connections of their own."""
    folder.write("app.yaml", stack(DATABASE, LOGIN, f"  Thing:\n    Type: {thing}\n"))
    assert clients(folder.budget()) == {"Thing"}


@pytest.mark.parametrize(
    "caller",
    [
        "Custom::Schema\n    Properties: {ServiceToken: !GetAtt Fn.Arn, Host: !Ref Host}",
        "AWS::SecretsManager::RotationSchedule\n    Properties: {RotationLambdaARN: !GetAtt Fn.Arn}",
    ],
)
def test_a_function_connects_for_the_resource_that_calls_it(folder, caller):
    """The function is the client, and the resource that hands it the address is none."""
    caller = caller.replace("Properties: {", "Properties: {SecretId: !Ref Attached, ")
    text = stack(DATABASE, LOGIN, lambda_function(), f"  Thing:\n    Type: {caller}\n")
    folder.write("app.yaml", text)
    assert clients(folder.budget()) == {"Fn"}


def test_a_variable_that_leads_to_another_store_is_no_sign(folder):
    """DATABASE_TABLE is the name of a table in DynamoDB."""
    table = "  Table: {Type: AWS::DynamoDB::Table}\n"
    text = function().replace("!GetAtt Db.Endpoint.Address", "!Ref Table")
    text = text.replace("DATABASE_HOST", "DATABASE_TABLE").replace(
        "POOLKIT_TARGET: lambda_warm", ""
    )
    text = text.replace("POOLKIT_ENVIRONMENT: prod", "")
    folder.write("app.yaml", stack(DATABASE, table, text))
    assert clients(folder.budget()) == set()


def test_what_cfn_init_writes_is_read(folder):
    """The address stands in the metadata of the machine, and nowhere else."""
    box = """
  Box:
    Type: AWS::EC2::Instance
    Metadata: {AWS::CloudFormation::Init: {config: {files: {/etc/a: {content: !Ref Host}}}}}
  Tagged: {Type: 'My::Own::Thing', Metadata: {note: !Ref Host}}
"""
    folder.write("app.yaml", stack(DATABASE, LOGIN, box))
    assert clients(folder.budget()) == {"Box"}


def test_a_resource_that_may_not_be_deployed_is_unknown(folder, ceilings):
    """Its number is 0 or what its properties say."""
    text = function(extra="ReservedConcurrentExecutions: 5", target="lambda")
    text = text.replace("    Properties:", "    Condition: Open\n    Properties:", 1)
    folder.write("app.yaml", stack(DATABASE, text, parameters=UNSET) + "\n" + CONDITIONS)
    assert ceilings(folder.budget()) == {"Fn": None}
    assert ceilings(folder.budget(parameters=("Unset=x",))) == {"Fn": 5}


def test_a_launch_template_counts_with_the_group_that_starts_it(folder):
    """The group refers to the database by its launch template."""
    text = """
  Template:
    Type: AWS::EC2::LaunchTemplate
    Properties: {LaunchTemplateData: {UserData: !Sub 'x ${Db.Endpoint.Address}'}}
  Group:
    Type: AWS::AutoScaling::AutoScalingGroup
    Properties: {MaxSize: 9, LaunchTemplate: {LaunchTemplateId: !Ref Template}}
"""
    folder.write("app.yaml", stack(DATABASE, text))
    assert clients(folder.budget()) == {"Group"}


def test_a_function_that_starts_tasks_leaves_their_number_open(folder):
    """The function has its own connections, and starts any number of tasks."""
    text = ecs().partition("  Web:\n")[0]
    starter = lambda_function(more=", ReservedConcurrentExecutions: 1, Description: !Ref Task")
    folder.write("app.yaml", stack(DATABASE, text, starter))
    assert "Fn/Task" in clients(folder.budget())


@pytest.mark.parametrize(
    ("action", "resource", "is_client"),
    [
        ("ecs:RunTask", "!Ref Task", True),
        ("ecs:*", "'*'", True),
        ("ecs:StopTask", "!Ref Task", False),
        ("ecs:RunTask", "'arn:aws:ecs:*:*:task-definition/other:*'", False),
    ],
)
def test_a_task_that_a_role_may_run_is_unknown(folder, action, resource, is_client):
    """A task definition without a service and without such a role is run by hand."""
    task = ecs().partition("  Web:\n")[0]
    policy = statement(action, resource)
    role = f"  Role: {{Type: AWS::IAM::Role, Properties: {{Policies: [{policy}}}]}}}}\n"
    folder.write("app.yaml", stack(DATABASE, task, role))
    assert clients(folder.budget()) == ({"Task"} if is_client else set())


def test_a_proxy_endpoint_leads_to_its_proxy_by_name(folder):
    """The endpoint may name its proxy by a reference or by the proxy's name."""
    proxy = """
  Proxy: {Type: AWS::RDS::DBProxy, Properties: {EngineFamily: POSTGRESQL, DBProxyName: orders}}
  Reader: {Type: AWS::RDS::DBProxyEndpoint, Properties: {DBProxyName: %s}}
"""
    text = function(extra="ReservedConcurrentExecutions: 9")
    text = text.replace("!GetAtt Db.Endpoint.Address", "!GetAtt Reader.Endpoint")
    for name in ("orders", "!Ref Proxy"):
        folder.write("app.yaml", stack(DATABASE, proxy % name, text))
        assert folder.budget().services[0].through == "Proxy"


# -- roles ----------------------------------------------------------------------------------


POLICY = "{PolicyName: p, PolicyDocument: {Statement: [{Effect: %s, Action: '%s', Resource: %s}]}"


def statement(action, resource, effect="Allow"):
    """Return a policy without its last brace, so that a role can be added."""
    return POLICY % (effect, action, resource)


@pytest.mark.parametrize(
    ("action", "resource", "is_client"),
    [
        ("secretsmanager:GetSecretValue", "!Ref Attached", True),
        ("secretsmanager:*", "'*'", True),
        (
            "secretsmanager:GetSecretValue",
            "'arn:aws:secretsmanager:*:*:secret:shop/login-??????'",
            True,
        ),
        ("ssm:GetParameter", "!Sub 'arn:aws:ssm:*:*:parameter${Host}'", True),
        ("rds-db:connect", "!Sub 'arn:aws:rds-db:*:*:dbuser:${Db.DbiResourceId}/app'", True),
        ("rds-db:connect", "'*'", True),
        ("secretsmanager:GetSecretValue", "'arn:aws:secretsmanager:*:*:secret:rds!db-*'", True),
        ("secretsmanager:GetSecretValue", "'arn:aws:secretsmanager:*:*:secret:shop/*'", True),
        ("ssm:GetParametersByPath", "'arn:aws:ssm:*:*:parameter/shop/*'", True),
        ("ssm:GetParametersByPath", "'arn:aws:ssm:*:*:parameter/mail/*'", False),
        ("secretsmanager:GetSecretValue", "!Ref Elsewhere", False),
        ("secretsmanager:GetSecretValue", "'arn:aws:secretsmanager:*:*:secret:mail-*'", False),
        ("rds:DescribeDBInstances", "'*'", False),
        ("s3:GetObject", "'*'", False),
    ],
)
@pytest.mark.parametrize("way", ["inline", "policy", "managed"])
def test_a_role_that_may_log_on_makes_its_function_a_client(
    folder, action, resource, is_client, way
):
    """A policy is read wherever it stands: in the role, beside it, or as a managed one."""
    policy = statement(action, resource)
    role = "  Role: {Type: AWS::IAM::Role, Properties: {%s}}\n"
    if way == "inline":
        roles = role % f"Policies: [{policy}}}]"
    elif way == "policy":
        beside = f"  P: {{Type: AWS::IAM::Policy, Properties: {policy}, Roles: [!Ref Role]}}}}\n"
        roles = role % "RoleName: r" + beside
    else:
        beside = f"  P: {{Type: AWS::IAM::ManagedPolicy, Properties: {policy}}}}}\n"
        roles = role % "ManagedPolicyArns: [!Ref P]" + beside
    text = lambda_function(role="!GetAtt Role.Arn")
    folder.write("app.yaml", stack(DATABASE, LOGIN, roles, text))
    assert clients(folder.budget()) == ({"Fn"} if is_client else set())


@pytest.mark.parametrize(("name", "is_client"), [("shop/*", True), ("mail/*", False)])
def test_a_policy_in_a_function_of_sam_is_a_grant(folder, name, is_client):
    """SAM makes a role of the policies that stand in the function itself."""
    policy = statement(
        "secretsmanager:GetSecretValue", f"'arn:aws:secretsmanager:*:*:secret:{name}'"
    )
    text = f"  Fn: {{Type: AWS::Serverless::Function, Properties: {{Policies: [{policy}}}]}}}}\n"
    folder.write("app.yaml", stack(DATABASE, LOGIN, text))
    assert clients(folder.budget()) == ({"Fn"} if is_client else set())


def test_a_denied_action_and_another_role_are_no_sign(folder):
    """Deny gives nothing, and a role that trusts another one has its own grants only."""
    denied = statement("rds-db:connect", "'*'", "Deny")
    text = f"  Role: {{Type: AWS::IAM::Role, Properties: {{Policies: [{denied}}}]}}}}\n"
    folder.write("app.yaml", stack(DATABASE, text, lambda_function(role="!GetAtt Role.Arn")))
    assert clients(folder.budget()) == set()


def test_an_instance_has_the_grants_of_its_profile(folder):
    """An instance profile hands on what its role may do."""
    policy = statement("rds-db:connect", "'*'")
    text = f"""
  Role: {{Type: AWS::IAM::Role, Properties: {{Policies: [{policy}}}]}}}}
  Profile: {{Type: AWS::IAM::InstanceProfile, Properties: {{Roles: [!Ref Role]}}}}
  Box: {{Type: AWS::EC2::Instance, Properties: {{IamInstanceProfile: !Ref Profile}}}}
"""
    folder.write("app.yaml", stack(DATABASE, text))
    assert clients(folder.budget()) == {"Box"}


# -- security groups ------------------------------------------------------------------------

GROUPED = DATABASE.replace("}", ", VPCSecurityGroups: [!Ref DbGroup]}")
NETWORK = """
  Net: {Type: AWS::EC2::VPC, Properties: {CidrBlock: 10.1.0.0/16}}
  App: {Type: AWS::EC2::SecurityGroup, Properties: {GroupDescription: app}}
  Other: {Type: AWS::EC2::SecurityGroup, Properties: {GroupDescription: other}}
"""
INSIDE = ", VpcConfig: {SecurityGroupIds: [%s], SubnetIds: [a]}"


@pytest.mark.parametrize(
    ("rule", "is_client"),
    [
        ("IpProtocol: tcp, FromPort: 5432, ToPort: 5432, SourceSecurityGroupId: !Ref App", True),
        ("IpProtocol: '-1', SourceSecurityGroupId: !GetAtt App.GroupId", True),
        ("IpProtocol: tcp, FromPort: 5432, ToPort: 5432, SourcePrefixListId: pl-1", True),
        ("IpProtocol: tcp, FromPort: 0, ToPort: 65535, SourceSecurityGroupId: !Ref App", True),
        (
            "IpProtocol: tcp, FromPort: '5432', ToPort: !Ref Unset, SourceSecurityGroupId: !Ref App",
            True,
        ),
        ("IpProtocol: tcp, FromPort: 5432, ToPort: 5432, CidrIp: 0.0.0.0/0", True),
        ("IpProtocol: tcp, FromPort: 5432, ToPort: 5432, CidrIp: !GetAtt Net.CidrBlock", True),
        ("IpProtocol: tcp, FromPort: 5432, ToPort: 5432, CidrIp: 10.1.2.0/24", True),
        ("IpProtocol: tcp, FromPort: 5432, ToPort: 5432, CidrIp: 10.9.0.0/16", False),
        ("IpProtocol: tcp, FromPort: 5432, ToPort: 5432, CidrIp: 203.0.113.7/32", False),
        ("IpProtocol: tcp, FromPort: 3306, ToPort: 3306, SourceSecurityGroupId: !Ref App", False),
        ("IpProtocol: udp, FromPort: 5432, ToPort: 5432, SourceSecurityGroupId: !Ref App", False),
        ("IpProtocol: tcp, FromPort: 5432, ToPort: 5432, SourceSecurityGroupId: !Ref Other", False),
    ],
)
@pytest.mark.parametrize("is_inline", [True, False])
def test_a_security_group_that_may_reach_the_port_is_a_sign(folder, rule, is_client, is_inline):
    """Rules stand in the group or beside it; a function outside the VPC has no way in."""
    group = "  DbGroup: {Type: AWS::EC2::SecurityGroup, Properties: {GroupDescription: d%s}}\n"
    if is_inline:
        group %= f", SecurityGroupIngress: [{{{rule}}}]"
    else:
        beside = "  In: {Type: AWS::EC2::SecurityGroupIngress, Properties: {GroupId: !Ref DbGroup, %s}}\n"
        group = group % "" + beside % rule
    inside = lambda_function(more=INSIDE % "!Ref App")
    text = stack(GROUPED, NETWORK, group, inside, lambda_function("Outside"), parameters=UNSET)
    folder.write("app.yaml", text)
    assert clients(folder.budget()) == ({"Fn"} if is_client else set())


def test_members_of_one_group_reach_each_other_by_a_rule_on_itself(folder):
    """A shared group is a sign only with such a rule, or if it is the VPC's default group."""
    group = "  DbGroup: {Type: AWS::EC2::SecurityGroup, Properties: {GroupDescription: d}}\n"
    itself = """
  In:
    Type: AWS::EC2::SecurityGroupIngress
    Properties: {GroupId: !Ref DbGroup, IpProtocol: '-1', SourceSecurityGroupId: !Ref DbGroup}
"""
    inside = lambda_function(more=INSIDE % "!Ref DbGroup")
    folder.write("app.yaml", stack(GROUPED, group, inside))
    assert clients(folder.budget()) == set()
    folder.write("app.yaml", stack(GROUPED, group, itself, inside))
    assert clients(folder.budget()) == {"Fn"}
    default = "!GetAtt Net.DefaultSecurityGroup"
    shared = GROUPED.replace("!Ref DbGroup", default)
    folder.write("app.yaml", stack(shared, NETWORK, lambda_function(more=INSIDE % default)))
    assert clients(folder.budget()) == {"Fn"}


LET_IN = """
  DbGroup:
    Type: AWS::EC2::SecurityGroup
    Properties:
      GroupDescription: d
      SecurityGroupIngress:
        [{IpProtocol: tcp, FromPort: 5432, ToPort: 5432, SourceSecurityGroupId: !Ref %s}]
"""
"""The database's group, which lets in another one."""


def test_a_group_may_reach_the_databases_of_two_stacks_of_one_template(folder):
    """Each stack has its own database, whatever the name of it in the template."""
    inner = LET_IN % "Unset"
    folder.write("store.yaml", stack(GROUPED, inner, parameters=UNSET))
    nested = """
  %s:
    Type: AWS::CloudFormation::Stack
    Properties: {TemplateURL: store.yaml, Parameters: {Unset: !Ref App}}
"""
    text = stack(NETWORK, nested % "A", nested % "B", lambda_function(more=INSIDE % "!Ref App"))
    folder.write("app.yaml", text)
    budgets = folder.budgets().each
    assert [clients(each) for each in budgets] == [{"Fn"}, {"Fn"}]


def test_a_group_given_by_a_parameter_is_the_same_group(folder):
    """An unknown group in the rule and in the service is one group."""
    group = LET_IN % "Unset"
    text = stack(GROUPED, group, lambda_function(more=INSIDE % "!Ref Unset"), parameters=UNSET)
    folder.write("app.yaml", text)
    assert clients(folder.budget()) == {"Fn"}


def test_a_sidecar_is_no_client_beside_the_container_that_connects(folder):
    """The role and the group of a task are explained by the container with the variables."""
    group = LET_IN % "App"
    service = "NetworkConfiguration: {AwsvpcConfiguration: {SecurityGroups: [!Ref App]}}"
    sidecar = "\n        - {Name: trace, Image: example.org/trace:1}\n  Web:"
    text = ecs(service=service).replace("\n  Web:", sidecar)
    folder.write("app.yaml", stack(GROUPED, NETWORK, group, text))
    assert clients(folder.budget()) == {"Web/app"}
    hidden = text.replace("DATABASE_HOST", "X").replace("!GetAtt Db.Endpoint.Address", "x")
    folder.write("app.yaml", stack(GROUPED, NETWORK, group, hidden))
    assert clients(folder.budget()) == {"Web/app", "Web/trace"}


# -- numbers of functions -------------------------------------------------------------------

WEB = """
  Site: {Type: AWS::Lambda::WebFunction, Properties: {FunctionName: site}}
  Revision:
    Type: AWS::Lambda::WebFunctionRevision
    Properties:
      FunctionName: %s
      ServiceConfig:
        ExecutionRoleArn: r
        %s
        EnvironmentVariables: {%s DATABASE_HOST: !GetAtt Db.Endpoint.Address}
"""
ENDPOINT = """
  %s:
    Type: AWS::Lambda::WebFunctionEndpoint
    Properties: {FunctionName: site, EndpointType: HomeRegion, ScalingConfig: {%s}}
"""
PRESET = "POOLKIT_ENVIRONMENT: prod, POOLKIT_TARGET: %s,"


def test_a_web_function_counts_the_environments_of_all_endpoints(folder, ceilings):
    """(20 + 30) environments, as many of the old revision, x (5 + 2)."""
    ends = ENDPOINT % ("A", "MaxEnvironments: 20") + ENDPOINT % ("B", "MaxEnvironments: 30")
    for name in ("site", "!Ref Site"):
        folder.write("app.yaml", stack(DATABASE, WEB % (name, "", ""), ends))
        assert ceilings(folder.budget(services=("site=5+2",))) == {"site": 700}
    assert ceilings(folder.budget()) == {"site": None}


@pytest.mark.parametrize(("more", "ceiling"), [("", 280), (", ReplicaRegions: [europe]", None)])
def test_sams_web_function_is_function_revision_and_endpoint(folder, ceilings, more, ceiling):
    """(20 + 20) environments x (5 + 2), with Globals; the number of regions may be open."""
    text = "Globals: {WebFunction: {ScalingConfig: {MaxEnvironments: 20}}}\n" + stack(
        DATABASE,
        "  Site:\n    Type: AWS::Serverless::WebFunction\n    Properties: "
        f"{{EnvironmentVariables: {{H: !GetAtt Db.Endpoint.Address}}{more}}}\n",
    )
    folder.write("app.yaml", text)
    assert ceilings(folder.budget(services=("Site=5+2",))) == {"Site": ceiling}


def test_a_web_function_without_a_limit_is_unknown(folder):
    """Only the account's quota limits an endpoint without MaxEnvironments."""
    for ends in (ENDPOINT % ("A", ""), ""):
        folder.write("app.yaml", stack(DATABASE, WEB % ("site", "", ""), ends))
        (service,) = folder.budget(services=("site=5+2",)).services
        assert service.instances.value is None


@pytest.mark.parametrize(
    ("concurrency", "each"), [("", 64), ("MaxConcurrencyPerEnvironment: 8", 8)]
)
def test_nullpool_in_a_web_function_opens_one_connection_for_each_request(
    folder, ceilings, concurrency, each
):
    """An environment serves many requests at once, 64 by default."""
    ends = ENDPOINT % ("A", "MaxEnvironments: 2")
    text = WEB % ("site", concurrency, PRESET % "lambda")
    folder.write("app.yaml", stack(DATABASE, text, ends))
    assert ceilings(folder.budget()) == {"site": 2 * each}


MANAGED = """
      Runtime: %s
      MemorySize: 8192
      CapacityProviderConfig:
        LambdaManagedInstancesCapacityProviderConfig:
          CapacityProviderArn: c
          ExecutionEnvironmentMemoryGiBPerVCpu: 4
          %s
      FunctionScalingConfig: {MaxExecutionEnvironments: 10}
"""


@pytest.mark.parametrize(
    ("runtime", "setting", "ceiling"),
    [
        ("python3.14", "PerExecutionEnvironmentMaxConcurrency: 5", 100),  # (10 + 10) x 5
        ("python3.14", "", 640),  # (10 + 10) x 16 on each of 2 vCPU
        ("java21", "PerExecutionEnvironmentMaxConcurrency: 5", 20),  # one process with threads
        ("nodejs24.x", "PerExecutionEnvironmentMaxConcurrency: 5", None),
    ],
)
def test_managed_instances_run_a_process_for_each_request(
    folder, ceilings, runtime, setting, ceiling
):
    """Environments are limited by the function, and processes by the runtime."""
    text = function(extra=MANAGED % (runtime, setting), target="lambda_warm")
    folder.write("app.yaml", stack(DATABASE, text))
    assert ceilings(folder.budget()) == {"Fn": ceiling}


def test_published_versions_of_a_managed_instance_function_have_their_own_limits(folder, ceilings):
    """(4 + 6) environments of two versions, as many of the old ones, x 5 processes."""
    setting = "PerExecutionEnvironmentMaxConcurrency: 5"
    extra = (MANAGED % ("python3.14", setting)).partition("FunctionScalingConfig")[0]
    version = """
  V%s:
    Type: AWS::Lambda::Version
    Properties: {FunctionName: !Ref Fn, FunctionScalingConfig: {MaxExecutionEnvironments: %s}}
"""
    text = function(extra=extra, target="lambda_warm")
    folder.write("app.yaml", stack(DATABASE, text, version % (1, 4), version % (2, 6)))
    assert ceilings(folder.budget()) == {"Fn": 100}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("DurableConfig: {ExecutionTimeout: 60}", "suspended"),
        ("TenancyConfig: {TenantIsolationMode: PER_TENANT}", "tenant"),
    ],
)
def test_durable_and_tenant_functions_keep_their_reserved_concurrency(
    folder, ceilings, setting, said
):
    """The number stays the limit, and its origin has the reason."""
    extra = f"ReservedConcurrentExecutions: 7\n      {setting}"
    folder.write("app.yaml", stack(DATABASE, function(extra=extra, target="lambda")))
    budget = folder.budget()
    assert ceilings(budget) == {"Fn": 7}
    assert said in budget.services[0].instances.origin


# -- autoscaling ----------------------------------------------------------------------------

SCALING = """
  Scaling:
    Type: AWS::ApplicationAutoScaling::ScalableTarget
    Properties: {ServiceNamespace: ecs, MaxCapacity: 50, ResourceId: %s}
"""


@pytest.mark.parametrize(
    ("name", "resource_id", "tasks"),
    [
        ("!Sub '${AWS::StackName}-web'", "!Sub 'service/c/${AWS::StackName}-web'", 50),
        ("!Ref Unset", "!Sub 'service/${Cluster}/${Unset}'", 50),
        ("!Join ['-', [!Ref Unset, web]]", "!Sub 'service/c/${Unset}-web'", 50),
        ("!Sub 'x-${Unset}'", "!Sub 'service/c/y-${Unset}'", None),
        ("web", "!Join ['/', [service, !Ref Cluster, !GetAtt Web.Name]]", 50),
        ("web", "!Sub 'service/${Cluster}/${Web.Name}'", 50),
        ("web", "service/c/other", 2),
        ("web", "!Ref Unset", None),
    ],
)
def test_autoscaling_is_matched_by_what_it_scales(folder, name, resource_id, tasks):
    """The same value is the same service, whatever functions make it."""
    cluster = "  Cluster: {Type: AWS::ECS::Cluster}\n"
    text = stack(
        DATABASE,
        cluster,
        ecs(service=f"ServiceName: {name}"),
        SCALING % resource_id,
        parameters=UNSET,
    )
    folder.write("app.yaml", text)
    (service,) = folder.budget().services
    assert service.instances.value == tasks


def test_the_largest_of_several_scalable_targets_counts(folder):
    """The order of the targets decides nothing."""
    small = SCALING.replace("Scaling:", "Small:").replace("50", "5")
    scaling = [each % "!Sub 'service/c/${Web.Name}'" for each in (small, SCALING)]
    for order in (1, -1):
        folder.write("app.yaml", stack(DATABASE, ecs(), *scaling[::order]))
        assert folder.budget().services[0].instances.value == 50


def test_a_scheduled_action_may_raise_the_maximum(folder):
    """The larger one counts, and one that is unknown leaves the number open."""
    action = "ScheduledActions: [{ScalableTargetAction: {MaxCapacity: %s}}], ResourceId:"
    for most, tasks in (("80", 80), ("5", 50), ("!Ref Unset", None)):
        scaling = SCALING.replace("ResourceId:", action % most) % "!Sub 'service/c/${Web.Name}'"
        folder.write("app.yaml", stack(DATABASE, ecs(), scaling, parameters=UNSET))
        assert folder.budget().services[0].instances.value == tasks


@pytest.mark.parametrize("scaling", ["AScaling", "ZScaling"])
def test_a_nested_stack_scales_a_service_of_its_parent(folder, scaling):
    """The service's name comes by a parameter, whichever resource is written first."""
    nested = f"""
  {scaling}:
    Type: AWS::CloudFormation::Stack
    Properties: {{TemplateURL: scaling.yaml, Parameters: {{Name: !GetAtt Web.Name}}}}
"""
    folder.write("app.yaml", stack(*sorted([DATABASE, ecs(), nested])))
    inner = SCALING % "!Sub 'service/c/${Name}'"
    folder.write("scaling.yaml", stack(inner, parameters="  Name: {Type: String}\n"))
    (service,) = folder.budget().services
    assert service.instances.value == 50


# -- speed ----------------------------------------------------------------------------------


def test_a_thousand_functions_take_less_than_two_seconds(folder):
    """Resources are found by type and by key, not by a search for each function."""
    resources = {
        "Db": {
            "Type": "AWS::RDS::DBInstance",
            "Properties": {"Engine": "postgres", "DBInstanceClass": "db.m7g.large"},
        },
        "Group": {"Type": "AWS::EC2::SecurityGroup"},
    }
    for number in range(1000):
        properties = {
            "ReservedConcurrentExecutions": 1,
            "VpcConfig": {"SecurityGroupIds": [{"Ref": "Group"}]},
            "Environment": {"Variables": {"DB_HOST": {"Fn::GetAtt": ["Db", "Endpoint.Address"]}}},
        }
        resources[f"Fn{number}"] = {"Type": "AWS::Serverless::Function", "Properties": properties}
    folder.write("app.json", json.dumps({"Resources": resources}, indent=1))
    start = time.process_time()
    budget = folder.budget()
    assert time.process_time() - start < 2
    assert len(budget.services) == 1000
