"""Plans and states of Terraform, each with the ceilings computed by hand."""

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from terraform_files import Module, Ref, resource

from poolkit.budget.read.documents import read_documents
from poolkit.budget.terraform.graph import Graph
from poolkit.budget.terraform.workloads import is_terraform

HOST = "shop.abc123.eu-west-1.rds.amazonaws.com"


def group(most, kind="aws_db_parameter_group"):
    parameter = {"name": "max_connections", "value": str(most), "apply_method": "immediate"}
    return resource(f"{kind}.pg", {"name": "pg", "family": "postgres17", "parameter": [parameter]})


def rds(most=200, **values):
    """An RDS instance with a parameter group."""
    own = {"identifier": "shop", "engine": "postgres", "instance_class": "db.m7g.large"}
    own |= {"parameter_group_name": Ref("aws_db_parameter_group.pg.name", value="pg")}
    return group(most), resource("aws_db_instance.db", own | values)


def function(name="api", variables=None, index=None, **values):
    own = {"function_name": name, "reserved_concurrent_executions": 20}
    own["environment"] = [{"variables": variables or {}}]
    return resource("aws_lambda_function.fn", own | values, index)


def containers(**variables):
    environment = [{"name": name, "value": value} for name, value in variables.items()]
    command = ["gunicorn", "-w", "2", "app"]
    return [
        {
            "name": "app",
            "image": "example.org/app:1",
            "command": command,
            "environment": environment,
        }
    ]


def ecs(definitions, **values):
    task = resource(
        "aws_ecs_task_definition.task", {"family": "web", "container_definitions": definitions}
    )
    own = {"name": "web", "cluster": "main", "desired_count": 3, "deployment_maximum_percent": 150}
    own |= {"task_definition": Ref("aws_ecs_task_definition.task.arn")}
    return task, resource("aws_ecs_service.web", own | values)


SCALING = resource(
    "aws_appautoscaling_target.web",
    {"service_namespace": "ecs", "resource_id": "service/main/web", "max_capacity": 10},
)
TO_DATABASE = Ref("aws_db_instance.db.address")


@pytest.fixture
def budget(folder):
    def compute(module, *options, form="plan"):
        folder.write("infra.json", getattr(module, form)())
        return folder.budget("infra.json", services=options)

    return compute


# -- AWS ------------------------------------------------------------------------------------


def test_modules_pass_the_address_on_and_autoscaling_sets_the_tasks(budget, ceilings):
    """The most of 10 tasks and 5 more while it deploys, x 2 workers x (5 + 10) = 450."""
    database = Module(*rds(), outputs={"host": TO_DATABASE})
    app = Module(*ecs(json.dumps(containers(DATABASE_URL=f"postgresql://u@{HOST}/shop"))), SCALING)
    root = Module(db=database.call(), app=app.call(host=Ref("module.db.host")))
    found = budget(root, "web=5+10")
    assert ceilings(found) == {"web": 450}
    assert found.max_connections == 200
    assert found.verdict == "does not fit"


def test_container_definitions_before_the_first_apply_are_unknown(budget):
    """The text of the container definitions is unknown as a whole; the tasks are not."""
    app = Module(*ecs(Ref("var.host")), SCALING)
    database = Module(*rds(), outputs={"host": TO_DATABASE})
    found = budget(Module(db=database.call(), app=app.call(host=Ref("module.db.host"))))
    (service,) = found.services
    assert (service.instances.value, service.ceiling) == (10, None)
    assert found.verdict == "cannot be shown to fit"


def test_a_function_through_a_proxy(budget):
    """The proxy opens 50 % of 200; the function counts as its client."""
    proxy = resource("aws_db_proxy.pool", {"name": "pool", "engine_family": "POSTGRESQL"})
    name = Ref("aws_db_proxy.pool.name", value="pool")
    config = [{"max_connections_percent": 50}]
    defaults = {"db_proxy_name": name, "connection_pool_config": config}
    target = {
        "db_proxy_name": name,
        "db_instance_identifier": Ref("aws_db_instance.db.identifier", value="shop"),
    }
    parts = (
        proxy,
        resource("aws_db_proxy_target.pool", target),
        resource("aws_db_proxy_default_target_group.pool", defaults),
        function(variables={"DB_HOST": Ref("aws_db_proxy.pool.endpoint")}),
    )
    found = budget(Module(*rds(), *parts), "api=1+0")
    assert [(each.name, each.through) for each in found.services] == [("api", "pool")]
    assert [each.ceiling(200) for each in found.poolers] == [100]
    assert found.verdict == "fits"


def test_an_attribute_that_the_plan_has_leads_nowhere(budget):
    """The open value is the proxy's address, because the engine's name is known."""
    variables = {
        "DB_HOST": Ref("aws_db_proxy.pool.endpoint"),
        "DB_ENGINE": Ref("aws_db_instance.db.engine", value="postgres"),
    }
    proxy = resource("aws_db_proxy.pool", {"name": "pool", "engine_family": "POSTGRESQL"})
    found = budget(Module(*rds(), proxy, function(variables=variables)), "api=1+0")
    assert [each.through for each in found.services] == ["pool"]


def test_a_container_beside_the_client_does_not_count(budget, ceilings):
    """Only the container with the variable is a client: (3 + 1) x 2 x 5 = 40."""
    agent = {"name": "agent", "image": "example.org/agent:1", "command": ["agent"]}
    definitions = json.dumps([*containers(DB_HOST=HOST), agent])
    root = Module(*rds(address=HOST), *ecs(definitions))
    assert ceilings(budget(root, "web/app=5+0")) == {"web/app": 40}


def test_minus_1_is_no_reserved_concurrency(budget):
    """The provider writes -1 for a function without it."""
    client = function(variables={"DB_HOST": TO_DATABASE}, reserved_concurrent_executions=-1)
    assert [each.instances.value for each in budget(Module(*rds(), client)).services] == [None]


def test_the_secret_of_a_database_beside_the_address_of_its_proxy(budget):
    """One expression has both; the secret holds the credentials for the way through the proxy."""
    variables = {
        "DB_HOST": Ref("aws_db_proxy.pool.endpoint"),
        "SECRET_ARN": Ref("aws_db_instance.db.master_user_secret"),
    }
    proxy = resource("aws_db_proxy.pool", {"name": "pool", "engine_family": "POSTGRESQL"})
    found = budget(Module(*rds(), proxy, function(variables=variables)), "api=1+0")
    assert [each.through for each in found.services] == ["pool"]


def test_the_smallest_member_limits_an_aurora_cluster(budget):
    """Two members of one cluster count once, with the parameter group of the cluster."""
    cluster = resource(
        "aws_rds_cluster.main",
        {
            "cluster_identifier": "main",
            "engine": "aurora-postgresql",
            "db_cluster_parameter_group_name": Ref(
                "aws_rds_cluster_parameter_group.pg.id", value="pg"
            ),
        },
    )
    members = [
        resource(
            "aws_rds_cluster_instance.node",
            {
                "identifier": f"node-{number}",
                "cluster_identifier": Ref("aws_rds_cluster.main.id"),
                "engine": "aurora-postgresql",
                "instance_class": "db.r7g.large",
            },
            number,
        )
        for number in range(2)
    ]
    parts = (group(300, "aws_rds_cluster_parameter_group"), cluster, *members)
    client = function(variables={"DB_HOST": Ref("aws_rds_cluster.main.endpoint")})
    found = budget(Module(*parts, client), "api=2+0")
    assert (found.max_connections, found.needed) == (300, (20 + 20) * 2 + 4)


def test_each_instance_of_a_module_has_its_own_parts(folder, ceilings):
    """Two instances of one module: each service starts the task definition of its own instance."""
    app = Module(*ecs(json.dumps(containers(DB_HOST=HOST)), name=Ref("var.name", value="web")))
    root = Module(*rds(address=HOST), app=app.call(key=["a", "b"], name=Ref("each.key")))
    folder.write("infra.json", root.plan())
    found = folder.budget("infra.json")
    assert [each.instances.value for each in found.services] == [3, 3]
    assert all("DB_HOST" in each.why for each in found.services)


def test_a_function_refers_to_the_database_of_its_key_only(folder):
    """module.db["a"] and module.db["b"] are two databases, each with its own client."""
    database = Module(*rds(identifier=Ref("var.name", value=None)), outputs={"host": TO_DATABASE})
    root = Module(
        resource(
            "aws_lambda_function.a",
            {
                "function_name": "a",
                "environment": [{"variables": {"DB_HOST": Ref('module.db["a"].host')}}],
            },
        ),
        resource(
            "aws_lambda_function.b",
            {
                "function_name": "b",
                "environment": [{"variables": {"DB_HOST": Ref('module.db["b"].host')}}],
            },
        ),
        db=database.call(key=["a", "b"]),
    )
    folder.write("infra.json", root.plan())
    found = folder.budgets("infra.json")
    clients = {
        each.database.name: [service.name for service in each.services] for each in found.each
    }
    assert clients == {
        'module.db["a"].aws_db_instance.db': ["a"],
        'module.db["b"].aws_db_instance.db': ["b"],
    }


@pytest.mark.parametrize(
    "parts",
    [
        # The secret's version has the address, and the function has the secret.
        [
            resource("aws_secretsmanager_secret.s", {"name": "app"}),
            resource(
                "aws_secretsmanager_secret_version.s",
                {"secret_id": Ref("aws_secretsmanager_secret.s.id"), "secret_string": TO_DATABASE},
            ),
            function(variables={"CONFIG": Ref("aws_secretsmanager_secret.s.arn")}),
        ],
        # The server's password is the function's too.
        [
            resource("random_password.p", {"length": 20}),
            function(variables={"TOKEN": Ref("random_password.p.result")}),
        ],
        [
            resource("aws_ssm_parameter.host", {"name": "/shop/host", "value": TO_DATABASE}),
            function(variables={"PARAMETER": "/shop/host"}),
        ],
        [function(depends_on=Ref("aws_db_instance.db.id"))],
        # The database's security group lets the function's in.
        [
            resource(
                "aws_security_group.db",
                {
                    "ingress": [
                        {"from_port": 5432, "security_groups": [Ref("aws_security_group.fn.id")]}
                    ]
                },
            ),
            resource("aws_security_group.fn", {"name": "fn"}),
            function(vpc_config=[{"security_group_ids": [Ref("aws_security_group.fn.id")]}]),
        ],
        # It lets a range of addresses in.
        [
            resource("aws_security_group.db", {"ingress": [{"cidr_blocks": ["10.0.0.0/16"]}]}),
            resource("aws_security_group.fn", {"name": "fn"}),
            function(vpc_config=[{"security_group_ids": [Ref("aws_security_group.fn.id")]}]),
        ],
        # It lets a range in that is known only after apply.
        [
            resource(
                "aws_security_group.db",
                {"ingress": [{"cidr_blocks": [Ref("aws_vpc.main.cidr_block")]}]},
            ),
            resource("aws_vpc.main", {}),
            resource("aws_security_group.fn", {"name": "fn"}),
            function(vpc_config=[{"security_group_ids": [Ref("aws_security_group.fn.id")]}]),
        ],
        # The role's policy lets the function log on.
        [
            resource("aws_iam_role.fn", {"name": "fn"}),
            resource(
                "aws_iam_role_policy.fn",
                {
                    "role": Ref("aws_iam_role.fn.id"),
                    "policy": Ref("aws_db_instance.db.resource_id"),
                },
            ),
            function(role=Ref("aws_iam_role.fn.arn")),
        ],
    ],
)
def test_what_leads_to_the_database_counts(budget, parts):
    """Whatever leads to the database is a sign, not only variables with a telling name."""
    values = {
        "vpc_security_group_ids": [Ref("aws_security_group.db.id")],
        "password": Ref("random_password.p.result"),
    }
    found = budget(Module(*rds(**values), *parts))
    assert [each.name for each in found.services] == ["api"]
    assert found.verdict == "cannot be shown to fit"


@pytest.mark.parametrize(
    "address", ["acme_harvester.x", "aws_dms_replication_task.x", "helm_release.x"]
)
def test_a_type_without_a_rule_is_unknown(budget, address):
    """A made-up type that refers to the server may open any number of connections."""
    found = budget(Module(*rds(), resource(address, {"source": TO_DATABASE})))
    assert [each.name for each in found.services] == [address]
    assert found.verdict == "cannot be shown to fit"


@pytest.mark.parametrize(
    ("address", "values"),
    [
        (
            "aws_apprunner_service.x",
            {
                "source_configuration": [
                    {
                        "image_repository": [
                            {
                                "image_configuration": [
                                    {"runtime_environment_variables": {"DATABASE_URL": "x"}}
                                ]
                            }
                        ]
                    }
                ]
            },
        ),
        (
            "azurerm_container_group.x",
            {"container": [{"environment_variables": {"DB_HOST": "db.internal"}}]},
        ),
        ("docker_container.x", {"env": ["A=b", "URL=postgresql://db.internal/shop"]}),
        (
            "aws_codebuild_project.x",
            {"environment": [{"environment_variable": [{"name": "DB_HOST", "value": "h"}]}]},
        ),
        ("google_compute_instance.x", {"metadata_startup_script": "run postgresql://db/shop"}),
    ],
)
def test_variables_of_a_type_without_a_rule_are_signs(budget, address, values):
    """A name or URL of a database is enough; the server may stand in another file."""
    found = budget(Module(*rds(), resource(address, values)))
    assert [each.name for each in found.services] == [address]
    assert found.verdict == "cannot be shown to fit"


def test_what_a_release_of_helm_deploys_is_unread(budget):
    """The plan has the chart's name, and not its services."""
    release = resource("helm_release.shop", {"chart": "shop", "values": ["replicas: 3"]})
    client = function(variables={"DB_HOST": TO_DATABASE})
    found = budget(Module(*rds(), client, release), "api=1+0")
    assert (found.needed, found.verdict) == (44, "cannot be shown to fit")


def test_a_network_that_exists_already_leads_to_no_database(budget):
    """The function and the database are in one network, which is no sign."""
    network = resource("data.aws_vpc.main", {"default": True, "cidr_block": "10.0.0.0/16"})
    to_network = [Ref("data.aws_vpc.main.id")]
    client = function(variables={"BUCKET": "b"}, vpc_config=[{"subnet_ids": to_network}])
    found = budget(Module(*rds(db_subnet_group_name=to_network), network, client))
    assert found.verdict == "nothing to count"


def test_the_secret_of_a_task_in_a_state_leads_to_the_database(folder):
    """The name of the variable shows nothing, and the secret depends on the database."""
    arn = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:app-AbCdEf"
    secret = resource("aws_secretsmanager_secret.app", {"name": "app", "arn": arn})
    version = resource("aws_secretsmanager_secret_version.app", {"secret_id": arn})
    version["depends_on"] = ["aws_db_instance.db", "aws_secretsmanager_secret.app"]
    definitions = [{"name": "app", "secrets": [{"name": "CONFIG", "valueFrom": arn}]}]
    parts = ecs(json.dumps(definitions), task_definition="web:7")
    parts[0]["values"]["arn"] = "arn:aws:ecs:eu-west-1:111122223333:task-definition/web:7"
    parts[1]["depends_on"] = ["aws_ecs_task_definition.task"]
    folder.write("state.json", Module(*rds(address=HOST), secret, version, *parts).state())
    assert [each.name for each in folder.budget("state.json").services] == ["web"]


def test_what_never_connects_does_not_count(budget):
    """An alarm on the database opens no connection to it."""
    alarm = resource(
        "aws_cloudwatch_metric_alarm.cpu", {"dimensions": {"Id": Ref("aws_db_instance.db.id")}}
    )
    assert budget(Module(*rds(), alarm)).verdict == "nothing to count"


# -- what a plan does not show ----------------------------------------------------------------


def test_a_local_of_the_root_module_may_lead_to_any_database(budget):
    """A plan has no expressions of locals, so the variable may hold the address."""
    found = budget(Module(*rds(), function(variables={"SETTINGS": Ref("local.settings")})))
    assert [each.name for each in found.services] == ["api"]


@pytest.mark.parametrize(("argument", "counted"), [(TO_DATABASE, ["api"]), ("none", [])])
def test_a_dynamic_block_of_a_module_has_what_the_module_receives(budget, argument, counted):
    """The environment of terraform-aws-modules/lambda is a dynamic block without an expression."""
    module = Module(function(variables={"A": Ref("var.variables")}))
    call = module.call(dynamic=["environment"], variables=argument)
    assert [each.name for each in budget(Module(*rds(), fn=call)).services] == counted


@pytest.mark.parametrize("argument", [TO_DATABASE, "none"])
def test_containers_of_a_module_refer_to_what_it_receives(folder, argument):
    """terraform-aws-modules/ecs has a module for each container, and locals on both sides."""
    container = Module(outputs={"definition": Ref("local.definition")})
    task, service = ecs(Ref("module.container"), task_definition=Ref("local.task"))
    inner = container.call(environment=Ref("each.value"), for_each=Ref("var.containers"))
    service_module = Module(task, service, container=inner)
    folder.write("a.json", Module(*rds(), web=service_module.call(containers=argument)).plan())
    (service,) = folder.budget("a.json").services
    assert ("aws_db_instance" in service.why) == (argument is TO_DATABASE)
    assert service.ceiling is None


def test_a_local_of_a_module_may_lead_to_the_modules_own_database(budget):
    """The module has the database, and passes its address on by a local."""
    module = Module(*rds(), function(variables={"SETTINGS": Ref("local.settings")}))
    assert [each.name for each in budget(Module(app=module.call())).services] == ["api"]


def test_the_parameter_group_behind_a_local_is_the_only_one_of_its_module(budget):
    """terraform-aws-modules/rds passes the group's name through a local."""
    inner = Module(
        resource(
            "aws_db_instance.this",
            {
                "identifier": "shop",
                "engine": "postgres",
                "instance_class": "db.m7g.large",
                "parameter_group_name": Ref("var.group"),
            },
        ),
        outputs={"host": Ref("aws_db_instance.this.address")},
    )
    module = Module(
        inner=inner.call(group=Ref("local.group")),
        group=Module(group(77)).call(),
        outputs={"host": Ref("module.inner.host")},
    )
    client = function(variables={"DB_HOST": Ref("module.db.host")})
    assert budget(Module(client, db=module.call())).max_connections == 77


def test_sensitive_values_are_unknown_and_never_printed(folder):
    """A sensitive variable keeps its name, and its value does not appear."""
    client = function(variables={"DATABASE_URL": f"postgresql://u:hunter2@{HOST}/shop"})
    client["sensitive_values"] = {"environment": [{"variables": {"DATABASE_URL": True}}]}
    folder.write("infra.json", Module(*rds(address=HOST), client).plan())
    result = folder.run("infra.json", "--json")
    assert result.returncode == 3
    assert '"api"' in result.stdout
    assert "hunter2" not in result.stdout + result.stderr


def test_a_sensitive_value_of_a_state_may_not_lead_anywhere(folder):
    """A state lists dependencies, so the key of another service is no sign of the database."""
    client = function(variables={"API_KEY": "hunter2"})
    client["sensitive_values"] = {"environment": [{"variables": {"API_KEY": True}}]}
    folder.write("state.json", Module(*rds(address=HOST), client).state())
    assert folder.budget("state.json").verdict == "nothing to count"


def test_an_existing_database_has_unknown_limits(budget):
    """The plan does not manage the database of a data source."""
    database = resource("data.aws_db_instance.shop", {"db_instance_identifier": "shop"})
    client = function(variables={"DB_HOST": Ref("data.aws_db_instance.shop.address")})
    found = budget(Module(database, client), "api=1+0")
    assert (found.max_connections, found.needed) == (None, 44)


def test_a_plan_with_target_is_not_complete(folder):
    """Terraform says so itself, and what is left out may be a service."""
    client = function(variables={"DB_HOST": TO_DATABASE})
    plan = json.loads(Module(*rds(), client).plan()) | {"complete": False}
    folder.write("infra.json", json.dumps(plan))
    found = folder.budget("infra.json", services=("api=1+0",))
    assert (found.needed, found.verdict) == (44, "cannot be shown to fit")


def test_the_state_of_nothing_has_nothing_to_count(folder):
    """`terraform show -json` without a state prints its version only."""
    folder.write("state.json", '{"format_version": "1.0"}')
    assert folder.run("state.json", "--max-connections", "100").returncode == 3


def test_of_the_prior_state_only_data_sources_count(folder):
    """A plan repeats what it changes as its prior state, and has its data sources only there."""
    plan = json.loads(Module(*rds(), function(variables={"DB_HOST": HOST})).plan())
    old = function("old", variables={"DB_HOST": HOST}) | {"address": "aws_lambda_function.old"}
    data = resource("data.aws_db_instance.other", {"db_instance_identifier": "other"})
    plan["prior_state"] = json.loads(Module(old, data).state())
    folder.write("infra.json", json.dumps(plan))
    found = folder.budgets("infra.json").each
    assert {each.database.name for each in found} == {"shop", "other"}
    assert {service.name for each in found for service in each.services} == {"api"}


def test_count_0_and_deleted_resources_are_absent(folder):
    """What the plan deletes, or does not make, is in its changes and configuration only."""
    plan = json.loads(Module(*rds(), function(variables={"DB_HOST": TO_DATABASE})).plan())
    root = plan["planned_values"]["root_module"]
    root["resources"] = [each for each in root["resources"] if "lambda" not in each["type"]]
    plan["resource_changes"][-1]["change"] = {"actions": ["delete"], "after": None}
    folder.write("infra.json", json.dumps(plan))
    assert folder.budget("infra.json").verdict == "nothing to count"


# -- other clouds -----------------------------------------------------------------------------

CLOUD_SQL = resource(
    "google_sql_database_instance.db",
    {
        "name": "shop",
        "database_version": "POSTGRES_17",
        "settings": [
            {
                "tier": "db-custom-2-7680",
                "database_flags": [{"name": "max_connections", "value": "300"}],
            }
        ],
    },
)


def cloud_run(most, env, **more):
    template = {"scaling": [{"max_instance_count": most}], **more}
    template["containers"] = [
        {"image": "example.org/app", "command": ["gunicorn", "-w", "2", "app"], "env": env}
    ]
    return resource("google_cloud_run_v2_service.web", {"name": "web", "template": [template]})


@pytest.mark.parametrize(
    ("service", "needed"),
    [
        # (8 + 8) x 2 x 5
        (
            cloud_run(
                8,
                [
                    {
                        "name": "DB_HOST",
                        "value": Ref("google_sql_database_instance.db.private_ip_address"),
                    }
                ],
            ),
            160 + 4,
        ),
        # 100 by default
        (cloud_run(0, [{"name": "DB_HOST", "value": "10.0.0.3"}]), 2000 + 4),
        # The socket of the instance, without a variable.
        (
            cloud_run(
                1,
                [],
                volumes=[
                    {
                        "cloud_sql_instance": [
                            {"instances": [Ref("google_sql_database_instance.db.connection_name")]}
                        ]
                    }
                ],
            ),
            20 + 4,
        ),
    ],
)
def test_cloud_run_and_cloud_sql(budget, service, needed):
    """All instances run twice while one revision replaces another."""
    found = budget(Module(CLOUD_SQL, service), "web=5+0")
    assert (found.max_connections, found.needed) == (300, needed)


def test_a_replica_is_no_database_of_its_own(budget):
    """A budget is for the primary server."""
    values = {**CLOUD_SQL["values"], "name": "ro", "master_instance_name": "shop"}
    replica = resource("google_sql_database_instance.ro", values)
    assert budget(Module(CLOUD_SQL, replica)).database.name == "shop"


def test_a_container_app_and_a_flexible_server(budget, ceilings):
    """(10 + 10) replicas, the default, x 2 workers x 3 = 120 of the 250 that are set."""
    server = resource(
        "azurerm_postgresql_flexible_server.db", {"name": "shop", "sku_name": "GP_Standard_D2ds_v5"}
    )
    limit = resource(
        "azurerm_postgresql_flexible_server_configuration.most",
        {
            "name": "max_connections",
            "value": "250",
            "server_id": Ref("azurerm_postgresql_flexible_server.db.id"),
        },
    )
    env = [{"name": "PGHOST", "value": Ref("azurerm_postgresql_flexible_server.db.fqdn")}]
    container = {
        "name": "app",
        "image": "example.org/app",
        "command": ["gunicorn", "-w", "2", "app"],
        "env": env,
    }
    app = resource(
        "azurerm_container_app.web", {"name": "web", "template": [{"container": [container]}]}
    )
    found = budget(Module(server, limit, app), "web=3+0")
    assert ceilings(found) == {"web": 120}
    assert (found.max_connections, found.verdict) == (250, "fits")


def test_all_revisions_of_a_container_app_may_run(budget):
    """The revision mode Multiple keeps old revisions."""
    server = resource("azurerm_postgresql_flexible_server.db", {"name": "shop", "sku_name": "x"})
    env = [{"name": "PGHOST", "value": Ref("azurerm_postgresql_flexible_server.db.fqdn")}]
    template = [{"max_replicas": 2, "container": [{"name": "app", "env": env}]}]
    values = {"name": "web", "revision_mode": "Multiple", "template": template}
    found = budget(Module(server, resource("azurerm_container_app.web", values)))
    assert [each.instances.value for each in found.services] == [None]


def test_a_web_app_has_an_unknown_number_of_instances(budget):
    """Its plan may be scaled, and shared with other apps."""
    server = resource(
        "azurerm_mysql_flexible_server.db", {"name": "shop", "sku_name": "GP_Standard_D2ds_v4"}
    )
    settings = {"DB_HOST": Ref("azurerm_mysql_flexible_server.db.fqdn")}
    app = resource("azurerm_linux_web_app.web", {"name": "web", "app_settings": settings})
    found = budget(Module(server, app))
    assert [each.instances.value for each in found.services] == [None]


def test_a_proxy_beside_the_client_is_no_client(budget, ceilings):
    """The Cloud SQL proxy passes the client's connections on: (3 + 1) x 2 x 5 = 40."""
    deployment = kubernetes([{"name": "DB_HOST", "value": "127.0.0.1"}])
    pod = deployment["values"]["spec"][0]["template"][0]["spec"][0]
    instance = Ref("google_sql_database_instance.db.connection_name")
    image = "gcr.io/cloud-sql-connectors/cloud-sql-proxy:2.14"
    pod["container"].append({"name": "proxy", "image": image, "args": [instance]})
    pod["container"].append({"name": "nginx", "image": "nginx:1.29"})
    assert ceilings(budget(Module(CLOUD_SQL, deployment), "web/app=5+0")) == {"web/app": 40}


@pytest.mark.parametrize(
    ("address", "values", "instances"),
    [
        (
            "google_cloud_run_service.web",
            {
                "template": [
                    {
                        "metadata": [{"annotations": {"autoscaling.knative.dev/maxScale": "7"}}],
                        "spec": [
                            {"containers": [{"env": [{"name": "DB_HOST", "value": "10.0.0.3"}]}]}
                        ],
                    }
                ]
            },
            (7, 14),
        ),
        (
            "google_cloud_run_v2_job.web",
            {
                "template": [
                    {
                        "task_count": 4,
                        "template": [
                            {"containers": [{"env": [{"name": "DB_HOST", "value": "10.0.0.3"}]}]}
                        ],
                    }
                ]
            },
            (4, 4),
        ),
        (
            "google_cloudfunctions2_function.web",
            {
                "service_config": [
                    {"max_instance_count": 5, "environment_variables": {"DB_HOST": "10.0.0.3"}}
                ]
            },
            (5, 10),
        ),
    ],
)
def test_other_forms_of_cloud_run(budget, address, values, instances):
    """Their most instances, and those while a revision changes."""
    found = budget(Module(CLOUD_SQL, resource(address, {"name": "web", **values})), "web=1+0x1")
    (service,) = found.services
    assert (service.instances.value, service.ceiling) == instances


def kubernetes(env, **spec):
    container = {
        "name": "app",
        "image": "example.org/app",
        "args": ["gunicorn", "-w", "2", "app"],
        "env": env,
    }
    pod = [{"metadata": [{"labels": {"app": "web"}}], "spec": [{"container": [container]}]}]
    strategy = [{"type": "RollingUpdate", "rolling_update": [{"max_surge": "1"}]}]
    return resource(
        "kubernetes_deployment_v1.web",
        {
            "metadata": [{"name": "web"}],
            "spec": [{"replicas": "3", "strategy": strategy, "template": pod, **spec}],
        },
    )


def test_a_deployment_and_its_autoscaler(budget, ceilings):
    """(6 + 1) pods x 2 workers x 5 = 70."""
    scaler = resource(
        "kubernetes_horizontal_pod_autoscaler_v2.web",
        {
            "metadata": [{"name": "web"}],
            "spec": [
                {"max_replicas": 6, "scale_target_ref": [{"kind": "Deployment", "name": "web"}]}
            ],
        },
    )
    found = budget(
        Module(*rds(), kubernetes([{"name": "DB_HOST", "value": TO_DATABASE}]), scaler), "web=5+0"
    )
    assert ceilings(found) == {"web": 70}


def test_the_replicas_of_a_deployment_may_be_unknown(budget):
    """A plan may lack the number, and a manifest may stand in it as a whole."""
    found = budget(
        Module(*rds(), kubernetes([{"name": "DB_HOST", "value": HOST}], replicas=Ref("local.n")))
    )
    assert [each.instances.value for each in found.services] == [None]
    pod = {
        "spec": {
            "containers": [{"name": "app", "env": [{"name": "DB_HOST", "value": TO_DATABASE}]}]
        }
    }
    manifest = {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "queue"}}
    manifest |= {"spec": {"replicas": 3, "template": pod}}
    found = budget(Module(*rds(), resource("kubernetes_manifest.queue", {"manifest": manifest})))
    assert [(each.name, each.instances.value) for each in found.services] == [("queue", 3)]


def test_a_variable_from_a_secret_has_an_empty_value(budget):
    """The provider writes "" beside the reference to the secret."""
    source = [{"secret_key_ref": [{"name": "other", "key": "url"}]}]
    env = [{"name": "DATABASE_URL", "value": "", "value_from": source}]
    assert [each.name for each in budget(Module(*rds(), kubernetes(env))).services] == ["web"]


def test_a_secret_of_the_cluster_leads_to_the_database(budget):
    """The pod has the secret by its name, and the secret has the address."""
    secret = resource(
        "kubernetes_secret.db", {"metadata": [{"name": "db"}], "data": {"host": TO_DATABASE}}
    )
    env = [
        {
            "name": "PLACE",
            "value": "",
            "value_from": [
                {
                    "secret_key_ref": [
                        {"name": Ref("kubernetes_secret.db.metadata", value="db"), "key": "host"}
                    ]
                }
            ],
        }
    ]
    assert [each.name for each in budget(Module(*rds(), secret, kubernetes(env))).services] == [
        "web"
    ]


# -- states -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "needed"),
    [
        # (20 + 20) x 3
        ([function(variables={"DB": HOST})], 124),
        # The dependencies of a state have those behind them too.
        (
            [
                resource("aws_ssm_parameter.p", {"name": "/p"}, depends_on=["aws_db_instance.db"]),
                function(depends_on=["aws_db_instance.db", "aws_ssm_parameter.p"])
                | {"depends_on": ["aws_db_instance.db", "aws_ssm_parameter.p"]},
            ],
            124,
        ),
        # Others do not count.
        ([function(variables={"BUCKET": "b"})], 4),
    ],
)
def test_a_state_has_values_in_place_of_references(folder, parts, needed):
    """A state has no expressions: a host name, an ARN or a dependency shows the way."""
    folder.write("state.json", Module(*rds(address=HOST), *parts).state())
    options = ("api=3+0",) if needed > 4 else ()
    assert folder.budget("state.json", services=options).needed == needed


def test_a_state_shows_what_a_resource_refers_to_itself(folder):
    """The service refers to a queue's worker, which depends on the other database."""
    two = resource("aws_db_instance.two", {"identifier": "two", "engine": "postgres"})
    worker = function("worker") | {
        "address": "aws_lambda_function.worker",
        "depends_on": ["aws_db_instance.two"],
    }
    client = function(variables={"DB_HOST": HOST})
    client["depends_on"] = [
        "aws_db_instance.two",
        "aws_lambda_function.worker",
        "aws_db_instance.db",
    ]
    made_up = resource("acme_harvester.x", {"source": {"url": f"postgresql://{HOST}/shop"}})
    folder.write("state.json", Module(*rds(address=HOST), two, worker, client, made_up).state())
    found = {each.database.name: each for each in folder.budgets("state.json").each}
    assert {each.name for each in found["shop"].services} == {"api", "acme_harvester.x"}
    assert {each.name for each in found["two"].services} == {"worker"}


def test_a_state_of_ecs(folder, ceilings):
    """The service names its task definition by the ARN with a revision: (10 + 5) x 2 x 2 = 60."""
    arn = "arn:aws:ecs:eu-west-1:111122223333:task-definition/web:7"
    task, service = ecs(json.dumps(containers(DB_HOST=HOST)), task_definition=arn)
    task["values"]["arn"] = arn
    folder.write("state.json", Module(*rds(address=HOST), task, service, SCALING).state())
    assert ceilings(folder.budget("state.json", services=("web=2+0",))) == {"web": 60}


def test_services_of_one_name_in_two_clusters(folder):
    """Each has the autoscaling of its own cluster: 10 and 4 tasks."""
    parts = []
    for cluster, most in ("a", 10), ("b", 4):
        arn = f"arn:aws:ecs:eu-west-1:111122223333:service/{cluster}/web"
        task, service = ecs(json.dumps(containers(DB_HOST=HOST)), id=arn, cluster=cluster)
        values = {
            **SCALING["values"],
            "resource_id": f"service/{cluster}/web",
            "max_capacity": most,
        }
        parts += [
            {**task, "address": f"aws_ecs_task_definition.{cluster}"},
            {**service, "address": f"aws_ecs_service.{cluster}"},
            resource(f"aws_appautoscaling_target.{cluster}", values),
        ]
    folder.write("state.json", Module(*rds(address=HOST), *parts).state())
    found = folder.budget("state.json").services
    assert {each.instances.value for each in found} == {10, 4}


def test_a_state_of_google_cloud(folder):
    """(4 + 4) x 2 x 5 by the connection name in a variable."""
    database = {**CLOUD_SQL["values"], "connection_name": "shop:europe-west1:db"}
    service = cloud_run(4, [{"name": "INSTANCE", "value": "/cloudsql/shop:europe-west1:db"}])
    root = Module(resource("google_sql_database_instance.db", database), service)
    folder.write("state.json", root.state())
    assert folder.budget("state.json", services=("web=5+0",)).needed == 84


def test_a_plan_and_manifests_are_one_deployment(folder, ceilings):
    """Terraform manages the database, and a manifest has its host name."""
    two = resource("aws_db_instance.two", {"identifier": "two", "engine": "postgres"})
    folder.write("state.json", Module(*rds(address=HOST), two).state())
    folder.write(
        "web.yaml",
        f"""
        apiVersion: apps/v1
        kind: Deployment
        metadata: {{name: web}}
        spec:
          replicas: 2
          strategy: {{type: Recreate}}
          template:
            spec:
              containers:
                - {{name: web, image: example.org/web, command: [gunicorn, -w, "2", app], env: [{{name: DB_HOST, value: {HOST}}}]}}
        """,
    )
    found = {each.database.name: each for each in folder.budgets(services=("web=5+0",)).each}
    assert ceilings(found["shop"]) == {"web": 20}
    assert ceilings(found["two"]) == {}


@pytest.mark.process
@pytest.mark.skipif(shutil.which("terraform") is None, reason="needs terraform")
def test_a_plan_of_terraform_itself(folder):
    """References go through for_each, a module's output and its variable, and not past a local."""
    folder.write(
        "main.tf",
        """
        variable "password" {
          type      = string
          sensitive = true
          default   = "hunter2"
        }
        resource "terraform_data" "db" {}
        module "app" {
          for_each = toset(["a", "é"])
          source   = "./app"
          host     = terraform_data.db.id
        }
        resource "terraform_data" "client" {
          count = 2
          input = { host = module.app["a"].host, password = var.password }
        }
        resource "terraform_data" "next" {
          count = 2
          input = terraform_data.client[count.index].output
        }
        """,
    )
    folder.write(
        "app/main.tf",
        """
        variable "host" {}
        resource "terraform_data" "inner" { input = var.host }
        output "host" { value = terraform_data.inner.output }
        """,
    )
    commands = (["init"], ["plan", "-out", "plan"], ["show", "-json", "plan"])
    for command in commands:
        done = subprocess.run(
            ["terraform", *command], cwd=folder.path, capture_output=True, text=True, check=True
        )
    (document,) = read_documents(folder.write("plan.json", done.stdout))
    nodes = Graph(document).nodes
    inner = 'module.app["{}"].terraform_data.inner'
    assert is_terraform(document.data)
    assert nodes[inner.format("é")].refers_to == {"terraform_data.db"}
    assert nodes["terraform_data.client[0]"].refers_to == {inner.format("a")}
    assert nodes["terraform_data.next[1]"].refers_to == {"terraform_data.client[1]"}
    assert "hunter2" not in str([node.values for node in nodes.values()])


def test_a_state_beside_its_plan_is_not_counted_twice(folder):
    """The plan has everything of the state; a state of another environment has other ids."""
    client = function(variables={"DB_HOST": HOST}, id="api")
    root = Module(*rds(address=HOST, id="db-1"), client)
    folder.write("plan.json", root.plan())
    folder.write("state.json", root.state())
    assert folder.budget(services=("api=1+0",)).needed == 44
    other = Module(
        *rds(address=f"test-{HOST}", id="db-2"), resource("random_string.a", {"id": "none"})
    )
    folder.write("state.json", other.state())
    assert len(folder.budgets(services=("api=1+0",)).each) == 2


# -- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("main.tf", 'resource "aws_ecs_service" "web" {\n}\n'),
        ("main.tf", 'module "app" {\n  source = "./app"\n}\n'),
        ("terragrunt.hcl", 'terraform {\n  source = "../app"\n}\n'),
        ("cdk.tf.json", '{"resource": {"aws_ecs_service": {}}}'),
        ("state.json", '{"version": 4, "lineage": "a", "resources": []}'),
    ],
)
def test_terraforms_own_files_get_the_hint(folder, name, text):
    """They are never "fits": the command to run is in the output, with exit status 3."""
    folder.write(name, text)
    result = folder.run(".")
    assert result.returncode == 3
    assert "terraform show -json" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("plan", "source", "verdict"),
    [
        ("shop/plan.json", "./modules/app/main.tf", "fits"),
        ("shop/plan.json", "./main.tf", "fits"),
        ("shop/plan.json", "../modules/app/db/main.tf", "fits"),
        ("shop/plan.json", "../other/main.tf", "cannot be shown to fit"),
        ("shop/plan.json", "../main.tf", "cannot be shown to fit"),
        ("plans/shop.json", "../shop/main.tf", "cannot be shown to fit"),
    ],
)
def test_a_plan_covers_its_own_folder_and_its_modules(folder, plan, source, verdict):
    """Files elsewhere may be of another configuration, so they still get the hint."""
    text = json.loads(Module(*rds(), function(variables={"DB_HOST": TO_DATABASE})).plan())
    calls = {"app": {"source": "../modules/app", "module": {}}, "vpc": {"source": "example/vpc"}}
    text["configuration"]["root_module"]["module_calls"] = calls
    folder.write(plan, json.dumps(text))
    file = folder.write(f"shop/{source}", 'resource "aws_ecs_service" "web" {\n}\n')
    found = folder.budget(services=("api=1+0",))
    assert found.verdict == verdict
    unread = [Path(each.where.file).resolve() for each in found.unread]
    assert unread == ([] if verdict == "fits" else [file.resolve()])


def test_files_without_services_need_no_plan(folder, ceilings):
    """A bucket uses no database, so the manifest beside it is enough."""
    folder.write("main.tf", 'resource "aws_s3_bucket" "files" {\n}\n')
    folder.write("infra.json", Module(*rds(), function(variables={"DB_HOST": TO_DATABASE})).plan())
    assert folder.budget(services=("api=1+0",)).verdict == "fits"


def test_a_binary_plan_is_refused_with_the_hint(folder):
    """`terraform plan -out plan` writes an archive."""
    (folder.path / "plan").write_bytes(b"PK\x03\x04tfplan")
    result = folder.run("plan")
    assert result.returncode == 2
    assert "terraform show -json" in " ".join(result.stderr.split())


def test_300_modules_take_less_than_2_seconds(folder):
    """Modules in modules, each with its own services and all with one database."""
    inner = Module(function(variables={"DB_HOST": Ref("var.host")}), *ecs(Ref("var.host")))
    for _ in range(4):
        inner = Module(
            function(variables={"DB_HOST": Ref("var.host")}), inner=inner.call(host=Ref("var.host"))
        )
    keys = [f"team-{number}" for number in range(60)]
    root = Module(*rds(), team=inner.call(key=keys, host=TO_DATABASE))
    file = folder.write("infra.json", root.plan())
    start = time.process_time()
    found = folder.budget(file.name)
    assert time.process_time() - start < 2
    assert len(found.services) == 60 * 6
