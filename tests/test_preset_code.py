"""What `poolkit preset` prints."""

import ast
import re
from typing import Any

import pytest

from poolkit.config.presets import ENVIRONMENTS, TARGETS, preset
from poolkit.preset_code import WIDTH, preset_code, preset_table

CHECKS = ("ping_after_idle", "pool_recycle_jitter")
START = ("retry_connect", "prewarm", "fail_fast")


def beyond(code):
    """Return what the comments behind the code name, with its value."""
    return dict(re.findall(r"^# - (\w+)=(.*?): ", code.rpartition("\n)\n")[2], re.MULTILINE))


EVERY = [(target, environment) for target in TARGETS for environment in ENVIRONMENTS]


@pytest.mark.parametrize(("target", "environment"), EVERY)
def test_printed_code_makes_the_preset_s_engine(target, environment):
    """The code runs as printed, and its engine has the preset's pool and limits."""
    chosen = preset(target, environment)
    names: dict[str, Any] = {}
    exec(preset_code(chosen), names)
    made = names["engine"]
    options = chosen.engine_options(made.url, application_name=f"{target}:instance")
    assert type(made.pool) is options["poolclass"]
    if chosen.pool == "queue":
        assert made.pool.size() == chosen.pool_size
        assert made.pool._max_overflow == chosen.max_overflow
        assert made.pool._timeout == chosen.pool_timeout
        assert made.pool._recycle == chosen.pool_recycle


@pytest.mark.parametrize(("target", "environment"), EVERY)
def test_printed_connect_arguments_are_the_preset_s(target, environment):
    """Every connection argument stands in the printed code, none is added."""
    chosen = preset(target, environment)
    tree = ast.parse(preset_code(chosen))
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
    printed = next(word.value for word in call.keywords if word.arg == "connect_args")
    options = chosen.engine_options(f"postgresql+{chosen.driver}://h/d", application_name="x")
    wanted = {k: v for k, v in options["connect_args"].items() if isinstance(v, (int, float))}
    assert ast.literal_eval(printed).items() >= wanted.items()
    assert ast.literal_eval(printed).keys() == options["connect_args"].keys()


@pytest.mark.parametrize(("target", "environment"), EVERY)
def test_what_arguments_cannot_say_stands_below_them(target, environment):
    """The preset's own checks and its start are printed as comments: those that this pool has."""
    chosen = preset(target, environment)
    assert beyond(preset_code(chosen)) == {
        name: repr(getattr(chosen, name))
        for name in (CHECKS if chosen.pool == "queue" else ()) + START
    }


def test_only_what_the_server_can_do_stands_below_them():
    """SQLite has no server to wait for; MySQL has error numbers, and no SQLSTATE of PostgreSQL."""
    web = preset("web", "prod")
    assert beyond(preset_code(web, "pysqlite")).keys() == {"prewarm", "fail_fast"}
    mysql = preset_code(web, "pymysql")
    assert beyond(mysql).keys() == {*CHECKS, *START}
    assert "1040" in mysql
    assert "53300" not in mysql


def test_a_worker_s_code_names_the_pool_of_a_prefork_child():
    """1+0, which the pasted code cannot compute."""
    code = preset_code(preset("worker", "prod"))
    assert "pool_size=1, max_overflow=0" in code
    assert "pool_size=1, max_overflow=0" not in preset_code(preset("web", "prod"))


@pytest.mark.parametrize("driver", ["psycopg", "pymysql", "mysqldb", "pysqlite"])
def test_another_driver_gets_its_own_arguments(driver):
    """The code for another driver parses, and names that driver in its URL."""
    code = preset_code(preset("web", "prod"), driver)
    ast.parse(code)
    assert f"+{driver}://" in code


@pytest.mark.parametrize(
    ("target", "driver", "message"),
    [
        ("web", "asyncpg", "fit the synchronous target 'web'; .*: psycopg2, psycopg, pymysql, "),
        ("web", "foo", "'foo' is unknown; allowed: psycopg2, psycopg, pymysql, mysqldb, pysqlite$"),
        ("web_async", "foo", "'foo' is unknown; allowed: asyncpg, psycopg, asyncmy, aiosqlite$"),
    ],
)
def test_a_driver_that_does_not_fit_is_refused(target, driver, message):
    """One of the wrong kind, or of none, is answered with all that fit the target."""
    with pytest.raises(ValueError, match=message):
        preset_code(preset(target, "prod"), driver)


def test_lines_stay_readable():
    """Nothing is wider than the announced width but the one line that holds a long value."""
    for target, environment in EVERY:
        for line in preset_code(preset(target, environment)).splitlines():
            assert len(line) <= WIDTH or '"options"' in line


def test_table_has_a_line_for_every_preset():
    """The table shows each target in each environment, with its ceiling per process."""
    lines = preset_table().splitlines()
    assert len(lines) == 1 + len(EVERY)
    for line, (target, environment) in zip(lines[1:], EVERY, strict=True):
        cells = line.split()
        assert cells[:2] == [target, environment]
        assert cells[-1] == str(preset(target, environment).max_connections_per_process)
