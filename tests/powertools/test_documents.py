"""The examples in the documents of Powertools and Mangum, as their readers would write them."""

import json
import re

import pytest
from processes import ROOT, run_python

pytestmark = pytest.mark.process

TITLED = re.compile(r'^```python title="([\w/.]+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)
START = """
import json, sys
from lambda_events import http_api, new_context, sqs

def request(method, path, *more):
    answer = handler(http_api(method, path, *more), new_context())
    print(json.dumps([answer["statusCode"], json.loads(answer["body"])]))
"""


@pytest.fixture
def run_example(database, tmp_path):
    """Give a function that runs a script beside a page's files; it returns what was printed."""

    def run(page, script, **environ):
        for name, text in TITLED.findall((ROOT / "docs/integrations" / page).read_text()):
            file = tmp_path / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        environ |= {"DATABASE_URL": database.url(driver=""), "POOLKIT_ECHO": "false"}
        environ["PYTHONPATH"] = f"{tmp_path}:{ROOT / 'tests'}"
        done = run_python("-c", START + script, environ=environ, clean=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


POWERTOOLS = """
from app import app, handler
from errors import NoSuchOrder
import create_order

@app.get("/none")
def none():
    raise NoSuchOrder("there is no such order")

request("GET", "/orders/7")
request("POST", "/orders", [], b'{"article": "a"}')
request("POST", "/orders", [], b'{"amount": 1}')
request("GET", "/orders", [("limit", "5")])
request("GET", "/none")
"""


def test_the_http_function_of_the_page_answers(run_example):
    """Its routes, its own errors and its validation; between the answers are the metrics."""
    printed = run_example("powertools.md", POWERTOOLS)
    answers = [line for line in printed if isinstance(line, list)]
    assert answers[0] == [200, {"id": "7"}]
    assert answers[1] == [201, {"article": "a", "amount": 1}]
    assert (answers[2][0], answers[2][1]["errors"][0]["pointer"]) == (422, "#/article")
    assert answers[3] == [200, {"limit": 5}]
    assert (answers[4][0], answers[4][1]["detail"]) == (404, "there is no such order")
    assert [line["ConnectionsOpened"] for line in printed if isinstance(line, dict)] == [
        [1.0],
        *[[0.0]] * 4,
    ]


QUEUE = """
from queue_app import handler
print(json.dumps(handler(sqs('{"article": "a"}', "{"), new_context())))
"""


def test_the_queues_function_of_the_page_works(run_example, database):
    """One message is done, the other one given up."""
    (answer,) = (
        line for line in run_example("powertools.md", QUEUE) if "batchItemFailures" in line
    )
    assert answer == {"batchItemFailures": []}
    assert len(database.execute("SELECT * FROM dead_letters")) == 1
    assert len(database.execute("SELECT * FROM idempotency_records")) == 1


def test_the_imports_without_a_collector_work(run_example):
    """The names are there after the block."""
    run_example("powertools.md", "from fast_app import Logger, Resolver")


@pytest.mark.parametrize("module", ["app", "module_engine"])
def test_the_mangum_functions_of_the_page_answer(run_example, module):
    """One with a lifespan, one with an engine at the top."""
    script = f"from {module} import handler; request('GET', '/now'); handler.stop()"
    ((status, content),) = run_example("mangum.md", script)
    if module == "app":
        assert (status, list(content)) == (200, ["now"])
    else:
        assert status == 404
