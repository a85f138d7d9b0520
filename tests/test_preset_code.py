"""The code that `poolkit preset` prints: it makes the preset's engine, and says only what is true."""

import ast
import re
from typing import Any

import pytest

from poolkit.config.presets import ENVIRONMENTS, TARGETS, preset
from poolkit.experiment.experiment import find_experiments
from poolkit.preset_code import WIDTH, preset_code, preset_table

MYSQL = ("pymysql", "mysqldb", "asyncmy")
SQLITE = ("pysqlite", "aiosqlite")
SYNC = ("psycopg2", "psycopg", "pymysql", "mysqldb", "pysqlite")
ASYNC = ("asyncpg", "psycopg", "asyncmy", "aiosqlite")
EVERY = [(target, environment) for target in TARGETS for environment in ENVIRONMENTS]
FITTING = [
    (target, driver)
    for target in TARGETS
    for driver in dict.fromkeys(
        (*(SYNC if target != "web_async" else ()), *(ASYNC if target != "web" else ()))
    )
    if (target == "lambda_proxy") <= (driver not in SQLITE)
]
"""Each target with each driver that fits it."""
ON_THE_SOCKET = {
    *("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
}


def beyond(code):
    """Return what the comments behind the code name, with its value."""
    return dict(re.findall(r"^# - (\w+)=(.*?): ", code.rpartition("\n)\n")[2], re.MULTILINE))


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


def code_as_one_line(target, driver, environment="prod"):
    """Return the printed code without its line breaks, so that a phrase can be looked for."""
    code = preset_code(preset(target, environment), driver)
    return re.sub(r"\s*\n\s*(# )?(  )?", " ", code)


@pytest.mark.parametrize(("target", "environment"), EVERY)
def test_checks_without_an_argument_stand_below_as_comments(target, environment):
    """The preset's own checks and its start are printed as comments: those that this pool has."""
    chosen = preset(target, environment)
    names = {"retry_connect", "fail_fast"}
    if chosen.pool == "queue":
        names |= {"ping_after_idle", "pool_recycle_jitter", "prewarm"}
    if chosen.max_connections_per_process > chosen.concurrent_connects:
        names.add("concurrent_connects")
    if chosen.driver == "asyncpg":  # the others have arguments for it
        names |= ON_THE_SOCKET
    assert beyond(preset_code(chosen)) == {name: repr(getattr(chosen, name)) for name in names}


def test_only_what_the_server_can_do_stands_below_them():
    """SQLite has no server to wait for; MySQL has error numbers, and no SQLSTATE of PostgreSQL."""
    web = preset("web", "prod")
    start = {"prewarm", "fail_fast", "concurrent_connects"}
    checks = {"ping_after_idle", "pool_recycle_jitter", "retry_connect"}
    assert beyond(preset_code(web, "pysqlite")).keys() == start
    assert beyond(preset_code(web, "mysqldb")).keys() == start | checks
    assert beyond(preset_code(web, "pymysql")).keys() == start | checks | ON_THE_SOCKET
    assert "1040" in preset_code(web, "pymysql")


@pytest.mark.parametrize(("target", "driver"), FITTING)
def test_nothing_is_said_of_another_server(target, driver):
    """Of SQLite no server and no check, of MySQL nothing that PostgreSQL alone has."""
    code = code_as_one_line(target, driver)
    postgresql = ("PgBouncer", "53300", "libpq", "idle_session_timeout", "pg_stat_activity", "role")
    server = ("server", "failover", "ping", "recycle", "wait_timeout", "vanished", "too many")
    mysql = ("1040", "MySQL", "MariaDB", "wait_timeout", "performance_schema")
    words = {MYSQL: postgresql, SQLITE: (*postgresql, *server, *mysql)}
    foreign = next((words[drivers] for drivers in words if driver in drivers), mysql)
    assert [word for word in foreign if word in code] == []


@pytest.mark.parametrize(("target", "driver"), FITTING)
def test_nothing_is_said_of_a_pool_that_keeps_none(target, driver):
    """A null pool's code has no word of what happens to kept connections."""
    code = code_as_one_line(target, driver)
    kept = ("ping", "recycle", "prewarm", "pool_size", "pool_timeout", "idle connections")
    if preset(target, "prod").pool == "null":
        assert [word for word in kept if word in code] == []
        is_async = "create_async_engine" in code
        assert ("for each unit of work under way" in code) == is_async
    else:
        assert "connections in each process" in code or "1 connection in each process" in code


@pytest.mark.parametrize(("target", "driver"), FITTING)
def test_a_switch_that_is_off_says_what_it_would_do(target, driver):
    """Behind `=False` stands "if True", or a reason for False itself."""
    code = code_as_one_line(target, driver)
    assert re.findall(r"(?:echo|fail_fast)=False\W+(?!if True)\w+", code) == []


def test_a_pool_of_one_has_no_order_and_no_overflow():
    """Neither first nor last, and nothing for a burst."""
    code = code_as_one_line("lambda_warm", "psycopg2")
    assert "without effect on a pool of one" in code
    assert "none beyond pool_size" in code
    assert "concurrent_connects" not in code


def test_sqlite_s_timeout_is_that_of_a_lock():
    """SQLite's argument of this name does not limit opening a connection, as asyncpg's does."""
    assert "how long a statement waits for a lock" in code_as_one_line("web", "pysqlite")
    assert "how long opening a connection may take" in code_as_one_line("web_async", "asyncpg")
    assert "opening a connection" not in code_as_one_line("web_async", "aiosqlite")


def test_behind_a_proxy_no_server_is_refused_as_read_only():
    """There target_session_attrs is not sent, so the code does not mention it."""
    assert "target_session_attrs refuses" in code_as_one_line("lambda", "psycopg2")
    assert "target_session_attrs" not in code_as_one_line("lambda_proxy", "psycopg2")


def test_sqlite_has_no_proxy():
    """A target for a server behind a proxy is refused."""
    with pytest.raises(ValueError, match="SQLite has none"):
        preset_code(preset("lambda_proxy"), "pysqlite")


EXPERIMENTS = re.compile(r"\[(\w+)\]")
WITHOUT = {
    # Arguments whose numbers no experiment supports: the kernel's limits, and those that follow from
    # another number.
    *ON_THE_SOCKET,
    *("keepalives", "read_timeout", "write_timeout"),
}


@pytest.fixture(scope="module")
def experiments():
    return find_experiments().keys()


@pytest.mark.parametrize(("target", "driver"), FITTING)
def test_a_number_names_an_experiment_that_exists(target, driver, experiments):
    """Each number has one in brackets, and `poolkit experiment` knows it."""
    code = preset_code(preset(target, "prod"), driver)
    assert set(EXPERIMENTS.findall(code)) <= experiments
    above = ""
    for line in code.partition("(\n")[2].partition("\n)\n")[0].splitlines():
        found = re.match(r'\s*"?(\w+)"?(?:=|: )-?\d', line)
        is_sqlite_timeout = driver in SQLITE and found is not None and found[1] == "timeout"
        if found is not None and found[1] not in WITHOUT and not is_sqlite_timeout:
            assert EXPERIMENTS.search(above + line), line
        above = above + line if line.strip().startswith("#") else ""


@pytest.mark.parametrize(("target", "driver"), FITTING)
def test_the_code_of_each_driver_makes_its_engine(target, driver):
    """The code runs with each installed driver, and has the arguments of the preset's own engine."""
    chosen = preset(target, "prod").replace(driver=driver)
    names: dict[str, Any] = {}
    code = preset_code(chosen)
    if driver == "mysqldb":  # not installed: it needs MySQL's C library
        ast.parse(code)
        return
    exec(code, names)
    assert names["engine"].url == chosen.url(names["engine"].url)
    assert type(names["engine"].pool) is chosen.pool_class(names["engine"].url)


def test_a_worker_s_code_names_the_pool_of_a_prefork_child():
    """1+0, which the pasted code cannot compute."""
    code = preset_code(preset("worker", "prod"))
    assert "pool_size=1, max_overflow=0" in code
    assert "pool_size=1, max_overflow=0" not in preset_code(preset("web", "prod"))


@pytest.mark.parametrize(
    ("target", "driver", "message"),
    [
        ("web", "asyncpg", "fit the synchronous target 'web'; .*: psycopg2, psycopg, pymysql, "),
        ("web", "foo", "'foo' is unknown; allowed: psycopg2, psycopg, pymysql, mysqldb, pysqlite$"),
        ("web_async", "foo", "'foo' is unknown; allowed: asyncpg, psycopg, asyncmy, aiosqlite$"),
    ],
)
def test_a_driver_that_does_not_fit_is_refused(target, driver, message):
    """The error for one of the wrong kind, or of none, lists all that fit the target."""
    with pytest.raises(ValueError, match=message):
        preset_code(preset(target, "prod"), driver)


def test_lines_stay_readable():
    """Nothing is wider than the announced width but the one line that holds a long value."""
    for target, driver in FITTING:
        for line in preset_code(preset(target, "prod"), driver).splitlines():
            assert len(line) <= WIDTH or '"options"' in line or '"init_command"' in line


def test_table_has_a_line_for_every_preset():
    """The table shows each target in each environment, with its ceiling per process."""
    lines = preset_table().splitlines()
    assert len(lines) == 1 + len(EVERY)
    for line, (target, environment) in zip(lines[1:], EVERY, strict=True):
        cells = line.split()
        assert cells[:2] == [target, environment]
        assert cells[-1] == str(preset(target, environment).max_connections_per_process)
