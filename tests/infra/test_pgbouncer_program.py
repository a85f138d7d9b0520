"""infra/pgbouncer/run.py with a real PgBouncer before a real PostgreSQL."""

import importlib.util
import json
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg2
import pytest
from infra.deployed import INFRA
from processes import run
from programs import needs_pgbouncer

from poolkit.local.accounts import server_account
from poolkit.local.pgbouncer import find_pgbouncer
from poolkit.local.ports import free_port

PROGRAM = INFRA / "pgbouncer" / "run.py"

# PgBouncer refuses to run as root, and root's interpreter may be where others cannot go: it is
# loaded first, and then the account is changed.
AS_ACCOUNT = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = importlib.util.module_from_spec(spec)
sys.modules["run"] = run
spec.loader.exec_module(run)
uid, gid = map(int, sys.argv[3:5])
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(gid), os.setuid(uid)
sys.exit(run.main(sys.argv[2], os.environ))
"""


@pytest.fixture
def program():
    spec = importlib.util.spec_from_file_location("pgbouncer_run", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pgbouncer_run"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["pgbouncer_run"]


class Bouncer:
    """The program as a process, and connections through it."""

    def __init__(self, database, role, password_file, log):
        self.database, self.role, self.password_file = database, role, password_file
        self.port = free_port()
        self.process = None
        # No pipe: one that is not read is full after some hundred lines, and PgBouncer waits.
        self.log = log

    def start(self, **variables):
        account = server_account()
        environ = {
            "PATH": "/usr/bin:/bin",
            "DATABASE_HOST": self.database.server.host,
            "DATABASE_PORT": str(self.database.server.port),
            "DATABASE_NAME": self.database.name,
            "DATABASE_USER": self.role,
            "DATABASE_PASSWORD_FILE": str(self.password_file),
            "DATABASE_SSLMODE": "disable",
            "PGBOUNCER_LISTEN_ADDR": "127.0.0.1",
            "PGBOUNCER_LISTEN_PORT": str(self.port),
            "PGBOUNCER_DEFAULT_POOL_SIZE": "2",
            "REFRESH_SECONDS": "0.1",
            "STATEMENT_TIMEOUT": "43210",
        }
        arguments = [str(PROGRAM), str(find_pgbouncer()), str(account.uid), str(account.gid)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", AS_ACCOUNT, *arguments], env=environ | variables, stderr=log
            )
        return self

    def connect(self, password=None, **options):
        """Connect through it; by default with the password of now, over TLS."""
        wanted = {"sslmode": "require", "connect_timeout": 60} | options
        return psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            dbname=self.database.name,
            user=self.role,
            password=password or self.password_file.read_text().strip(),
            **wanted,
        )

    def wait(self, **options):
        """Connect as soon as it is possible."""
        deadline = time.monotonic() + 100
        while True:
            try:
                # In short attempts: PgBouncer keeps who comes at the wrong moment waiting.
                return self.connect(**{"connect_timeout": 5} | options)
            except psycopg2.OperationalError:
                if self.process.poll() is not None:
                    self._start_elsewhere()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)

    def _start_elsewhere(self):
        """Start it again: another program may have taken the free port first."""
        said = self.log.read_text()
        assert "Address already in use" in said, said
        self.port = free_port()
        self.start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def change_password(self):
        """Change it in the database, and then in its file, in one step."""
        password = f"{secrets.token_hex(12)} '\"\\;#=%"
        quoted = password.replace("'", "''")
        self.database.execute(f"ALTER ROLE {self.role} PASSWORD '{quoted}'")
        written = self.password_file.with_suffix(".new")
        written.write_text(password)
        written.chmod(0o644)
        written.replace(self.password_file)
        return password


@pytest.fixture
def bouncer(database, tmp_path):
    """A PgBouncer of the test's own, with a role whose password it may change."""
    role, password = f"bouncer_{secrets.token_hex(4)}", secrets.token_hex(12)
    database.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    file = Path("/tmp") / f"poolkit-test-{role}"
    file.write_text(f"{password}\n")
    file.chmod(0o644)
    made = Bouncer(database, role, file, tmp_path / "pgbouncer.log")
    yield made
    # Not killed: PgBouncer, its child, would stay.
    if made.process is not None and made.process.poll() is None:
        made.stop()
    file.unlink()
    database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", role
    )
    database.execute(f"DROP ROLE {role}")


@needs_pgbouncer
def test_clients_are_encrypted_and_limited(bouncer):
    """TLS is there without a certificate of ours, and the statement timeout is PgBouncer's."""
    connection = bouncer.start().wait()
    assert connection.info.ssl_in_use
    with connection, connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("43210ms",)
    connection.close()
    with pytest.raises(psycopg2.OperationalError, match="SSL required"):
        bouncer.connect(sslmode="disable")


@needs_pgbouncer
def test_a_new_password_is_followed(bouncer):
    """A rotated password is taken within moments, and no client that is connected is cut off."""
    kept = bouncer.start().wait()
    bouncer.wait(password=bouncer.change_password()).close()
    with kept, kept.cursor() as cursor:
        cursor.execute("SELECT 1")
    kept.close()


@needs_pgbouncer
def test_stopping_lets_a_transaction_end(bouncer):
    """SIGTERM in the middle of a transaction: it commits, and then PgBouncer ends with 0."""
    connection = bouncer.start().wait()
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    bouncer.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        bouncer.process.wait(0.5)
    cursor.execute("SELECT 2")
    connection.commit()
    assert bouncer.process.wait(60) == 0
    connection.close()


def test_its_files_are_private(program, tmp_path):
    """The list of users is written for the account alone, with quotes doubled."""
    environ = {"DATABASE_HOST": "h", "DATABASE_NAME": "d", "DATABASE_SSLMODE": "require"}
    files = program.Files(tmp_path, environ | {"PGBOUNCER_CLIENT_TLS_SSLMODE": "disable"})
    files.write(program.Login("u", 'p"w'))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert (tmp_path / "users.txt").read_text() == '"u" "p""w"\n'
    assert 'p"w' not in repr(program.Login("u", 'p"w'))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"DATABASE_HOST": ""}, "DATABASE_HOST is not set"),
        ({"DATABASE_PASSWORD_FILE": ""}, "neither is set"),
        ({"DATABASE_SECRET_ARN": "arn:aws:x"}, "both are set"),
        ({"DATABASE_SSLMODE": ""}, "run scripts/database-certificates"),
        ({"STATEMENT_TIMEOUT": "15s"}, "STATEMENT_TIMEOUT must be a whole number of ms"),
        ({"DATABASE_PASSWORD_FILE": "/nowhere"}, "No such file"),
        ({"DATABASE_PORT": "tcp://10.0.0.1:5432"}, "enableServiceLinks: false"),
        ({"DATABASE_HOST": "db\nx"}, "DATABASE_HOST must be one line"),
        ({"DATABASE_NAME": "a b"}, "DATABASE_NAME must have letters"),
        ({"REFRESH_SECONDS": "soon"}, "REFRESH_SECONDS must be a number of seconds"),
        ({"PGBOUNCER_SERVICE_HOST": "10.0.0.1"}, "PGBOUNCER_SERVICE_HOST names no setting"),
        ({"PGBOUNCER_PORT": "tcp://10.0.0.1:6432"}, "PGBOUNCER_PORT names no setting"),
        ({"PGBOUNCER_POOLSIZE": "5"}, "PGBOUNCER_POOLSIZE names no setting"),
        ({"PGBOUNCER_AUTH_FILE": "/x"}, "PGBOUNCER_AUTH_FILE names no setting"),
        ({"PGBOUNCER_DEFAULT_POOL_SIZE": "ten"}, "PGBOUNCER_DEFAULT_POOL_SIZE must be a whole"),
        ({"PGBOUNCER_QUERY_WAIT_TIMEOUT": "10s"}, "PGBOUNCER_QUERY_WAIT_TIMEOUT must be"),
        ({"PGBOUNCER_LOG_STATS": "yes"}, "PGBOUNCER_LOG_STATS must be 0 or 1"),
        ({"PGBOUNCER_POOL_MODE": "tx"}, "PGBOUNCER_POOL_MODE must be session, transaction"),
    ],
)
def test_a_wrong_setting_is_one_line(bouncer, variables, message):
    """It says what is wrong and ends with 2; PgBouncer is not started."""
    status = bouncer.start(**variables).process.wait(60)
    assert status == 2, bouncer.log.read_text()
    said = bouncer.log.read_text()
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.process
def test_a_setting_of_a_later_version_names_that_version(program):
    """A program that does not know a setting would print its whole usage instead."""
    with pytest.raises(
        program.WrongSetting, match=r"MAX_PREPARED_STATEMENTS needs PgBouncer 1\.21"
    ):
        program.refuse_newer({"max_prepared_statements": "200"}, "true")


def test_every_template_chooses_settings_that_exist(program):
    """CloudFormation, compose and Kubernetes: a variable that names no setting stops the start."""
    found = set()
    for file in INFRA.rglob("*.yaml"):
        found |= set(re.findall(r"\bPGBOUNCER_([A-Z_]+)\b(?=[:,])", file.read_text()))
    assert "DEFAULT_POOL_SIZE" in found
    assert {name.lower() for name in found} <= program.SETTINGS.keys()


@pytest.mark.process
@needs_pgbouncer
def test_pgbouncer_knows_every_setting_that_may_be_chosen(program):
    """The list has only settings that the program has, for its version."""
    shown = run(find_pgbouncer(), "--version")
    version = tuple(map(int, re.search(r"(\d+)\.(\d+)", shown.stdout).groups()))
    known = Path(find_pgbouncer()).read_bytes()
    for setting in program.SETTINGS:
        if program._SINCE.get(setting, version) <= version:
            assert setting.encode() + b"\0" in known, setting


def test_the_password_comes_from_a_secret(program, served_aws):
    """A secret in the form of RDS is read; another is refused without its text."""
    import boto3

    client = boto3.client("secretsmanager")
    text = json.dumps({"username": "u", "password": "p-w"})
    good = client.create_secret(Name="good", SecretString=text)["ARN"]
    bad = client.create_secret(Name="bad", SecretString="only-p-w")["ARN"]
    assert program.read_login({"DATABASE_SECRET_ARN": good}) == program.Login("u", "p-w")
    with pytest.raises(program.WrongSetting, match="must be a JSON object") as refused:
        program.read_login({"DATABASE_SECRET_ARN": bad})
    assert "p-w" not in str(refused.value)
