"""The table of presets, and what an EnginePreset refuses."""

import dataclasses

import pytest

from poolkit.config.presets import ENVIRONMENTS, TARGETS, EnginePreset, preset

# target, environment: pool, size, overflow, timeout, recycle, echo
TABLE = {
    ("web", "dev"): ("queue", 5, 10, 10, 3600, True),
    ("web", "staging"): ("queue", 10, 10, 10, 3600, False),
    ("web", "prod"): ("queue", 20, 10, 10, 3600, False),
    ("web", "high_traffic"): ("queue", 50, 100, 10, 1800, False),
    ("web_async", "dev"): ("queue", 5, 10, 30, 3600, True),
    ("web_async", "staging"): ("queue", 10, 10, 30, 3600, False),
    ("web_async", "prod"): ("queue", 20, 40, 30, 3600, False),
    ("web_async", "high_traffic"): ("queue", 50, 100, 10, 1800, False),
    ("worker", "dev"): ("queue", 2, 2, 30, 3600, False),
    ("worker", "staging"): ("queue", 5, 5, 30, 3600, False),
    ("worker", "prod"): ("queue", 5, 5, 30, 1800, False),
    ("worker", "high_traffic"): ("queue", 5, 5, 30, 900, False),
}
EVERYWHERE = {
    "lambda": ("null", 1, 0, 30, 3600, False),
    "lambda_warm": ("queue", 1, 0, 5, 1800, False),
    "lambda_proxy": ("null", 1, 0, 30, 3600, False),
    "script": ("null", 1, 0, 30, 3600, False),
}
ALL = [(target, environment) for target in TARGETS for environment in ENVIRONMENTS]


@pytest.mark.parametrize(("target", "environment"), ALL)
def test_the_table_is_the_design(target, environment):
    """Each target in each environment has the pool that the design gives it."""
    p = preset(target, environment)
    found = (p.pool, p.pool_size, p.max_overflow, p.pool_timeout, p.pool_recycle, p.echo)
    assert found == TABLE.get((target, environment), EVERYWHERE.get(target))


@pytest.mark.parametrize(("target", "environment"), ALL)
def test_every_preset_has_limits_and_a_reason(target, environment):
    """No preset leaves a connection attempt, a statement or an idle transaction unlimited."""
    p = preset(target, environment)
    limits = (p.connect_timeout, p.statement_timeout, p.idle_in_transaction_session_timeout)
    assert all(limits)
    assert p.tcp_user_timeout > 0
    assert p.pool_pre_ping
    assert p.why
    assert p.max_connections_per_process == p.pool_size + p.max_overflow


def test_a_preset_is_frozen():
    """A preset cannot be changed in place, so that an engine's settings stay known."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("web").pool_size = 7


def test_a_preset_takes_keywords_only():
    """Positions mean nothing among thirty settings."""
    with pytest.raises(TypeError):
        EnginePreset("web", "dev")


def test_presets_are_values():
    """Two presets with the same settings are equal, and can be keys."""
    assert preset("web", "prod") == preset("web", "prod")
    assert len({preset("web"), preset("web"), preset("worker")}) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool_size": -1}, r"pool_size must be a whole number from 1 to 10000, not -1"),
        ({"pool_size": 0}, "pool_size must be"),
        ({"pool_size": 2.5}, "pool_size must be a whole number"),
        ({"pool_size": True}, "pool_size must be a whole number"),
        ({"pool_size": "5"}, "pool_size must be a whole number .* not '5'"),
        ({"max_overflow": -1}, "max_overflow must be"),
        ({"pool_timeout": float("nan")}, "pool_timeout must be a number"),
        ({"pool_timeout": float("inf")}, "pool_timeout must be a number"),
        ({"pool_recycle": 0}, "pool_recycle must be a number from 1 .* or -1 for never, not 0"),
        ({"pool_recycle": -0.5}, "pool_recycle must be"),
        ({"pool_recycle_jitter": 0.6}, "pool_recycle_jitter must be"),
        ({"connect_timeout": 0}, "connect_timeout must be"),
        ({"statement_timeout": -1}, "statement_timeout must be"),
        ({"prewarm": 21}, r"prewarm must not exceed pool_size \(20\), not 21"),
        ({"echo": "yes"}, "echo must be true or false, not 'yes'"),
        ({"driver": "psycopgg"}, r"driver 'psycopgg' is unknown \(did you mean 'psycopg'\?\)"),
        ({"driver": "asyncpg"}, "driver asyncpg does not fit the synchronous target 'web'; use"),
        ({"pool": "static"}, "pool 'static' is unknown; allowed: queue, null"),
        ({"pool": "null"}, "pool must be queue for target 'web': .* every request in flight"),
        ({"pool_sise": 3}, r"preset field 'pool_sise' is unknown \(did you mean 'pool_size'\?\)"),
    ],
)
def test_replace_refuses_what_no_engine_should_have(changes, message):
    """A value out of range names its field, what was found and what is allowed."""
    with pytest.raises(ValueError, match=message):
        preset("web", "prod").replace(**changes)


def test_replace_leaves_the_original_alone():
    """`replace` gives a changed copy."""
    original = preset("web", "prod")
    assert original.replace(pool_size=7, pool_recycle=-1).pool_size == 7
    assert original.pool_size == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("webb",), r"target 'webb' is unknown \(did you mean 'web'\?\)"),
        (("Lambda",), r"target 'Lambda' is unknown \(did you mean 'lambda'\?\)"),
        (("web", "production"), r"environment 'production' is unknown \(did you mean 'prod'\?\)"),
        (("web", "qa"), "environment 'qa' is unknown; allowed: dev, staging, prod, high_traffic"),
    ],
)
def test_an_unknown_name_gets_a_suggestion(arguments, message):
    """A wrong target or environment is answered with the nearest one and the whole list."""
    with pytest.raises(ValueError, match=message):
        preset(*arguments)


def test_per_task_is_a_pool_of_one():
    """A process that runs one task at a time can hold one connection."""
    one = preset("worker", "prod").replace(prewarm=3).per_task()
    assert (one.pool_size, one.max_overflow, one.prewarm) == (1, 0, 1)
    assert one.max_connections_per_process == 1
    assert preset("lambda").per_task() == preset("lambda")
