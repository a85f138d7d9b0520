"""max_connections of classes, tiers, SKUs, ACU, parameter groups and a real server."""

import gzip
import json
import tomllib
from pathlib import Path
from urllib.parse import quote

import moto
import pytest

from poolkit.budget.cloudformation.workloads import describe_templates
from poolkit.budget.files import read_files
from poolkit.budget.limits import (
    class_limit,
    class_size,
    evaluated,
    platform_limit,
    serverless_limit,
    smallest_class,
)
from poolkit.budget.model import Answers, Database, unknown
from poolkit.budget.read.parameters import Environment
from poolkit.budget.report.rows import headline
from poolkit.budget.suggestions import applied, suggestions
from poolkit.budget.tables import table

SCALING = "ServerlessV2ScalingConfiguration"
CLUSTER = """
AWSTemplateFormatVersion: '2010-09-09'
Resources:
  Cluster:
    Type: AWS::RDS::DBCluster
    Properties:
      Engine: aurora-postgresql
      %s
  Writer:
    Type: AWS::RDS::DBInstance
    Properties: {Engine: aurora-postgresql, DBClusterIdentifier: !Ref Cluster, DBInstanceClass: %s}
  Reader:
    Type: AWS::RDS::DBInstance
    Properties: {Engine: aurora-postgresql, DBClusterIdentifier: !Ref Cluster, DBInstanceClass: %s}
  Group:
    Type: AWS::RDS::DBClusterParameterGroup
    Properties: {Parameters: {max_connections: "%s"}}
"""


@pytest.mark.parametrize(
    ("name", "gib", "vcpus", "bounds"),
    [
        ("db.t4g.medium", 4, 2, (368, 400, 450)),
        ("db.m6g.large", 8, 2, (757, 823, 901)),
        ("db.r6g.large", 16, 2, (1535, 1669, 1802)),
        ("db.m7g.2xlarge", 32, 8, (3091, 3360, 3604)),
        ("db.r7g.2xlarge", 64, 8, (None, 5000, None)),
        ("db.r8g.48xlarge", 1536, 192, (None, 5000, None)),
    ],
)
def test_a_class_gives_less_than_its_whole_memory(name, gib, vcpus, bounds):
    """The estimate has bounds: what the whole memory gives, and 8 % less than the estimate."""
    limit = class_limit("postgres", name)
    assert class_size(name) == (gib, vcpus)
    assert (limit.lowest, limit.max_connections.value, limit.highest) == bounds
    assert limit.vcpus == vcpus


def test_a_measured_value_wins_over_the_formula():
    """It is exact on the version that it was measured on, and an estimate on others."""
    same, other = (class_limit("postgres", "db.t4g.small", each) for each in ("18.6", "17.2"))
    assert (same.lowest, same.max_connections.value, same.highest) == (None, 181, None)
    assert (other.lowest, other.max_connections.value, other.highest) == (166, 181, 225)
    assert "flashcards" in same.formula
    # The formula's upper limit of 5,000 holds for every version.
    assert class_limit("postgres", "db.r7g.2xlarge").lowest is None


def test_every_measured_value_is_within_the_stated_error():
    """Otherwise a budget could fit by the formula, and not on the server."""
    for row in table("instance_classes")["measured"]:
        gib = class_size(row["class"]).gib
        formulas, memory = (
            table("instance_classes")["formulas"],
            table("instance_classes")["memory"],
        )
        usable = gib * memory["share"] * 2**30 - memory["fixed_bytes"]
        lowest = evaluated(formulas[row["engine"]], usable * (1 - memory["error"]))
        highest = evaluated(formulas[row["engine"]], gib * 2**30)
        assert lowest <= row["max_connections"] <= highest, row


def test_sizes_agree_with_the_ec2_types_of_the_same_name():
    """Every class of the table has the memory and the processors of its EC2 type."""
    file = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    types = json.loads(gzip.decompress(file.read_bytes()))
    compared = 0
    for name, found in types.items():
        size = class_size(f"db.{name}")
        # RDS documents 15.25 GiB for db.r3.large, and EC2 reports 15.
        if size is None or name == "r3.large":
            continue
        own = (found["MemoryInfo"]["SizeInMiB"] / 1024, found["VCpuInfo"]["DefaultVCpus"])
        assert size == own, name
        compared += 1
    assert compared > 300


@pytest.mark.parametrize(
    ("engine", "name", "connections"),
    [
        # {DBInstanceClassMemory/12582880}, at most 16,000.
        ("mysql", "db.t3.micro", (58, 63, 85)),
        ("mariadb", "db.m5.large", (573, 623, 682)),
        ("mysql", "db.r5.8xlarge", (None, 16000, None)),
        # The published table of Aurora MySQL.
        ("aurora", "db.t3.medium", (None, 90, None)),
        ("aurora-mysql", "db.t3.small", (None, 45, None)),
        ("aurora-mysql", "db.t3.medium", (None, 90, None)),
        ("aurora-mysql", "db.t4g.large", (None, 135, None)),
        ("aurora-mysql", "db.r4.large", (None, 1000, None)),
        ("aurora-mysql", "db.r6g.2xlarge", (None, 3000, None)),
        ("aurora-mysql", "db.r5.12xlarge", (None, 6000, None)),
        ("aurora-mysql", "db.r5.16xlarge", (None, 6000, None)),
        ("aurora-mysql", "db.r6i.32xlarge", (None, 7000, None)),
        ("aurora-mysql", "db.r8g.48xlarge", (None, 8000, None)),
        ("aurora-mysql", "db.x2g.12xlarge", (None, 7000, None)),
    ],
)
def test_mysql_and_mariadb_have_limits_of_their_own(engine, name, connections):
    """One connection is kept for an administrator."""
    limit = class_limit(engine, name)
    assert (limit.lowest, limit.max_connections.value, limit.highest) == connections
    assert (limit.engine, limit.reserved.value) == ("mysql", 1)


@pytest.mark.parametrize(
    ("engine", "published"),
    [
        ("aurora-postgresql", {1: 189, 4: 823, 8: 1669, 16: 3360, 32: 5000, 256: 5000}),
        ("aurora-mysql", {1: 90, 4: 135, 8: 1000, 16: 2000, 32: 3000, 64: 4000, 128: 5000}),
    ],
)
def test_an_acu_range_gives_what_aws_publishes(engine, published):
    """The published numbers are exact; between them stands an estimate with bounds."""
    limits = {acu: serverless_limit(engine, 1, acu, None) for acu in published}
    assert {acu: each.max_connections.value for acu, each in limits.items()} == published
    assert {each.lowest for each in limits.values()} == {None}
    between = serverless_limit("aurora-postgresql", 1, 2, None)
    assert (between.lowest, between.max_connections.value, between.highest) == (368, 400, 450)


@pytest.mark.parametrize(
    ("kind", "engine", "name", "connections", "smallest"),
    [
        ("RDS", "postgres", "db.t4g.micro", 609, "db.t4g.large"),
        ("RDS", "postgres", "db.m7g.large", 3000, "db.m7g.2xlarge"),
        ("RDS", "postgres", "db.m7g.large", 3200, "db.m7g.4xlarge"),
        ("RDS", "postgres", "db.m7g.large", 6000, None),
        ("RDS", "mysql", "db.r6g.large", 1200, "db.r6g.xlarge"),
        ("Aurora", "mysql", "db.r6g.large", 2200, "db.r6g.2xlarge"),
    ],
)
def test_the_smallest_class_of_a_family_is_found(kind, engine, name, connections, smallest):
    """It has enough in the worst case; None if no class has."""
    limits = {"max_connections": unknown("?"), "reserved": unknown("?"), "instance_class": name}
    database = Database(name="db", kind=kind, where=None, engine=engine, **limits)
    assert smallest_class(database, connections) == smallest


@pytest.mark.parametrize(
    ("tier", "connections", "vcpus"),
    [
        ("db-f1-micro", 25, 1),
        ("db-g1-small", 50, 1),
        ("db-custom-1-3840", 100, 1),
        ("db-custom-2-7680", 400, 2),
        ("db-custom-N4-4-32768", 600, 4),
        ("db-n1-standard-4", 500, 4),
        ("db-perf-optimized-N-8", 800, 8),
        ("db-perf-optimized-N-128", 1000, 128),
        ("db-new-series-9", None, None),
    ],
)
def test_cloud_sql_goes_by_the_memory_of_its_tier(tier, connections, vcpus):
    """PostgreSQL's documented defaults; a flag wins, also where the tier is unknown."""
    limit = platform_limit("cloud_sql", "POSTGRES_17", tier, {})
    assert (limit.max_connections.value, limit.reserved.value) == (connections, 3)
    assert limit.vcpus == vcpus
    flagged = platform_limit("cloud_sql", "POSTGRES_17", tier, {"max_connections": "300"})
    assert flagged.max_connections.value == 300


@pytest.mark.parametrize("value", [None, "many", "0", "300000"])
def test_a_flag_that_is_unknown_or_refused_is_no_number(value):
    """Then the default does not hold either."""
    limit = platform_limit("cloud_sql", "POSTGRES_17", "db-f1-micro", {"max_connections": value})
    assert limit.max_connections.value is None
    assert "max_connections" in limit.max_connections.reason


def test_mysql_on_cloud_sql_has_no_documented_default():
    """Only its flag says how many connections it accepts."""
    limit = platform_limit("cloud_sql", "MYSQL_8_4", "db-custom-2-7680", {})
    assert (limit.engine, limit.max_connections.value) == ("mysql", None)
    assert "--max-connections" in limit.max_connections.reason


@pytest.mark.parametrize(
    ("engine", "sku", "connections", "reserved"),
    [
        ("postgres", "B_Standard_B1ms", 50, 15),
        ("postgres", "GP_Standard_D2ds_v5", 859, 15),
        ("postgres", "Standard_D8s_v3", 3437, 15),
        ("postgres", "MO_Standard_E8ads_v5", 5000, 15),
        ("postgres", "B_Standard_B2ats_v2", None, 15),
        ("mysql", "B_Standard_B1s", 85, 1),
        ("mysql", "GP_Standard_D4ads_v5", 1365, 1),
        ("mysql", "MO_Standard_E64ds_v4", 43008, 1),
    ],
)
def test_azure_goes_by_its_sku(engine, sku, connections, reserved):
    """The documented defaults; a size of another series is unknown."""
    limit = platform_limit("azure", engine, sku, {})
    assert (limit.max_connections.value, limit.reserved.value) == (connections, reserved)
    assert platform_limit("azure", engine, sku, {"max_connections": 70}).max_connections.value == 70


@pytest.mark.parametrize(
    ("engine", "limits"), [("postgres", (100, 3)), ("mysql", (151, 1)), ("mariadb", (151, 1))]
)
def test_a_server_has_the_defaults_of_its_software(engine, limits):
    """PostgreSQL 100, MySQL and MariaDB 151."""
    limit = platform_limit("servers", engine)
    assert (limit.max_connections.value, limit.reserved.value) == limits


def test_a_measured_class_is_printed_as_toml():
    """The lines can be pasted into pyproject.toml and into the table as they are."""
    line = table("instance_classes")["line"]
    found = tomllib.loads(line.format("db.m7g.large", "postgres", "18.6", 812, "2026-11-28"))
    assert found["tool"]["poolkit"]["budget"]["classes"] == {"db.m7g.large": 812}
    (row,) = found["measured"]
    assert set(row) == {"class", "engine", "version", "max_connections", "date", "source"}
    assert row["max_connections"] == 812


@pytest.mark.parametrize(
    ("scaling", "connections"),
    [
        ("{MinCapacity: 2, MaxCapacity: 16}", 3360),
        ("{MinCapacity: 0.5, MaxCapacity: 16}", 2000),
        ("{MinCapacity: 0, MaxCapacity: 64}", 2000),
        ("{MinCapacity: 0.5, MaxCapacity: 4}", 823),
    ],
)
def test_aurora_serverless_goes_by_its_maximum(folder, scaling, connections):
    """A minimum of 0 or 0.5 ACU caps it at 2,000."""
    scaled = f"{SCALING}: {scaling}"
    folder.write("db.yaml", CLUSTER % (scaled, *["db.serverless"] * 2, 10))
    budget = folder.budget()
    assert (budget.max_connections, budget.available) == (connections, connections - 5)


def test_the_smallest_instance_of_a_cluster_counts(folder):
    """After a failover, a reader is the writer."""
    folder.write(
        "db.yaml",
        CLUSTER % ("DBClusterParameterGroupName: default", "db.r6g.xlarge", "db.r6g.large", 1),
    )
    assert folder.budget().max_connections == 1669


@pytest.mark.parametrize(
    ("value", "connections"),
    [
        ("350", 350),
        ("LEAST({DBInstanceClassMemory/9531392},5000)", 1669),
        ("LEAST({DBInstanceClassMemory/9531392},500)", 500),
        ("GREATEST({DBInstanceClassMemory/95313920},100)", 166),
        ("{log(DBInstanceClassMemory)}", None),
    ],
)
def test_a_parameter_group_overrides(folder, value, connections):
    """It may set a number or a formula; a formula that cannot be evaluated is unknown."""
    named = "DBClusterParameterGroupName: !Ref Group"
    folder.write("db.yaml", CLUSTER % (named, *["db.r6g.large"] * 2, value))
    assert folder.budget().max_connections == connections


INSTANCE = """
AWSTemplateFormatVersion: '2010-09-09'
Resources:
  Db:
    Type: AWS::RDS::DBInstance
    Properties: {Engine: postgres, DBInstanceClass: db.m7g.large, DBParameterGroupName: %s}
  Group:
    Type: AWS::RDS::DBParameterGroup
    Properties: {Family: postgres17, Description: d, Parameters: {%s}}
"""


def test_every_reserve_of_a_parameter_group_counts(folder):
    """superuser_reserved_connections, RDS's own, and reserved_connections; each is named."""
    set_there = 'reserved_connections: "50", superuser_reserved_connections: "10"'
    file = folder.write("db.yaml", INSTANCE % ("!Ref Group", set_there))
    budget = folder.budget()
    assert (budget.available, budget.database.reserved.value) == (832 - 62, 62)
    assert budget.database.reserved.origin == (
        f"10 superuser_reserved_connections ({file}:8) + 2 rds.rds_superuser_reserved_connections"
        f" + 50 reserved_connections ({file}:8)"
    )


@pytest.mark.parametrize(
    ("most", "available", "note"),
    [("800", 795, ""), ("5000", 827, "set to 5,000, but the memory can carry only about 832")],
)
def test_a_limit_above_the_memory_is_reduced(folder, most, available, note):
    """The smaller number counts, and the headline says so, which `poolkit deploy` shows."""
    folder.write("db.yaml", INSTANCE % ("!Ref Group", f'max_connections: "{most}"'))
    budget = folder.budget()
    assert (budget.max_connections, budget.available) == (int(most), available)
    assert note in headline(budget)
    assert ("memory" in headline(budget)) == bool(note)
    folder.write("compose.yaml", "services:\n  web: {image: x, environment: {PGHOST: db}}\n")
    large = folder.budget(services=("web=100+0x9",))
    assert large.verdict == "does not fit"
    grow = next(each for each in suggestions(large) if each.kind == "database")
    assert applied(large, grow).verdict == "fits"
    assert folder.budget(max_connections=5000, services=("web=100+0x9",)).verdict == "fits"


@pytest.mark.parametrize("named", ["shop-postgres17", "!ImportValue group"])
def test_a_missing_parameter_group_makes_the_limit_unknown(folder, named):
    """It may set max_connections; RDS's own groups do not."""
    folder.write("db.yaml", INSTANCE % (named, "a: b"))
    budget = folder.budget()
    assert (budget.max_connections, budget.verdict) == (None, "cannot be shown to fit")
    assert "parameter group" in budget.gaps[0].reason
    folder.write("db.yaml", INSTANCE % ("default.postgres17", "a: b"))
    assert folder.budget().max_connections == 832


@pytest.mark.parametrize(
    ("command", "available", "reserve"),
    [
        ("postgres", 97, "3 superuser_reserved_connections"),
        ("postgres -c max_connections=50 -c superuser_reserved_connections=5", 45, "5 superuser"),
        ("postgres -c reserved_connections=20", 77, "3 superuser_reserved_connections + 20 res"),
        ("postgres --max-connections=60", 57, "3 superuser"),
        ("postgres -N 60", 57, "3 superuser"),
        ("postgres -c max_connections=${MOST}", None, "3 superuser"),
        ("postgres -c config_file=/etc/mine.conf", None, "3 superuser"),
    ],
)
def test_a_server_in_a_container(folder, command, available, reserve):
    """The command line sets the limit and the reserves; PostgreSQL has defaults."""
    folder.write("compose.yaml", f"services:\n  db: {{image: postgres:17, command: '{command}'}}\n")
    budget = folder.budget()
    assert budget.available == available
    assert budget.database.reserved.origin.startswith(reserve)


def test_the_command_line_wins_over_a_configuration_file(folder):
    """Comments of the file are not read."""
    folder.write("mine.conf", "# max_connections = 900\nmax_connections = 40  # few\n")
    service = "{image: postgres:17, volumes: ['./mine.conf:/etc/mine.conf'], command: '%s'}"
    for command, most in (("-c config_file=/etc/mine.conf", 40), ("-c max_connections=30", 30)):
        folder.write("compose.yaml", f"services:\n  db: {service % command}\n")
        assert folder.budget().max_connections == most


def test_an_instance_class_without_a_value_is_unknown(folder):
    """A parameter without a value makes the limit unknown, and the verdict too."""
    text = CLUSTER % ("DBClusterParameterGroupName: default", "!Ref Size", "!Ref Size", 1)
    folder.write("db.yaml", text + "Parameters: {Size: {Type: String}}\n")
    budget = folder.budget()
    assert (budget.max_connections, budget.verdict) == (None, "cannot be shown to fit")


def one_database(folder, *properties):
    """Write a template with one RDS instance, and return its name."""
    listed = "".join(f"      {each}\n" for each in properties)
    text = "Parameters: {Kind: {Type: String}}\nResources:\n  Db:\n    Type: AWS::RDS::DBInstance\n"
    return folder.write("db.yaml", f"{text}    Properties:\n{listed}")


@pytest.mark.parametrize(
    ("properties", "reason"),
    [
        (["Engine: !Ref Kind", "DBInstanceClass: db.m7g.large"], "parameter Kind has no value"),
        (["Engine: postgres", "DBInstanceClass: db.r9g.large"], "db.r9g.large"),
        (["Engine: sqlserver-ex", "DBInstanceClass: db.m7g.large"], "engine sqlserver-ex"),
        (["DBSnapshotIdentifier: s", "DBInstanceClass: db.m7g.large"], "its snapshot decides"),
        (
            ["Engine: postgres", "DBInstanceClass: db.m7g.large", "DBClusterIdentifier: c"],
            "cluster",
        ),
    ],
)
def test_a_limit_without_a_rule_is_unknown(folder, properties, reason):
    """The reason says what is missing, and --max-connections answers it."""
    one_database(folder, *properties)
    (gap,) = folder.budget().gaps
    assert (gap.number, reason in gap.reason) == ("max_connections", True)
    assert "Unknown(" not in gap.reason
    assert folder.budget(max_connections=100).gaps == ()


def test_a_declared_class_wins_over_the_tables(folder):
    """`[tool.poolkit.budget.classes]` also gives a class that no table has."""
    for name in ("db.r9g.large", "db.m7g.large"):
        one_database(folder, "Engine: postgres", f"DBInstanceClass: {name}")
        budget = folder.budget(answers=Answers(classes={name: 700}))
        assert (budget.max_connections, budget.database.bounds) == (700, (695, 695))


def test_a_read_replica_is_no_database(folder):
    """Its limit and its clients are its own."""
    one_database(folder, "Engine: postgres", "DBInstanceClass: db.m7g.large")
    folder.write(
        "replica.yaml",
        "Resources:\n  Copy:\n    Type: AWS::RDS::DBInstance\n"
        "    Properties: {SourceDBInstanceIdentifier: db, DBInstanceClass: db.t4g.micro}\n",
    )
    assert [each.database.name for each in folder.budgets().each] == ["Db"]


def test_clients_of_any_engine_count_for_a_server_of_an_unknown_one(folder):
    """Otherwise a limit that the options give would be compared with nothing."""
    one_database(folder, "Engine: !Ref Kind", "DBInstanceClass: db.m7g.large")
    url = "environment: {DATABASE_URL: 'mysql://db/app'}"
    folder.write("compose.yaml", f"services:\n  web: {{image: x, {url}}}\n")
    budget = folder.budget(max_connections=100, services=("web=200+0x1",))
    assert budget.verdict == "does not fit"
    assert folder.budget(max_connections=100).verdict == "cannot be shown to fit"


def test_a_cluster_restored_from_another_is_a_database(folder):
    """Its source is a backup; its engine is that of the source."""
    folder.write(
        "db.yaml",
        "Resources:\n  Db:\n    Type: AWS::RDS::DBCluster\n    Properties:\n"
        "      SourceDBClusterIdentifier: other\n      UseLatestRestorableTime: true\n",
    )
    (gap,) = folder.budget().gaps
    assert "engine" in gap.reason


def test_aurora_serverless_v1_has_no_fixed_limit(folder):
    """Its max_connections changes with its capacity."""
    folder.write(
        "db.yaml",
        "Resources:\n  Db:\n    Type: AWS::RDS::DBCluster\n    Properties:\n"
        "      Engine: aurora-postgresql\n      EngineMode: serverless\n"
        "      ScalingConfiguration: {MinCapacity: 2, MaxCapacity: 8}\n",
    )
    (gap,) = folder.budget().gaps
    assert "Serverless v1" in gap.reason


@pytest.mark.parametrize("scaling", ["{MinCapacity: 4, MaxCapacity: 2}", "{MaxCapacity: many}"])
def test_an_impossible_acu_range_is_unknown(folder, scaling):
    """The reason names the line."""
    file = folder.write("db.yaml", CLUSTER % (f"{SCALING}: {scaling}", *["db.serverless"] * 2, 10))
    (gap,) = folder.budget().gaps
    assert str(file) in gap.reason


NESTED = "LEAST(" * 3000 + "1" + ")" * 3000


@pytest.mark.parametrize("most", ["0", "999999999", "a lot", "-5", "9" * 5000, "SUM(1,,2)", NESTED])
def test_a_parameter_that_the_server_refuses_is_unknown(folder, most):
    """It is no number to calculate with, and no reason to stop."""
    folder.write("db.yaml", INSTANCE % ("!Ref Group", f'max_connections: "{most}"'))
    budget = folder.budget()
    assert (budget.max_connections, budget.verdict) == (None, "cannot be shown to fit")


PROXIES = """
Resources:
  A: {Type: "AWS::RDS::DBInstance", Properties: {Engine: postgres, DBInstanceClass: db.m7g.large}}
  B:
    Type: AWS::RDS::DBCluster
    Properties: {Engine: aurora-postgresql, DBClusterIdentifier: b}
  ToA: {Type: "AWS::RDS::DBProxy", Properties: {DBProxyName: a, EngineFamily: POSTGRESQL}}
  ToB: {Type: "AWS::RDS::DBProxy", Properties: {DBProxyName: b, EngineFamily: POSTGRESQL}}
  Alone: {Type: "AWS::RDS::DBProxy", Properties: {DBProxyName: c, EngineFamily: POSTGRESQL}}
  GroupA:
    Type: AWS::RDS::DBProxyTargetGroup
    Properties: {DBProxyName: !Ref ToA, TargetGroupName: default, DBInstanceIdentifiers: [!Ref A]}
  GroupB:
    Type: AWS::RDS::DBProxyTargetGroup
    Properties: {DBProxyName: b, TargetGroupName: default, DBClusterIdentifiers: [b]}
"""


def proxies(folder):
    """Return the RDS proxies of the folder's templates."""
    files = read_files((folder.path,))
    return describe_templates(files.templates, Environment(name=""), {}).poolers


def test_a_proxy_leads_to_the_databases_of_its_target_group(folder):
    """By reference or by name; without a target group, it is unknown which one is behind it."""
    folder.write("db.yaml", PROXIES)
    behind = {each.name: each.leads_to for each in proxies(folder)}
    named = {name: [key.logical_id for key in keys] for name, keys in behind.items()}
    assert named == {"ToA": ["A"], "ToB": ["B"], "Alone": []}


def test_the_server_itself_is_asked(folder, postgres):
    """`--database-url` reads max_connections and the reserve from the server."""
    folder.write("compose.yaml", "services:\n  web: {image: x, environment: {PGHOST: db}}\n")
    url = postgres.admin_url("postgres", "psycopg2")
    budget = folder.budget(database_url=url, services=("web=5+10x2@3",))
    assert (budget.max_connections, budget.available) == (100, 97)
    assert (budget.needed, budget.verdict) == (94, "fits")
    answer = folder.run("compose.yaml", "--database-url", url, "--service", "web=5+10x2@4")
    assert answer.returncode == 1
    assert "SHOW max_connections" in answer.stdout


def test_the_server_of_rds_reports_its_own_reserves(folder, postgres):
    """RDS's settings stand beside PostgreSQL's, and all of them are subtracted."""
    folder.write("compose.yaml", "services:\n  web: {image: x, environment: {PGHOST: db}}\n")
    reserves = "-c rds.rds_superuser_reserved_connections=2 -c rds.rds_reserved_connections=4"
    url = f"{postgres.admin_url('postgres', 'psycopg2')}?options={quote(reserves)}"
    budget = folder.budget(database_url=url, services=("web=5+10x2@3",))
    assert (budget.max_connections, budget.available) == (100, 91)


def test_an_unreachable_server_is_one_line(folder):
    """The message does not contain the password."""
    folder.write("compose.yaml", "services:\n  web: {image: x, environment: {PGHOST: db}}\n")
    # Port 1 is reserved (tcpmux), and no program listens there.
    answer = folder.run("compose.yaml", "--database-url", "postgresql://u:secret@127.0.0.1:1/d")
    assert answer.returncode == 2
    assert "secret" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
