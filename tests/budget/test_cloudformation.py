"""CloudFormation and SAM templates, each with the ceiling computed by hand."""

import json

import pytest
import yaml
from cloudformation_texts import DATABASE, ecs, function, stack


def test_two_workers_a_task_and_a_deployment(folder, ceilings):
    """gunicorn: (2 + 2) tasks x 2 workers x (5 + 10) = 120."""
    folder.write("app.yaml", stack(DATABASE, ecs()))
    budget = folder.budget(services=("Web=5+10",))
    assert ceilings(budget) == {"Web": 120}
    assert (budget.services[0].steady, budget.needed, budget.verdict) == (60, 124, "fits")


def test_autoscaling_from_2_to_50(folder, ceilings):
    """Autoscaling's maximum counts: 50 tasks, 75 by maximumPercent 150, x 2 x 15 = 2,250."""
    service = "DeploymentConfiguration: {MaximumPercent: 150, MinimumHealthyPercent: 100}"
    scaling = """
  Scaling:
    Type: AWS::ApplicationAutoScaling::ScalableTarget
    Properties:
      ServiceNamespace: ecs
      ScalableDimension: ecs:service:DesiredCount
      ResourceId: !Join ["/", [service, cluster, !GetAtt Web.Name]]
      MinCapacity: 2
      MaxCapacity: 50
"""
    folder.write("app.yaml", stack(DATABASE, ecs(service=service), scaling))
    budget = folder.budget(services=("Web=5+10",))
    assert ceilings(budget) == {"Web": 2250}
    # db.m7g.large was measured: 832 connections, less the 5 that are reserved.
    assert (budget.available, budget.verdict) == (827, "does not fit")


@pytest.mark.parametrize(
    ("tasks", "service"),
    [
        # ECS rounds maximumPercent down: 3 tasks at 150 % are 4.
        (3, "DeploymentConfiguration: {MaximumPercent: 150}"),
        # CodeDeploy keeps the old tasks until the traffic has moved.
        (2, "DeploymentController: {Type: CODE_DEPLOY}"),
    ],
)
def test_a_deployment_runs_old_and_new_tasks(folder, ceilings, tasks, service):
    """Their number comes from the percentage, rounded down, or is twice the service's."""
    text = ecs(service=service).replace("DesiredCount: 2", f"DesiredCount: {tasks}")
    folder.write("app.yaml", stack(DATABASE, text))
    assert ceilings(folder.budget(services=("Web=1+0x1",))) == {"Web": 4}


def test_a_function_without_reserved_concurrency_has_no_ceiling(folder):
    """No number is made up, and the largest that fits is suggested."""
    folder.write("app.yaml", stack(DATABASE, function()))
    budget = folder.budget()
    (gap,) = budget.gaps
    assert (gap.of, gap.number, budget.verdict) == ("Fn", "instances", "cannot be shown to fit")
    assert "ReservedConcurrentExecutions" in gap.reason
    answer = folder.run("app.yaml")
    assert answer.returncode == 3
    # At least 760 available, 4 for migrations and operators; old and new together: 756 / 2.
    assert "concurrency at most 378" in answer.stdout
    assert folder.run("app.yaml", "--allow-unknown").returncode == 0


def test_kept_connections_overlap_and_others_do_not(folder, ceilings):
    """A frozen old version keeps its connection with a pool, and none with NullPool."""
    extra = "ReservedConcurrentExecutions: 10"
    both = [function("Warm", extra), function("Cold", extra, target="lambda")]
    folder.write("app.yaml", stack(DATABASE, *both))
    assert ceilings(folder.budget()) == {"Warm": 20, "Cold": 10}


def test_sam_globals_and_a_parameter(folder, ceilings):
    """SAM's Globals are expanded, and a parameter's line is named as the origin."""
    folder.write(
        "app.yaml",
        """
        Transform: AWS::Serverless-2016-10-31
        Parameters:
          Concurrency: {Type: Number, Default: 30}
        Globals:
          Function:
            Runtime: python3.12
            Handler: app.handler
            CodeUri: src/
            ReservedConcurrentExecutions: !Ref Concurrency
            Environment: {Variables: {POOLKIT_TARGET: lambda_proxy, POOLKIT_ENVIRONMENT: prod}}
        Resources:
          Api:
            Type: AWS::Serverless::Function
            Properties:
              AutoPublishAlias: live
              Events: {Http: {Type: HttpApi}}
        """,
    )
    budget = folder.budget(max_connections=100)
    assert ceilings(budget) == {"Api": 30}
    given = folder.budget(max_connections=100, parameters=("Concurrency=7",))
    assert ceilings(given) == {"Api": 7}
    assert "--parameters Concurrency=7" in given.services[0].instances.origin


def test_a_cdk_template_in_json(folder, ceilings):
    """CDK writes JSON, Fn::Join for the resource id, a secret for the password."""
    template = """
      Resources:
        DbF00:
          Type: AWS::RDS::DBInstance
          Properties: {Engine: postgres, DBInstanceClass: db.t3.medium}
        TaskDef54694570:
          Type: AWS::ECS::TaskDefinition
          Properties:
            ContainerDefinitions:
              - Name: web
                Image: {"Fn::Sub": "${AWS::AccountId}.dkr.ecr/x:1"}
                Command: [sh, -c, "uvicorn app:app --workers ${WORKERS:-3}"]
                Secrets: [{Name: DB_PASSWORD, ValueFrom: {Ref: DbF00}}]
        Service9571FDD8:
          Type: AWS::ECS::Service
          Properties:
            TaskDefinition: {Ref: TaskDef54694570}
            DeploymentConfiguration: {MaximumPercent: 100}
        Target3191CF44:
          Type: AWS::ApplicationAutoScaling::ScalableTarget
          Properties:
            MaxCapacity: 4
            ServiceNamespace: ecs
            ResourceId:
              Fn::Join: ["", [service/, {Ref: C}, /, {"Fn::GetAtt": [Service9571FDD8, Name]}]]
        C: {Type: "AWS::ECS::Cluster"}
    """
    folder.write("stack.template.json", json.dumps(yaml.safe_load(template), indent=1))
    budget = folder.budget(services=("Service9571FDD8=5+5",))
    assert ceilings(budget) == {"Service9571FDD8": 4 * 3 * 10}
    # 4 GiB: 400, less 5.
    assert budget.available == 395


def test_a_proxy_in_front_counts_instead_of_its_clients(folder, ceilings):
    """The proxy's share of max_connections counts; its clients' ceiling is shown beside it."""
    proxy = """
  Proxy:
    Type: AWS::RDS::DBProxy
    Properties: {EngineFamily: POSTGRESQL, DBProxyName: p}
  Targets:
    Type: AWS::RDS::DBProxyTargetGroup
    Properties:
      DBProxyName: !Ref Proxy
      DBInstanceIdentifiers: [!Ref Db]
      ConnectionPoolConfigurationInfo: {MaxConnectionsPercent: 60}
"""
    text = function(extra="ReservedConcurrentExecutions: 900", target="lambda_proxy")
    text = text.replace("!GetAtt Db.Endpoint.Address", "!GetAtt Proxy.Endpoint")
    folder.write("app.yaml", stack(DATABASE, proxy, text))
    budget = folder.budget()
    assert (ceilings(budget), budget.services[0].through) == ({"Fn": 900}, "Proxy")
    # 60 % of 832 = 500 (rounded up), and 1 + 3.
    assert (budget.needed, budget.verdict) == (504, "fits")


def test_a_proxy_that_may_take_everything_does_not_fit(folder):
    """MaxConnectionsPercent is 100 by default, which leaves nothing for other clients."""
    proxy = "  Proxy:\n    Type: AWS::RDS::DBProxy\n    Properties: {EngineFamily: POSTGRESQL}\n"
    folder.write("app.yaml", stack(DATABASE, proxy))
    answer = folder.run("app.yaml")
    assert answer.returncode == 1
    # 827 - 4 = 823 are left, which is 98.9 % of 832.
    assert "MaxConnectionsPercent at most 98" in answer.stdout


def test_nested_stacks_are_read_with_their_parameters(folder, ceilings):
    """A nested template is part of its parent, and no stack of its own."""
    parent = stack(
        DATABASE,
        """
  App:
    Type: AWS::CloudFormation::Stack
    Properties:
      TemplateURL: nested/app.yaml
      Parameters: {Concurrency: 25, Host: !GetAtt Db.Endpoint.Address}
""",
    )
    folder.write("parent.yaml", parent)
    nested = function(extra="ReservedConcurrentExecutions: !Ref Concurrency", target="lambda")
    nested = nested.replace("!GetAtt Db.Endpoint.Address", "!Ref Host")
    parameters = "  Concurrency: {Type: Number}\n  Host: {Type: String}\n"
    folder.write("nested/app.yaml", stack(nested, parameters=parameters))
    assert ceilings(folder.budget()) == {"Fn": 25}
    assert ceilings(folder.budget("parent.yaml")) == {"Fn": 25}


def test_an_unread_nested_stack_leaves_the_verdict_open(folder):
    """It may hold services, so the sum of the others proves nothing."""
    nested = """
  App:
    Type: AWS::CloudFormation::Stack
    Properties: {TemplateURL: https://example.org/app.yaml}
"""
    folder.write("app.yaml", stack(DATABASE, nested))
    budget = folder.budget()
    assert budget.verdict == "cannot be shown to fit"
    assert "https://example.org/app.yaml" in budget.unread[0].reason


def test_a_parameter_without_a_value_is_named_with_its_line(folder):
    """The number stays unknown, and the reason names the parameter to give."""
    text = function(extra="ReservedConcurrentExecutions: !Ref Concurrency")
    parameters = "  Concurrency: {Type: Number}\n"
    file = folder.write("app.yaml", stack(DATABASE, text, parameters=parameters))
    budget = folder.budget()
    assert budget.verdict == "cannot be shown to fit"
    assert f"parameter Concurrency has no value ({file}:3)" in budget.gaps[0].reason


def test_a_condition_decides_which_resources_exist(folder, ceilings):
    """A resource whose condition is false is not counted; Fn::If and FindInMap give numbers."""
    folder.write(
        "app.yaml",
        """
        Parameters:
          Stage: {Type: String, Default: prod}
        Mappings:
          Sizes: {prod: {Concurrency: 40}, dev: {Concurrency: 2}}
        Conditions:
          IsProd: !Equals [!Ref Stage, prod]
          IsDev: !Not [!Condition IsProd]
        Resources:
          Db:
            Type: AWS::RDS::DBInstance
            Properties:
              Engine: postgres
              DBInstanceClass: !If [IsProd, db.m7g.large, db.t4g.micro]
          Debug:
            Type: AWS::Lambda::Function
            Condition: IsDev
            Properties:
              Environment: {Variables: {POOLKIT_TARGET: lambda, DATABASE_HOST: !GetAtt Db.Endpoint.Address}}
          Fn:
            Type: AWS::Lambda::Function
            Properties:
              ReservedConcurrentExecutions: !FindInMap [Sizes, !Ref Stage, Concurrency]
              Environment:
                Variables: {POOLKIT_TARGET: lambda, DATABASE_HOST: !GetAtt Db.Endpoint.Address}
        """,
    )
    budget = folder.budget()
    assert (ceilings(budget), budget.available) == ({"Fn": 40}, 827)
    in_dev = folder.budget(parameters=("Stage=dev",))
    assert ceilings(in_dev) == {"Fn": 2, "Debug": None}


def test_environments_and_outputs_of_other_stacks(folder, ceilings):
    """An environment's file gives parameters, and `{database.Host}` leads to the database."""
    database = stack(DATABASE) + "\nOutputs:\n  Host: {Value: !GetAtt Db.Endpoint.Address}\n"
    folder.write("database.yaml", database)
    text = function(extra="ReservedConcurrentExecutions: !Ref Reserved", target="lambda")
    text = text.replace("!GetAtt Db.Endpoint.Address", "!Ref Host")
    parameters = "  Reserved: {Type: Number}\n  Host: {Type: String}\n"
    folder.write("app.yaml", stack(text, parameters=parameters))
    folder.write("unused.yaml", stack(function("Unused")))
    file = folder.write(
        "environments/prod.toml",
        """
        [stack]
        name_prefix = "shop"
        [database]
        [app]
        Host = "{database.Host}"
        Reserved = 12
        """,
    )
    budget = folder.budget(environment="prod")
    assert ceilings(budget) == {"Fn": 12}
    assert f"{file}:6" in budget.services[0].instances.origin
    changed = folder.budget(environment="prod", parameters=("Reserved=3",))
    assert ceilings(changed) == {"Fn": 3}


def test_an_environment_is_what_its_file_names(folder, ceilings):
    """A compose file in the same folder is another way to run it, and not counted."""
    folder.write("app.yaml", stack(DATABASE, function(extra="ReservedConcurrentExecutions: 4")))
    folder.write("compose.yaml", "services:\n  web: {image: x, environment: {PGHOST: db}}\n")
    folder.write("environments/prod.toml", "[app]\n")
    unused = function("Unused").replace("!GetAtt Db.Endpoint.Address", "x")
    folder.write("unused.yaml", stack(unused))
    budget = folder.budget(environment="prod")
    assert ceilings(budget) == {"Fn": 8}
    left_out = [str(folder.path / name) for name in ("unused.yaml", "compose.yaml")]
    assert [each.name for each in budget.not_counted] == left_out
    assert ceilings(folder.budget()) == {"Fn": 8, "Unused": None, "web": None}


@pytest.mark.parametrize("named", ["more/pods.yaml", "more"])
def test_a_path_named_beside_an_environment_is_counted(folder, ceilings, named):
    """A named file counts, and so does a named folder without the environment's templates."""
    text = stack(DATABASE, function(extra="ReservedConcurrentExecutions: 4"))
    folder.write("infra/app.yaml", text)
    folder.write("infra/environments/prod.toml", "[app]\n")
    folder.write(
        "more/pods.yaml",
        """
        apiVersion: v1
        kind: Pod
        metadata: {name: reports}
        spec:
          containers:
            - name: reports
              command: [uvicorn, "app:app", --workers, "4"]
              env: [{name: POOLKIT_TARGET, value: web}, {name: POOLKIT_ENVIRONMENT, value: prod}]
        """,
    )
    budget = folder.budget("infra", named, environment="prod")
    assert ceilings(budget) == {"Fn": 8, "reports": 120}
    assert budget.not_counted == ()


def test_an_import_leads_to_another_stacks_export(folder):
    """Fn::ImportValue finds the proxy that another template exports."""
    proxy = "  Proxy:\n    Type: AWS::RDS::DBProxy\n    Properties: {EngineFamily: POSTGRESQL}\n"
    exported = "Outputs:\n  P: {Value: !GetAtt Proxy.Endpoint, Export: {Name: shop-proxy}}\n"
    folder.write("database.yaml", stack(DATABASE, proxy) + "\n" + exported)
    text = function(extra="ReservedConcurrentExecutions: 9", target="lambda_proxy")
    text = text.replace("!GetAtt Db.Endpoint.Address", "!ImportValue shop-proxy")
    folder.write("app.yaml", stack(text))
    assert folder.budget().services[0].through == "Proxy"


def test_a_worker_counts_a_connection_for_each_child(folder, ceilings):
    """Prefork: (2 + 2) tasks x 8 children x (1 + 0); threads share one pool of 8."""
    names = [
        "- {Name: POOLKIT_TARGET, Value: worker}",
        "- {Name: POOLKIT_ENVIRONMENT, Value: prod}",
        "- {Name: WORKER_CONCURRENCY, Value: '8'}",
    ]
    for more in ([], ["- {Name: WORKER_POOL, Value: threads}"]):
        environment = "\n            ".join(names + more)
        folder.write("app.yaml", stack(DATABASE, ecs("python, -m, worker", environment)))
        assert ceilings(folder.budget()) == {"Web": 32}


def test_an_unset_variable_keeps_the_lines_of_the_others(folder):
    """With AWS::NoValue in a list, each number still names its own line."""
    environment = """- !If [Never, {Name: A, Value: b}, !Ref AWS::NoValue]
            - {Name: POOLKIT_TARGET, Value: web}
            - {Name: POOLKIT_ENVIRONMENT, Value: prod}
            - {Name: POOLKIT_POOL_SIZE, Value: "7"}"""
    text = stack(DATABASE, ecs(environment=environment))
    text += "\nConditions:\n  Never: !Equals [a, b]\n"
    file = folder.write("app.yaml", text)
    line = next(n for n, each in enumerate(text.splitlines(), 1) if "POOLKIT_POOL_SIZE" in each)
    (service,) = folder.budget().services
    assert service.pool_size.value == 7
    assert service.pool_size.origin == f"{file}:{line} (POOLKIT_POOL_SIZE)"


def test_a_workload_without_a_database_is_listed_and_not_counted(folder):
    """--service counts a function that has no variable about a database."""
    plain = "  Mail:\n    Type: AWS::Lambda::Function\n    Properties: {Handler: a.b}\n"
    folder.write("app.yaml", stack(DATABASE, plain))
    budget = folder.budget()
    assert ([each.name for each in budget.not_counted], budget.verdict) == (
        ["Mail"],
        "nothing to count",
    )
    counted = folder.budget(services=("Mail=1+0@20",))
    assert [service.ceiling for service in counted.services] == [40]


def test_compute_of_other_kinds_is_listed(folder):
    """An EC2 instance or a one-off task is listed, and --service counts it."""
    others = "  Box:\n    Type: AWS::EC2::Instance\n"
    others += "  Migrate:\n    Type: AWS::ECS::TaskDefinition\n"
    folder.write("app.yaml", stack(DATABASE, others))
    assert [each.name for each in folder.budget().not_counted] == ["Box", "Migrate"]
    assert folder.budget(services=("Box=5+5x2@3",)).needed == 64
    assert folder.budget(services=("Box=5+5x2",)).verdict == "cannot be shown to fit"


def test_a_variable_under_an_open_condition_makes_the_pool_unknown(folder):
    """It could be POOLKIT_POOL_SIZE, so the preset's number may not hold."""
    environment = """- !If [Maybe, {Name: POOLKIT_POOL_SIZE, Value: "90"}, !Ref AWS::NoValue]
            - {Name: POOLKIT_TARGET, Value: web}
            - {Name: POOLKIT_ENVIRONMENT, Value: prod}"""
    text = stack(DATABASE, ecs(environment=environment), parameters="  P: {Type: String}\n")
    folder.write("app.yaml", text + "\nConditions:\n  Maybe: !Equals [!Ref P, a]\n")
    assert folder.budget().services[0].pool_size.value is None
    assert folder.budget(parameters=("P=a",)).services[0].pool_size.value == 90
    assert folder.budget(parameters=("P=b",)).services[0].pool_size.value == 20


@pytest.mark.parametrize(
    ("command", "processes"),
    [
        ("gunicorn, --workers=3, app", 3),
        ("gunicorn, -w4, app", 4),
        ("sh, -c, 'exec gunicorn -k uvicorn.workers.UvicornWorker -w 5 app'", 5),
        ("uvicorn, app:app, --workers, '2'", 2),
        ("poetry, run, uvicorn, app:app", 1),
        ("celery, -A, app, worker, --concurrency, '6'", 6),
        ("celery, -A, app, worker, -c6", 6),
        ("celery, -A, app, worker", None),
        ("celery, -A, app, worker, -P, threads, -c, '6'", 1),
        ("celery, -A, app, worker, --autoscale=10,3", 10),
        ("celery, -A, app, beat", 1),
        ("gunicorn, -c, gunicorn.conf.py, app", None),
        ("granian, --workers, '3', app:app", 3),
        ("uwsgi, -p, '4'", 4),
    ],
)
def test_processes_are_read_from_command_lines(folder, command, processes):
    """A well-known server's number is read from its command line, or left unknown."""
    folder.write("app.yaml", stack(DATABASE, ecs(command=command)))
    (service,) = folder.budget(services=("Web=5+10",)).services
    assert service.processes.value == processes


SCHEDULE = """
  Nightly:
    Type: AWS::Scheduler::Schedule
    Properties:
      ScheduleExpression: rate(1 minute)
      Target: {Arn: c, RoleArn: r, EcsParameters: {TaskDefinitionArn: !Ref Task, TaskCount: 50}}
"""


def test_tasks_of_a_schedule_are_no_one_off_tasks(folder):
    """The number that runs at once is unknown, with any task definition."""
    service = "  Web:\n    Type: AWS::ECS::Service"
    for text in (ecs(), ecs().partition(service)[0]):
        folder.write("app.yaml", stack(DATABASE, text, SCHEDULE))
        counted = ("Web=1+0",) if service in text else ()
        budget = folder.budget(services=counted)
        assert "Nightly" in {gap.of for gap in budget.gaps}
        assert budget.verdict == "cannot be shown to fit"
        assert folder.budget(services=(*counted, "Nightly=1+0x1@50")).verdict == "fits"


@pytest.mark.parametrize(
    "resource",
    [
        "AWS::EC2::Instance\n    Properties: {UserData: !Sub 'run ${Db.Endpoint.Address}'}",
        (
            "AWS::AppRunner::Service\n    Properties: {SourceConfiguration: {ImageRepository: "
            "{ImageConfiguration: {RuntimeEnvironmentVariables: [{Name: PGHOST, Value: x}]}}}}"
        ),
        "AWS::Glue::Job\n    Properties: {DefaultArguments: {--url: 'postgresql://x/y'}}",
        (
            "AWS::ECS::ExpressGatewayService\n    Properties: {PrimaryContainer: {Environment: "
            "[{Name: URL, Value: 'postgresql://x/y'}]}}"
        ),
    ],
)
def test_other_compute_with_a_database_is_unknown(folder, resource):
    """A template does not tell how many connections it opens."""
    folder.write("app.yaml", stack(DATABASE, f"  Box:\n    Type: {resource}\n"))
    budget = folder.budget()
    assert {gap.of for gap in budget.gaps} == {"Box"}
    assert folder.budget(ignored=("Box",)).verdict == "nothing to count"


def test_only_reserved_concurrency_limits_a_function(folder, ceilings):
    """Provisioned concurrency is a part of it; an event source's limit is no limit of others."""
    extra = "ReservedConcurrentExecutions: 20"
    source = """
  Source:
    Type: AWS::Lambda::EventSourceMapping
    Properties: {FunctionName: !Ref %s, ScalingConfig: {MaximumConcurrency: 5}}
  Alias:
    Type: AWS::Lambda::Alias
    Properties:
      FunctionName: !Ref %s
      ProvisionedConcurrencyConfig: {ProvisionedConcurrentExecutions: 10}
"""
    for each, ceiling in ((extra, 40), ("", None)):
        folder.write("app.yaml", stack(DATABASE, function(extra=each), source % ("Fn", "Fn")))
        assert ceilings(folder.budget()) == {"Fn": ceiling}
