"""Errors become problem documents as RFC 9457 describes them."""

import json
import pickle

import jsonschema
import pytest

from articles.errors import (
    ArticlesError,
    InputError,
    InvalidInput,
    MalformedJson,
    NotFound,
    StaleVersion,
    TooLarge,
)
from articles.problems import (
    PROBLEM_SCHEMA,
    method_not_allowed,
    no_such_path,
    plain_problem,
    problem_of,
)
from poolkit.errors import CredentialsError, DatabaseUnavailable, PoolExhausted, StatementTimeout

INPUT_ERRORS = (InputError("is required", pointer="#/a"), InputError("must be", parameter="b"))


@pytest.mark.parametrize(
    ("error", "status", "kind", "title"),
    [
        (MalformedJson(INPUT_ERRORS), 400, "/problems/malformed-json", "Malformed JSON"),
        (NotFound("article", 7), 404, "about:blank", "Not Found"),
        (StaleVersion(7, 1, 2), 409, "/problems/stale-version", "Stale version"),
        (TooLarge(10), 413, "about:blank", None),
        (InvalidInput(INPUT_ERRORS), 422, "/problems/invalid-input", "Invalid input"),
    ],
)
def test_each_error_of_the_domain_has_its_problem(error, status, kind, title):
    """Status, type and title tell the kind; the detail is the error's own message."""
    problem = problem_of(error)
    content = json.loads(problem.body())
    jsonschema.validate(content, PROBLEM_SCHEMA)
    assert (problem.status, content["status"], content["type"]) == (status, status, kind)
    assert title is None or content["title"] == title
    assert content["detail"] == str(error)


@pytest.mark.parametrize(
    "failure", [PoolExhausted, StatementTimeout, DatabaseUnavailable, CredentialsError]
)
def test_a_temporary_failure_is_a_503_that_names_no_host(failure):
    """Retry-After is the failure's own, and the error's text stays in the log."""
    problem = problem_of(failure("no route to db.internal"))
    assert (problem.status, problem.type) == (503, "about:blank")
    assert problem.headers == {"Retry-After": str(failure.retry_after)}
    assert problem.detail == failure.public_detail


@pytest.mark.parametrize("error", [ValueError("hunter2"), TimeoutError(), SystemExit()])
def test_any_other_error_is_a_500_without_its_text(error):
    """A bug's message may hold a secret."""
    problem = problem_of(error)
    assert problem.status == 500
    assert "hunter2" not in problem.detail


def test_input_errors_are_listed_with_their_places():
    """A member of the body has a pointer, a parameter its name."""
    assert json.loads(problem_of(InvalidInput(INPUT_ERRORS)).body())["errors"] == [
        {"pointer": "#/a", "detail": "is required"},
        {"parameter": "b", "detail": "must be"},
    ]


def test_a_stale_version_returns_the_current_one():
    """The client learns what to read again."""
    assert json.loads(problem_of(StaleVersion(7, 1, 2)).body())["current_version"] == 2


def test_an_instance_names_the_occurrence():
    """It is there only if the deployable gives one."""
    problem = plain_problem(503, "no connection is free", {"Retry-After": "1"})
    assert "instance" not in json.loads(problem.body())
    assert json.loads(problem.body(instance="urn:uuid:1"))["instance"] == "urn:uuid:1"
    assert problem.title == "Service Unavailable"


def test_unknown_paths_and_methods_have_problems_too():
    """A path's undecodable bytes do not break the answer; the methods possible are named."""
    assert json.loads(no_such_path("/a\udcff").body())["status"] == 404
    problem = method_not_allowed("PUT", ["POST", "GET"])
    assert (problem.status, problem.headers) == (405, {"Allow": "GET, POST"})


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (InvalidInput(INPUT_ERRORS), ValueError),
        (MalformedJson(INPUT_ERRORS), ValueError),
        (TooLarge(10), ValueError),
        (NotFound("article", 1), LookupError),
        (StaleVersion(1, 2, 3), Exception),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_survives_pickling_and_is_also_a_builtin(error, builtin):
    """A worker's child process sends its error to the parent whole."""
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, ArticlesError)
    assert isinstance(copy, builtin)
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
