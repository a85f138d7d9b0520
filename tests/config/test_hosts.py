"""Names that nobody resolves and hosts that do not answer, within `connect_timeout`."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import time

import pytest
from driving import Client
from processes import run
from sqlalchemy import make_url

from poolkit.config.presets import preset

DRIVERS = pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "psycopg_async", "asyncpg"])


def client_of(driver, url, **changes):
    target = "web_async" if driver in ("asyncpg", "psycopg_async") else "web"
    chosen = preset(target, "prod").replace(pool_size=1, retry_connect=False, **changes)
    return Client(chosen, url.replace("DRIVER", driver.removesuffix("_async")))


@pytest.fixture
def black_hole():
    """The port of a host that answers no SYN: its backlog is full."""
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = opened.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(listener.getsockname())
        time.sleep(0.2)
        yield listener.getsockname()[1]


OTHERS = [
    pytest.param(driver, "read-write", marks=pytest.mark.slow)
    for driver in ("psycopg", "psycopg_async")
]


@pytest.mark.parametrize(
    ("driver", "kind"),
    [("psycopg2", "read-write"), ("asyncpg", "read-write"), ("asyncpg", "prefer-standby"), *OTHERS],
)
def test_a_silent_host_leaves_time_for_the_next(driver, kind, black_hole, database):
    """Of two hosts the first one swallows packets; the connection is there within the limit."""
    url = make_url(database.url("DRIVER").replace("127.0.0.1", ""))
    url = url.set(host=None, port=None).update_query_dict(
        {
            "host": "127.0.0.1,127.0.0.1",
            "port": f"{black_hole},{database.server.port}",
            "target_session_attrs": kind,
        }
    )
    client = client_of(driver, url.render_as_string(hide_password=False), connect_timeout=10)
    began = time.monotonic()
    assert client.scalar("SELECT 1") == 1
    assert 1 < time.monotonic() - began < 9.5
    client.close()


@DRIVERS
def test_a_name_is_looked_up_for_a_certificate_s_sake(driver, database):
    """A host by its name: libpq gets name and address, and connects to the right server."""
    name = socket.gethostname()
    if "127.0.0.1" not in {found[4][0] for found in socket.getaddrinfo(name, None)}:
        name = "localhost"
    client = client_of(driver, database.url("DRIVER").replace("127.0.0.1", name))
    assert client.scalar("SELECT 1") == 1
    client.close()


@DRIVERS
def test_a_name_that_does_not_exist_is_named(driver):
    """The error is the driver's own kind and has the name, as without a preset."""
    client = client_of(driver, "postgresql+DRIVER://me:x@no-such-host.invalid/d")
    with pytest.raises(Exception, match=r"no-such-host|Name or service|No address|resol"):
        client.scalar("SELECT 1")
    client.close()


SLOW = """
import asyncio, json, sys, time
from concurrent.futures import ThreadPoolExecutor
from sqlalchemy import text
from poolkit.config.presets import preset
from poolkit.config.session import translate

def took(driver):
    backend = "mysql" if "mysql" in driver else "postgresql"
    url = f"{backend}+{driver}://me:x@db.example.com/d"
    engine = preset("script").replace(connect_timeout=2).create_engine(url)
    began = time.monotonic()
    try:
        engine.connect()
    except Exception as error:
        return time.monotonic() - began, type(translate(error)).__name__

with ThreadPoolExecutor() as threads:
    drivers = sys.argv[1:]
    print(json.dumps(dict(zip(drivers, threads.map(took, drivers)))))
"""


@pytest.mark.process
def test_a_silent_resolver_takes_no_longer_than_connect_timeout(tmp_path):
    """glibc waits 10 s for one that does not answer; the connect ends after its 2 s."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        pytest.skip("another resolv.conf needs root and unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        # One of its own, for the port is always the same.
        address = f"127.77.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
        resolver.bind((address, 53))
        (tmp_path / "resolv.conf").write_text(f"nameserver {address}\n")
        (tmp_path / "slow.py").write_text(SLOW)
        mount = f'mount --bind "{tmp_path}/resolv.conf" /etc/resolv.conf && exec "$@"'
        answer = run(
            *("unshare", "-m", "sh", "-c", mount, "sh"),
            *(sys.executable, tmp_path / "slow.py", "psycopg2", "psycopg", "pymysql"),
        )
    if "unshare" in answer.stderr or "mount:" in answer.stderr:
        pytest.skip("a mount namespace of one's own is not allowed here")
    assert answer.returncode == 0, answer.stderr
    for seconds, kind in json.loads(answer.stdout).values():
        assert kind == "DatabaseUnavailable"
        assert 1.5 < seconds < 9.5
