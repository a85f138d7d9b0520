"""`poolkit watch`, as a person and as a script use it: on a terminal, and as lines of JSON."""

import codecs
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from itertools import count

import processes
import psycopg2
import pytest
from poolkit_command import refused
from processes import CACHE

from poolkit.activity.server import APPLICATION_NAME
from poolkit.local.postgres import EmbeddedPostgres

pytestmark = pytest.mark.process


HOME = "\x1b[H"
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])")
BEGUN_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*)?$")


@contextlib.contextmanager
def connected(url, name):
    with contextlib.closing(psycopg2.connect(url, application_name=name)) as connection:
        yield connection


def command(*arguments):
    return [sys.executable, "-c", "from poolkit.cli import main; main()", "watch", *arguments]


PLAIN = {"COLUMNS": None, "LINES": None, "TERM": "xterm-256color"}


class Terminal:
    """A terminal of 80 columns with `poolkit watch` in it."""

    def __init__(self, *arguments, **variables):
        self.near, far = pty.openpty()
        fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(far)
        self.far = far
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=far,
            stdout=far,
            stderr=far,
            env=processes.environment({**PLAIN, **variables}, clean=True),
            start_new_session=True,
        )
        self.seen, self.half_read = "", ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def wait_for(self, pattern):
        """Read until the pattern is there; what was read before it is forgotten."""
        match = self.read_until(lambda: re.search(pattern, self.seen))
        self.seen = self.seen[match.start() :]
        return match

    def read_until(self, condition):
        """Return the condition's first true result; a full terminal would stop the command."""

        def found():
            result = condition()
            if not result and select.select([self.near], [], [], 0.1)[0]:
                self.read()
            return result

        return processes.wait_until(found, lambda: self.seen)

    def read(self):
        """Read what is there, which may end in the middle of a character or an escape."""
        text = self.half_read + self.decoder.decode(os.read(self.near, 65536))
        half = BEGUN_ESCAPE.search(text)
        self.half_read = half[0] if half else ""
        whole = text.removesuffix(self.half_read)
        # The next picture begins at the top, and not behind the last line of the one before.
        self.seen += ESCAPES.sub("", whole.replace(HOME, "\n"))

    def press(self, key):
        os.write(self.near, key.encode())

    def wait_for_end(self):
        self.read_until(lambda: self.process.poll() is not None)
        return self.process.returncode

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.near)
        os.close(self.far)


@pytest.fixture
def terminal():
    """Give a function that starts the command on a terminal."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **variables):
            found = Terminal(*arguments, **variables)
            stack.callback(found.end)
            return found

        yield start


def run(*arguments, **variables):
    return processes.run(*command(*arguments), environ={**PLAIN, **variables}, clean=True)


def lines_of(*arguments):
    """Start the command for scripts; see `processes.started`."""
    return processes.started(*command("--json", *arguments), environ=PLAIN, clean=True)


def test_a_script_gets_one_document_a_look(database):
    """Targets, states, the share of max_connections, and the oldest idle transaction's query."""
    url = database.url("")
    with connected(url, "web:1"), connected(url, "web:2") as busy, connected(url, "lambda:1"):
        busy.cursor().execute("SELECT 'the last statement'")
        answer = run("--json", "--once", DATABASE_URL=database.monitor_url(""))
    assert answer.returncode == 0, answer.stderr
    (line,) = answer.stdout.splitlines()
    found = json.loads(line)
    assert (found["connections"], found["max_connections"]) == (3, 100)
    # The tests' own connection is to another database of this server.
    assert found["other_databases"] >= 1
    assert found["share"] == (3 + found["other_databases"]) / 100
    states = {one["target"]: (one["idle"], one["idle_in_transaction"]) for one in found["targets"]}
    assert states == {"web": (1, 1), "lambda": (1, 0)}
    oldest = found["oldest_idle_in_transaction"]
    assert oldest["application_name"] == "web:2"
    assert oldest["query"] == "SELECT 'the last statement'"
    assert oldest["transaction_age_s"] >= oldest["idle_s"] >= 0
    assert found["problem"] is None


def test_connections_opened_per_second_are_the_servers_own_count(database):
    """Short ones count, too; the first line has no number yet."""
    with lines_of("--interval", "0.3", database.monitor_url("")) as process:
        lines = (json.loads(process.next_line()) for _ in count())
        # A machine that stands still may have no answer at first.
        first = next(line for line in lines if line["problem"] is None)
        opened, slack, last, looks_after = 0.0, 0.0, first["time"], 0
        for _ in range(6):
            with connected(database.url(""), "lambda:1"):
                pass
        # A backend may say so only at its end; and there are no more to come then.
        while looks_after < 3:
            found = next(lines)
            if found["problem"] is not None:
                continue  # the next line has what was opened meanwhile
            opened += found["opened_per_s"] * (found["time"] - last)
            # Moments are in whole milliseconds, which matters where a look came late.
            slack += found["opened_per_s"] * 0.001
            last = found["time"]
            looks_after += opened + slack > 5.5
        assert process.terminate(signal.SIGINT) == 0
    assert first["opened_per_s"] is None
    assert opened == pytest.approx(6, abs=0.1 + slack)


def test_a_reader_that_has_enough_ends_it(database):
    """`poolkit watch --json | head -1` leaves no traceback."""
    process = subprocess.Popen(
        command("--json", "--interval", "0.1", database.monitor_url("")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=processes.environment(PLAIN, clean=True),
    )
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait(processes.PATIENCE_S) == 0
    process.stderr.close()
    assert said == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no database: give its URL, or set DATABASE_URL"),
        (("mysql://me:secret@127.0.0.1/x", "--json"), "on PostgreSQL only, not on mysql"),
        (("postgresql://me:secret@127.0.0.1:1/x", "--json"), "cannot watch the database"),
        (("postgresql://127.0.0.1:1/x",), "standard output is not a terminal: add --json"),
        (("postgresql://x/x", "--json", "--interval", "0"), "--interval must be at least 0.05 s"),
        (("postgresql://x/x", "--json", "--interval", "nan"), "--interval must be at least"),
    ],
)
def test_what_cannot_be_watched_is_one_line(arguments, said):
    """Exit status 2, no traceback, no password."""
    answer = run(*arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert line.startswith("poolkit: ")
    assert said in line
    assert "secret" not in line


def test_a_role_without_pg_monitor_is_told_what_to_grant(database):
    """It would see its own connections alone."""
    refused(run("--json", database.url("")), "GRANT pg_monitor TO")


def test_the_terminal_shows_targets_and_the_oldest_transaction(database, terminal):
    """It follows the connections, fits into 80 columns, and q ends it."""
    url = database.url("")
    shown = terminal("--interval", "0.2", database.monitor_url(""))
    shown.wait_for("No connection is idle in a transaction")
    with connected(url, "web:1"), connected(url, "web:2") as busy:
        busy.cursor().execute("SELECT 'what\x1b[2Jit did'\n, " + "1, " * 60 + "2")
        shown.wait_for(r"web +2 +· +1 +· +1 +2")
        shown.wait_for(r"Oldest idle in transaction: web:2 \(pid \d+\)")
        shown.wait_for(r"SELECT 'what \[2Jit did' , 1, 1")
        picture = shown.wait_for("(?s)Connections  PostgreSQL.*?q or Ctrl-C ends")[0]
        assert max(len(line) for line in picture.splitlines()) <= 80
    shown.wait_for(r"together +· +· +· +· +· +·")
    shown.press("q")
    assert shown.wait_for_end() == 0
    assert termios.tcgetattr(shown.far)[3] == shown.before[3], "as it was"


def test_the_server_is_as_full_as_all_of_its_databases_make_it(tmp_path, terminal):
    """The database in the URL has no connection, and the server hardly room for one."""
    with EmbeddedPostgres(tmp_path, durable=False, cache_dir=CACHE, max_connections=12) as server:
        shown = terminal("--interval", "0.2", server.monitor_url(driver=""))
        shown.wait_for("0 of 12 .*0%, 9 usable")
        with contextlib.ExitStack() as held:
            for _ in range(6):
                other = psycopg2.connect(server.admin_url("postgres", driver=""))
                held.enter_context(contextlib.closing(other))
            shown.wait_for("6 of 12 .*50%, 9 usable")
            shown.wait_for(r"together +· +· +· +· +· +·")
            shown.wait_for(r"other databases +· +· +· +· +· +6")
            found = json.loads(run("--json", "--once", server.monitor_url(driver="")).stdout)
        shown.press("q")
        assert shown.wait_for_end() == 0
    assert (found["connections"], found["other_databases"], found["share"]) == (0, 6, 0.5)
    assert found["targets"] == []


def test_ctrl_c_ends_it_like_q(database, terminal):
    """Exit status 0, and the terminal is as it was."""
    shown = terminal(DATABASE_URL=database.monitor_url(""))
    shown.wait_for("of 100")
    shown.process.send_signal(signal.SIGINT)
    assert shown.wait_for_end() == 0
    assert termios.tcgetattr(shown.far)[3] == shown.before[3]


def test_a_server_without_an_answer_is_shown_and_blocks_no_end(database, terminal):
    """The wait for an answer ends with Ctrl-C, not with the server's return."""
    shown = terminal("--interval", "0.2", database.monitor_url(""))
    shown.wait_for("of 100")
    ((watching),) = database.backends(APPLICATION_NAME)
    os.kill(watching["pid"], signal.SIGSTOP)
    try:
        shown.wait_for(r"No answer for \d+ s; trying again")
        shown.process.send_signal(signal.SIGINT)
        assert shown.wait_for_end() == 0
    finally:
        os.kill(watching["pid"], signal.SIGCONT)
    assert termios.tcgetattr(shown.far)[3] == shown.before[3]


def test_a_restart_of_the_server_is_shown_and_survived(tmp_path, terminal):
    """The watching goes on by itself, here and in the lines for scripts."""
    with EmbeddedPostgres(tmp_path, durable=False, cache_dir=CACHE) as server:
        url = server.monitor_url(driver="")
        shown = terminal("--interval", "0.1", url)
        with lines_of("--interval", "0.1", url) as lines:
            assert json.loads(lines.next_line())["problem"] is None
            shown.wait_for("0 of 100")
            server.restart()
            shown.wait_for(r"No answer for \d+ s; trying again")
            shown.wait_for("0 of 100")
            problems = []
            while not (problems and problems[-1] is None and any(problems)):
                problems.append(json.loads(lines.next_line())["problem"])
        shown.press("q")
        assert shown.wait_for_end() == 0
