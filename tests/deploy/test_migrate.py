"""`poolkit migrate`, `db role -e` and the check before a deployment, through the command line.

The account is moto's. A task's command really runs, as a process against a real PostgreSQL, whose owner
has the secret that RDS made and is no superuser.
"""

import hashlib
import json
import re
import shutil
import signal

import boto3
import psycopg2
import pytest
from deploy.conftest import write_package
from deploy.test_deploy import statuses
from moto.core.exceptions import JsonRESTError
from moto.ssm.responses import SimpleSystemManagerResponse
from poolkit_command import POOLKIT, ROOT, refused, run_here, succeeded
from processes import started, wait_until

from poolkit.deploy.rehearsal.moto_tasks import LocalTasks

NETWORK = """\
Resources:
  Vpc: {Type: AWS::EC2::VPC, Properties: {CidrBlock: 10.40.0.0/16}}
  Subnet: {Type: AWS::EC2::Subnet, Properties: {VpcId: !Ref Vpc, CidrBlock: 10.40.0.0/24}}
  Group: {Type: AWS::EC2::SecurityGroup, Properties: {VpcId: !Ref Vpc, GroupDescription: x}}
Outputs:
  PrivateSubnetIds: {Value: !Ref Subnet}
  GroupId: {Value: !GetAtt Group.GroupId}
"""
DATABASE = """\
Resources:
  Instance:
    Type: AWS::RDS::DBInstance
    Properties:
      DBInstanceClass: db.t4g.micro
      Engine: postgres
      AllocatedStorage: "20"
      DBName: notes
      MasterUsername: poolkit
      ManageMasterUserPassword: true
  ApplicationSecret:
    Type: AWS::SecretsManager::Secret
    Properties:
      GenerateSecretString:
        SecretStringTemplate: '{"username": "app"}'
        GenerateStringKey: password
        ExcludePunctuation: true
Outputs:
  Host: {Value: !GetAtt Instance.Endpoint.Address}
  SecretArn: {Value: !GetAtt Instance.MasterUserSecret.SecretArn}
  ApplicationSecretArn: {Value: !Ref ApplicationSecret}
"""
SERVICE = """\
Parameters:
  ImageUri: {Type: String}
  DatabaseSecretArn: {Type: String}
  DatabaseAuthentication: {Type: String, Default: secret}
Resources:
  Code: {Type: AWS::SSM::Parameter, Properties: {Name: /%s, Type: String, Value: !Ref ImageUri}}
"""
FUNCTION = """\
Parameters:
  CodeBucket: {Type: String}
  CodeKey: {Type: String}
  DatabaseSecretArn: {Type: String}
Resources:
  Code: {Type: AWS::SSM::Parameter, Properties: {Name: /lambda, Type: String, Value: !Ref CodeKey}}
"""
DIGESTS = {
    name: f"registry.example/{name}@sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    for name in ("first", "second", "worker")
}
ENVIRONMENT = f"""\
[stack]
name_prefix = "shop"
region = "eu-central-1"
code_bucket = "shop-code"

[network]

[database]

[migrate]
ImageUri = "{DIGESTS["first"]}"
PrivateSubnetIds = "{{network.PrivateSubnetIds}}"
WorkloadSecurityGroupId = "{{network.GroupId}}"
DatabaseClientSecurityGroupId = "{{network.GroupId}}"
Environment = "dev"
DatabaseHost = "{{database.Host}}"
DatabaseName = "notes"
DatabaseSecretArn = "{{database.SecretArn}}"
ApplicationSecretArn = "{{database.ApplicationSecretArn}}"

[web]
ImageUri = "{DIGESTS["first"]}"
DatabaseSecretArn = "{{database.ApplicationSecretArn}}"

[worker]
ImageUri = "{DIGESTS["worker"]}"
DatabaseSecretArn = "{{database.ApplicationSecretArn}}"

[lambda]
DatabaseSecretArn = "{{database.ApplicationSecretArn}}"
"""
SECOND = '''\
"""Titles."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    op.add_column("notes", sa.Column("title", sa.Text))
'''

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:Tried to parse", "ignore::UserWarning:moto"),
]


@pytest.fixture(scope="module")
def server(new_postgres):
    """A PostgreSQL of the module's own: its roles have the names that the templates give."""
    with new_postgres() as made:
        yield made


@pytest.fixture
def project(tmp_path, aws):
    """A project of someone else's, with its own Alembic: no sample, another table."""
    folder = tmp_path / "notes"
    shutil.copytree(ROOT / "tests/notes_project", folder)
    templates = {
        "network": NETWORK,
        "database": DATABASE,
        "migrate": (ROOT / "infra/migrate.yaml").read_text(),
        "web": SERVICE % "web",
        "worker": SERVICE % "worker",
        "lambda": FUNCTION,
        "environments/dev": ENVIRONMENT,
    }
    for name, text in templates.items():
        file = folder / "infra" / f"{name}.{'toml' if '/' in name else 'yaml'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    write_package(folder / "build/lambda.zip", "first")
    boto3.client("s3").create_bucket(
        Bucket="shop-code", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return folder


@pytest.fixture
def tasks(project, aws, gate, server, monkeypatch):
    """The account's tasks; databases and roles go with them."""
    tasks = LocalTasks(gate, lambda: server, project, aws)
    tasks.fill(monkeypatch)
    # The second image has a migration more than the first and the worker's.
    later = project / "later"
    shutil.copytree(project / "migrations", later)
    (later / "versions/v0002_titles.py").write_text(SECOND)
    tasks.image_variables[DIGESTS["second"]] = {"POOLKIT_MIGRATIONS": str(later)}
    yield tasks
    tasks.end()
    gate.end()
    connection = psycopg2.connect(server.admin_url(driver=""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name in tasks._databases.values():
            cursor.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        cursor.execute("DROP ROLE IF EXISTS app")
    connection.close()


@pytest.fixture
def poolkit(project, aws, tasks):
    return lambda *words, **more: run_here(*words, "-e", "dev", cwd=project, **aws | more)


@pytest.fixture
def prepared(poolkit):
    """The stacks that come before the first migration."""
    for name in ("network", "database"):
        succeeded(poolkit("deploy", name, "--yes", "--no-lint", "--no-budget"))
    return poolkit


def deploy(poolkit, target, *words):
    return poolkit("deploy", target, "--yes", "--no-lint", "--no-budget", *words)


def query(tasks, server, statement):
    """Ask the database as a superuser."""
    (name,) = tasks._databases.values()
    connection = psycopg2.connect(server.admin_url(name, driver=""))
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()
    finally:
        connection.close()


def commands(tasks):
    """Give the subcommand of every task that was started."""
    return [each._override["command"][4] for each in tasks.tasks.values()]


def test_the_documented_order_works_on_an_empty_account(prepared, tasks, server):
    """The schema of a stranger's Alembic, the role, and then the services without another task."""
    made = succeeded(prepared("migrate"), "upgraded from empty to 0001", "db upgrade: done")
    assert "run: poolkit db role" in made
    assert statuses()["shop-dev-migrate"] == "CREATE_COMPLETE"
    answer = succeeded(prepared("db", "role"), "created the role app", "db role: done")
    (secret,) = (
        each
        for each in boto3.client("secretsmanager").list_secrets()["SecretList"]
        if "ApplicationSecret" in each["Name"]
    )
    value = boto3.client("secretsmanager").get_secret_value(SecretId=secret["ARN"])
    assert json.loads(value["SecretString"])["password"] not in answer
    succeeded(deploy(prepared, "web"), "schema: known to fit web")
    assert commands(tasks) == ["upgrade", "role"]
    assert query(tasks, server, "SELECT rolsuper FROM pg_roles WHERE rolname = 'app'") == [(False,)]
    owner = "SELECT tableowner FROM pg_tables WHERE tablename = 'notes'"
    assert query(tasks, server, owner) == [("poolkit",)]


@pytest.mark.slow
def test_all_with_migrate_works_on_an_empty_account(poolkit, tasks):
    """Schema and role come before the services; without --migrate it is refused before anything."""
    refused(deploy(poolkit, "all"), "pass --migrate", "poolkit db role", lines=1)
    assert statuses() == {}
    made = succeeded(deploy(poolkit, "all", "--migrate"), "db upgrade: done", "db role: done")
    assert commands(tasks) == ["upgrade", "role", "check", "check"]
    assert made.index("db role: done") < made.index("Plan: create shop-dev-web")
    assert set(statuses().values()) == {"CREATE_COMPLETE"}
    again = succeeded(deploy(poolkit, "all"))
    assert again.count("nothing to change") == len(statuses())
    assert len(tasks.tasks) == 4


def test_code_that_the_schema_is_behind_of_is_refused(prepared, tasks):
    """The stack is left as it was, and both ways out are named; then they work."""
    succeeded(prepared("migrate"))
    succeeded(prepared("db", "role"))
    succeeded(deploy(prepared, "web"))
    newer = ("--parameter", f"ImageUri={DIGESTS['second']}")
    answer = deploy(prepared, "web", *newer)
    refused(answer, "the database is at 0001", "needs 0002", "Pass --migrate")
    assert f"poolkit migrate -e dev --image {DIGESTS['second']}" in answer.stderr
    assert statuses()["shop-dev-web"] == "CREATE_COMPLETE"
    family = {"familyPrefix": "shop-dev-migrate-check", "status": "ACTIVE"}
    assert boto3.client("ecs").list_task_definitions(**family)["taskDefinitionArns"] == []

    succeeded(deploy(prepared, "web", "--migrate", *newer), "upgraded from 0001 to 0002")
    assert statuses()["shop-dev-web"] == "UPDATE_COMPLETE"
    # An earlier release is not behind a later schema.
    succeeded(deploy(prepared, "web", "--parameter", f"ImageUri={DIGESTS['first']}"))


def test_all_with_an_image_upgrades_with_that_image(poolkit, tasks):
    """The stack of the migrations comes first, and gets the image of the web service."""
    images = [f"--image=web={DIGESTS['second']}", f"--image=worker={DIGESTS['first']}"]
    succeeded(deploy(poolkit, "all", "--migrate", *images), "upgraded from empty to 0002")


def test_a_schema_is_upgraded_although_its_code_runs_already(prepared, tasks):
    """`--migrate` is not left out because the stack has nothing to change."""
    succeeded(prepared("migrate"))
    succeeded(prepared("db", "role"))
    newer = ("--image", DIGESTS["second"])
    succeeded(deploy(prepared, "web", "--no-schema-check", *newer))
    made = succeeded(deploy(prepared, "web", "--migrate"), "upgraded from 0001 to 0002")
    assert "shop-dev-web: nothing to change" in made


def test_what_needs_no_schema_is_not_migrated(prepared, tasks):
    """An option that would be ignored is refused."""
    refused(deploy(prepared, "network", "--migrate"), "network needs no schema, so leave it out")
    assert tasks.tasks == {}


def test_a_success_that_cannot_be_recorded_stays_a_success(prepared, tasks, monkeypatch):
    """It costs another check; the exit status does not say that nothing ran."""

    def refuse(response):
        raise JsonRESTError("AccessDeniedException", "no")

    monkeypatch.setattr(SimpleSystemManagerResponse, "put_parameter", refuse)
    succeeded(prepared("migrate"), "db upgrade: done", "warning: not recorded")


def test_an_image_is_migrated_before_it_is_deployed(prepared, tasks):
    """Checked first, which changes nothing; then upgraded, then nothing is left to do."""
    succeeded(prepared("migrate"))
    succeeded(prepared("db", "role"))
    behind = prepared("migrate", "--check", "--image", DIGESTS["second"])
    assert behind.returncode == 1
    assert "the database is at 0001" in behind.stderr
    assert statuses()["shop-dev-migrate"] == "CREATE_COMPLETE"
    succeeded(prepared("migrate", "--image", DIGESTS["second"]), "upgraded from 0001 to 0002")
    assert statuses()["shop-dev-migrate"] == "UPDATE_COMPLETE"
    succeeded(prepared("migrate", "--check", "--image", DIGESTS["second"]), "0002")
    succeeded(prepared("migrate", "--image", DIGESTS["second"]), "already at 0002")


@pytest.mark.slow
def test_a_function_needs_the_revision_of_its_project(prepared, tasks, project):
    """Its zip has no migrations: those of the checkout count, whatever image the task has."""
    succeeded(prepared("migrate"))
    succeeded(prepared("db", "role"))
    succeeded(deploy(prepared, "lambda"), "db check: done")
    write_package(project / "build/lambda.zip", "second")
    succeeded(deploy(prepared, "lambda"), "schema: known to fit lambda")
    (project / "migrations/versions/v0002_titles.py").write_text(SECOND)
    write_package(project / "build/lambda.zip", "third")
    refused(deploy(prepared, "lambda"), "the database is at 0001", "needs 0002")
    succeeded(deploy(prepared, "lambda", "--migrate"), "upgraded from 0001 to 0002")


def test_a_missing_role_is_found_before_a_service_needs_it(prepared, tasks):
    """Tasks of the service would end at once, one after the other."""
    succeeded(prepared("migrate"))
    refused(deploy(prepared, "web"), "there is no role app", "poolkit db role")
    succeeded(deploy(prepared, "web", "--no-schema-check"))


@pytest.mark.slow
def test_a_record_of_another_database_is_not_believed(prepared, tasks):
    """A restored database has another secret of its owner's."""
    succeeded(prepared("migrate"))
    succeeded(prepared("db", "role"))
    ssm = boto3.client("ssm")
    record = json.loads(ssm.get_parameter(Name="/shop-dev-migrate/record")["Parameter"]["Value"])
    assert record["login"] == "password"
    assert record["fits"] == [DIGESTS["first"].partition("@")[2]]
    other = json.dumps(record | {"database": "another"})
    ssm.put_parameter(Name="/shop-dev-migrate/record", Value=other, Overwrite=True)
    succeeded(deploy(prepared, "web"), "db check: done")


def test_a_migration_that_fails_shows_its_error(prepared, tasks, project):
    """The log as it was written, exit status 1, and the error once more as the last line."""
    file = project / "migrations/versions/v0001_notes.py"
    file.write_text(re.sub(r"op\.\w+\(", "op.no_such_operation(", file.read_text(), count=1))
    answer = prepared("migrate")
    assert answer.returncode == 1
    assert "Traceback" in answer.stdout
    assert "no_such_operation" in answer.stdout
    assert re.search(r"db upgrade failed with exit status \d+: ", answer.stderr)
    refused(deploy(prepared, "web"), "db check failed")


def test_a_task_that_cannot_start_names_the_reason(prepared, tasks):
    """ECS's own word for it, and what to do; nothing ran."""
    boto3.client("ecr").create_repository(repositoryName="poolkit-web")
    image = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/poolkit-web:missing"
    refused(prepared("migrate", "--image", image), "poolkit-web:missing", lines=None)
    succeeded(prepared("migrate"))
    answer = prepared("migrate", "--check", "--image", image)
    assert answer.returncode == 1
    assert "the task did not start: CannotPullContainerError: " in answer.stderr
    assert "built for arm64" in answer.stderr

    (group,) = boto3.client("logs").describe_log_groups()["logGroups"]
    boto3.client("logs").delete_log_group(logGroupName=group["logGroupName"])
    answer = prepared("migrate", "--check")
    assert answer.returncode == 1
    assert "the task did not start: ResourceInitializationError: " in answer.stderr


def test_failures_of_run_task_are_a_refusal(prepared, tasks):
    """No task was made, so nothing ran."""
    succeeded(prepared("migrate"))
    tasks.failures = [{"reason": "Capacity is unavailable at this time", "detail": "FARGATE"}]
    refused(
        prepared("migrate"), "ECS started no task: Capacity is unavailable at this time (FARGATE)"
    )
    tasks.failures = []
    boto3.client("cloudformation").delete_stack(StackName="shop-dev-migrate")
    refused(prepared("db", "role"), "shop-dev-migrate is not deployed; run: poolkit migrate")


WAITING = "import time\n\n\ndef upgrade() -> None:\n    print('a step', flush=True)\n    time.sleep(600)\n"


def make_slow(project):
    """Let the first migration print a line and wait."""
    file = project / "migrations/versions/v0001_notes.py"
    file.write_text(file.read_text().partition("\ndef upgrade")[0] + f"\n{WAITING}")


def test_ctrl_c_leaves_the_task_and_says_how_to_end_it(prepared, tasks, project, aws):
    """The log arrives while the task runs; exit status 130, and commands to follow and end it."""
    make_slow(project)
    words = ("migrate", "-e", "dev")
    with started(POOLKIT, *words, cwd=project, environ={"COLUMNS": "300"} | aws) as process:
        process.wait_for("a step")
        assert process.terminate(signal.SIGINT) == 130, process.text
    assert "stopped watching. The task continues in AWS." in process.stdout
    (task,) = tasks.tasks.values()
    assert task.state["lastStatus"] == "RUNNING"
    stop = re.search(r"aws ecs stop-task --cluster (\S+) --task (\S+)", process.stdout)
    boto3.client("ecs").stop_task(cluster=stop[1], task=stop[2])
    wait_until(lambda: task.state["lastStatus"] == "STOPPED")


def test_a_task_that_takes_too_long_is_left_running(prepared, tasks, project):
    """The wait has a limit; the task has none."""
    make_slow(project)
    answer = prepared("migrate", "--wait", "0.02")
    assert answer.returncode == 1
    assert "after 0.02 minutes" in answer.stderr
    assert "aws logs tail" in answer.stderr


def test_two_at_once_are_safe(prepared, tasks, server):
    """Both end well, and the migration ran once."""
    succeeded(deploy(prepared, "migrate"))
    ecs = boto3.client("ecs")
    (stack,) = boto3.client("cloudformation").describe_stacks(StackName="shop-dev-migrate")[
        "Stacks"
    ]
    outputs = {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}
    network = {"subnets": [outputs["SubnetIds"]], "assignPublicIp": "DISABLED"}
    command = ["python", "-m", "poolkit", "db", "upgrade", "--migrations", "migrations"]
    ecs.run_task(
        cluster=outputs["ClusterName"],
        taskDefinition=outputs["TaskDefinitionArn"],
        launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": network},
        overrides={"containerOverrides": [{"name": "migration", "command": command}]},
    )
    succeeded(prepared("migrate"), "0001")
    wait_until(lambda: all(t.state["lastStatus"] == "STOPPED" for t in tasks.tasks.values()), 60)
    assert {t.state["containers"][0]["exitCode"] for t in tasks.tasks.values()} == {0}
    assert query(tasks, server, "SELECT version_num FROM alembic_version") == [("0001",)]


def test_rotation_in_the_vpc_changes_secret_and_role(prepared, tasks, server):
    """And a second run of the role keeps the password that is current."""
    succeeded(prepared("migrate"))
    succeeded(prepared("db", "role"))
    stored = "SELECT rolpassword FROM pg_authid WHERE rolname = 'app'"
    before = query(tasks, server, stored)
    succeeded(prepared("db", "role", "--rotate"), "app has a new password")
    assert query(tasks, server, stored) != before
    succeeded(prepared("db", "role"))
    succeeded(prepared("migrate", "--check"), "db check: done")


def with_authentication(project, **tables):
    """Set DatabaseAuthentication of tables in the environment's file."""
    file = project / "infra/environments/dev.toml"
    text = file.read_text()
    for name, kind in tables.items():
        text = text.replace(f"[{name}]\n", f'[{name}]\nDatabaseAuthentication = "{kind}"\n')
    file.write_text(text)


def test_tokens_for_some_and_a_password_for_others_are_refused(prepared, tasks, project):
    """RDS refuses the password of a role that may use tokens."""
    succeeded(prepared("migrate"))
    refused(prepared("db", "role", "--iam"), "but the deployables use one", lines=1)
    with_authentication(project, web="iam")
    refused(prepared("db", "role"), "web would log in with IAM tokens and", "use one of the two")


def test_tokens_for_all_make_a_role_for_tokens(prepared, tasks, project, server):
    """Without --iam too, because the environment's file says so."""
    template = project / "infra/lambda.yaml"
    template.write_text(
        template.read_text().replace(
            "  DatabaseSecretArn:", "  DatabaseAuthentication: {Type: String}\n  DatabaseSecretArn:"
        )
    )
    with_authentication(project, web="iam", worker="iam", **{"lambda": "iam"})
    succeeded(prepared("migrate"))
    succeeded(prepared("db", "role"), "logs in with IAM tokens")
    member = "SELECT pg_has_role('app', 'rds_iam', 'MEMBER')"
    assert query(tasks, server, member) == [(True,)]
    refused(prepared("db", "role", "--rotate"), "nothing to --rotate")
    succeeded(deploy(prepared, "web"), "schema: known to fit web")


POOLER = """\
Parameters:
  DatabaseSecretArn: {Type: String}
  ImageUri: {Type: String, Default: ""}
Resources:
  Own: {Type: AWS::SSM::Parameter, Properties: {Name: /%s, Type: String, Value: x}}
  Target: {Type: AWS::RDS::DBProxyTargetGroup, Properties: {DBProxyName: shop}}
Outputs:
  Host: {Value: pooler.internal}
"""


@pytest.fixture(params=["proxy", "pgbouncer"])
def pooler(request, project):
    """The name of a pooler's template, whose table is the file's first."""
    name = request.param
    (project / f"infra/{name}.yaml").write_text(POOLER % name)
    file = project / "infra/environments/dev.toml"
    image = f'ImageUri = "{DIGESTS["worker"]}"\n' if name == "pgbouncer" else ""
    table = f'[{name}]\n{image}DatabaseSecretArn = "{{database.ApplicationSecretArn}}"\n\n'
    text = file.read_text().replace("[network]\n", f"{table}[network]\n")
    file.write_text(text)
    return name


@pytest.mark.slow
def test_a_pooler_comes_after_the_role(poolkit, tasks, pooler):
    """RDS Proxy logs in when it is created, and fails without the role."""
    refused(deploy(poolkit, "all"), "pass --migrate", lines=1)
    made = succeeded(deploy(poolkit, "all", "--migrate"), f"role: known to exist for {pooler}")
    assert made.index("db role: done") < made.index(f"Plan: create shop-dev-{pooler}")
    assert commands(tasks) == ["upgrade", "role", "check", "check"]


def test_a_pooler_without_the_role_is_refused(prepared, tasks, pooler):
    """By its own name too; both ways out are named, and each works."""
    refused(deploy(prepared, pooler), "pass --migrate", "poolkit db role", lines=1)
    succeeded(prepared("migrate"))
    refused(deploy(prepared, pooler), "there is no role app", "poolkit db role")
    assert statuses().keys() == {"shop-dev-network", "shop-dev-database", "shop-dev-migrate"}
    made = succeeded(deploy(prepared, pooler, "--migrate"), "db role: done")
    # PgBouncer's image has no migrations.
    assert DIGESTS["worker"] not in made.partition("db role: done")[0].partition("migrate")[2]


def test_tokens_before_a_pooler_are_refused(prepared, tasks, project, pooler):
    """It logs in with the password that RDS refuses, whatever its clients have."""
    host = '"{proxy.Host}"' if pooler == "proxy" else '"{pgbouncer.Host}"'
    file = project / "infra/environments/dev.toml"
    service = project / "infra/web.yaml"
    service.write_text(
        service.read_text().replace(
            "  DatabaseSecretArn:", "  DatabaseHost: {Type: String}\n  DatabaseSecretArn:", 1
        )
    )
    file.write_text(file.read_text().replace("[web]\n", f"[web]\nDatabaseHost = {host}\n"))
    with_authentication(project, worker="iam")
    for words in ((), ("--migrate",)):
        refused(deploy(prepared, "all", *words), "worker would log in with IAM tokens", lines=1)
    assert commands(tasks) == []


def test_a_project_without_the_stack_is_told_what_to_copy(poolkit, project):
    """And its services are deployed without a check."""
    file = project / "infra/environments/dev.toml"
    text = file.read_text()
    file.write_text(re.sub(r"\[migrate\].*?\n\n", "", text, flags=re.DOTALL))
    refused(poolkit("migrate"), "has no table [migrate]; copy it", lines=1)
    succeeded(deploy(poolkit, "all"))
    refused(deploy(poolkit, "web", "--migrate"), "has no table [migrate]", lines=None)
