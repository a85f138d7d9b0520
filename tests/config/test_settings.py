"""Settings: each variable, what is refused and in which words, and what is never shown."""

import dataclasses
import ssl
import traceback

import pytest
from processes import ROOT, run_python

from poolkit.config.engine import make_async_engine, make_engine
from poolkit.config.presets import EnginePreset, preset
from poolkit.config.settings import Settings, preset_from_environ
from poolkit.errors import ConfigurationError

URL = "postgresql://me:hunter2@db.example.com/app"
TLS = URL + "?sslmode=require"
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:db-AbCdEf"
PARTS = {"DATABASE_URL": "", "DATABASE_HOST": "db.example.com", "DATABASE_NAME": "app"}
SECRET = PARTS | {"DATABASE_SECRET_ARN": ARN}
IAM = PARTS | {"DATABASE_IAM_AUTH": "true", "DATABASE_USER": "me"}

# What no variable changes.
FIXED = {"target", "environment", "why"}


def read(**environ):
    return Settings.from_environ({"DATABASE_URL": TLS, **environ})


def test_the_url_alone_is_enough():
    """Without any other variable it is the web preset in dev."""
    settings = Settings.from_environ({"DATABASE_URL": URL})
    assert settings.preset == preset("web", "dev")
    assert (settings.target, settings.environment, settings.credentials) == ("web", "dev", "url")
    assert settings.url.host == "db.example.com"


@pytest.mark.parametrize("environ", [{}, {"DATABASE_URL": TLS}, SECRET, IAM])
def test_a_url_of_the_frameworks_own_takes_the_place_of_the_variables(environ):
    """Wherever the variables have the database; they choose the preset all the same."""
    other = "postgresql://shop:hunter3@localhost/shop"
    settings = Settings.from_environ({**environ, "POOLKIT_POOL_SIZE": "7"}, url=other)
    assert (settings.url.database, settings.credentials) == ("shop", "url")
    assert settings.url.password == "hunter3"
    assert settings.preset.pool_size == 7


def test_options_for_sqlalchemy_win_over_the_preset():
    """`make_engine` passes them on, and adds single connect_args to the preset's."""
    settings = read(POOLKIT_ECHO="false")
    engine = make_engine(settings, pool_size=2, connect_args={"application_name": "shop"})
    assert engine.pool.size() == 2
    assert engine.pool.timeout() == settings.preset.pool_timeout


def test_target_environment_and_instance_are_read():
    """The three variables that choose the preset and the name."""
    settings = read(POOLKIT_TARGET="worker", POOLKIT_ENVIRONMENT="prod", POOLKIT_INSTANCE="queue-7")
    assert settings.preset == preset("worker", "prod")
    assert settings.application_name() == "worker:queue-7"


def test_the_default_target_is_the_deployables():
    """A deployable has its own target where the environment names none."""
    environ = {"DATABASE_URL": URL}
    assert Settings.from_environ(environ, default_target="lambda").target == "lambda"


def test_a_target_that_does_not_run_here_is_refused():
    """A web service cannot run as a worker."""
    with pytest.raises(ConfigurationError, match="POOLKIT_TARGET=worker does not run here; allow"):
        Settings.from_environ(
            {"DATABASE_URL": URL, "POOLKIT_TARGET": "worker"}, allowed_targets=("web",)
        )


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("POOLKIT_POOL_SIZE", "7", "pool_size", 7),
        ("POOLKIT_POOL_SIZE", " 7 ", "pool_size", 7),
        ("POOLKIT_POOL_TIMEOUT", "2.5", "pool_timeout", 2.5),
        ("POOLKIT_POOL_RECYCLE", "-1", "pool_recycle", -1),
        ("POOLKIT_ECHO", "off", "echo", False),
        ("POOLKIT_FAIL_FAST", "Yes", "fail_fast", True),
        ("POOLKIT_POOL", "null", "pool", "null"),
        ("POOLKIT_DRIVER", "psycopg", "driver", "psycopg"),
        ("POOLKIT_POOL_SIZE", "", "pool_size", 2),
    ],
)
def test_any_field_of_the_preset_can_be_overridden(variable, text, field, value):
    """`POOLKIT_<FIELD>` replaces the preset's value; an empty one is not set."""
    assert getattr(read(POOLKIT_TARGET="worker", **{variable: text}).preset, field) == value


def test_every_field_has_a_variable():
    """No number of the preset is out of reach, except what names it."""
    for name, value in vars(preset("web", "dev")).items():
        if name not in FIXED:
            assert read(**{f"POOLKIT_{name.upper()}": str(value)}).preset == preset("web")


def test_every_variable_is_documented():
    """The table in docs/configuration.md says of each what the preset says, no more and no less."""
    fields = [f for f in dataclasses.fields(EnginePreset) if f.name not in FIXED]
    names = [f"`POOLKIT_{f.name.upper()}`" for f in fields]
    meanings = [f"{f.metadata['unit']} | {f.metadata['why']}" for f in fields]
    rows = [f"| {name} | {meaning} |" for name, meaning in zip(names, meanings, strict=True)]
    document = ROOT / "docs/configuration.md"
    head = "| variable | unit | what it is |\n|---|---|---|\n"
    _, heading, after = document.read_text().partition(head)
    assert heading
    assert after.split("\n\n")[0].splitlines() == rows


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"POOLKIT_TARGET": "wbe"}, r"POOLKIT_TARGET.*'wbe' is unknown \(did you mean 'web'"),
        ({"POOLKIT_ENVIRONMENT": "live"}, "POOLKIT_ENVIRONMENT.*'live' is unknown; allowed: dev"),
        ({"POOLKIT_POOL_SIZE": "-1"}, "POOLKIT_POOL_SIZE: pool_size must be .* from 1 .*not -1"),
        ({"POOLKIT_POOL_SIZE": "many"}, "POOLKIT_POOL_SIZE must be a whole number, not 'many'"),
        ({"POOLKIT_POOL_SIZE": "5.0"}, "POOLKIT_POOL_SIZE must be a whole number, not '5.0'"),
        ({"POOLKIT_POOL_TIMEOUT": "soon"}, "POOLKIT_POOL_TIMEOUT must be a number, not 'soon'"),
        ({"POOLKIT_POOL_TIMEOUT": "nan"}, "POOLKIT_POOL_TIMEOUT: pool_timeout must be a number"),
        ({"POOLKIT_ECHO": "maybe"}, "POOLKIT_ECHO must be true or false, not 'maybe'"),
        ({"POOLKIT_POOL": "static"}, "POOLKIT_POOL: pool 'static' is unknown; allowed: queue, nul"),
        ({"POOLKIT_POOL": "null"}, "POOLKIT_POOL: pool must be queue for target 'web'"),
        ({"POOLKIT_DRIVER": "odbc"}, "POOLKIT_DRIVER: driver 'odbc' is unknown; allowed: psycopg2"),
        ({"POOLKIT_PREWARM": "9"}, "POOLKIT_PREWARM: prewarm must not exceed pool_size"),
        (
            {"POOLKIT_POOL_SIZE": "2", "POOLKIT_PREWARM": "9"},
            "POOLKIT_PREWARM and POOLKIT_POOL_SIZE: prewarm must not exceed pool_size",
        ),
        ({"POOLKIT_POOLSIZE": "9"}, "POOLKIT_POOLSIZE is not a setting; did you mean POOLKIT_POOL"),
        ({"POOLKIT_ENVIRONMNET": "prod"}, "did you mean POOLKIT_ENVIRONMENT"),
        ({"POOLKIT_DRIVER": "asyncpg"}, "POOLKIT_DRIVER: driver asyncpg does not fit the synchr"),
        ({"POOLKIT_DRIVER": "pymysql"}, r"POOLKIT_DRIVER: driver postgresql.pymysql does not fit"),
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL: not a database URL; wanted driver://"),
        ({"DATABASE_URL": "oracle://h/d"}, "DATABASE_URL: database 'oracle' is unknown"),
        ({"DATABASE_URL": "postgresql+asyncpg://h/d"}, "DATABASE_URL: driver .* does not fit the"),
        ({"DATABASE_URL": ""}, "exactly one of DATABASE_URL, .*; found none"),
        ({"DATABASE_SECRET_ARN": ARN}, "found DATABASE_URL and DATABASE_SECRET_ARN"),
        ({"DATABASE_IAM_AUTH": "maybe"}, "DATABASE_IAM_AUTH must be true or false, not 'maybe'"),
        (SECRET | {"DATABASE_HOST": ""}, "DATABASE_SECRET_ARN also needs DATABASE_HOST"),
        (IAM | {"DATABASE_USER": "", "DATABASE_NAME": ""}, "DATABASE_IAM_AUTH also needs DATABASE"),
        (SECRET | {"DATABASE_PORT": "0"}, "DATABASE_PORT must be from 1 to 65535, not 0"),
        (SECRET | {"DATABASE_PORT": "x"}, "DATABASE_PORT must be a whole number, not 'x'"),
        (SECRET | {"DATABASE_SSLMODE": "on"}, "DATABASE_SSLMODE 'on' is unknown; allowed: disable"),
        (IAM | {"DATABASE_SSLMODE": "prefer"}, "DATABASE_SSLMODE must be require.* over TLS only"),
        (IAM | {"DATABASE_SSLMODE": "disable"}, "DATABASE_SSLMODE must be"),
        (SECRET | {"POOLKIT_DRIVER": "pymysql"}, r"^POOLKIT_DRIVER: driver postgresql\+pymysql"),
        (IAM | {"POOLKIT_DRIVER": "pymysql"}, r"^POOLKIT_DRIVER: driver postgresql\+pymysql"),
        (
            SECRET | {"DATABASE_SSLMODE": "prefer", "POOLKIT_ENVIRONMENT": "prod"},
            r"no TLS, .* refuses; set DATABASE_SSLMODE to req",
        ),
    ],
)
def test_a_wrong_value_is_named(environ, message):
    """The message has the variable that is at fault, what was found and what is allowed."""
    with pytest.raises(ConfigurationError, match=message):
        read(**environ)


def test_a_preset_needs_no_database():
    """`preset_from_environ` reads what selects the preset, and stops at the same mistakes."""
    environ = {"POOLKIT_TARGET": "worker", "POOLKIT_ENVIRONMENT": "prod", "POOLKIT_PREWARM": "1"}
    assert preset_from_environ(environ) == preset("worker", "prod").replace(prewarm=1)
    assert preset_from_environ({}, default_target="script") == preset("script")
    for wrong in ({"POOLKIT_POOL_SIZE": "0"}, {"POOLKIT_TARGET": "wbe"}, {"POOLKIT_ECHOE": "on"}):
        with pytest.raises(ConfigurationError) as here:
            preset_from_environ(wrong)
        with pytest.raises(ConfigurationError) as there:
            read(**wrong)
        assert str(here.value) == str(there.value)
    with pytest.raises(ConfigurationError, match="POOLKIT_TARGET=worker does not run here"):
        preset_from_environ(environ, allowed_targets=("web",))


def test_the_parts_become_a_url_with_tls():
    """Host, port, name and certificate end up where the driver finds them."""
    more = {"DATABASE_PORT": "6432", "DATABASE_SSLROOTCERT": "/ca.pem"}
    settings = read(**IAM, **more)
    assert settings.credentials == "iam"
    assert settings.url.render_as_string() == (
        "postgresql://me@db.example.com:6432/app?sslmode=verify-full&sslrootcert=%2Fca.pem"
    )
    assert read(**SECRET).url.query == {"sslmode": "require"}


@pytest.mark.parametrize("target", ["web", "web_async"])
def test_the_url_reaches_the_engine_whole(target):
    """What asyncpg has no parameter for is not lost on the way: options, limits, certificates."""
    said = "connect_timeout=9&options=-c%20jit%3Doff&sslmode=verify-full"
    settings = read(DATABASE_URL=f"{URL}?{said}&sslrootcert=system", POOLKIT_TARGET=target)
    arguments = settings.preset.engine_options(settings.url)["connect_args"]
    query = settings.preset.url(settings.url).query
    found = arguments | dict(query)
    assert float(found.get("timeout") or found["connect_timeout"]) == 9
    options = arguments.get("options") or arguments["server_settings"]["options"]
    assert options.endswith("-c jit=off")
    assert found.get("sslrootcert") == "system" or found["ssl"].verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    "names",
    [
        ("POOLKIT_PORT", "tcp://10.0.0.1:80"),
        ("POOLKIT_SERVICE_HOST", "10.0.0.1"),
        ("POOLKIT_SERVICE_PORT", "80"),
        ("POOLKIT_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("POOLKIT_PORT_80_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_what_kubernetes_adds_is_no_setting(names):
    """A Kubernetes service called poolkit adds variables with the kit's prefix."""
    assert read(**dict([names])).preset == preset("web")


@pytest.mark.parametrize(
    "url",
    [
        URL,
        URL + "?sslmode=prefer",
        URL + "?sslrootcert=/ca.pem",
        "postgresql://me:hunter2@/app?host=db.example.com",
        "postgresql://me:hunter2@localhost/app?host=db.example.com:5432",
        "postgresql://me:hunter2@127.evil.example/app",
        "mysql://me:hunter2@db.example.com/app",
        "mysql://me:hunter2@db.example.com/app?ssl_mode=DISABLED",
    ],
)
@pytest.mark.parametrize("environment", ["staging", "prod", "high_traffic"])
def test_no_tls_is_refused_outside_dev(url, environment):
    """A connection that leaves the machine is encrypted, wherever the URL names its host."""
    with pytest.raises(ConfigurationError, match=f"no TLS, which .*={environment}"):
        read(DATABASE_URL=url, POOLKIT_ENVIRONMENT=environment)
    read(DATABASE_URL=url)


@pytest.mark.parametrize(
    "url",
    [
        TLS,
        URL + "?sslmode=verify-full&sslrootcert=/ca.pem",
        "postgresql://me:hunter2@127.0.0.1:6432/app",
        "postgresql://me:hunter2@localhost/app",
        "postgresql://me:hunter2@[::1]/app",
        "postgresql://me:hunter2@/app",
        "postgresql://me:hunter2@/app?host=/var/run/postgresql",
        "mysql://me:hunter2@db.example.com/app?ssl_ca=/ca.pem",
        "sqlite:///app.db",
    ],
)
def test_what_needs_no_tls_is_let_through(url):
    """Encrypted, on this machine, or no network at all."""
    assert read(DATABASE_URL=url, POOLKIT_ENVIRONMENT="prod").environment == "prod"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:password@127.0.0.1/app",
        "postgresql://postgres:postgres@db.example.com/app?sslmode=require",
        "postgresql://me@127.0.0.1/app?password=changeme",
    ],
)
def test_a_sample_password_is_refused_outside_dev(url):
    """What tutorials write into compose files does not reach production."""
    with pytest.raises(ConfigurationError, match="sample password"):
        read(DATABASE_URL=url, POOLKIT_ENVIRONMENT="prod")
    read(DATABASE_URL=url)


@pytest.mark.parametrize(
    "url", [TLS, "postgresql://db.example.com/app?sslmode=require&user=me&password=hunter2"]
)
def test_the_password_is_not_shown(url):
    """Neither repr nor str nor a format shows it, wherever the URL has it; the engine gets it."""
    settings = read(DATABASE_URL=url)
    assert "hunter2" not in f"{settings!r} {settings} {settings.url} {settings.url!r}"
    assert (settings.url.username, settings.url.password) == ("me", "hunter2")


@pytest.mark.parametrize("target", ["web", "web_async"])
def test_the_password_of_the_clients_key_is_not_shown(target):
    """Nor is that of the key, by the settings or by the engine; the driver gets it."""
    settings = read(DATABASE_URL=TLS + "&sslpassword=hunter3", POOLKIT_TARGET=target)
    engine = (make_async_engine if target == "web_async" else make_engine)(settings)
    shown = f"{settings!r} {settings} {settings.url} {settings.url!r} {engine!r} {engine.url}"
    assert "hunter3" not in shown
    assert settings.engine_url().query["sslpassword"] == "hunter3"
    arguments = preset("web").engine_options(settings.engine_url())["connect_args"]
    assert arguments["sslpassword"] == "hunter3"


@pytest.mark.parametrize(
    "environ",
    [
        {"DATABASE_URL": URL, "POOLKIT_ENVIRONMENT": "prod"},
        {"DATABASE_URL": "postgresql//me:hunter2@h/d"},
        {"DATABASE_URL": "postgresql://me:hunter2@h:port/d"},
        {"DATABASE_URL": "oracle://me:hunter2@h/d"},
    ],
)
def test_a_traceback_does_not_show_the_password(environ):
    """What ends in a log when the start is refused is free of it."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environ(environ)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_lambda_instances_differ_by_their_log_stream():
    """Each execution environment has a log stream of its own; host name and pid repeat."""
    stream = "2026/11/21/[$LATEST]0f1e2d3c4b5a69788796a5b4c3d2e1f0"
    settings = read(AWS_LAMBDA_LOG_STREAM_NAME=stream, POOLKIT_TARGET="lambda")
    assert settings.application_name() == "lambda:0f1e2d3c4b5a69788796a5b4c3d2e1f0"


@pytest.mark.process
def test_nothing_is_read_at_import():
    """Importing the config module with wrong variables is no error: only reading them is."""
    code = (
        "import sqlalchemy, sys\n"
        "before = set(sys.modules)\n"
        "import poolkit.config.engine, poolkit.config.session\n"
        "from poolkit.config.settings import Settings\n"
        "added = set(sys.modules) - before\n"
        "assert not {'boto3', 'greenlet', 'pydantic', 'sqlalchemy.orm'} & added\n"
        "try: Settings.from_environ()\n"
        "except ValueError as error: print(error)"
    )
    environ = {"POOLKIT_TARGET": "wrong", "DATABASE_URL": "wrong", "PATH": ""}
    done = run_python("-c", code, environ=environ, clean=True)
    assert "POOLKIT_TARGET" in done.stdout, done.stderr
