"""Statements that name their line and their unit of work, as the server receives them."""

import pytest
from sqlalchemy import create_engine, text

from poolkit.activity.statements import comment_of
from poolkit.config.engine import make_engine
from poolkit.config.holds import unit
from poolkit.config.settings import Settings
from poolkit.config.sql_comments import comment_statements
from poolkit.errors import ConfigurationError

HERE = "tests/config/test_sql_comments.py"


@pytest.fixture
def commented(make_client, database):
    client = make_client(database.url())
    comment_statements(client.sync_engine)
    return client


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        ("SELECT current_query()", {}),
        ("SELECT current_query() WHERE 'a%' LIKE 'a%' AND CAST(:x AS int) = 1 ;", {"x": 1}),
    ],
)
def test_the_server_receives_line_and_unit_of_work(commented, statement, parameters):
    """With each driver, with and without parameters; a percent sign arrives as one."""
    with unit("GET /a b/{id}/*'x"):
        sent = commented.run(lambda c: c.execute(text(statement), parameters).scalar_one())
    found = comment_of(sent)
    assert found["unit"] == "GET /a b/{id}/*'x"
    # Line and name are those of the call in this file.
    assert found["where"].startswith(f"{HERE}:"), found
    assert "%%" not in sent


def test_many_rows_at_once_have_the_comment_too(commented, database):
    """As a unit of work inserts them; the values arrive unchanged."""
    database.execute("CREATE TABLE t (a text)")
    database.execute("GRANT ALL ON t TO PUBLIC")
    rows = [{"a": f"{n}%"} for n in range(3)]
    commented.run(lambda c: c.execute(text("INSERT INTO t VALUES (:a)"), rows))
    assert [row["a"] for row in database.execute("SELECT a FROM t ORDER BY a")] == [
        "0%",
        "1%",
        "2%",
    ]


@pytest.mark.parametrize(
    "statement", ["SELECT /*+ hint */ current_query()", "SELECT current_query() -- x"]
)
def test_a_statement_with_a_comment_stays_as_it_is(commented, statement):
    """A hint counts only as the first comment, and the format's specification says so."""
    assert "where=" not in commented.run(lambda c: c.execute(text(statement)).scalar_one())


def test_one_line_is_one_statement_for_the_caches_of_the_drivers(commented):
    """However often it runs."""

    def run():
        return commented.run(lambda c: c.execute(text("SELECT current_query()")).scalar_one())

    assert len({run() for _ in range(5)}) == 1


def test_a_driver_that_reads_no_parameters_gets_its_percent_signs_once(database):
    """`no_parameters` switches psycopg2's formatting off."""
    engine = create_engine(database.url(), execution_options={"no_parameters": True})
    comment_statements(engine)
    with unit("GET /a b"), engine.connect() as connection:
        sent = connection.exec_driver_sql("SELECT current_query()").scalar_one()
    engine.dispose()
    assert comment_of(sent)["unit"] == "GET /a b"


def test_it_is_off_unless_asked_for(database):
    """By a setting, which takes no other value than true or false."""
    environ = {"DATABASE_URL": database.url()}
    for value, is_on in (("", False), ("true", True)):
        settings = Settings.from_environ(environ | {"POOLKIT_SQL_COMMENTS": value})
        engine = make_engine(settings)
        with engine.connect() as connection:
            sent = connection.execute(text("SELECT current_query()")).scalar_one()
        engine.dispose()
        assert ("where" in comment_of(sent)) is is_on
    with pytest.raises(ConfigurationError, match="POOLKIT_SQL_COMMENTS must be true or false"):
        Settings.from_environ(environ | {"POOLKIT_SQL_COMMENTS": "maybe"})
