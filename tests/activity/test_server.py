"""The server's own account of its connections, read from a real PostgreSQL."""

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import quote

import psycopg2
import pytest
from held_connections import connected
from processes import wait_until
from psycopg2.extras import LogicalReplicationConnection
from sqlalchemy.engine import make_url

from poolkit.activity.server import (
    APPLICATION_NAME,
    ActivityConnection,
    ActivitySampler,
    Sample,
    snapshot,
)
from poolkit.errors import ConfigurationError, DatabaseUnavailable, MonitoringNotAllowed

# Only what hangs takes so long.
PATIENCE_S = 60.0


@pytest.fixture
def sampler(database) -> Iterator[ActivitySampler]:
    with ActivitySampler(database.monitor_url(), interval_s=0.02) as running:
        yield running


def url_of_new_role(database, request) -> str:
    """Make a role that may log in and nothing more, for one test."""
    database.execute("CREATE ROLE nobody_special LOGIN PASSWORD 'x'")
    request.addfinalizer(lambda: database.execute("DROP ROLE nobody_special"))
    _, _, rest = database.url().partition("@")
    return f"postgresql+psycopg2://nobody_special:x@{rest}"


def groups(sample):
    """Count the backends by target, instance and state."""
    return Counter((b.target, b.instance, b.state) for b in sample.backends)


def test_what_a_url_names_may_have_spaces(database, tmp_path):
    """It reaches libpq as it is meant: here the name of the file that has the password."""
    url = make_url(database.monitor_url())
    file = tmp_path / "my passwords"
    file.write_text(f"{url.host}:{url.port}:*:{url.username}:{url.password}\n")
    file.chmod(0o600)
    _, _, where = database.monitor_url().partition("@")
    url = f"postgresql://{url.username}@{where}?passfile={quote(str(file))}"
    with connected(database, "web:1"):
        (seen,) = snapshot(url).backends
        assert (seen.target, seen.instance, seen.state) == ("web", "1", "idle")


def test_a_snapshot_names_target_instance_and_state(database):
    """Connections are grouped by the two halves of their name, and by state."""
    with connected(database, "web:host-1", 2), connected(database, "lambda:ee-7") as (busy,):
        busy.autocommit = False
        busy.cursor().execute("SELECT 1")
        found = groups(snapshot(database.monitor_url()))
    assert found == {("web", "host-1", "idle"): 2, ("lambda", "ee-7", "idle in transaction"): 1}


def test_the_watching_connection_is_in_no_count(database):
    """Neither the backends nor the sessions include the one that asks."""
    with ActivityConnection(database.monitor_url()) as activity:
        before = activity.sample()
        (own,) = database.backends(APPLICATION_NAME)
        activity.connect()

        def settled():
            # The fixture's own look at pg_stat_activity was a session. It counts as soon as its
            # backend says so, and that ends a moment after its client.
            sample = activity.sample()
            return sample if sample.sessions > before.sessions and not sample.backends else None

        after = wait_until(settled)
    assert own["usename"] == "poolkit_monitor"
    assert before.backends == after.backends == ()
    assert after.sessions == before.sessions + 1


def test_several_watchers_do_not_see_each_other(database, sampler):
    """A load test and a person may watch at the same time."""
    assert snapshot(database.monitor_url()).backends == ()


def test_the_oldest_idle_transaction_has_its_last_statement(database):
    """Of several it is the one that has done nothing for longest; without any it is None."""
    with ActivityConnection(database.monitor_url()) as activity:
        assert activity.oldest_idle_in_transaction() is None
        with connected(database, "web:1", 2) as (first, second):
            for number, one in enumerate((first, second)):
                one.autocommit = False
                one.cursor().execute(f"SELECT {number}")
                time.sleep(0.05)
            found = activity.oldest_idle_in_transaction()
    assert (found.application_name, found.query) == ("web:1", "SELECT 0")
    assert found.transaction_age_s >= found.idle_s >= 0.05


def test_ages_are_those_of_the_connection_and_of_its_state(database):
    """A connection that becomes busy keeps its age and starts a new time in state."""
    with connected(database, "web:1") as (one,):
        time.sleep(0.15)
        one.cursor().execute("SELECT 1")
        (backend,) = snapshot(database.monitor_url()).of("web:")
    assert backend.age_s >= 0.15
    assert backend.state_age_s < backend.age_s


def test_a_name_without_an_instance_is_the_target(database):
    """Strangers are listed under the name they gave themselves."""
    with connected(database, "psql"), connected(database, ""):
        found = groups(snapshot(database.monitor_url()))
    assert found == {("psql", "", "idle"): 1, ("", "", "idle"): 1}


def test_connections_of_other_databases_are_counted_and_no_more(database, postgres):
    """Only the database in the URL is watched; what fills the server is known all the same."""
    with contextlib.ExitStack() as held, connected(database, "web:1"):
        for _ in range(3):
            other = psycopg2.connect(postgres.admin_url(driver=""))
            held.enter_context(contextlib.closing(other))
            other.autocommit = True

        def count():
            with other.cursor() as cursor:
                cursor.execute(
                    "SELECT count(*) FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND datname <> %s",
                    (database.name,),
                )
                return cursor.fetchone()[0]

        def calm():
            # A connection that an earlier test has closed may end just now.
            before, found = count(), snapshot(database.monitor_url())
            return (before, found) if count() == before else None

        others, found = wait_until(calm)
    assert [backend.target for backend in found.backends] == ["web"]
    assert (found.elsewhere, found.on_server) == (others, others + 1)
    assert others >= 3


def test_what_has_places_of_its_own_takes_none_of_the_clients(database):
    """A walsender is limited by max_wal_senders, not by max_connections."""
    replication = psycopg2.connect(
        database.admin_url(driver=""), connection_factory=LogicalReplicationConnection
    )
    with contextlib.closing(replication):
        kinds = database.execute("SELECT pid, backend_type FROM pg_stat_activity")
        pid = replication.info.backend_pid
        assert {"pid": pid, "backend_type": "walsender"} in [dict(row) for row in kinds]
        # A logical one belongs to this database, so it would be among these.
        assert pid not in {backend.pid for backend in snapshot(database.monitor_url()).backends}


def test_sessions_count_every_connection_exactly(database, sampler):
    """Short connections between two samples are missed by samples, never by the counter."""
    before = sampler.settled_sessions()

    def connect_and_leave():
        for _ in range(15):
            with connected(database, "lambda:1") as (one,):
                one.cursor().execute("SELECT 1")

    threads = [threading.Thread(target=connect_and_leave) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A backend says so at its end, if it could not before; and that may come after the client's.
    assert sampler.wait_for(lambda s: s.sessions - before >= 60, PATIENCE_S)[0]
    assert sampler.settled_sessions() - before == 60


def test_samples_keep_to_their_schedule(database):
    """The moments do not drift by what a sample costs; those missed are counted."""
    interval, cost = 0.05, 0.03
    times, late = [], []

    def note(sample: Sample) -> None:
        late.append(sample.time - (len(late) + sampler.missed) * interval)
        times.append(sample.time)
        time.sleep(cost)

    sampler = ActivitySampler(database.monitor_url(), interval_s=interval, sink=note)
    with sampler:
        assert sampler.wait_for(lambda _: len(late) >= 40, PATIENCE_S)[0]
    # A busy machine makes some late and none early: the most punctual ones show the schedule. What
    # thirty samples cost would be 0.9 s.
    assert min(late[30:40]) - min(late[:10]) == pytest.approx(0, abs=0.4)
    assert min(b - a for a, b in pairwise(times)) < interval + cost / 2


def test_the_limits_are_the_servers_own(database, sampler):
    """max_connections, and what of it an ordinary role can have."""
    with ActivityConnection(database.monitor_url()) as activity:
        limits = activity.limits
    assert (limits.max_connections, limits.superuser_reserved, limits.usable) == (100, 3, 97)
    assert limits.version.startswith("18.")


def test_waiting_until_a_target_has_no_connection_left(database, sampler):
    """It ends with the sample in which the last backend is gone."""
    with connected(database, "web:1", 3):
        assert sampler.wait_for(lambda sample: len(sample.of("web:")) == 3, PATIENCE_S)[0]
        assert sampler.wait_until_no_backends("web:", timeout_s=0.2) == 3
        assert sampler.wait_until_no_backends("worker:", PATIENCE_S) == 0
    assert sampler.wait_until_no_backends("web:", PATIENCE_S) == 0


def test_a_role_without_pg_monitor_is_told_what_to_grant(database, request):
    """It would see only its own connections, so nothing is sampled at all."""
    with pytest.raises(MonitoringNotAllowed, match=r'GRANT pg_monitor TO "nobody_special"'):
        snapshot(url_of_new_role(database, request))
    database.wait_for_backends(0, APPLICATION_NAME)


def test_a_server_that_is_not_there_is_named_in_one_line():
    """The error has the driver's reason and no password."""
    # Bound, so that no other process takes the port, and without a listener.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"postgresql+asyncpg://me:secret@127.0.0.1:{taken.getsockname()[1]}/nothing"
        with pytest.raises(DatabaseUnavailable, match="cannot watch the database") as caught:
            snapshot(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["no url, secret", "mysql://me:secret@127.0.0.1/nothing"])
def test_what_is_no_postgresql_url_is_refused_without_repeating_it(url):
    """The URL may hold a password."""
    with pytest.raises(ConfigurationError) as caught:
        ActivitySampler(url)
    assert "secret" not in str(caught.value)


def test_the_connection_is_kept_while_the_server_is_full(database, sampler):
    """It was there first, so it can say what filled the server."""
    (before,) = database.backends(APPLICATION_NAME)
    with contextlib.ExitStack() as held:

        def connect():
            held.enter_context(connected(database, "lambda:1"))
            return True

        with pytest.raises(psycopg2.OperationalError):
            all(connect() for _ in range(101))
        found, latest = sampler.wait_for(lambda sample: len(sample.backends) > 80, PATIENCE_S)
        assert found
        assert {b.target for b in latest.backends} == {"lambda"}
    # A closed connection's backend takes a while to end, and the server is shared: a process that
    # connects next, such as this test's own fixture, would find it full still.
    assert sampler.wait_until_no_backends("lambda:", PATIENCE_S) == 0
    (after,) = database.backends(APPLICATION_NAME)
    assert after["pid"] == before["pid"]


def test_an_answer_that_comes_too_late_does_not_cost_the_connection(database):
    """It is a gap, with its reason; while the server is full, another one could not be had."""
    # Long enough for the first answers, which are to come.
    url = f"{database.monitor_url()}?options=-cstatement_timeout%3D1000"
    with ActivitySampler(url, interval_s=0.02) as sampler, database.connect() as other:
        (before,) = database.backends(APPLICATION_NAME)
        other.autocommit = False
        other.cursor().execute("LOCK TABLE pg_database IN ACCESS EXCLUSIVE MODE")
        wait_until(lambda: sampler.gaps)
        other.rollback()
        assert sampler.wait_for(lambda _: True, PATIENCE_S)[0]
        (after,) = database.backends(APPLICATION_NAME)
    assert after["pid"] == before["pid"]
    assert sampler.gaps[0].reason.endswith("canceling statement due to statement timeout")


def test_sampling_goes_on_after_the_server_was_restarted(new_postgres):
    """The time without an answer is noted, and the samples begin again."""
    with new_postgres() as server:
        with ActivitySampler(server.monitor_url(), interval_s=0.02) as sampler:
            assert sampler.wait_for(lambda _: True, PATIENCE_S)[0]
            server.restart()
            assert sampler.wait_for(lambda _: True, PATIENCE_S)[0]
        gap = sampler.gaps[0]
    assert gap.end > gap.begin
    assert gap.reason.startswith("the database did not answer")


def test_a_sink_that_fails_ends_the_sampling_and_is_reported(database):
    """A full disk must not look like a quiet server."""

    def full(_: Sample) -> None:
        raise OSError(28, "No space left on device")

    sampler = ActivitySampler(database.monitor_url(), sink=full)
    sampler.start()
    assert sampler.wait_for(lambda _: True, PATIENCE_S) == (False, None)
    with pytest.raises(OSError, match="No space left"):
        sampler.stop()
    sampler.stop()
