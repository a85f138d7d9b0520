"""What a cold start does not import."""

import json

import pytest
from lambda_events import sqs
from processes import run_python

pytestmark = pytest.mark.process

HEAVY = {
    *("asyncpg", "boto3", "celery", "fastapi", "greenlet", "locust", "prometheus_client"),
    *("psycopg", "pydantic", "pydantic_settings", "sqlalchemy.ext.asyncio", "starlette"),
    *("webapp", "worker", "poolkit.local", "poolkit.compare", "poolkit.cli"),
}
SCRIPT = """
import json, sys
import lambda_handler.app
imported = list(sys.modules)
for method, path, body in [
    ("POST", "/articles", '{"title": "t", "body": "b"}'),
    ("GET", "/articles/1", None),
    ("GET", "/articles/x", None),
    ("DELETE", "/articles/1", None),
    ("POST", "/documents", '{"id": "d", "title": "t", "text": "x"}'),
]:
    event = json.loads(sys.argv[1])
    event["requestContext"]["http"]["method"] = method
    event["rawPath"] = path
    event["body"] = body
    class Context:
        aws_request_id = "1"
    lambda_handler.app.handler(event, Context())
json.dump([imported, list(sys.modules)], sys.stderr)
"""
CONTEXT = {"http": {}, "stage": "$default", "requestId": "1"}
EVENT = {"version": "2.0", "rawQueryString": "", "requestContext": CONTEXT}
EVENT["headers"] = {"content-type": "application/json"}


def run_with(database, script, event):
    """Run a script with an event and a database; return its output."""
    environ = {"DATABASE_URL": database.url(driver="")}
    done = run_python("-c", script, json.dumps(event), environ=environ, clean=True)
    assert done.returncode == 0, done.stderr
    return done


def test_neither_the_import_nor_a_request_loads_what_is_heavy(migrated_database):
    """Nor does anything of botocore, whose bare package Powertools itself looks for."""
    done = run_with(migrated_database, SCRIPT, EVENT)
    statuses = [json.loads(line).get("ConnectionsOpened") for line in done.stdout.splitlines()]
    assert statuses == [[1.0], [1.0], [0.0], [0.0], [1.0]]
    for names in json.loads(done.stderr):
        assert "psycopg2" in names
        assert not HEAVY & set(names)
        assert not [name for name in names if name.startswith("botocore.")]


QUEUE_SCRIPT = """
import json, sys
import lambda_handler.queue
imported = list(sys.modules)
class Context:
    aws_request_id = "1"
    def get_remaining_time_in_millis(self):
        return 60000
answer = lambda_handler.queue.handler(json.loads(sys.argv[1]), Context())
assert answer == {"batchItemFailures": []}, answer
json.dump([imported, list(sys.modules)], sys.stderr)
"""


def test_the_queue_s_function_loads_boto3_and_nothing_else_that_is_heavy(migrated_database):
    """Powertools' Idempotency imports boto3 by itself; all else stays out, also in an invoke."""
    good, bad = '{"id": "d", "title": "t", "text": "x"}', "{"
    done = run_with(migrated_database, QUEUE_SCRIPT, sqs(good, bad))
    for names in json.loads(done.stderr):
        assert HEAVY & set(names) == {"boto3"}
    by_powertools = (
        "import aws_lambda_powertools.utilities.idempotency, sys; 'boto3' in sys.modules or exit(1)"
    )
    assert run_python("-c", by_powertools).returncode == 0
