"""max_connections of classes, ACU, parameter groups and a real server."""

import gzip
import json
from pathlib import Path

import moto
import pytest

from poolkit.budget.instance_classes import (
    memory_gib,
    nominal_connections,
    planned_connections,
    serverless_connections,
    smallest_class,
)
from poolkit.budget.report.rows import headline
from poolkit.budget.suggestions import applied, suggestions
from poolkit.errors import BudgetError

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
    ("name", "gib", "nominal", "planned"),
    [
        ("db.t4g.micro", 1, 112, 83),
        ("db.t4g.small", 2, 225, 189),
        ("db.t4g.medium", 4, 450, 400),
        ("db.m7g.large", 8, 901, 823),
        ("db.r6g.large", 16, 1802, 1669),
        ("db.r4.large", 15.25, 1717, 1589),
        ("db.m7g.2xlarge", 32, 3604, 3360),
        ("db.r7g.2xlarge", 64, 5000, 5000),
        ("db.r8g.48xlarge", 1536, 5000, 5000),
    ],
)
def test_a_class_gives_less_than_its_whole_memory(name, gib, nominal, planned):
    """The formula's results for all of the memory, and for what RDS leaves of it."""
    assert memory_gib(name) == gib
    assert (nominal_connections(gib), planned_connections(gib)) == (nominal, planned)


def test_memory_agrees_with_the_ec2_types_of_the_same_name():
    """Every class of the table has the memory of its EC2 type."""
    file = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    types = json.loads(gzip.decompress(file.read_bytes()))
    compared = 0
    for name, found in types.items():
        if "metal" in name or "nano" in name or "6xlarge" in name or "3xlarge" in name:
            continue
        try:
            gib = memory_gib(f"db.{name}")
        except BudgetError:
            continue
        assert gib == found["MemoryInfo"]["SizeInMiB"] / 1024, name
        compared += 1
    assert compared > 200


def test_an_acu_range_gives_what_aws_publishes():
    """The published numbers, interpolated between them, and never more than 5,000."""
    published = {1: 189, 4: 823, 8: 1669, 16: 3360, 32: 5000, 256: 5000}
    assert {acu: serverless_connections(acu) for acu in published} == published
    assert 189 < serverless_connections(2) < 823


def test_the_smallest_class_of_a_family_is_found():
    """None if no class has enough connections."""
    assert smallest_class("db.t4g.micro", 609) == "db.t4g.large"
    assert smallest_class("db.m7g.large", 3000) == "db.m7g.2xlarge"
    assert smallest_class("db.m7g.large", 6000) is None


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
    scaled = f"ServerlessV2ScalingConfiguration: {scaling}"
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
    assert (budget.available, budget.database.reserved.value) == (823 - 62, 62)
    assert budget.database.reserved.origin == (
        f"10 superuser_reserved_connections ({file}:8) + 2 rds.rds_superuser_reserved_connections"
        f" + 50 reserved_connections ({file}:8)"
    )


@pytest.mark.parametrize(
    ("most", "available", "note"),
    [("800", 795, ""), ("5000", 818, "set to 5,000, but the memory can carry only about 823")],
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
    assert folder.budget().max_connections == 823


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


@pytest.mark.parametrize(
    ("engine", "reason"),
    [("!Ref Kind", "parameter Kind has no value"), ("mysql", "engine mysql is not PostgreSQL")],
)
def test_another_or_unknown_engine_has_no_limit(folder, engine, reason):
    """The formula and the reserves are PostgreSQL's."""
    database = f"{{Engine: {engine}, DBInstanceClass: db.m7g.large}}"
    folder.write(
        "db.yaml",
        "Parameters: {Kind: {Type: String}}\n"
        f"Resources:\n  Db: {{Type: 'AWS::RDS::DBInstance', Properties: {database}}}\n",
    )
    (gap,) = folder.budget().gaps
    assert (gap.number, reason in gap.reason) == ("max_connections", True)


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


def test_an_unreachable_server_is_one_line(folder):
    """The message does not contain the password."""
    folder.write("compose.yaml", "services:\n  web: {image: x, environment: {PGHOST: db}}\n")
    # Port 1 is reserved (tcpmux), and no program listens there.
    answer = folder.run("compose.yaml", "--database-url", "postgresql://u:secret@127.0.0.1:1/d")
    assert answer.returncode == 2
    assert "secret" not in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
