"""The domain stays light enough for a Lambda function's start."""

import pytest
from processes import run_python

pytestmark = pytest.mark.process

HEAVY = ["sqlalchemy.orm", "sqlalchemy.ext.asyncio", "alembic", "pydantic", "greenlet", "poolkit"]


def test_what_serves_requests_imports_nothing_heavy():
    """Besides SQLAlchemy and psycopg2 it adds its own modules and the standard library's `http`."""
    program = f"""
import sys
import sqlalchemy.dialects.postgresql.psycopg2, psycopg2
before = set(sys.modules)
import articles.api, articles.problems, articles.operations
added = {{name for name in set(sys.modules) - before if not name.startswith("articles")}}
assert added <= {{"http"}}, added
assert not set({HEAVY!r}) & set(sys.modules)
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
