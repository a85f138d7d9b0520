"""The table of presets, what an EnginePreset refuses, and what it makes of a URL."""

import dataclasses
import ssl
import subprocess

import pytest
from sqlalchemy.engine import make_url

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
    """`replace` returns a changed copy."""
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
    """The error for a wrong target or environment has the nearest one or the whole list."""
    with pytest.raises(ValueError, match=message):
        preset(*arguments)


def test_per_task_is_a_pool_of_one():
    """A process that runs one task at a time can hold one connection."""
    one = preset("worker", "prod").replace(prewarm=3).per_task()
    assert (one.pool_size, one.max_overflow, one.prewarm) == (1, 0, 1)
    assert one.max_connections_per_process == 1
    assert preset("lambda").per_task() == preset("lambda")


# -- URLs -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "given", "driver"),
    [
        ("web", "postgresql://h/d", "postgresql+psycopg2"),
        ("web", "postgres://h/d", "postgresql+psycopg2"),
        ("web", "postgresql+psycopg://h/d", "postgresql+psycopg"),
        ("web_async", "postgresql://h/d", "postgresql+asyncpg"),
        ("web_async", "postgresql+psycopg://h/d", "postgresql+psycopg"),
        ("web", "mysql://h/d", "mysql+pymysql"),
        ("web_async", "mariadb://h/d", "mariadb+asyncmy"),
        ("web", "sqlite://", "sqlite+pysqlite"),
        ("web_async", "sqlite:///f.db", "sqlite+aiosqlite"),
    ],
)
def test_a_bare_url_gets_the_targets_driver(target, given, driver):
    """A URL, as text or parsed, that names no driver gets the preset's own; another keeps it."""
    assert preset(target).url(given).drivername == driver
    parsed = make_url(given.replace("postgres:", "postgresql:"))
    assert preset(target).url(parsed) == preset(target).url(given)


def test_sqlite_has_no_server_whose_connections_die():
    """Its engine neither pings nor recycles; the others do both."""
    for target, url in (("web", "sqlite:///f.db"), ("web_async", "sqlite+aiosqlite:///f.db")):
        options = preset(target).engine_options(url)
        assert options["pool_size"] == 5
        assert not {"pool_pre_ping", "pool_recycle"} & options.keys()
    assert {"pool_pre_ping", "pool_recycle"} <= preset("web").engine_options("mysql://h/d").keys()


@pytest.mark.parametrize(
    ("target", "url", "message"),
    [
        ("web", "postgresql+asyncpg://h/d", "does not fit the synchronous target 'web'; use one"),
        ("web_async", "postgresql+psycopg2://h/d", "does not fit the asynchronous target"),
        ("web", "postgresql+pg8000://h/d", "postgresql.psycopg2, postgresql.psycopg"),
        ("web", "oracle://h/d", "database 'oracle' is unknown"),
        ("web", "no url at all", "not a database URL; wanted driver://user"),
    ],
)
def test_a_url_that_does_not_fit_is_refused(target, url, message):
    """A driver of the wrong kind, or an unknown one, is named with those that would do."""
    with pytest.raises(ValueError, match=message):
        preset(target).url(url)


def test_a_driver_that_was_chosen_is_not_replaced_by_another():
    """Only the target's own driver gives way to one of the URL's database."""
    chosen = preset("web").replace(driver="psycopg").url("postgresql://h/d")
    assert chosen.drivername == "postgresql+psycopg"
    with pytest.raises(ValueError, match=r"postgresql\+pymysql does not fit"):
        preset("web").replace(driver="pymysql").url("postgresql://h/d")


def test_a_preset_of_ones_own_has_its_targets_driver():
    """Without a driver named it is the target's, for a preset made by hand too."""
    assert EnginePreset(target="web", environment="dev").driver == "psycopg2"
    assert EnginePreset(target="web_async", environment="dev").driver == "asyncpg"


def test_a_broken_url_does_not_reveal_its_password():
    """The message and its cause are free of the URL's text."""
    with pytest.raises(ValueError) as caught:
        preset("web").url("postgresql//me:hunter2@h/d")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("target", "given", "query"),
    [
        ("web_async", "?sslmode=require", {"ssl": "require"}),
        ("web_async", "?sslmode=verify-full&sslrootcert=ca.pem", {}),
        ("web_async", "?sslmode=disable&sslrootcert=ca.pem", {"ssl": "disable"}),
        ("web_async", "?application_name=x&connect_timeout=3&keepalives_idle=9", {}),
        ("web", "?ssl=require", {"sslmode": "require"}),
        ("web", "?sslmode=verify-full&sslrootcert=ca.pem",
         {"sslmode": "verify-full", "sslrootcert": "ca.pem"}),
    ],
)  # fmt: skip
def test_tls_is_set_by_the_drivers_own_options(target, given, query):
    """One URL serves libpq and asyncpg, whose parameters differ."""
    assert dict(preset(target).url(f"postgresql://h/d{given}").query) == query


def test_the_url_s_own_settings_win():
    """A parameter in the URL is not overruled by the preset, except for the name."""
    url = "postgresql://h/d?connect_timeout=9&application_name=mine"
    arguments = preset("web").engine_options(url, application_name="web:1")["connect_args"]
    assert "connect_timeout" not in arguments
    assert arguments["application_name"] == "web:1"
    arguments = preset("web_async").engine_options(url)["connect_args"]
    assert arguments["timeout"] == 9, "asyncpg has it under another name"


def test_a_poolers_client_sends_the_urls_options_alone():
    """Where the preset sends no startup options, those of the URL are still the caller's own."""
    proxy = preset("lambda_proxy")
    arguments = proxy.engine_options("postgresql://h/d?options=-c%20jit%3Doff")["connect_args"]
    assert arguments["options"] == "-c jit=off"


@pytest.mark.process
@pytest.mark.parametrize("password", ["right", "wrong", None])
def test_asyncpg_can_read_a_key_with_a_password(tmp_path, password):
    """`sslpassword` opens the client's key; without it no question is asked at the terminal."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=me",
         "-passout", "pass:right", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    url = f"postgresql://h/d?sslmode=require&sslcert={certificate}&sslkey={key}"
    url += f"&sslpassword={password}" if password else ""
    if password == "right":
        arguments = preset("web_async").engine_options(url)["connect_args"]
        assert isinstance(arguments["ssl"], ssl.SSLContext)
        assert "sslpassword" not in arguments
    else:
        with pytest.raises(ssl.SSLError):
            preset("web_async").engine_options(url)


def test_the_application_name_is_cut_at_63_bytes():
    """The name fits PostgreSQL's limit, which counts bytes, and no character is halved."""
    options = preset("web").engine_options("postgresql://h/d", application_name="w:" + "é" * 60)
    name = options["connect_args"]["application_name"]
    assert len(name.encode()) == 62
    assert name == "w:" + "é" * 30


def test_the_default_application_name_says_target_and_process():
    """Without a name given it is `<target>:<host>-<pid>`."""
    name = preset("worker").engine_options("postgresql://h/d")["connect_args"]["application_name"]
    assert name.startswith("worker:")


def test_the_proxy_preset_sends_no_startup_options():
    """RDS Proxy and PgBouncer refuse `options`; nothing is prepared by name."""
    sync = preset("lambda_proxy").engine_options("postgresql://h/d")["connect_args"]
    assert "options" not in sync
    three = preset("lambda_proxy").engine_options("postgresql+psycopg://h/d")["connect_args"]
    assert three["prepare_threshold"] is None
    pooled = preset("web_async").replace(transaction_pooling=True)
    arguments = pooled.engine_options("postgresql://h/d")["connect_args"]
    assert set(arguments["server_settings"]) == {"application_name"}
    assert arguments["statement_cache_size"] == 0
    assert arguments["prepared_statement_name_func"]() == ""


# The parameters of MySQLdb.connect() (mysqlclient, MySQLdb/connections.py; the two timeouts are
# passed on to _mysql.c's connect()).
MYSQLCLIENT = {
    "host", "user", "password", "database", "port", "unix_socket", "conv", "connect_timeout",
    "compress", "named_pipe", "init_command", "read_default_file", "read_default_group",
    "cursorclass", "use_unicode", "charset", "auth_plugin", "sql_mode", "client_flag", "ssl",
    "local_infile", "autocommit", "binary_prefix", "read_timeout", "write_timeout",
}  # fmt: skip


def test_mysqlclient_gets_arguments_it_documents():
    """Every argument for mysqlclient is one of its own."""
    options = preset("web", "prod").engine_options("mysql+mysqldb://h/d")
    assert set(options["connect_args"]) <= MYSQLCLIENT


def test_the_wrong_kind_of_engine_is_refused():
    """A synchronous target makes no asynchronous engine, and the other way round."""
    with pytest.raises(ValueError, match="use create_async_engine"):
        preset("web_async").create_engine("postgresql://h/d")
    with pytest.raises(ValueError, match="use create_engine"):
        preset("web").create_async_engine("postgresql://h/d")
