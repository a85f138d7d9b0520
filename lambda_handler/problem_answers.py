"""Every error as problem details (RFC 9457); the database's own with Retry-After."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from articles.problems import plain_problem, problem_of
from poolkit.errors import CredentialsError, DatabaseUnavailable, PoolExhausted, StatementTimeout

if TYPE_CHECKING:
    from articles.problems import Problem

# What a client may know. The error's own text names hosts and roles: it goes to the log.
_DETAILS: Final = {
    PoolExhausted: "every database connection is in use; try again later",
    StatementTimeout: "the database took too long; try again later",
    DatabaseUnavailable: "the database is not available; try again later",
    CredentialsError: "the database is not available; try again later",
}


def problem_for(error: BaseException) -> Problem:
    """Return the answer to any error; to one that nobody expected, a 500 without its text."""
    unexpected = plain_problem(500, "an unexpected error; it has been logged")
    return problem_of(error) or _database_problem(error) or unexpected


def _database_problem(error: BaseException) -> Problem | None:
    for kind, detail in _DETAILS.items():
        if isinstance(error, kind):
            retry_after = getattr(error, "retry_after", DatabaseUnavailable.retry_after)
            return plain_problem(503, detail, {"Retry-After": str(retry_after)})
    return None
