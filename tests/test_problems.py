"""Errors become problem documents as RFC 9457 describes them, without any framework."""

import json
import sys

import jsonschema
import pytest
from processes import run_python
from sqlalchemy import exc

from poolkit.errors import CredentialsError, DatabaseUnavailable, PoolExhausted, StatementTimeout
from poolkit.problems import (
    MAX_ERRORS,
    PROBLEM_SCHEMA,
    InputError,
    Problem,
    invalid_input,
    malformed_json,
    method_not_allowed,
    no_such_path,
    pointer_to,
    problem_of,
    status_problem,
    too_large,
)

INPUT_ERRORS = (InputError("is required", pointer="#/a"), InputError("must be", parameter="b"))


@pytest.mark.parametrize(
    ("problem", "status", "kind", "title"),
    [
        (malformed_json("not UTF-8"), 400, "/problems/malformed-json", "Malformed JSON"),
        (no_such_path(), 404, "about:blank", "Not Found"),
        (method_not_allowed(["GET"]), 405, "about:blank", "Method Not Allowed"),
        (too_large(10), 413, "about:blank", None),  # the phrase depends on Python's version
        (invalid_input(INPUT_ERRORS), 422, "/problems/invalid-input", "Invalid input"),
        (status_problem(599, "odd"), 599, "about:blank", "Error"),
    ],
)
def test_each_problem_has_the_members_that_the_rfc_names(problem, status, kind, title):
    """Status and type tell the kind, and the document is valid by its own schema."""
    content = json.loads(problem.body())
    jsonschema.validate(content, PROBLEM_SCHEMA)
    assert (problem.status, content["status"], content["type"]) == (status, status, kind)
    assert title is None or content["title"] == title


@pytest.mark.parametrize(
    "failure", [PoolExhausted, StatementTimeout, DatabaseUnavailable, CredentialsError]
)
def test_a_temporary_failure_is_a_503_that_names_no_host(failure):
    """Retry-After is the failure's own, and the error's text stays in the log."""
    problem = problem_of(failure("no route to db.internal"))
    assert (problem.status, problem.type) == (503, "about:blank")
    assert problem.headers == {"Retry-After": str(failure.retry_after)}
    assert problem.detail == failure.public_detail


def test_an_exhausted_pool_of_sqlalchemy_s_own_is_a_503():
    """An engine that does not come from poolkit has the same answers."""
    problem = problem_of(exc.TimeoutError("QueuePool limit of size 5 overflow 10 reached"))
    assert (problem.status, problem.headers["Retry-After"]) == (503, "1")
    assert "QueuePool" not in problem.detail


def test_a_driver_s_error_without_a_connection_is_a_503():
    """The driver's own text, which names the host, stays out of the answer."""

    class DriverError(Exception):
        pgcode = "57P01"

    error = exc.OperationalError("SELECT 1", {}, DriverError("db.internal went away"))
    problem = problem_of(error)
    assert problem.status == 503
    assert "db.internal" not in problem.body().decode()


@pytest.mark.parametrize(
    "error",
    [ValueError("hunter2"), TimeoutError("hunter2"), SystemExit(), exc.ArgumentError("hunter2")],
)
def test_any_other_error_is_a_500_without_its_text(error):
    """A bug's message may hold a secret."""
    problem = problem_of(error)
    assert problem.status == 500
    assert "hunter2" not in problem.body().decode()


def test_input_errors_are_listed_with_their_places():
    """A member of the body has a pointer, a parameter its name."""
    assert json.loads(invalid_input(INPUT_ERRORS).body())["errors"] == [
        {"detail": "is required", "pointer": "#/a"},
        {"detail": "must be", "parameter": "b"},
    ]


@pytest.mark.parametrize("name", ["x" * 60_000, "\U0001f600" * 15_000, "/~" * 30_000])
def test_a_document_stays_smaller_than_the_request(name):
    """The client's names are shortened, in their place and in the text; so are the messages."""
    errors = [
        InputError(f"unknown field `{name}`", pointer=pointer_to([name, name, name])),
        InputError(f"unknown parameter `{name}`", parameter=name),
        InputError(f"unknown header `{name}`", header=name),
    ]
    assert len(invalid_input(errors * 1_000).body()) < 60_000
    assert len(malformed_json(name).body()) < 60_000


def test_a_document_lists_a_limited_number_of_errors():
    """A body with a thousand mistakes does not make an answer with a thousand lines."""
    problem = invalid_input(InputError("is unknown", pointer=f"#/{n}") for n in range(1_000))
    assert len(problem.errors) == MAX_ERRORS


@pytest.mark.parametrize(
    ("place", "pointer"),
    [
        ([], "#"),
        (["chunks", 0, "a/b~c"], "#/chunks/0/a~1b~0c"),
        (["é %"], "#/%C3%A9%20%25"),
        (["\ud800"], "#/%5Cud800"),
        (["x" * 201], "#/" + "x" * 191 + "%E2%80%A6"),
        # Cut, but not in the middle of an escape.
        (["é" * 100], "#/" + "%C3%A9" * 31 + "%C3" + "%E2%80%A6"),
        (["x" * 199, 0, 1], "#/" + "x" * 199 + "/%E2%80%A6"),
    ],
)
def test_a_pointer_is_escaped_and_shortened(place, pointer):
    """A member's name, whatever it is, gives a URI fragment of limited length."""
    assert pointer_to(place) == pointer


def test_a_lone_surrogate_does_not_break_the_document():
    """It becomes its JSON escape, which every parser can read."""
    problem = Problem(409, "Conflict", "the name \ud800 is taken")
    assert json.loads(problem.body())["detail"] == "the name \ud800 is taken"


def test_extensions_and_the_instance_are_members_of_the_document():
    """The instance is there only if it is given."""
    problem = Problem(409, "Stale version", "read it again", extensions={"current_version": 7})
    assert json.loads(problem.body())["current_version"] == 7
    assert "instance" not in json.loads(problem.body())
    assert json.loads(problem.body(instance="urn:uuid:1"))["instance"] == "urn:uuid:1"


@pytest.mark.process
def test_a_problem_alone_imports_no_sqlalchemy():
    """A Lambda function that answers without the database does not import it."""
    code = "import sys, poolkit.problems; sys.exit('sqlalchemy' in sys.modules)"
    assert run_python("-c", code).returncode == 0, sys.executable
