"""Images: servers, poolers, clients with their pools, and software that connects to no database."""

import shlex

import pytest

from poolkit.budget.model import Overlap, Variable, Workload, known
from poolkit.budget.pools import pool
from poolkit.budget.software import (
    is_no_client,
    is_pooler,
    is_server,
    own_pooler,
    own_server,
    software_table,
)
from poolkit.errors import BudgetError


def container(image, *command, base_image="", mounted=None, unit="replica", **variables):
    return Workload(
        name="app",
        platform="container",
        unit=unit,
        where=None,
        instances=known(1, "here"),
        overlap=Overlap(),
        variables={k: Variable(text=text, origin="here") for k, text in variables.items()},
        image=image,
        command=command or None,
        base_image=base_image,
        mounted=mounted or {},
    )


def numbers(workload, *softwares):
    found = pool(workload, None, softwares)
    return found.processes.value, found.pool_size.value, found.max_overflow.value


@pytest.mark.parametrize(
    "image",
    [
        "postgres",
        "postgres:17-alpine@sha256:abc",
        "postgres:?",
        "docker.io/library/postgres:16",
        "registry:5000/team/postgres:1",
        "postgis/postgis:17-3.5",
        "timescale/timescaledb:latest-pg17",
        "pgvector/pgvector:pg17",
        "bitnami/postgresql:17",
        "supabase/postgres:15.8",
        "ghcr.io/immich-app/postgres:14",
        "mysql:8.4",
        "mariadb:11",
        "percona/percona-server:8.4",
    ],
)
def test_images_of_servers(image):
    """With any registry, tag or digest."""
    assert is_server(container(image))
    assert is_server(container("", base_image=image))


@pytest.mark.parametrize(
    "image",
    [
        "postgrest/postgrest:v13",
        "quay.io/prometheuscommunity/postgres-exporter",
        "wrouesnel/postgres_exporter",
        "prodrigestivill/postgres-backup-local:17",
        "supabase/postgres-meta",
        "crunchydata/postgres-operator",
        "example/postgres-migrations",
        "example/postgres-mcp",
        "dpage/pgadmin4",
        "phpmyadmin",
    ],
)
def test_images_of_clients_are_no_servers(image):
    """Although their names contain the server's."""
    found = container(image, POSTGRES_HOST="db", POSTGRES_PASSWORD="x")
    assert not is_server(found)
    assert not is_no_client(found)


def test_another_name_with_postgres_is_a_server_by_its_variables():
    """The entry point of PostgreSQL's image needs a password, and a client needs a host."""
    assert is_server(container("example/our-postgres", POSTGRES_PASSWORD="x"))
    assert not is_server(container("example/our-postgres"))
    assert not is_server(container("example/our-postgres", POSTGRES_PASSWORD="x", PGHOST="db"))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("postgres", "-N", "500"), True),
        (("-c", "max_connections=500"), True),
        (("docker-entrypoint.sh", "postgres"), True),
        (("docker-entrypoint.sh", "psql", "-h", "db"), False),
        (("bash", "-c", "chown -R postgres /x && exec docker-entrypoint.sh postgres"), True),
        (("bash", "/scripts/migrate.sh"), False),
        (("bash", "-c", "while true; do pg_dump app > /b; sleep 86400; done"), False),
        (("/backup.sh",), False),
        (("psql", "-f", "x.sql"), False),
        (("sleep", "infinity"), False),
    ],
)
def test_the_command_decides_whether_the_image_is_the_server(command, expected):
    """A script or psql in the server's image is a client with one connection."""
    found = container("postgres:17", *command)
    assert is_server(found) == expected
    if not expected:
        assert numbers(found) == (1, 1, 0)


def test_parallel_jobs_of_a_client_count():
    """pg_restore -j 8 opens one connection for each job, and one more."""
    assert numbers(container("postgres:17", "pg_restore", "-j", "8", "x")) == (1, 9, 0)
    assert numbers(container("postgres:17", "pgbench", "-c", "50")) == (1, 51, 0)
    loop = "for i in 1 2 3; do psql -f x.sql & done; wait"
    assert numbers(container("postgres:17", "sh", "-c", loop)) == (1, None, 0)
    assert numbers(container("postgres:17", "sh", "-c", "psql -f x 2>&1 && psql")) == (1, 1, 0)


@pytest.mark.parametrize(
    "image",
    [
        *("redis:8", "valkey/valkey", "nginx:1.29", "traefik:v3", "rabbitmq:4", "axllent/mailpit"),
        *("minio/minio", "zookeeper", "apache/kafka", "prom/prometheus", "docker.io/library/redis"),
    ],
)
def test_software_that_connects_to_no_database(image):
    """Also as the base of an image whose command is the same program."""
    assert is_no_client(container(image))
    assert is_no_client(container("", base_image=image))
    assert not is_no_client(container("", "python", "app.py", base_image=image))


@pytest.mark.parametrize(
    "image", ["acme/redis-worker", "richarvey/nginx-php-fpm", "acme/kafka-consumer", "example/app"]
)
def test_a_similar_name_is_not_the_software(image):
    """A part of the name shows nothing about the program."""
    assert not is_no_client(container(image))


@pytest.mark.parametrize(
    ("image", "variables", "expected"),
    [
        ("postgrest/postgrest", {}, (1, 10, 1)),
        ("postgrest/postgrest", {"PGRST_DB_POOL": "60"}, (1, 60, 1)),
        ("postgrest/postgrest", {"PGRST_DB_CHANNEL_ENABLED": "false"}, (1, 10, 0)),
        ("hasura/graphql-engine:v2", {"HASURA_GRAPHQL_PG_CONNECTIONS": "20"}, (None, None, None)),
        ("metabase/metabase", {"MB_DB_TYPE": "postgres"}, (1, 15, 5)),
        (
            "metabase/metabase",
            {"MB_DB_TYPE": "mysql", "MB_QUARTZ_MAX_CONNECTION_POOL_SIZE": "9"},
            (1, 15, 9),
        ),
        ("metabase/metabase", {}, (None, None, None)),
        ("prodrigestivill/postgres-backup-local:17", {}, (1, 1, 0)),
        ("flyway/flyway:11", {}, (1, 3, 0)),
        ("quay.io/keycloak/keycloak:26", {"KC_DB": "postgres"}, (1, 100, 0)),
        ("quay.io/keycloak/keycloak:26", {}, (None, None, None)),
        ("grafana/grafana", {}, (None, None, None)),
        ("grafana/grafana", {"GF_DATABASE_MAX_OPEN_CONN": "30"}, (1, 30, 0)),
        ("grafana/grafana", {"GF_DATABASE_MAX_OPEN_CONN": "0"}, (1, None, 0)),
        ("n8nio/n8n", {"DB_TYPE": "postgresdb"}, (1, 2, 0)),
        ("prometheuscommunity/postgres-exporter", {}, (None, None, None)),
        ("x", {"SPRING_DATASOURCE_HIKARI_MAXIMUM_POOL_SIZE": "15"}, (1, 15, 0)),
        ("x", {"spring.datasource.hikari.maximum-pool-size": "15"}, (1, 15, 0)),
        ("x", {"DATABASE_URL": "postgresql://db/a?connection_limit=5"}, (None, 5, 0)),
        ("x", {"DATABASE_URL": "postgresql://db/a?pool_max_conns=7"}, (None, 7, 0)),
        (
            "x",
            {
                "A": "postgresql://db/a?connection_limit=5",
                "B": "postgresql://c/b?connection_limit=2",
            },
            (None, 7, 0),
        ),
        (
            "x",
            {"A": "postgresql://db/a?connection_limit=5", "B": "postgresql://db/b"},
            (None, None, 0),
        ),
        ("x", {"CS": "Host=db;Database=a;Username=u;Maximum Pool Size=20"}, (1, 20, 0)),
        ("x", {"CS": "Host=db;Database=a;Username=u"}, (1, 100, 0)),
        ("x", {"RAILS_MAX_THREADS": "5"}, (None, None, None)),
        ("x", {"SPRING_DATASOURCE_HIKARI_MAXIMUM_POOL_SIZE": "lots"}, (1, None, 0)),
        (
            "x",
            {
                "SPRING_DATASOURCE_HIKARI_MAXIMUM_POOL_SIZE": "15",
                "SPRING_DATASOURCE_URL": "jdbc:postgresql://db/a",
                "AUDIT_DATASOURCE_URL": "jdbc:postgresql://db/b",
            },
            (1, None, 0),
        ),
    ],
)
def test_known_software_has_its_pool(image, variables, expected):
    """By its documented variable, its default, or the parameter of a URL."""
    assert numbers(container(image, **variables)) == expected


@pytest.mark.parametrize(
    ("image", "command", "mounted", "expected"),
    [
        ("keycloak/keycloak", "start --db-pool-max-size=30", "", (1, 30, 0)),
        ("keycloak/keycloak", "start --db-pool-max-size ?", "", (1, None, 0)),
        ("keycloak/keycloak", "start --import-realm", "", (1, 100, 0)),
        ("keycloak/keycloak", "start", "/opt/keycloak/conf/keycloak.conf", (1, None, 0)),
        ("postgrest/postgrest", "postgrest /etc/rest.conf", "", (1, None, 1)),
    ],
)
def test_an_option_or_a_file_sets_the_pool_of_known_software(image, command, mounted, expected):
    """The default holds only without both."""
    files = {mounted: ""} if mounted else {}
    found = container(image, *command.split(), mounted=files, KC_DB="postgres", PGRST_DB_URI="x")
    assert numbers(found) == expected


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("alembic upgrade head", (1, 1, 0)),
        ("python manage.py migrate --noinput", (1, 1, 0)),
        ("bundle exec rails db:migrate", (1, None, None)),
        ("npx prisma migrate deploy", (None, None, None)),
        ("flyway migrate", (1, None, None)),
        ("pg_dump -j 4 app", (1, 5, 0)),
        ("sh -c 'alembic upgrade head && gunicorn -w 4 app'", (4, None, None)),
        ("python manage.py runserver", (1, None, None)),
    ],
)
def test_a_migration_or_dump_has_one_connection(command, expected):
    """In any image, if the command does nothing else."""
    assert numbers(container("example/app", *shlex.split(command))) == expected


def test_rails_has_the_pools_of_its_database_yml():
    """RAILS_MAX_THREADS sets the size of each of its pools, and the file their number."""
    variables = {"RAILS_MAX_THREADS": "5", "WEB_CONCURRENCY": "3"}
    command = ("bundle", "exec", "rails", "server", "-b", "::")
    assert numbers(container("example/shop", *command, **variables)) == (3, None, None)


def test_a_project_adds_software():
    """By image; its entry wins over the table."""
    softwares = software_table(
        {
            "ghcr.io/acme/api": {"role": "client", "pool": "API_POOL", "default": 5},
            "acme/cache": {"role": "none"},
            "acme/db": {"role": "server", "engine": "postgres"},
            "nginx": {"role": "client", "default": 3},
        }
    )
    api = container("ghcr.io/acme/api:2", API_POOL="8")
    assert numbers(api, *softwares) == (1, 8, 0)
    api = container("ghcr.io/acme/api:2", "gunicorn", "-w", "4", "app")
    assert numbers(api, *softwares) == (4, 5, 0)
    assert is_no_client(container("acme/cache:1"), softwares=softwares)
    assert is_server(container("acme/db"), softwares)
    assert not is_no_client(container("nginx:1"), softwares=softwares)
    with pytest.raises(BudgetError, match="acme/x"):
        software_table({"acme/x": {"role": "friend"}})


@pytest.mark.parametrize(
    ("image", "command", "variables", "expected"),
    [
        ("postgres:17", (), {}, 100),
        ("postgres:17", ("-c", "max_connections=500"), {}, 500),
        ("postgres:17", ("postgres", "-N", "500"), {}, 500),
        ("postgres:17", ("postgres", "-N500"), {}, 500),
        ("postgres:17", ("-c", "max_connections=?"), {}, None),
        ("postgres:17", (), {"POSTGRES_MAX_CONNECTIONS": "500"}, 100),
        ("bitnami/postgresql:17", (), {"POSTGRESQL_MAX_CONNECTIONS": "500"}, 500),
        ("acme/postgres:17", (), {"PGDATA": "/x", "POSTGRES_MAX_CONNECTIONS": "500"}, 100),
        ("timescale/timescaledb:latest-pg17", (), {}, None),
        ("timescale/timescaledb:latest-pg17", (), {"TS_TUNE_MAX_CONNS": "50"}, 50),
        ("mysql:8.4", (), {}, 151),
        ("mariadb:11", ("--max-connections=300",), {}, 300),
        ("bitnami/mariadb", (), {"MARIADB_EXTRA_FLAGS": "--max-connections=300"}, 300),
        ("postgres:17", (), {"POSTGRES_INITDB_ARGS": "-c max_connections=300"}, 300),
        ("kartoza/postgis:17", (), {"EXTRA_CONF": "max_connections = 300"}, 300),
    ],
)
def test_the_limit_of_a_server_in_a_container(image, command, variables, expected):
    """By its command line, the variables that its image reads, or the server's default."""
    assert own_server(container(image, *command, **variables)).max_connections.value == expected


def test_an_image_may_reserve_more_connections():
    """Kartoza's writes superuser_reserved_connections into its configuration file."""
    assert own_server(container("kartoza/postgis:17")).reserved.value == 10


def test_a_mounted_file_of_mysql_sets_its_limit():
    """One connection is an administrator's."""
    found = own_server(container("mysql:8", mounted={"my.cnf": "[mysqld]\nmax_connections = 400"}))
    assert (found.engine, found.max_connections.value, found.reserved.value) == ("mysql", 400, 1)


@pytest.mark.parametrize(
    ("image", "variables", "expected"),
    [
        ("edoburu/pgbouncer", {"DB_NAME": "a", "DEFAULT_POOL_SIZE": "30"}, ("PgBouncer", 30)),
        # Without a database's name, this image passes any database on; with a query, any user.
        ("edoburu/pgbouncer", {"DB_HOST": "db", "DEFAULT_POOL_SIZE": "30"}, ("PgBouncer", None)),
        ("edoburu/pgbouncer", {"DB_NAME": "a", "AUTH_QUERY": "SELECT"}, ("PgBouncer", None)),
        ("ghcr.io/postgresml/pgcat", {}, ("PgCat", None)),
        ("supabase/supavisor:2", {"POOLER_DEFAULT_POOL_SIZE": "20"}, ("Supavisor", None)),
        (
            "bitnami/pgpool:4",
            {"PGPOOL_NUM_INIT_CHILDREN": "10", "PGPOOL_MAX_POOL": "2"},
            ("Pgpool-II", 20),
        ),
        ("bitnami/pgpool:4", {"PGPOOL_MAX_POOL": "2"}, ("Pgpool-II", None)),
    ],
)
def test_poolers_and_what_can_be_read_of_them(image, variables, expected):
    """Else their number of server connections is unknown."""
    found = container(image, **variables)
    assert is_pooler(found)
    pooler = own_pooler(found, None)
    assert (pooler.kind, pooler.server_connections.value) == expected


def test_the_server_behind_a_pooler():
    """By its variables or its pgbouncer.ini."""
    ini = "[databases]\na = host=db2 user=x\n[pgbouncer]\n"
    found = container("x/pgbouncer", mounted={"p.ini": ini}, DATABASE_URL="postgres://u@db1/a")
    assert own_pooler(found, None).server_hosts == ("db1", "db2")


def test_a_database_of_pgbouncer_may_have_a_pool_of_its_own():
    """The largest counts for each pair of database and user."""
    ini = "[databases]\na = host=db user=x pool_size=50\nb = host=db user=x\n[pgbouncer]\n"
    found = own_pooler(container("x/pgbouncer", mounted={"p.ini": ini}), None)
    assert found.server_connections.value == 100
