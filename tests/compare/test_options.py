"""What the command line may say, and what it comes to."""

from pathlib import Path

import pytest

from poolkit.compare.plan.options import Options, options_of
from poolkit.errors import ConfigurationError


def given(*, quick=False, command="poolkit compare", **values):
    return options_of(values, command=command, quick=quick)


def test_nothing_said_is_one_level_of_twenty_users():
    """The plain run, and its quick form with fewer users at the same load."""
    (level,) = given(users=None, rate=None, threshold=()).levels
    assert (level.name, level.offered_per_s, level.is_open) == ("20 users", 40, False)
    (quick,) = given(quick=True).levels
    assert (quick.name, quick.offered_per_s) == ("10 users", 40)
    assert given(quick=True, users="3").levels[0].name == "3 users"


def test_levels_go_from_the_lowest_to_the_highest():
    """In whatever order they were given."""
    assert [level.users for level in given(users="20,1, 5").levels] == [1, 5, 20]
    rates = given(rates="200,50.5", arrivals="poisson", quick=True).levels
    assert [level.name for level in rates] == ["50.5/s", "200/s"]
    assert {level.arrivals for level in rates} == {"poisson"}


def test_as_many_users_stand_ready_as_are_busy_with_tasks_of_a_quarter_of_a_second():
    """Little's law; at least ten, and never more than there may be."""
    few, many = given(rates="1,200").levels
    assert (few.users, many.users, many.max_users) == (10, 50, 2000)
    (level,) = given(rates="200", max_users=20).levels
    assert (level.users, level.max_users) == (20, 20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"users": "0"}, "--users must be from 1 to 10000, not 0"),
        ({"users": "1,-5"}, "--users must be from 1 to 10000, not -5"),
        ({"users": "a,b"}, r"--users must be a whole number, .* as in 1,5,20, not 'a,b'"),
        ({"users": "1,,2"}, "--users must be a whole number"),
        ({"users": "1.5"}, "--users must be a whole number"),
        ({"users": "5,5"}, "--users has 5 users twice; --repeat measures a level more than once"),
        ({"rates": "0"}, "--rates must be from 0.01 to 100000, not 0"),
        ({"rates": "50,nan"}, "--rates must be from 0.01 to 100000, not nan"),
        ({"rates": "inf"}, "--rates must be from 0.01 to 100000, not inf"),
        ({"rates": "fast"}, r"--rates must be a number, .* as in 50,100,200, not 'fast'"),
        ({"rates": "50,50.0"}, "--rates has 50/s twice"),
        ({"rates": "50", "users": "5"}, "with --rates nobody is waited for: give one of the two"),
        ({"rates": "50", "rate": 2.0}, "with --rates nobody is waited for: give one of the two"),
        ({"arrivals": "poisson"}, "--arrivals goes with --rates only"),
        ({"max_users": 5}, "--max-users goes with --rates only"),
        ({"rates": "5", "arrivals": "x"}, "--arrivals must be one of constant, poisson, not 'x'"),
        ({"rates": "5", "max_users": 0}, "--max-users must be from 1"),
        ({"repeat": 0}, "--repeat must be from 1 to 100, not 0"),
    ],
)
def test_what_makes_no_load_is_refused(values, message):
    """One line that begins with the option as it is typed, or names it."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        given(**values)
    assert "\n" not in str(caught.value)


def test_a_command_is_kept_without_its_passwords():
    """It stands in the report, which people send around."""
    command = "poolkit compare --database-url postgresql://me:p:w@db/x --target web=http://a/b"
    kept = given(command=command).command
    assert kept == command.replace("p:w", "***")


def test_options_keep_their_types():
    """What the command line has in a text is a tuple, and what it has not is the default."""
    options = given(
        targets="a, b", target=("web=http://x",), threshold=("t",), junit=Path("x"), github=False
    )
    assert options == Options(
        targets=("a", "b"), deployed=("web=http://x",), thresholds=("t",), junit=Path("x")
    )
