"""`poolkit holders`: who holds the connections of a real server, and what for."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import processes
import psycopg2
import pytest
from poolkit_command import refused, run_here
from processes import wait_until
from programs import needs_pgbouncer
from sqlalchemy import text

from poolkit.activity.holding import Counters
from poolkit.activity.server import APPLICATION_NAME
from poolkit.config.engine import make_engine
from poolkit.config.holds import unit
from poolkit.config.metrics import PoolMetrics
from poolkit.config.settings import Settings
from poolkit.local.pgbouncer import EmbeddedPgBouncer
from poolkit.prometheus import exposition

pytestmark = pytest.mark.process

PLAIN = {"COLUMNS": "80", "LINES": None}
AGED_S = 0.6
"""What was idle or waited for so long before the look is old in its first sample already: on a machine
that stands still meanwhile, there may be no second one."""


def command(*arguments):
    return [sys.executable, "-m", "poolkit", "holders", *arguments]


def run(*arguments, **variables):
    return run_here("holders", *arguments, COLUMNS="80", **variables)


def found_in(url, *arguments, seconds=1):
    """Run the command, and return its document and its groups by application."""
    answer = run("--json", "--seconds", str(seconds), *arguments, url)
    assert answer.returncode == 0, answer.stderr
    document = json.loads(answer.stdout)
    return document, {group["application"]: group for group in document["groups"]}


@contextlib.contextmanager
def connection(url, name, *, autocommit=False):
    with contextlib.closing(psycopg2.connect(url, application_name=name)) as opened:
        opened.autocommit = autocommit
        yield opened


@contextlib.contextmanager
def in_threads(*functions):
    """Call functions again and again beside the test; each gets the event that ends it."""
    over = threading.Event()

    def repeat(function):
        while not over.is_set():
            function()

    threads = [threading.Thread(target=repeat, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def waiting_for_their_client(database, name):
    """Return how many backends are idle in a transaction, and asleep until their client goes on."""
    asleep = ("idle in transaction", "ClientRead")
    return sum((b["state"], b["wait_event"]) == asleep for b in database.backends(name))


def test_connections_held_over_something_else_are_named(database):
    """By target, with the share of their time, the last statement, and the line in its comment."""
    url = database.url("")
    statement = "SELECT 'secret' /*unit='GET%20/orders',where='app/views.py:41'*/"
    with contextlib.ExitStack() as held:
        for number in range(3):
            one = held.enter_context(connection(url, f"web:host-{number % 2}"))
            one.cursor().execute(statement)
        held.enter_context(connection(url, "web:host-0"))
        held.enter_context(connection(url, "psql"))
        wait_until(lambda: waiting_for_their_client(database, "web:") == 3)
        time.sleep(AGED_S)
        document, groups = found_in(database.monitor_url(""), seconds=0.5)
    web, psql = groups["web"], groups["psql"]
    assert (web["connections"], web["instances"], web["held"]) == (4, 2, 3)
    assert web["verdict"] == "held"
    assert web["held_share"] == 1
    assert web["idle_in_transaction"] == pytest.approx(0.75)
    assert web["longest_idle"]["state_s"] > 0.5
    assert "secret" not in json.dumps(document)
    assert web["held_after"] == [
        {
            "statement": "SELECT ?",
            "comment": {"unit": "GET /orders", "where": "app/views.py:41"},
            "share": 1.0,
            "longest_s": web["longest_idle"]["state_s"],
        }
    ]
    assert web["wait_events"]["Client:ClientRead"] == pytest.approx(0.75)
    assert (psql["verdict"], psql["user"], psql["client"]) == ("idle", "poolkit", "127.0.0.1")
    assert (document["sees_all"], document["is_pooled"]) == (True, False)
    # More than a second without a sample, which a machine that stood still has.
    assert document["unseen_s"] == 0 or document["seconds"] > 1


def test_a_chain_of_locks_leads_to_its_first_holder(database):
    """The second waiter waits for the first, and both for the one that does nothing."""
    url = database.url("")
    database.execute("CREATE TABLE orders (id int PRIMARY KEY, n int)")
    database.execute("INSERT INTO orders VALUES (1, 1)")
    database.execute("GRANT ALL ON orders TO PUBLIC")
    with (
        connection(url, "web:1") as holder,
        connection(url, "worker:1") as first,
        connection(url, "worker:2") as second,
    ):
        update = "UPDATE orders SET n = n + 1 WHERE id = 1"
        holder.cursor().execute(update)
        threads = []
        for waiter in (first, second):
            threads.append(threading.Thread(target=waiter.cursor().execute, args=(update,)))
            threads[-1].start()
            database.wait_for_lock(waiter.info.dsn_parameters["application_name"])
        time.sleep(AGED_S)
        document, groups = found_in(database.monitor_url(""), seconds=0.5)
        holder.rollback()
        threads[0].join()
        first.rollback()
        threads[1].join()
    (blocker,) = document["blockers"]
    assert (blocker["application"], blocker["blocked"]) == ("web", {"worker": 2})
    assert blocker["lock"] == "row of orders"
    assert blocker["longest_wait_s"] > 0.5
    assert blocker["holder"]["state"] == "idle in transaction"
    assert blocker["holder"]["statement"] == "UPDATE orders SET n = n + ? WHERE id = ?"
    assert (groups["web"]["blocks"], groups["web"]["waiting"]) == (2, 0)
    assert (groups["worker"]["verdict"], groups["worker"]["waiting"]) == ("waiting", 2)


def test_an_ordinary_busy_pool_holds_nothing(database):
    """Its connections run SQL: statements that outlast the look, however slow this client is."""
    url = database.url("")

    def work(opened):
        with contextlib.suppress(psycopg2.errors.QueryCanceled):
            opened.cursor().execute("SELECT pg_sleep(600)")

    with connection(url, "web:1") as a, connection(url, "web:1") as b:
        threads = [threading.Thread(target=work, args=(opened,)) for opened in (a, b)]
        for thread in threads:
            thread.start()
        try:
            wait_until(
                lambda: [x["wait_event"] for x in database.backends("web:")].count("PgSleep") == 2
            )
            document, groups = found_in(database.monitor_url(""), seconds=0.5)
        finally:
            for opened, thread in zip((a, b), threads, strict=True):
                opened.cancel()
                thread.join()
    assert groups["web"]["verdict"] == "sql"
    assert groups["web"]["held"] == 0
    assert document["blockers"] == []


def row(pid, state, age_s):
    """Return a backend's row of one sample."""
    where = ("client backend", f"web:{pid}", "poolkit", "127.0.0.1", state, None, None)
    return (pid, *where, 1.0, age_s, age_s, "SELECT 1", False, None, None, None, None)


@pytest.mark.parametrize(("idle", "verdict"), [(3, "sql"), (8, "chatty")])
def test_the_moments_between_two_statements_hold_nothing(idle, verdict):
    """A client needs some milliseconds to go on, and at times it is seen in them."""
    counters = Counters()
    for number in range(10):
        state = "idle in transaction" if number < idle else "active"
        counters.add([row(1, state, 0.005), row(2, state, 0.02)])
    (web,) = counters.groups()
    assert (web.verdict, web.idle_in_transaction) == (verdict, idle / 10)


def test_a_transaction_that_was_forgotten_is_found_in_a_busy_pool():
    """One of many, where the others work: its age is known from before the first sample."""
    counters = Counters()
    for second in range(5):
        active = [row(pid, "active", 0.1) for pid in range(1, 5)]
        counters.add([*active, row(9, "idle in transaction", 3000.0 + second)])
    (web,) = counters.groups()
    assert (web.verdict, web.held, web.connections) == ("forgotten", 1, 5)
    assert (web.longest_idle.pid, web.longest_idle.state_s) == (9, 3004)


def test_a_role_without_pg_monitor_gets_what_it_may_see(database):
    """It sees its own role's connections; of the others the names, and it says so."""
    url = database.url("")
    with connection(url, "web:1") as own, connection(database.admin_url(""), "batch:1") as other:
        own.cursor().execute("SELECT 1")
        other.cursor().execute("SELECT 1")
        time.sleep(AGED_S)
        document, groups = found_in(url, seconds=0.5)
    assert document["sees_all"] is False
    assert groups["web"]["verdict"] == "held"
    assert (groups["batch"]["verdict"], groups["batch"]["hidden"]) == ("hidden", 1)
    assert groups["batch"]["longest_idle"] is None
    assert any("GRANT pg_monitor TO" in note for note in document["notes"])


def test_the_table_fits_a_narrow_terminal(database):
    """80 columns, no control characters of another program, and the verdict below the table."""
    url = database.url("")
    with connection(url, "web-with-a-long-name:\x1b1") as one, connection(url, "\x1b[2J") as two:
        one.cursor().execute("SELECT " + "'\x1b[2J', a".replace("a", "1 AS " + "a" * 60))
        two.cursor().execute("SELECT 1")
        time.sleep(AGED_S)
        answer = run("--seconds", "0.5", DATABASE_URL=database.monitor_url(""))
    assert (answer.returncode, answer.stderr) == (0, "")
    lines = answer.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    assert re.search(r"web-with-a-long-name +1 +· +100% +· ", answer.stdout)
    assert "web-with-a-long-name: 1 of 1 connection was idle in a transaction 100%" in answer.stdout


def wait_for_looks(database):
    """Wait until a sampling has begun its third look: the first is counted by then."""
    begun = set()

    def third():
        for backend in database.backends(APPLICATION_NAME):
            if "wait_event_type" in backend["query"]:
                begun.add(backend["query_start"])
        return len(begun) >= 3

    wait_until(third, "looks of the sampling")


def test_ctrl_c_shows_what_was_seen_so_far(database):
    """Long before the end; exit status 0."""
    with connection(database.url(""), "web:1") as held:
        held.cursor().execute("SELECT 1")
        process = subprocess.Popen(
            command("--json", "--seconds", "600", "--interval", "0.05", database.monitor_url("")),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=processes.environment(PLAIN, clean=True),
        )
        wait_for_looks(database)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=processes.PATIENCE_S)
    assert (process.returncode, err) == (0, "")
    document = json.loads(out)
    assert document["groups"][0]["verdict"] == "held"
    assert document["seconds"] < 300


@needs_pgbouncer
def test_behind_pgbouncer_it_says_what_is_not_visible(postgres, tmp_path):
    """The pooler refuses startup options, which this command does without."""
    with EmbeddedPgBouncer(postgres, tmp_path) as pooler:
        document, groups = found_in(pooler.url(driver=""), seconds=0.5)
    assert document["is_pooled"] is True
    assert any("pooler" in note for note in document["notes"])
    assert APPLICATION_NAME not in groups


@contextlib.contextmanager
def served(answer):
    """Serve what a function returns as the metrics of an application."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = answer()
            self.send_response(200 if body else 500)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()


def test_the_application_s_own_metrics_name_the_lines(database):
    """Only what was held meanwhile counts, although its metrics count since its start."""
    metrics = PoolMetrics()
    engine = make_engine(Settings.from_environ({"DATABASE_URL": database.url()}), metrics)

    # Ten times as long as what counts as held: most looks find it so, whenever they come.
    hold_s, over = 0.5, []

    def hold():
        with unit('GET /"x"'), engine.connect() as opened:
            opened.execute(text("SELECT 1"))
            time.sleep(hold_s)
        over.append(time.monotonic())

    def exposed():
        # One hold at least between two readings, however short the time between them was.
        before = len(over)
        wait_until(lambda: len(over) > before)
        return exposition({"web": metrics.snapshot(engine.pool)}, {"web": metrics.holds.rows()})

    for _ in range(3):
        hold()
    with served(exposed) as url, in_threads(hold):
        began = time.monotonic()
        document, groups = found_in(database.monitor_url(""), "--metrics", url)
        most = 1 + (time.monotonic() - began) / hold_s
        table = run("--seconds", "0.5", "--metrics", url, database.monitor_url(""))
    engine.dispose()
    (site,) = document["call_sites"]
    assert (site["target"], site["unit"]) == ("web", 'GET /"x"')
    assert "test_holders.py:" in site["where"]
    assert 1 <= site["checkouts"] <= most
    # What no SQL ran in is the sleep at least.
    idle_s = site["held_s"] * (1 - site["busy_share"])
    assert idle_s >= 0.99 * hold_s * site["checkouts"]
    # A percentile is the middle of its bucket, which may be 6 % off.
    assert site["p95_s"] >= 0.94 * hold_s
    assert groups["web"]["verdict"] == "held"
    assert 'GET /"x"' in table.stdout
    assert max(map(len, table.stdout.splitlines())) <= 80


def test_metrics_that_cannot_be_read_are_one_line(database):
    """At the start; a page without them is a note."""
    url = database.monitor_url("")
    refused(run("--metrics", "http://127.0.0.1:1/metrics", url), "--metrics: http://127.0.0.1:1")
    refused(run("--metrics", "file:///etc/passwd", url), "wanted an http:// or https:// URL")
    with served(lambda: b"") as broken:
        refused(run("--metrics", broken, url), "500")
    with served(lambda: b"other 1\n") as other:
        document, _ = found_in(url, "--metrics", other, seconds=0.2)
    assert document["call_sites"] == []
    assert any("no metrics of who holds" in note for note in document["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no database: give its URL, or set DATABASE_URL"),
        (("mysql://me:secret@127.0.0.1/x",), "on PostgreSQL only, not on mysql"),
        (("postgresql://me:secret@127.0.0.1:1/x",), "cannot watch the database"),
        (("postgresql://x/x", "--interval", "0"), "--interval must be at least 0.02 s"),
        (("postgresql://x/x", "--seconds", "0"), "--seconds must be at least --interval"),
        (("postgresql://x/x", "--seconds", "inf"), "--seconds must be at least --interval"),
        (("postgresql://x/x", "--seconds", "nan"), "--seconds must be at least --interval"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(arguments, message):
    """Exit status 2, no traceback, no password."""
    answer = run(*arguments)
    refused(answer, message)
    assert "secret" not in answer.stderr
