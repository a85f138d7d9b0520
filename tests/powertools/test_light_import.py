"""What the modules for Lambda functions import, and what they leave out."""

import json

import pytest
from processes import run_python

pytestmark = pytest.mark.process

HEAVY = {
    *("alembic", "asyncpg", "boto3", "celery", "click", "fastapi", "greenlet", "locust", "msgspec"),
    *("prometheus_client", "psycopg", "pydantic", "sqlalchemy.ext.asyncio", "sqlalchemy.orm"),
    *("starlette", "poolkit.activity", "poolkit.cli", "poolkit.compare", "poolkit.local"),
}
PRINT = "import json, sys; print(json.dumps(list(sys.modules)))"


def imported(statement):
    done = run_python("-c", f"{statement}\n{PRINT}", clean=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import poolkit.powertools", set()),
        ("from poolkit.powertools import ExecutionEnvironment, instrument, Resolver", set()),
        ("from poolkit.powertools import process_sqs_batch, problem_response", set()),
        ("from poolkit.powertools import SqlPersistenceLayer", {"boto3"}),
        ("import poolkit.powertools.schemas", {"msgspec"}),
        ("import poolkit.mangum", set()),
    ],
)
def test_only_what_is_used_is_imported(statement, heavy):
    """Powertools' Idempotency imports boto3 by itself."""
    assert imported(statement) & HEAVY == heavy


def test_the_package_itself_is_empty_until_a_name_is_used():
    """Its import costs nothing, so it can stand at the top of any module."""
    modules = imported("import poolkit.powertools")
    assert not {"sqlalchemy", "aws_lambda_powertools"} & modules


def test_an_unknown_name_is_an_attribute_error():
    """As with any module."""
    done = run_python("-c", "from poolkit.powertools import nothing", clean=True)
    assert "cannot import name 'nothing'" in done.stderr


def test_the_collector_is_off_in_the_block_and_on_again_after_it():
    """Also after an import that fails; what was imported is searched no more."""
    script = """
import gc
from poolkit.cold_start import without_garbage_collection
with without_garbage_collection():
    assert not gc.isenabled()
assert gc.isenabled() and gc.get_freeze_count()
try:
    with without_garbage_collection():
        import no_such_module
except ImportError:
    assert gc.isenabled()
gc.disable()
with without_garbage_collection():
    pass
assert not gc.isenabled()
"""
    done = run_python("-c", script, clean=True)
    assert done.returncode == 0, done.stderr
