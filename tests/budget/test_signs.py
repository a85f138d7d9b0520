"""Variable names and values that show a connection to a database server, or none."""

import pytest

from poolkit.budget.model import Evidence, Overlap, Variable, Workload, known
from poolkit.budget.signs import database_signs, hosts_in, is_about_database, uses_database
from poolkit.budget.software import is_no_client

HIDDEN = Variable(text=None, origin="here", reason="a Secret")


def workload(evidence=(), command=None, **variables):
    return Workload(
        name="app",
        platform="container",
        unit="replica",
        where=None,
        instances=known(1, "here"),
        overlap=Overlap(),
        variables={k: Variable(text=text, origin="here") for k, text in variables.items()},
        evidence=evidence,
        command=command,
        image="example/app:1",
    )


@pytest.mark.parametrize(
    "name",
    [
        "DATABASE_URL",
        "databaseUrl",
        "dbHost",
        "DBHOST",
        "PAPERLESS_DBHOST",
        "ORDERSDB_URL",
        "DB-HOST",
        "db.host",
        "GITEA__database__HOST",
        "SPRING_DATASOURCE_URL",
        "SPRING_R2DBC_URL",
        "QUARKUS_DATASOURCE_JDBC_URL",
        "ConnectionStrings__Default",
        "AZURE_SQL_CONNECTIONSTRING",
        "CONNECTION_STRING",
        "DSN",
        "PGHOST",
        "RDSHOST",
        "AURORA_HOST",
        "SECRET_ARN",
        "DB_SECRET",
        "HEROKU_POSTGRESQL_PINK_URL",
        "AIRFLOW__CORE__SQL_ALCHEMY_CONN",
        "MLFLOW_BACKEND_STORE_URI",
        "CELERY_RESULT_BACKEND",
        "KC_DB_URL",
        "GF_DATABASE_HOST",
        "DB_POSTGRESDB_HOST",
        "MB_DB_HOST",
        "SENTRY_POSTGRES_HOST",
        "MYSQL_HOST",
        "POSTGRES_PASSWORD_FILE",
        "INSTANCE_CONNECTION_NAME",
    ],
)
def test_a_usual_name_is_a_sign_whatever_its_value_is(name):
    """A value in a Secret cannot be read, so the name alone decides."""
    assert is_about_database(name, HIDDEN)


@pytest.mark.parametrize(
    "name",
    [
        "REDIS_DB",
        "MONGO_DB",
        "SENTRY_DSN",
        "DYNAMODB_TABLE",
        "IMDB_KEY",
        "WORDS",
        "CARDS_URL",
        "JPG_QUALITY",
        "SUBDOMAIN",
        "GRAPHQL_URL",
        "BROKER_URL",
        "PASSWORDS",
        "FEEDBACK",
        "SECRET_KEY",
    ],
)
def test_a_name_of_something_else_is_no_sign(name):
    """Another store, or a word that only contains the letters."""
    assert not is_about_database(name, HIDDEN)


@pytest.mark.parametrize(
    ("name", "text", "engine"),
    [
        ("ANY", "postgresql+asyncpg://app@db/app", "postgres"),
        ("ANY", "jdbc:postgresql://db/app", "postgres"),
        ("ANY", "r2dbc:pool:mysql://db/app", "mysql"),
        ("CELERY_RESULT_BACKEND", "db+postgresql://db/app", "postgres"),
        ("ANY", "shop.eu-west-1.rds.amazonaws.com", None),
        ("ANY", "shop.postgres.database.azure.com", "postgres"),
        ("ANY", "postgres.svc:5432", "postgres"),
        ("ANY", "host=db dbname=app", None),
        ("ANY", "Server=db;Database=app;Trusted_Connection=True", "mssql"),
        ("DB_ENGINE", "django.db.backends.postgresql", "postgres"),
        ("DB_CONNECTION", "mysql", "mysql"),
        ("KC_DB", "postgres", "postgres"),
        ("PGHOST", "/var/run/postgresql", "postgres"),
    ],
)
def test_a_value_shows_the_engine(name, text, engine):
    """A URL with any driver, a host of a managed database, or a setting for the engine."""
    (found,) = database_signs(workload(**{name: text}))
    assert (found.engine, found.is_other_store) == (engine, False)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BROKER_DB_PATH", "/opt/sqlite/broker.sqlite"),
        ("SQLITE_PATH", "/data/state"),
        ("DATABASE_URL", "sqlite+aiosqlite:////data/app"),
        ("DATABASE_URL", "file:./dev.db"),
        ("DATABASE_URL", "mongodb+srv://cluster/app"),
        ("DATABASE_URL", "redis://cache/0"),
        ("DB_URL", "jdbc:h2:mem:test"),
        ("DB_CONNECTION", "sqlite"),
        ("GF_DATABASE_TYPE", "sqlite3"),
        ("ConnectionStrings__Default", "Data Source=/data/app.db"),
    ],
)
def test_a_file_or_another_store_is_counter_evidence(name, text):
    """Such a setting shows that the program uses no database server."""
    found = workload(**{name: text})
    assert not uses_database(found)
    assert name in is_no_client(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("RESULT_BACKEND", "redis://cache/0"),
        ("VECTOR_DB", "chroma"),
        ("CACHE_DB", "redis://c/1"),
        ("DB_DATA_LOCATION", "./postgres"),
        ("DATABASE_PATH", "/data/state"),
    ],
)
def test_a_store_beside_the_database_shows_nothing(name, text):
    """Celery's results may be in Redis, and the data in PostgreSQL."""
    assert not database_signs(workload(**{name: text}))
    assert not is_no_client(workload(**{name: text}))


def test_a_setting_for_the_engine_decides_for_the_others():
    """DB_HOST names no engine; DB_TYPE beside it does."""
    found = workload(DB_TYPE="mysql", DB_HOST="x", OTHER_DB="y")
    assert [each.engine for each in database_signs(found)] == ["mysql", "mysql", None]
    assert not is_no_client(found, {"postgres"})
    found = workload(DB_TYPE="mysql", DB_HOST="x")
    assert "DB_TYPE" in is_no_client(found, {"postgres"})
    assert not is_no_client(found, {"mysql"})


def test_counter_evidence_does_not_win_over_a_sign_of_another_kind():
    """depends_on may be about a setting inside the image; a shared network is not."""
    for is_network, is_left_out in ((True, True), (False, False)):
        sign = Evidence(reason="x", is_network=is_network)
        reason = is_no_client(workload(evidence=(sign,), STATE_DB="/data/a.sqlite"))
        assert bool(reason) == is_left_out


def test_a_url_on_the_command_line_is_a_sign():
    """Also within an option."""
    command = ("mlflow", "server", "--backend-store-uri=postgresql://db/mlflow")
    assert uses_database(workload(command=command))
    assert not uses_database(workload(command=("mlflow", "server")))


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("postgresql://u:p@db:5432/a", "db"),
        ("postgresql://db/a", "db"),
        ("db:5432", "db"),
        ("db", "db"),
        ("Server=tcp:db,1433;Database=x", "db"),
        ("u:p@tcp(db:3306)/x", "db"),
        ("jdbc:postgresql://db/app", "db"),
    ],
)
def test_the_host_of_a_text(text, host):
    """A scheme or a user is no host."""
    assert hosts_in(text) == {host}
