"""The web services while their primary fails over to a hot standby, under load."""

import http.client
import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg2
import pytest
from driving import TcpProxy
from processes import ROOT

from poolkit.alembic import Scripts

CLIENTS = 4
RECOVERY_S = 2.0


@dataclass(frozen=True)
class Write:
    began: float
    ended: float
    status: int
    retry_after: str | None


class Load:
    """Clients that write one article after the other, each over a connection of its own."""

    def __init__(self, address):
        self.host = urlsplit(address).netloc
        self.over = threading.Event()
        self.writes: list[Write] = []
        self.stood_still = 0.0  # s
        self.threads = [threading.Thread(target=self.run) for _ in range(CLIENTS)]
        self.threads.append(threading.Thread(target=self.watch))

    def run(self):
        client = http.client.HTTPConnection(self.host, timeout=100)
        body = json.dumps({"title": "failover", "body": ""})
        while not self.over.wait(0.01):
            began = time.monotonic()
            client.request("POST", "/articles", body, {"Content-Type": "application/json"})
            answer = client.getresponse()
            answer.read()
            self.writes.append(
                Write(began, time.monotonic(), answer.status, answer.getheader("Retry-After"))
            )
        client.close()

    def watch(self):
        """Add up how long the machine stands still: no thread of it runs when it should."""
        late = 0.0
        while not self.over.is_set():
            self.stood_still += late if late > 0.1 else 0.0
            began = time.monotonic()
            self.over.wait(0.01)
            late = time.monotonic() - began - 0.01

    @contextmanager
    def running(self):
        for thread in self.threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in self.threads:
                thread.join(100)

    def wait_for_writes(self, count):
        """Wait until each client has had time for some more successful writes."""
        wanted = len(self.succeeded()) + count
        deadline = time.monotonic() + 60
        while len(self.succeeded()) < wanted:
            assert time.monotonic() < deadline, self.writes[-8:]
            time.sleep(0.02)

    def succeeded(self):
        return [write for write in self.writes if write.status == 201]


def admin(server, *statements):
    connection = psycopg2.connect(
        server.admin_url("postgres", driver=""), options="-c default_transaction_read_only=off"
    )
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()


def demote(primary):
    """Make the primary read-only; its sessions, and the server, live on."""
    admin(primary, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")


@pytest.fixture
def servers(new_postgres):
    """A primary with the sample's tables, and its standby."""
    with new_postgres() as primary:
        Scripts(ROOT / "articles/migrations").upgrade(primary.url())
        with primary.standby() as standby:
            yield primary, standby


@pytest.mark.parametrize("target", ["web", "web_async"])
def test_a_service_that_finds_a_reader_writes_again_when_the_name_leads_to_the_writer(
    serve, target, migrated_database
):
    """Its connections have ended, and new sessions are read-only for a while: no 500, no waiting."""
    setting = f"ALTER DATABASE {migrated_database.name} {{}} default_transaction_read_only"
    article = ("POST", "/articles", {"title": "failover", "body": ""})
    with serve(migrated_database.url(driver=""), POOLKIT_CONNECT_TIMEOUT="1") as served:
        assert served.request(*article)[0] == 201
        migrated_database.execute(setting.format("SET") + " = on")
        # As the superuser may: the setting is for every new session.
        migrated_database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        for _ in range(2):
            status, headers, _ = served.request(*article)
            assert (status, headers["Retry-After"]) == (503, "5")
        assert served.get("/readyz") == 503
        admin(migrated_database.server, setting.format("RESET"))
        assert served.request(*article)[0] == 201
        assert served.get("/readyz") == 200


@pytest.fixture(
    params=[
        ("web", "demoted"),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                *[("web", "dies"), ("web", "name moves")],
                *[("web_async", kind) for kind in ("demoted", "dies", "name moves")],
            )
        ),
    ],
    ids=" ".join,
)
def case(request):
    """A web service, and what happens to its primary; one in the default run."""
    return request.param


@pytest.fixture
def target(case):
    return case[0]


@pytest.fixture
def kind(case):
    return case[1]


def test_a_failover_costs_each_process_one_write_and_two_seconds_at_most(
    serve, servers, target, kind
):
    """Every other answer is 503 with Retry-After, while there is no primary, or 201."""
    primary, standby = servers
    login = f"postgresql://poolkit:{primary.password()}@"
    proxy = TcpProxy(primary.port)
    hosts = f"/poolkit?host=127.0.0.1:{primary.port}&host=127.0.0.1:{standby.port}"
    url = login + (f"127.0.0.1:{proxy.port}/poolkit" if kind == "name moves" else hosts)
    with serve(url) as served:
        assert served.get("/readyz") == 200
        load = Load(served.address)
        with load.running():
            load.wait_for_writes(40)
            standby.wait_until_caught_up()
            began = time.monotonic()
            if kind == "dies":
                primary.kill()
            else:
                demote(primary)
            standby.promote()
            if kind == "name moves":
                # As the name of a managed database does: after the promotion, and for new
                # connections only.
                proxy.target = standby.port
            writable, stood_still = time.monotonic(), load.stood_still
            load.wait_for_writes(40)
        stood_still = load.stood_still - stood_still
        assert served.get("/readyz") == 200
    proxy.close()

    failed = [write for write in load.writes if write.status != 201]
    stale = [write for write in failed if write.began > writable]
    last = max((write.ended for write in failed), default=writable)
    first = min(write.ended for write in load.succeeded() if write.began > writable)
    sys.stdout.write(
        f"\n{target}, {kind}: {len(failed)} writes failed, {len(stale)} of them after the promotion,"
        f" which took {writable - began:.1f} s; recovered {max(first, last) - writable:.2f} s after it\n"
    )
    assert {(write.status, write.retry_after) for write in failed} <= {(503, "5")}
    assert len(stale) <= 1
    # On a machine whose cores are free; a busy one gives each process its share only.
    share = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert max(first, last) - writable <= RECOVERY_S * share + stood_still
