"""Errors are what callers already catch, and travel between processes."""

import pickle

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

ERRORS = [
    InvalidInput((InputError("must be", pointer="#/a"), InputError("is", parameter="b"))),
    MalformedJson((InputError("not JSON", pointer="#"),)),
    TooLarge(10),
    NotFound("article", 1),
    StaleVersion(1, 2, 3),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error):
    """A worker's child process hands its error to the parent whole."""
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, ArticlesError)
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ERRORS[0], ValueError),
        (ERRORS[1], ValueError),
        (ERRORS[2], ValueError),
        (ERRORS[3], LookupError),
    ],
)
def test_an_error_is_also_the_builtin_that_says_the_same(error, builtin):
    """Who knows nothing of this package still catches it."""
    assert isinstance(error, builtin)
