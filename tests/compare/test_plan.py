"""The plan of a run."""

import pytest

from poolkit.compare.options import Options
from poolkit.compare.plan import make_plan
from poolkit.compare.targets import Target
from poolkit.errors import ConfigurationError


@pytest.fixture
def without_pgbouncer(monkeypatch):
    """Look for programs where there are none."""
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("poolkit.local.pgbouncer._MORE_PLACES", "/nonexistent")


def target(kind="lambda", **values):
    return Target(**{"name": kind, "kind": kind, "preset": kind, "locustfile": "load.py"} | values)


def ceiling_of(wanted, **options):
    (planned,) = make_plan([wanted], Options(**options)).targets
    return planned.ceiling, planned.ceiling_reason


def test_a_web_target_s_ceiling_is_its_processes_times_its_pool():
    """Two processes with a pool of 20+10 may hold 60 connections."""
    assert ceiling_of(target("web", processes=2)) == (60, "2 processes x 30")


def test_a_worker_s_ceiling_is_one_connection_a_child():
    """A prefork child runs one task at a time."""
    assert ceiling_of(target("worker", processes=4)) == (4, "4 processes x 1")


def test_a_function_without_reserved_concurrency_grows_with_its_users():
    """Nothing but the number of users bounds it."""
    assert ceiling_of(target(), users=(50,)) == (50, "concurrency 50 x 1")


def test_what_a_target_s_own_table_changes_is_in_the_plan():
    """A pool made larger by a target's `env` has the larger ceiling."""
    wanted = target("web", env={"POOLKIT_POOL_SIZE": "7", "POOLKIT_MAX_OVERFLOW": "1"})
    assert ceiling_of(wanted) == (8, "1 process x 8")
    with pytest.raises(ConfigurationError, match=r"targets.web\] env: POOLKIT_POOL_SIZE must be"):
        ceiling_of(target("web", env={"POOLKIT_POOL_SIZE": "many"}))


def test_fit_leaves_the_reserve_free():
    """`fit` takes what max_connections has left, and never more than there are users."""
    fit = target(name="lambda_warm", preset="lambda_warm", reserved_concurrency="fit")
    assert ceiling_of(fit, users=(30,), max_connections=30) == (24, "concurrency 24 x 1")
    assert ceiling_of(fit, users=(10,), max_connections=100) == (10, "concurrency 10 x 1")


def test_a_target_behind_pgbouncer_is_absent_where_it_is_missing(without_pgbouncer):
    """Without the binary the others run, and the plan says why this one does not."""
    proxied = target(name="lambda_proxy", preset="lambda_proxy", through="pgbouncer")
    plan = make_plan([target(), proxied], Options())
    assert [planned.target.name for planned in plan.targets] == ["lambda"]
    assert plan.absent[0][0] == "lambda_proxy"
    assert "not on PATH" in plan.absent[0][1]


def test_an_absent_target_that_was_asked_for_by_name_is_an_error(without_pgbouncer):
    """Somebody who names it wants it, not a report without it."""
    proxied = target(name="lambda_proxy", preset="lambda_proxy", through="pgbouncer")
    with pytest.raises(ConfigurationError, match="lambda_proxy cannot run: pgbouncer is not"):
        make_plan([proxied], Options(targets=("lambda_proxy",)))
    with pytest.raises(ConfigurationError, match="none of the targets"):
        make_plan([proxied], Options())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"users": (0,)}, "--users must be from 1"),
        ({"rate_per_user": 0}, "--rate must be from 0.01"),
        ({"duration_s": 0.5}, "--duration must be from 1"),
        ({"warm_up_s": 0}, "--warm-up must be from 1"),
        ({"max_connections": 5}, "--max-connections must be from 10"),
    ],
)
def test_an_option_out_of_range_is_named(values, message):
    """The message begins with the option as it is typed."""
    with pytest.raises(ConfigurationError, match=message):
        Options(**values)


def test_an_unknown_environment_is_refused():
    """The plan takes its numbers from a preset, which knows four environments."""
    with pytest.raises(ValueError, match="did you mean 'prod'"):
        make_plan([target()], Options(environment="production"))
