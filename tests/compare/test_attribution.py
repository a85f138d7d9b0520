"""Whose connection it is, and whether the target's own database is used."""

import os
import socket
from contextlib import closing

import psutil
import pytest

from poolkit.activity.server import Backend, Sample
from poolkit.compare.run.attribution import Attribution, pgappname
from poolkit.compare.run.database_guard import POSTGRESQL_PORTS, DatabaseGuard
from poolkit.errors import WrongDatabaseError
from poolkit.local.processes import client_sockets

NAME = pgappname("web")


def backend(pid, name="", *, started=1.0, state="idle", client=None, user=""):
    target, _, instance = name.partition(":")
    ages = {"age_s": 1.0, "state_age_s": 1.0, "wait_event": ""}
    return Backend(
        target=target,
        instance=instance,
        pid=pid,
        state=state,
        started=started,
        client=client,
        user=user,
        **ages,
    )


def sample(*backends):
    return Sample(time=0.0, backends=backends, sessions=0, xacts=0)


def owners(attribution, *backends):
    """Return owner and way of each backend."""
    return [(owner, by) for _, owner, by in attribution.of(sample(*backends))]


@pytest.fixture
def attribution():
    """A function that makes an attribution for a target with the preset web."""

    def make(*, is_own_server=True, begun=True, **given):
        return Attribution(
            preset="web", pgappname=NAME, is_own_server=is_own_server, is_running=begun, **given
        )

    return make


@pytest.fixture
def own_socket():
    """A connection that this process has opened; the end that a server would see."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        closing(socket.create_connection(server.getsockname())) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            yield client.getsockname()


def test_on_a_server_of_its_own_every_client_but_the_load_is_the_target(attribution):
    """Whatever its name is; one with the preset's name shows that the preset is used."""
    found = owners(
        attribution(),
        *(backend(1), backend(2, "psql"), backend(3, NAME)),
        *(backend(4, "web:host-1"), backend(5, "loadtest:7")),
    )
    assert found == [
        *(("target", "rest"), ("target", "rest"), ("target", "name")),
        *(("target", "preset"), ("load", "name")),
    ]


@pytest.mark.parametrize(
    ("mark", "by"),
    [
        ("name:web-eu", "name"),
        ("user:web_eu", "user"),
        ("address:10.0.0.5", "address"),
        ("address:10.0.0.0/24", "address"),
    ],
)
def test_a_label_s_connections_have_a_name_a_user_or_an_address_of_their_own(mark, by):
    """The name of the preset, which other labels have too, is nobody's then."""
    found = Attribution(
        preset=None, pgappname="", marks=(mark,), is_own_server=False, is_running=True
    )
    eu = backend(1, "web-eu:1", client=("10.0.0.5", 4000), user="web_eu")
    us = backend(2, "web:host-1", client=("10.0.9.5", 4000), user="web_us")
    local = backend(3, "web:host-2")
    assert owners(found, eu, us, local) == [("target", by), ("other", ""), ("other", "")]


def test_what_was_connected_before_the_start_is_not_the_target(attribution):
    """As connections that the target before it has left; a pid may be used again."""
    found = attribution(begun=False)
    assert owners(found, backend(1, "web:old")) == [("other", "")]
    found.begin(sample(backend(1, "web:old"), backend(2)))
    assert owners(found, backend(1, "web:old"), backend(2)) == [("other", ""), ("other", "")]
    assert owners(found, backend(1, "web:new", started=2.0)) == [("target", "preset")]
    assert found.seen == {"target": 1}


def test_unnamed_connections_of_the_load_are_known_by_their_sockets(attribution, own_socket):
    """A locustfile may have an engine of its own."""
    found = attribution(load_pids=lambda: [os.getpid()])
    assert owners(found, backend(1, client=own_socket)) == [("load", "address")]


def test_on_a_shared_server_what_is_not_recognised_belongs_to_others(attribution, own_socket):
    """Names count, then sockets; until one is found, the number is not known."""
    found = attribution(is_own_server=False, target_pids=lambda: [os.getpid()])
    stranger = backend(1, "psql", client=("127.0.0.1", 1))
    assert owners(found, stranger, backend(2)) == [("other", ""), ("other", "")]
    assert not found.is_known
    named = (backend(3, "web:host-1"), backend(4, NAME), backend(5, client=own_socket))
    assert owners(found, *named) == [
        *(("target", "preset"), ("target", "name"), ("target", "address"))
    ]
    assert found.is_known


def test_an_owner_stays_when_the_name_is_reset(attribution):
    """`RESET ALL` clears the name, as asyncpg does behind a pooler."""
    found = attribution(is_own_server=False)
    owners(found, backend(1, "web:host-1"))
    assert owners(found, backend(1)) == [("target", "preset")]


def test_a_connection_without_its_name_yet_is_looked_at_again(attribution):
    """The server shows it before it has read the name."""
    found = attribution()
    assert owners(found, backend(1, state="unknown")) == [("target", "rest")]
    assert owners(found, backend(1, "web:host-1")) == [("target", "preset")]


def test_an_empty_pgappname_names_nothing():
    """`env = { PGAPPNAME = "" }` must not claim all unnamed connections of a shared server."""
    found = Attribution(preset="web", pgappname="", is_own_server=False, is_running=True)
    assert owners(found, backend(1)) == [("other", "")]


def test_accepted_connections_are_no_client_sockets(own_socket):
    """The end that this process has accepted is that of a server."""
    found = client_sockets([os.getpid()])
    assert own_socket in found
    assert found[own_socket] not in found


# -- the database of a target -----------------------------------------------------------------


class Watched:
    """A sampler that has seen one sample."""

    def __init__(self, sessions):
        self.latest = Sample(time=0.0, backends=(), sessions=sessions, xacts=0)

    def wait_for(self, condition, timeout_s):
        return condition(self.latest), self.latest


@pytest.fixture
def guard(attribution, monkeypatch):
    """A function that makes the guard of this process; signals to its load are noted."""
    sent = []
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append((pid, number)))
    # A server that other tests of this process share may still have connections of it.
    before = client_sockets([os.getpid()]).keys()

    def opened_since(pids):
        found = client_sockets(pids)
        return {client: found[client] for client in found.keys() - before}

    monkeypatch.setattr("poolkit.compare.run.database_guard.client_sockets", opened_since)

    def make(sessions=0, database_url="postgresql://me@127.0.0.1:1/x", **given):
        made = DatabaseGuard(
            name="web",
            load_pid=7,
            attribution=attribution(),
            sampler=Watched(sessions),
            sessions_before=0,
            database_urls=[database_url],
            is_own_server=True,
            **{"agreed": False, "pids": lambda: [os.getpid()], **given},
        )
        made.sent = sent
        return made

    return make


def test_a_counted_session_is_a_use_of_the_database(guard):
    """A connection may be too short for a sample."""
    assert guard(sessions=1).is_used
    assert not guard(sessions=0).is_used


def test_a_target_that_answers_without_a_connection_is_refused(guard):
    """Not at its first answers, which may need no database."""
    # This process may keep a connection to a PostgreSQL of other tests.
    found = guard(pids=list)
    found.check(19)
    with pytest.raises(WrongDatabaseError, match="opened no connection to the embedded PostgreSQL"):
        found.check(20)
    assert found.sent, "the load is ended"


def test_a_target_that_answers_nothing_is_not_refused(guard):
    """Why its requests fail is in its log."""
    guard().check(0, at_end=True)


def test_another_postgresql_on_this_machine_is_named(guard, postgres):
    """Its port is unusual, so it is asked whether it is one; three answers are enough then."""
    with closing(socket.create_connection(("127.0.0.1", postgres.port))):
        found = guard()
        found.check(2)
        with pytest.raises(WrongDatabaseError, match=f"at 127.0.0.1:{postgres.port} instead"):
            found.check(3)


def test_a_connection_to_a_database_on_another_machine_is_refused_at_once(guard):
    """By its port; with agreement it is not. This machine's own address stands for another one."""
    addresses = [
        each.address
        for of in psutil.net_if_addrs().values()
        for each in of
        if each.family == socket.AF_INET and not each.address.startswith("127.")
    ]
    if not addresses:
        pytest.skip("this machine has the loopback address only")
    for port in POSTGRESQL_PORTS:
        try:
            server = socket.create_server((addresses[0], port))
            break
        except OSError:
            continue
    else:
        pytest.skip("the ports of PostgreSQL are taken")
    with server, closing(socket.create_connection(server.getsockname())):
        with pytest.raises(WrongDatabaseError, match=f"{addresses[0]}:{port}, which is not this"):
            guard().refuse_foreign()
        guard(agreed=True).refuse_foreign()
        guard(database_url=f"postgresql://me@{addresses[0]}:{port}/x").refuse_foreign()
