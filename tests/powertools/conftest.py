"""A database with poolkit's tables and one of a user's, and the parts of a function on it."""

import io
import itertools
import json

import pytest
from aws_lambda_powertools import Logger
from sqlalchemy import create_engine

from poolkit import tables
from poolkit.execution_environment import ExecutionEnvironment
from poolkit.local.postgres import APP_ROLE

# Powertools' loggers live as long as the process and are known by their service's name.
_numbers = itertools.count()


@pytest.fixture(scope="session")
def tables_template(administration):
    """Make poolkit's tables and `notes`, once, for `database` to copy."""
    with administration.new_database("template0") as template:
        engine = create_engine(template.url())
        tables.metadata.create_all(engine)
        engine.dispose()
        template.execute("CREATE TABLE notes (id integer PRIMARY KEY, text text NOT NULL)")
        template.execute(f"ALTER TABLE notes OWNER TO {APP_ROLE}")
        template.wait_for_backends(0)
        yield template.name


@pytest.fixture
def database(administration, tables_template):
    with administration.new_database(tables_template) as database:
        yield database


@pytest.fixture
def open_environment(database):
    """Give the function that makes an execution environment with such variables."""
    opened = []

    def make(url=None, **environ):
        variables = {"DATABASE_URL": url or database.url(driver=""), **environ}
        opened.append(ExecutionEnvironment.open(variables, hooks=False))
        return opened[-1]

    yield make
    for environment in opened:
        environment.dispose()


@pytest.fixture
def environment(open_environment):
    return open_environment()


class Log:
    """A Powertools logger, and the lines that it wrote."""

    def __init__(self):
        self._stream = io.StringIO()
        self.logger = Logger(service=f"service-{next(_numbers)}", utc=True, stream=self._stream)

    def lines(self):
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def log():
    return Log()
