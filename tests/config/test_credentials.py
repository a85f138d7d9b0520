"""Credentials: fetched when a connection is opened, and rotated without a failed request."""

import asyncio
import json
import operator
import secrets
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import boto3
import pytest
from driving import Clock, TlsFront
from processes import run_python, wait_until
from psycopg2 import sql
from sqlalchemy import event, text
from web_server import self_signed

from poolkit.config import presets
from poolkit.config.credentials import (
    RETRY_TTL,
    SECRET_TTL,
    Credentials,
    IamTokenCredentials,
    SecretsManagerCredentials,
    source_for,
)
from poolkit.config.engine import make_async_engine, make_engine, start_engine
from poolkit.config.session import unit_of_work, unit_of_work_async
from poolkit.config.settings import Settings
from poolkit.errors import ConfigurationError, CredentialsError, DatabaseUnavailable
from poolkit.local.ports import free_port

REGION = "eu-central-1"


@pytest.fixture(scope="module")
def aws(moto_server):
    """Point boto3 at moto, for the module: making a client takes it a second."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": moto_server,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        client = boto3.client("secretsmanager")
        yield client
        client.close()


class Role:
    """A login role whose password lies in Secrets Manager, as RDS keeps it."""

    def __init__(self, database, aws) -> None:
        self.database = database
        self.aws = aws
        self.name = f"rotated_{secrets.token_hex(4)}"
        self.password = secrets.token_urlsafe(12)
        self._execute("CREATE ROLE {} LOGIN PASSWORD {}", self.password)
        self.arn = aws.create_secret(Name=self.name, SecretString=self.secret())["ARN"]

    def _execute(self, statement, password=None) -> None:
        values = [sql.Identifier(self.name)] + ([sql.Literal(password)] if password else [])
        with self.database.connect() as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(*values))

    def secret(self) -> str:
        # What RDS puts there (Amazon RDS User Guide, "Password management").
        return json.dumps({"username": self.name, "password": self.password})

    def set_password(self) -> None:
        """Change it in the database, and nowhere else."""
        self.password = secrets.token_urlsafe(12)
        self._execute("ALTER ROLE {} PASSWORD {}", self.password)

    def put_pending(self) -> str:
        version = secrets.token_hex(16)
        self.aws.put_secret_value(
            SecretId=self.arn,
            ClientRequestToken=version,
            SecretString=self.secret(),
            VersionStages=["AWSPENDING"],
        )
        return version

    def put_current(self) -> None:
        self.aws.put_secret_value(SecretId=self.arn, SecretString=self.secret())

    def settings(self, **more) -> Settings:
        return Settings.from_environ(
            {
                "DATABASE_SECRET_ARN": self.arn,
                "DATABASE_HOST": "127.0.0.1",
                "DATABASE_PORT": str(self.database.server.port),
                "DATABASE_NAME": self.database.name,
                "DATABASE_SSLMODE": "prefer",
                "POOLKIT_CONNECT_TIMEOUT": "60",
                "POOLKIT_ECHO": "off",
                **more,
            }
        )

    def drop(self) -> None:
        self.database.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE usename = %s",
            self.name,
        )
        self._execute("DROP ROLE {}")


@pytest.fixture
def role(database, aws):
    role = Role(database, aws)
    yield role
    role.drop()


def _fetches(source, event="before-call"):
    """Count the calls to Secrets Manager; with `before-send`, the attempts that they take."""
    calls = []
    client = source.client()
    client.meta.events.register(event, lambda **_: calls.append(1))
    return calls


def test_the_secret_opens_the_connection(role):
    """User and password come from the secret; the engine's URL has neither."""
    engine = make_engine(role.settings(POOLKIT_TARGET="lambda"))
    assert engine.url.password is None
    with unit_of_work(engine) as connection:
        assert connection.scalar(text("SELECT current_user")) == role.name
    assert role.password not in repr(role.settings())


def test_many_threads_fetch_once(role, monkeypatch):
    """Threads that all need the secret make one call; it is kept for its time, no longer."""
    source = SecretsManagerCredentials(role.arn, ttl=3_600)
    calls = _fetches(source)
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: source.fetch(), range(32)))
    assert found == {Credentials(role.name, role.password)}
    assert len(calls) == 1
    assert source.cached() is not None
    _put_forward(monkeypatch, 3_601)
    assert source.cached() is None
    source.fetch()
    assert len(calls) == 2


def test_the_password_is_not_shown():
    """Credentials can be logged by accident without harm."""
    assert "hunter2" not in repr(Credentials("me", "hunter2"))


def test_a_refused_password_is_fetched_anew_once(role):
    """A rotated password is found behind AWSCURRENT; if nothing else is known, nothing is tried."""
    source = SecretsManagerCredentials(role.arn)
    old = source.fetch()
    assert source.renew(old) is None
    role.set_password()
    role.put_current()
    assert source.cached() == old
    new = source.renew(old)
    assert new == source.cached() == Credentials(role.name, role.password)
    calls = _fetches(source)
    assert source.renew(old) == new
    assert calls == []


def test_the_pending_password_bridges_the_rotation(role):
    """Between the change in the database and that of the label, the new one is AWSPENDING."""
    settings = role.settings(POOLKIT_TARGET="lambda")
    engine = make_engine(settings)
    with unit_of_work(engine) as connection:
        connection.execute(text("SELECT 1"))
    role.set_password()
    role.put_pending()
    with unit_of_work(engine) as connection:
        assert connection.scalar(text("SELECT 1")) == 1


class Traffic:
    """Requests of four callers, counted for each, and what went wrong with any."""

    def __init__(self) -> None:
        self.done = [0] * 4
        self.errors = []

    def go_on(self) -> None:
        """Wait for five more requests of each caller: all but the first began after this call."""
        wanted = [done + 5 for done in self.done]
        wait_until(lambda: self.errors or all(map(operator.ge, self.done, wanted)))


def _rotate(role, traffic):
    """Rotate twice in the order that AWS's rotation functions keep, no faster than requests."""
    traffic.go_on()
    for _ in range(2):
        role.password = secrets.token_urlsafe(12)
        version = role.put_pending()
        role._execute("ALTER ROLE {} PASSWORD {}", role.password)
        traffic.go_on()
        current = role.aws.describe_secret(SecretId=role.arn)["VersionIdsToStages"]
        old = next(v for v, stages in current.items() if "AWSCURRENT" in stages)
        role.aws.update_secret_version_stage(
            SecretId=role.arn, VersionStage="AWSCURRENT", MoveToVersionId=version,
            RemoveFromVersionId=old,
        )  # fmt: skip
        traffic.go_on()


def test_rotation_under_traffic_fails_no_request_in_threads(role):
    """Four threads connect anew for each request while the password is rotated twice."""
    engine = make_engine(role.settings(POOLKIT_TARGET="lambda"))
    over, traffic = threading.Event(), Traffic()

    def call(number):
        while not over.is_set():
            try:
                with unit_of_work(engine) as connection:
                    connection.execute(text("SELECT 1"))
                traffic.done[number] += 1
            except Exception as error:  # noqa: BLE001  (any is a failure of the test)
                traffic.errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        _rotate(role, traffic)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert traffic.errors == []


def _replace_at_next_checkout(connection, record):
    record.invalidate(soft=True)


def test_rotation_under_traffic_fails_no_request_on_the_loop(role):
    """The same for tasks on an event loop, which is not stopped by the calls to AWS."""
    settings = role.settings(POOLKIT_TARGET="web_async")
    traffic = Traffic()

    async def call(number, engine, over):
        while not over.is_set():
            try:
                async with unit_of_work_async(engine) as connection:
                    await connection.execute(text("SELECT 1"))
                traffic.done[number] += 1
            except Exception as error:  # noqa: BLE001  (any is a failure of the test)
                traffic.errors.append(error)

    async def main():
        engine, over = make_async_engine(settings), asyncio.Event()
        event.listen(engine.sync_engine, "checkin", _replace_at_next_checkout)
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(call(number, engine, over))
            try:
                await asyncio.to_thread(_rotate, role, traffic)
            finally:
                over.set()
        await engine.dispose()

    asyncio.run(main())
    assert traffic.errors == []


def test_a_wrong_password_stays_an_error(role):
    """If Secrets Manager has no other password, the server's refusal is raised."""
    engine = make_engine(role.settings(POOLKIT_TARGET="lambda"))
    role.set_password()
    with (
        pytest.raises(DatabaseUnavailable, match="password authentication failed"),
        unit_of_work(engine) as connection,
    ):
        connection.execute(text("SELECT 1"))


def test_a_renewed_password_has_what_is_left_of_the_time(role, monkeypatch):
    """Both passwords share one deadline, but for the time that AWS takes."""
    engine = make_engine(role.settings(POOLKIT_TARGET="lambda"))
    with unit_of_work(engine) as connection:
        connection.execute(text("SELECT 1"))
    role.set_password()
    role.put_current()
    connector = engine.dialect.connect.connector
    limits, real_connect, clock = [], connector.open, Clock()

    def connect(*arguments, **parameters):
        limits.append(parameters["connect_timeout"])
        clock.ahead += 40
        return real_connect(*arguments, **parameters)

    monkeypatch.setattr(connector, "open", connect)
    monkeypatch.setattr(presets, "time", clock)
    with unit_of_work(engine) as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    assert 50 < limits[0] <= 60
    assert limits[1] <= 20


@pytest.mark.parametrize(
    "secret",
    ["hunter2", '{"username": "me"', '{"username": "hunter2"}', '["hunter2"]', '"hunter2"',
     '{"username": "me", "password": 12345}'],
)  # fmt: skip
def test_a_broken_secret_is_named_and_not_shown(aws, secret):
    """The message has the ARN and what is wanted; nothing of the secret, not in the cause."""
    arn = aws.create_secret(Name=f"broken-{secrets.token_hex(4)}", SecretString=secret)["ARN"]
    with pytest.raises(CredentialsError, match="must be a JSON object with username and") as caught:
        SecretsManagerCredentials(arn).fetch()
    assert arn in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_a_missing_secret_is_named(aws):
    """The message has the ARN and AWS's own words."""
    arn = f"arn:aws:secretsmanager:{REGION}:123456789012:secret:missing-AbCdEf"
    with pytest.raises(CredentialsError, match=r"secret:missing-AbCdEf could not be read: .*find"):
        SecretsManagerCredentials(arn).fetch()


def test_an_unreachable_endpoint_is_an_error_in_bounded_time(aws, monkeypatch):
    """AWS out of reach fails within seconds, and threads that waited share the failure."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    arn = f"arn:aws:secretsmanager:{REGION}:123456789012:secret:x-AbCdEf"
    source = SecretsManagerCredentials(arn)
    calls, attempts = _fetches(source), _fetches(source, "before-send")
    together = threading.Barrier(8)

    def fetch(_):
        together.wait()
        with pytest.raises(CredentialsError, match="could not be read"):
            source.fetch()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(fetch, range(8)))
    # Who is slow to begin may begin after the first failure.
    assert 1 <= len(calls) < 8
    assert len(attempts) <= 3 * len(calls)


def _put_forward(monkeypatch, seconds):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


def test_an_outage_of_aws_leaves_the_known_password_in_use(role, monkeypatch, caplog):
    """After its time a password that cannot be fetched anew serves on, and the log says so."""
    source = SecretsManagerCredentials(role.arn)
    known = source.fetch()
    calls = _fetches(source)
    source.arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:gone-AbCdEf"
    _put_forward(monkeypatch, SECRET_TTL + 1)
    assert source.cached() is None
    assert source.fetch() == source.fetch() == known
    assert len(calls) == 1
    assert "could not be read" in caplog.text
    assert role.password not in caplog.text
    _put_forward(monkeypatch, RETRY_TTL + 1)
    source.arn = role.arn
    role.set_password()
    role.put_current()
    assert source.fetch() == Credentials(role.name, role.password)


def test_a_known_password_waits_for_no_call_to_aws(role, monkeypatch):
    """While one caller fetches, the others go on with the password known so far."""
    source = SecretsManagerCredentials(role.arn)
    known = source.fetch()
    asked, answer = threading.Event(), threading.Event()

    def load():
        asked.set()
        assert answer.wait(60)
        return known

    monkeypatch.setattr(source, "_load", load)
    _put_forward(monkeypatch, SECRET_TTL + 1)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(source.fetch)
        try:
            assert asked.wait(60)
            assert source.fetch() == known
            assert not first.done()
        finally:
            answer.set()
        assert first.result() == known


def test_an_outage_does_not_end_a_start_that_only_prewarms(aws, caplog):
    """Without `fail_fast` the start goes on without credentials; with it, it names the secret."""
    arn = f"arn:aws:secretsmanager:{REGION}:123456789012:secret:missing-AbCdEf"
    parts = {"DATABASE_SECRET_ARN": arn, "DATABASE_HOST": "127.0.0.1", "DATABASE_NAME": "d"}
    settings = Settings.from_environ(parts | {"POOLKIT_PREWARM": "1"})
    assert start_engine(make_engine(settings), settings) == 0
    assert "opened 0 of 1 connections at start: secret" in caplog.text
    settings = Settings.from_environ(parts | {"POOLKIT_FAIL_FAST": "true"})
    with pytest.raises(CredentialsError, match="missing-AbCdEf could not be read"):
        start_engine(make_engine(settings), settings)


def test_boto3_is_imported_only_where_it_is_needed(role):
    """Neither the import of the kit nor an engine without secrets pays for boto3."""
    code = (
        "import sys\n"
        "from poolkit.config.engine import make_engine\n"
        "from poolkit.config.settings import Settings\n"
        "make_engine(Settings.from_environ({'DATABASE_URL': 'postgresql://h/d'}))\n"
        f"secret = {{'DATABASE_SECRET_ARN': {role.arn!r}}}\n"
        "make_engine(Settings.from_environ(secret | "
        "{'DATABASE_HOST': 'h', 'DATABASE_NAME': 'd'}))\n"
        "assert not {'boto3', 'botocore'} & set(sys.modules)\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "source", [SecretsManagerCredentials("x"), IamTokenCredentials("h", 5432, "me")]
)
def test_without_boto3_the_message_says_what_to_install(source, monkeypatch):
    """The extra is named, not a missing module."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(CredentialsError, match=r"need boto3.*pip install .*\[aws\]"):
        source.fetch()


# -- IAM --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_server(postgres, tmp_path_factory):
    """The real server behind TLS: the embedded build has none of its own."""
    certificate, key = self_signed(tmp_path_factory.mktemp("tls"), "server")
    front = TlsFront(postgres.port, certificate, key)
    yield front, certificate
    front.close()


def _iam_settings(server, certificate, database, **more):
    return Settings.from_environ(
        {
            "DATABASE_IAM_AUTH": "true",
            "DATABASE_HOST": "127.0.0.1",
            "DATABASE_PORT": str(server.port),
            "DATABASE_NAME": database.name,
            "DATABASE_USER": "iam_user",
            "DATABASE_SSLROOTCERT": str(certificate),
            "POOLKIT_CONNECT_TIMEOUT": "60",
            "POOLKIT_ECHO": "off",
            **more,
        }
    )


@pytest.fixture
def iam(tls_server, database, aws, monkeypatch):
    """Make the server's role take the token that boto3 signs, as RDS would."""
    source = source_for(_iam_settings(*tls_server, database))
    token = source.fetch()
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE ROLE iam_user LOGIN PASSWORD '{token.password}'")
    monkeypatch.setattr("poolkit.config.credentials.source_for", lambda settings: source)
    yield token.password
    database.wait_for_backends(0, "web")
    database.execute("DROP ROLE iam_user")


def test_the_token_is_boto3s_own(iam, tls_server):
    """It is a signed request for `rds-db:connect` to this host, port and user."""
    server, _ = tls_server
    assert iam.startswith(f"127.0.0.1:{server.port}/?Action=connect&DBUser=iam_user&")
    assert "X-Amz-Expires=900" in iam


def _current_user(settings):
    """Return the name that the server gives the client of an engine of these settings."""
    statement = text("SELECT current_user")
    if not settings.preset.is_async:
        with unit_of_work(make_engine(settings)) as connection:
            return connection.scalar(statement)

    async def ask():
        engine = make_async_engine(settings)
        try:
            async with unit_of_work_async(engine) as connection:
                return await connection.scalar(statement)
        finally:
            await engine.dispose()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("target", "driver"), [("lambda", "psycopg2"), ("lambda", "psycopg"), ("web_async", "asyncpg")]
)
def test_a_token_opens_a_connection_over_tls(iam, tls_server, database, target, driver):
    """The server checks the token, the client the server's certificate and name."""
    more = {"POOLKIT_TARGET": target, "POOLKIT_DRIVER": driver}
    handshakes = tls_server[0].handshakes
    assert _current_user(_iam_settings(*tls_server, database, **more)) == "iam_user"
    assert tls_server[0].handshakes == handshakes + 1


@pytest.fixture(params=["another name", "another certificate"])
def impostor(request, iam, tls_server, database, tmp_path):
    """Settings for a server that is not who it should be."""
    front, certificate = tls_server
    if request.param == "another name":
        return {"DATABASE_HOST": "localhost"}, (front, certificate, database)
    return {}, (front, self_signed(tmp_path, "other")[0], database)


@pytest.mark.parametrize("target", ["lambda", "web_async"])
def test_an_impostor_is_refused(impostor, target):
    """libpq and asyncpg connect to no server of another name, or of an unknown authority."""
    more, where = impostor
    with pytest.raises(Exception, match="certificate"):
        _current_user(_iam_settings(*where, POOLKIT_TARGET=target, **more))


def test_a_token_is_refused_without_tls(tls_server, database):
    """RDS would refuse it; and it would travel in the clear."""
    with pytest.raises(ConfigurationError, match="over TLS only"):
        _iam_settings(*tls_server, database, DATABASE_SSLMODE="prefer")


def test_a_refused_token_is_signed_anew(aws):
    """An expired token is replaced once by one with a later signature."""
    source = IamTokenCredentials("127.0.0.1", 5432, "me")
    first = source.fetch()
    assert source.fetch() == first
    time.sleep(1.01)  # the signature's time is in whole seconds
    second = source.renew(first)
    assert second != first
    assert source.renew(first) == second


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SecretsManagerCredentials("by-name"), r"secret by-name could not be read: .*region"),
        (IamTokenCredentials("h", 5432, "me"), r"no IAM token for me at h: .*region"),
    ],
)
def test_a_missing_region_is_named(aws, monkeypatch, source, message):
    """A token needs one, and a secret that is given by its name alone does not say where it is."""
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(CredentialsError, match=message):
        source.fetch()
