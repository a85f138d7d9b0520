"""The options of a command line: click's types, their defaults, and the levels that they mean."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from poolkit.cli import main
from poolkit.compare.plan.option_types import RATES, USERS, DeployedTarget, Names
from poolkit.compare.plan.options import Options, options_of
from poolkit.errors import ConfigurationError


def options(*, quick=False, command="poolkit compare", **given):
    return options_of(given, command=command, quick=quick)


def converted(kind, text):
    return kind.convert(text, None, None)


def test_the_default_is_one_level_of_twenty_users():
    """The quick form has fewer users at the same load."""
    (level,) = options(users=None, rate_per_user=None, thresholds=()).levels
    assert (level.name, level.offered_per_s, level.is_open) == ("20 users", 40, False)
    (quick,) = options(quick=True).levels
    assert (quick.name, quick.offered_per_s) == ("10 users", 40)
    assert options(quick=True, users=(3,)).levels[0].name == "3 users"


def test_levels_are_sorted_from_the_lowest():
    """The order on the command line does not matter."""
    assert converted(USERS, "20,1, 5") == (1, 5, 20)
    rates = options(rates=converted(RATES, "200,50.5"), arrivals="poisson", quick=True).levels
    assert [level.name for level in rates] == ["50.5/s", "200/s"]
    assert {level.arrivals for level in rates} == {"poisson"}


def test_the_ready_users_are_enough_for_tasks_of_a_quarter_of_a_second():
    """Little's law; at least ten, and at most the maximum."""
    few, many = options(rates=(1, 200)).levels
    assert (few.users, many.users, many.max_users) == (10, 50, 2000)
    (level,) = options(rates=(200,), max_users=20).levels
    assert (level.users, level.max_users) == (20, 20)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        *(("--users", text) for text in ("0", "1,-5", "10001", "a,b", "1,,2", "1.5", "5,5")),
        *(("--rates", text) for text in ("0", "50,nan", "inf", "fast", "50,50.0")),
        *(("--rate", text) for text in ("0", "nan", "1001")),
        *(("--duration", text) for text in ("0.5", "nan")),
        *(("--target", text) for text in ("web", "web=", "=https://a.example", "web@=https://a")),
        *(("--repeat", text) for text in ("0", "101")),
        ("--warm-up", "0"),
        ("--arrivals", "x"),
        ("--max-users", "0"),
        ("--max-connections", "5"),
    ],
)
def test_a_wrong_value_is_refused_with_its_option(option, text):
    """Click's own error names the option; the exit status is 2."""
    answer = CliRunner().invoke(main, ["compare", option, text], prog_name="poolkit")
    assert (answer.exit_code, answer.stderr.count("\n")) == (2, 1)
    assert f"'{option}'" in answer.stderr


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"rates": (50,), "users": (5,)}, "--users"),
        ({"rates": (50,), "rate_per_user": 2.0}, "--rate"),
        ({"arrivals": "poisson"}, "--arrivals"),
        ({"max_users": 5}, "--max-users"),
    ],
)
def test_options_of_both_loops_are_refused_together(given, named):
    """An option without effect would mislead."""
    with pytest.raises(ConfigurationError, match=f"^{named} "):
        options(**given)


def test_the_recorded_command_has_no_passwords():
    """The report shows it, and people share reports."""
    command = "poolkit compare --database-url postgresql://me:p:w@db/x --target web=http://a/b"
    assert options(command=command).command == command.replace("p:w", "***")


def test_an_error_about_a_target_has_no_password():
    """A wrong label is named, the password of its URL is not."""
    with pytest.raises(click.BadParameter, match=r"'web@a/b=https://me:\*\*\*@a.example'"):
        converted(DeployedTarget(), "web@a/b=https://me:secret@a.example")


def test_options_have_types_and_defaults():
    """Lists are tuples, and an option that was not given has its default."""
    deployed = converted(DeployedTarget(), "web=http://x")
    given = {"targets": converted(Names(), "a, b"), "deployed": (deployed,), "thresholds": ("t",)}
    assert options(**given, junit=Path("x"), github=False) == Options(**given, junit=Path("x"))
