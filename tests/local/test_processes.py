"""The supervisor: processes are started, checked, measured, and ended with their descendants."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from processes import PATIENCE_S, is_listening, runs, wait_until

from poolkit.errors import (
    BinaryMissingError,
    NotReadyError,
    ProcessEndedError,
    ServerStartError,
    StateDirectoryError,
)
from poolkit.local.ports import free_port, is_free
from poolkit.local.processes import Supervisor, Usage
from poolkit.local.readiness import AnswersHttp, HasLogged
from poolkit.local.reaper import Reaper

pytestmark = pytest.mark.process


@pytest.fixture
def supervisor(tmp_path):
    # Long: nothing here ignores SIGTERM, and what stands still for a while is not to be killed.
    with Supervisor(tmp_path / "run", grace_s=60) as supervisor:
        supervisor.start = partial(supervisor.start, timeout_s=PATIENCE_S)
        yield supervisor


def python(script):
    return [sys.executable, "-c", script]


def told(log):
    """Return the port that a server chose itself: a port chosen for it could be taken meanwhile."""
    said = re.search(r"^port (\d+)$", log.read_text(), re.MULTILINE)
    return said and int(said[1])


def where_told(probe_of):
    """Return the probe of a port that the process prints."""
    return lambda log: (port := told(log)) is not None and probe_of(port)(log)


SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        self.send_response(200 if self.path == "/ready?x=1" and Handler.asked > 2 else 503)
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print("port", server.server_port, flush=True)
server.serve_forever()
"""


def test_http_probe_waits_for_status_200(supervisor, monkeypatch):
    """A server is ready at its first 200; a configured proxy is not used."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    web = supervisor.start(
        "web",
        python(SERVER),
        ready=where_told(lambda port: AnswersHttp(f"http://127.0.0.1:{port}/ready?x=1")),
    )
    assert web.log.read_text().count(" 503 ") == 2
    assert is_listening(port := told(web.log))
    supervisor.stop("web")
    assert not is_listening(port)


def test_tcp_log_and_callable_probes(supervisor, tmp_path):
    """A port that is open, a line in the log, and any condition can mean ready."""
    listen = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0)); "
        "print('port', s.getsockname()[1], flush=True); time.sleep(300)"
    )
    supervisor.start(
        "tcp", python(listen), ready=where_told(lambda port: lambda _: is_listening(port))
    )
    supervisor.start(
        "log",
        python("import time; print('worker@1 ready.', flush=True); time.sleep(300)"),
        ready=HasLogged(r"^worker@\d ready\.$"),
    )
    touched = tmp_path / "touched"
    supervisor.start(
        "file", ["sh", "-c", f"touch {touched}; sleep 300"], ready=lambda _: touched.exists()
    )
    assert supervisor.names == ["tcp", "log", "file"]


def test_no_other_user_can_read_a_log(supervisor):
    """Applications log addresses, tokens and what their users sent."""
    before = os.umask(0o000)
    try:
        process = supervisor.start(
            "open",
            python("import time; print('ready', flush=True); time.sleep(60)"),
            ready=HasLogged("ready"),
        )
    finally:
        os.umask(before)
    assert process.log.stat().st_mode & 0o777 == 0o600


def test_not_ready_in_time_quotes_the_end_of_the_log(supervisor):
    """A process that hangs is ended, and the error quotes its last line."""
    script = "import os, time; print('pid', os.getpid(), 'waiting for Godot', flush=True); time.sleep(300)"

    def never(log):
        return not wait_until(lambda: "Godot" in log.read_text())

    with pytest.raises(NotReadyError, match=r"slow was not ready after 0.2 s; .*Godot") as caught:
        supervisor.start("slow", python(script), ready=never, timeout_s=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert not runs(int(str(caught.value).split("pid ")[1].split()[0]))
    assert supervisor.names == []


def test_end_before_ready_has_status_and_log(supervisor):
    """A process that ends at once is not waited for."""
    script, ended = "echo no such table; exit 3", "broken ended with exit status 3"
    with pytest.raises(ServerStartError, match=rf"{ended} .* ends: no such table$"):
        supervisor.start("broken", ["sh", "-c", script], ready=lambda _: False)


def test_check_reports_a_process_that_died(supervisor):
    """The error about a process that ended by itself has its status and its last line."""
    supervisor.check()
    died = supervisor.start("died", ["sh", "-c", "echo out of memory; kill -9 $$"])
    ended = "died ended by itself with signal 9"
    with pytest.raises(ProcessEndedError, match=rf"{ended}; .* ends: out of memory$"):
        wait_until(supervisor.check)
    assert died.process.exit_status == -signal.SIGKILL


def test_environment_and_directory(supervisor, tmp_path):
    """A process gets this environment with additions, and the given directory."""
    os.environ["INHERITED"] = "yes"
    try:
        shown = supervisor.start(
            "env",
            ["sh", "-c", "echo $INHERITED $ADDED $PWD; sleep 300"],
            environ={"ADDED": "too"},
            cwd=tmp_path,
            ready=HasLogged("too"),
        )
    finally:
        del os.environ["INHERITED"]
    assert shown.log.read_text() == f"yes too {tmp_path}\n"


def test_stop_ends_children_orphans_and_detached_grandchildren(supervisor):
    """All descendants of a process end with it, even outside its session."""
    script = (
        "import os, subprocess, sys, time\n"
        "nap = 'import os, time; print(\"up\", os.getpid(), flush=True); time.sleep(300)'\n"
        "a = subprocess.Popen([sys.executable, '-c', nap])\n"
        "b = subprocess.Popen(['setsid', '--fork', sys.executable, '-c', nap])\n"
        "b.wait(); time.sleep(300)\n"
    )

    def naps(log):
        return [int(pid) for pid in re.findall(r"^up (\d+)$", log.read_text(), re.MULTILINE)]

    parent = supervisor.start("parent", python(script), ready=lambda log: len(naps(log)) == 2)
    pids = [parent.pid, *naps(parent.log)]
    assert all(runs(pid) for pid in pids)
    supervisor.stop("parent")
    assert not any(runs(pid) for pid in pids)


def test_orphans_of_a_process_that_ended_itself_are_ended(supervisor):
    """The children of a process that has ended are ended at the stop."""
    left = supervisor.start("left", ["sh", "-c", "sleep 300 & echo $!"])
    # Not as a probe: between a look at the log and the next it may end, which is no start.
    wait_until(lambda: left.process.exit_status is not None, "the end of the parent")
    orphan = int(left.log.read_text())
    assert runs(orphan)
    supervisor.stop("left")
    assert not runs(orphan)


def test_process_that_ignores_sigterm_is_killed_after_the_grace(tmp_path):
    """The polite signal is not the last one."""
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    began = 0.0
    with Supervisor(tmp_path, grace_s=0.3) as supervisor:
        stubborn = supervisor.start("stubborn", python(script), ready=HasLogged("up"))
        began = time.monotonic()
    assert not runs(stubborn.pid)
    assert 0.3 <= time.monotonic() - began < 60


def test_first_process_alone_gets_the_first_signal(supervisor):
    """A server may end its workers in its own way: they get no signal before it has ended."""
    script = (
        "import signal, subprocess, sys, time\n"
        "w = subprocess.Popen([sys.executable, '-c', '''\n"
        "import signal, sys, time\n"
        "def leave(n, f): print(signal.Signals(n).name, flush=True); sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave); signal.signal(signal.SIGUSR1, leave)\n"
        "print('worker up', flush=True)\n"
        # Not pause(): a signal just before it would be waited for in vain.
        "while True: time.sleep(0.05)\n"
        "'''])\n"
        "def leave(n, f): w.send_signal(signal.SIGUSR1); w.wait(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "print('server up', flush=True)\n"
        "while True: time.sleep(0.05)\n"
    )
    server = supervisor.start(
        "server", python(script), ready=lambda log: log.read_text().count(" up") == 2
    )
    supervisor.stop("server")
    assert server.log.read_text().splitlines()[-1] == "SIGUSR1"


def test_all_end_in_reverse_order(tmp_path):
    """The last started process, which may need the others, ends first."""
    order = tmp_path / "order"
    script = "trap 'echo {0} >> {1}; exit' TERM; echo up; while :; do sleep 0.01; done"
    with Supervisor(tmp_path / "run", grace_s=60) as supervisor:
        for name in ("first", "second", "third"):
            supervisor.start(name, ["sh", "-c", script.format(name, order)], ready=HasLogged("up"))
    assert order.read_text().split() == ["third", "second", "first"]


def test_usage_counts_the_whole_tree(supervisor):
    """Memory and processor time are those of a process and its descendants, ended ones too."""
    # The kernel tells each part in whole hundredths of a second: six of them lose up to 0.06 s.
    burn = "import time\nwhile time.process_time() < 0.4: pass\n"
    nap = "x = bytearray(50_000_000); print('up', flush=True); import time; time.sleep(300)"
    script = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {burn!r}])\n"
        f"subprocess.run([sys.executable, '-c', {nap!r}])\n"
    )
    tree = supervisor.start("tree", python(script), ready=HasLogged("up"))
    usage = Usage.of_tree(tree.pid)
    assert usage.processes == 2
    assert usage.rss_bytes > 50_000_000
    assert 0.3 <= usage.cpu_s < 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_process_is_being_started_leaves_none(supervisor, monkeypatch, number):
    """It comes when the process runs and its starter does not know it yet."""
    command, made, start = python("import time; time.sleep(600)"), [], subprocess.Popen

    def interrupted(words, *arguments, **options):
        made.append(start(words, *arguments, **options))
        if words == command:
            signal.raise_signal(number)
        return made[-1]

    monkeypatch.setattr("poolkit.local.processes.subprocess.Popen", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        supervisor.start("sleeper", command)
    assert made[-1].args == command
    try:
        assert not runs(made[-1].pid)
    finally:
        made[-1].kill()
        made[-1].wait()
    assert supervisor.names == []


def test_missing_program_is_one_line(supervisor):
    """A command that cannot be run is named."""
    message = "cannot run /no/such/program in .*: No such file"
    with pytest.raises(BinaryMissingError, match=message):
        supervisor.start("x", ["/no/such/program"])
    assert supervisor.names == []


def test_name_twice_or_not_a_file_name_is_refused(supervisor):
    """A name stands for one process and one log."""
    supervisor.start("one", ["sleep", "300"])
    with pytest.raises(ValueError, match="a process named one runs already"):
        supervisor.start("one", ["sleep", "300"])
    with pytest.raises(ValueError, match="cannot name a process"):
        supervisor.start("../one", ["sleep", "300"])


def test_read_only_run_folder_is_one_line(read_only_disk):
    """A run folder that cannot be made is named."""
    with (
        Supervisor(read_only_disk / "run") as supervisor,
        pytest.raises(StateDirectoryError, match=r"run folder .*Read-only file system"),
    ):
        supervisor.start("x", ["sleep", "300"])


def test_sigterm_handler_is_put_back():
    """SIGTERM raises SystemExit only inside a supervisor's context."""
    before = signal.getsignal(signal.SIGTERM)
    with Supervisor(None):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's settings")
def test_free_port_is_none_of_those_for_outgoing_connections():
    """A client that tries to connect while the server is away can take such a port for itself."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port() < lowest for _ in range(20))


def test_free_port_is_not_given_again_before_its_server_can_bind_it():
    """Nor is it one that a process of the next pid would be given at the same moment."""
    ports = [free_port() for _ in range(40)]
    assert len(set(ports)) == 40
    code = "from poolkit.local.ports import free_port; print(*[free_port() for _ in range(40)])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        output, _ = other.communicate()
    if (other.pid - os.getpid()) % 16:
        assert not set(ports) & {int(port) for port in output.split()}


def test_free_ports_differ_from_those_in_use():
    """A port with a listener is not free; a found one is."""
    assert is_free(free_port())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert not is_free(listener.getsockname()[1])


# -- the reaper -----------------------------------------------------------------------------


def test_stopped_reaper_does_not_delay_its_owner(own_records):
    """A dismissed reaper that does not end in time is killed, without an error for its owner."""
    reaper = Reaper(patience_s=0.1)
    reaper.engage()
    pid = reaper._process.pid
    os.kill(pid, signal.SIGSTOP)
    reaper.dismiss()
    assert not runs(pid)
