"""Containers as processes: what an orchestrator would start, isolated as far as the kernel lets it.

Each container gets namespaces of its own (mounts, processes, network) from bubblewrap and
iproute2, a read-only root with the image's files, the writable folders that its manifest declares
and no others, exactly the variables that the orchestrator and the image set, and an unprivileged
account without capabilities. Its program is process 1, for which the kernel ignores a signal that
has no handler. What differs from a real container: Debian's files instead of the image's own, the
interpreter and the packages of this checkout, and no limits of memory and processor.
"""

import contextlib
import ctypes
import functools
import http.client
import itertools
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from programs import needs

PROGRAMS = {
    "bwrap": "bubblewrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
}
"""What isolates containers: each program with its package of Debian."""
PYTHON = Path(sys.executable).resolve().parent.parent
ENVIRONMENT = Path(sys.prefix)
BASE_PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The PATH of the images of Python."""
PATIENCE_S = 10
"""The shortest time limit of a probe here: a machine that runs other tests too is slow."""
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET, sched.h
_FOLDERS = r"poolkit-container-(\d+)-\w+"


def _refusal():
    """Return why this machine cannot run containers whatever is installed, or an empty text."""
    if os.geteuid() != 0:
        return "only root can make network namespaces and change the account"
    made = subprocess.run(["unshare", "--mount", "--net", "true"], capture_output=True, check=False)
    return "" if made.returncode == 0 else "the kernel refuses namespaces"


REFUSAL = _refusal()
NEEDED = [
    pytest.mark.skipif(bool(REFUSAL), reason=REFUSAL or "the kernel allows namespaces"),
    *(
        needs(shutil.which(name), f"apt-get install {package}")
        for name, package in PROGRAMS.items()
    ),
]
"""The marks of tests that run containers."""


# -- what is run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """What a Dockerfile's last stage says, and the files that it copies."""

    variables: dict
    working_directory: str
    user: str
    entrypoint: list
    command: list
    healthcheck: list | None
    volumes: list
    files: dict = field(default_factory=dict)
    """Folders and files of this machine by their path in the image."""

    @classmethod
    def read(cls, dockerfile, files):
        """Read the instructions that decide how a container of the image starts."""
        text = re.sub(r"\\\n", " ", dockerfile.read_text().rpartition("\nFROM ")[2])
        found = {"ENV": {}, "VOLUME": [], "ENTRYPOINT": [], "CMD": [], "HEALTHCHECK": None}
        for line in text.splitlines():
            instruction, _, rest = line.strip().partition(" ")
            if instruction == "ENV":
                for name, value in (word.split("=", 1) for word in shlex.split(rest)):
                    found["ENV"][name] = value.replace("$PATH", BASE_PATH)
            elif instruction == "HEALTHCHECK" and "CMD" in rest:
                found["HEALTHCHECK"] = json.loads(rest.partition("CMD")[2])
            elif instruction in ("ENTRYPOINT", "CMD"):
                found[instruction] = json.loads(rest)
            elif instruction == "VOLUME":
                found["VOLUME"] += json.loads(rest)
            elif instruction in ("WORKDIR", "USER"):
                found[instruction] = rest.strip()
        return cls(
            found["ENV"],
            found.get("WORKDIR", "/"),
            found.get("USER", "0"),
            found["ENTRYPOINT"],
            found["CMD"],
            found["HEALTHCHECK"],
            found["VOLUME"],
            {"/opt/venv": ENVIRONMENT, **files},
        )


@dataclass(frozen=True)
class Container:
    """One container as an orchestrator would create it: everything is decided."""

    name: str
    image: Image
    command: list
    variables: dict
    user: str
    group: str
    extra_group: str | None = None
    working_directory: str = "/"
    read_only: bool = True
    writable: dict = field(default_factory=dict)
    """The mode of each writable folder by its path."""
    files: dict = field(default_factory=dict)
    """The text of each mounted file by its path, such as a secret's."""
    probes: dict = field(default_factory=dict)
    grace_s: float = 10.0


# -- where it is run ------------------------------------------------------------------------


class Machine:
    """A private network, and the containers in it; all of them end with it.

    A test run that is killed leaves them behind, with the number of its process in the names: the next
    machine removes them.
    """

    def __init__(self, folder):
        self.folder = folder
        self.token = f"pk{os.getpid()}-{secrets.token_hex(3)}"
        self.addresses = {}
        self.started = []
        self._stack = contextlib.ExitStack()
        self._next = itertools.count(10)

    def __enter__(self):
        remove_leftovers(self.folder)
        self._network(self.token, "lo")
        _ip("-n", self.token, "link", "add", "br0", "type", "bridge")
        _ip("-n", self.token, "addr", "add", "10.77.0.1/24", "dev", "br0")
        _ip("-n", self.token, "link", "set", "br0", "up")
        return self

    def __exit__(self, *_):
        for each in reversed(self.started):
            each.kill()
        self._stack.close()

    def _network(self, name, up):
        _ip("netns", "add", name)
        self._stack.callback(_ip, "netns", "delete", name)
        _ip("-n", name, "link", "set", up, "up")

    def name(self, *names):
        """Give the next address of the network to these names."""
        address = f"10.77.0.{next(self._next)}"
        self.addresses |= dict.fromkeys(names, address)
        return address

    def serve(self, name, port, target):
        """Have a name and a port of the network lead to a server on this machine's loopback."""
        address = self.name(name)
        _ip("-n", self.token, "addr", "add", f"{address}/24", "dev", "br0")
        listener = self.inside(lambda: socket.create_server((address, port)))
        self._stack.callback(listener.close)
        # A thread that waits in accept() is not woken by a close.
        self._stack.callback(listener.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=_forward, args=(listener, target), daemon=True).start()

    def inside(self, action):
        """Return what an action returns in the network of the machine, as a kubelet's probe."""
        return _in_network(Path("/run/netns") / self.token, action)

    def start(self, container, *names):
        """Start a container that is reached by these names."""
        address = self.name(*(names or (container.name,)))
        network = f"{self.token}-{len(self.started)}"
        link = f"veth{len(self.started)}"
        self._network(network, "lo")
        _ip("-n", self.token, "link", "add", link, "type", "veth", "peer", "eth0", "netns", network)
        _ip("-n", self.token, "link", "set", link, "master", "br0", "up")
        _ip("-n", network, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", network, "link", "set", "eth0", "up")
        running = Running(self, container, address, network)
        self.started.append(running)
        return running


class Running:
    """A container that has been started."""

    def __init__(self, machine, container, address, network):
        self.machine, self.container, self.address = machine, container, address
        self._network = network
        # Not below pytest's own folder, which other accounts cannot enter.
        prefix = f"poolkit-container-{os.getpid()}-"
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=machine.folder))
        self._log = (self._folder / "log").open("w+")
        information, write = os.pipe()
        command = [
            *("ip", "netns", "exec", network, "bwrap", "--info-fd", str(write)),
            *_with_parents([*self._mounts()]),
            *("--clearenv", *_options("--setenv", self.variables())),
            *("--chdir", container.working_directory),
            *("--", *_account(container), *container.command),
        ]
        self.process = subprocess.Popen(
            command, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, pass_fds=(write,)
        )
        os.close(write)
        with os.fdopen(information) as opened:
            text = opened.read()
        self.pid = json.loads(text)["child-pid"] if text else None

    def variables(self):
        """Return the environment: the image's, the orchestrator's over it, and the runtime's."""
        runtime = {"HOSTNAME": self.container.name, "HOME": "/home/poolkit"}
        return runtime | self.container.image.variables | self.container.variables

    def _mounts(self):
        yield from ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--as-pid-1")
        yield "--die-with-parent"
        yield from ("--ro-bind", "/usr", "/usr")
        for name in ("bin", "lib", "lib64", "sbin"):
            yield from ("--symlink", f"usr/{name}", f"/{name}")
        hosts = "".join(f"{a} {n}\n" for n, a in self.machine.addresses.items())
        etc = {
            "hosts": f"127.0.0.1 localhost\n{hosts}",
            "passwd": "root:x:0:0::/root:/bin/sh\npoolkit:x:10001:10001::/home/poolkit:/bin/false\n",
            "group": "root:x:0:\npoolkit:x:10001:\n",
            "nsswitch.conf": "hosts: files\n",
        }
        files = {f"/etc/{name}": text for name, text in etc.items()} | self.container.files
        for folder in ("/etc/ssl", "/etc/alternatives", "/etc/ld.so.cache"):
            yield from ("--ro-bind-try", folder, folder)
        for path, source in self.container.image.files.items():
            yield from ("--ro-bind", str(source), path)
        for number, (path, text) in enumerate(files.items()):
            file = self._folder / f"file-{number}"
            file.write_text(text)
            # As Kubernetes with fsGroup and 0440, and as Compose: readable by the account.
            file.chmod(0o444)
            yield from ("--ro-bind", str(file), path)
        yield from ("--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--tmpfs", "/dev/shm")
        for number, (path, mode) in enumerate(self.container.writable.items()):
            folder = self._folder / f"writable-{number}"
            folder.mkdir()
            folder.chmod(mode)
            yield from ("--bind", str(folder), path)
        # Console scripts name their interpreter by its path here. Last: this may be a folder of /tmp.
        for path in (PYTHON, ENVIRONMENT):
            yield from ("--ro-bind", str(path), str(path))
        if self.container.read_only:
            yield from ("--remount-ro", "/")

    @property
    def said(self):
        """What it has written so far."""
        return (self._folder / "log").read_text(errors="replace")

    def wait(self, timeout_s=120.0):
        """Return the exit status of a container that ends by itself."""
        return self.process.wait(timeout_s)

    def stop(self):
        """Send SIGTERM to process 1; return the exit status.

        Raises:
            subprocess.TimeoutExpired: it did not end within its grace period.
        """
        self.terminate()
        return self.process.wait(self.container.grace_s)

    def terminate(self):
        """Send SIGTERM to process 1."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self):
        """End it at once, and remove its files."""
        _end_processes(self._network)
        self.process.kill()
        self.process.wait(30)
        self._log.close()
        shutil.rmtree(self._folder)

    # -- probes -----------------------------------------------------------------------------

    def answers(self, probe):
        """Return whether one probe succeeds now, and what it found."""
        timeout = max(float(probe.get("timeoutSeconds", 1)), PATIENCE_S)
        if "exec" in probe:
            return self._execute(probe["exec"]["command"], timeout)
        if "tcpSocket" in probe:
            where = (self.address, probe["tcpSocket"]["port"])
            return self._ask(lambda: socket.create_connection(where, timeout).close() or (True, ""))
        get = probe["httpGet"]

        def ask():
            connection = http.client.HTTPConnection(self.address, get["port"], timeout=timeout)
            with contextlib.closing(connection):
                connection.request("GET", get.get("path", "/"))
                answer = connection.getresponse()
                body = answer.read().decode(errors="replace")
                return 200 <= answer.status < 400, f"{answer.status} {body}"

        return self._ask(ask)

    def get(self, port, path):
        """Return the text of a page."""
        probe = {"httpGet": {"port": port, "path": path}, "timeoutSeconds": 10}
        is_good, text = self.answers(probe)
        assert is_good, text
        return text.partition(" ")[2]

    def _ask(self, action):
        try:
            return self.machine.inside(action)
        except OSError as error:
            return False, str(error)

    def _execute(self, command, timeout):
        target = ("--target", str(self.pid))
        namespaces = ("--mount", "--net", "--pid", "--ipc", "--uts", "--root", "--wd")
        words = [f"{name}={value}" for name, value in self.variables().items()]
        full = [
            *("nsenter", *target, *namespaces, "/usr/bin/env", "--ignore-environment"),
            *(*words, *_account(self.container), *command),
        ]
        try:
            done = subprocess.run(
                full, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            return False, f"no answer within {timeout} s"
        return done.returncode == 0, done.stdout + done.stderr

    def _up_to_its_threshold(self, probe):
        """Return whether the probe succeeds before it fails as often as its orchestrator allows."""
        for _ in range(probe.get("failureThreshold", 3) - 1):
            if (answer := self.answers(probe))[0]:
                return answer
        return self.answers(probe)

    def becomes_ready(self):
        """Wait for the startup probe as long as its numbers allow, then ask the others.

        Returns:
            The probes that failed, with the reason; none if the container is ready and alive.
        """
        probes = dict(self.container.probes)
        first = probes.pop("startup", probes.get("readiness"))
        if first is None:
            return {}
        allowed = first.get("failureThreshold", 3) * first.get("periodSeconds", 10)
        deadline = time.monotonic() + max(allowed, 120)
        while True:
            is_good, found = self.answers(first)
            if is_good:
                break
            if self.process.poll() is not None:
                return {"startup": f"it ended with {self.process.returncode}: {self.said[-2000:]}"}
            if time.monotonic() > deadline:
                return {"startup": f"{found}: {self.said[-2000:]}"}
            # A program takes the processor from the container that it asks about.
            time.sleep(1.0 if "exec" in first else 0.1)
        results = {name: self._up_to_its_threshold(probe) for name, probe in probes.items()}
        return {name: found for name, (is_good, found) in results.items() if not is_good}


def remove_leftovers(folder):
    """Remove the networks and the folders of test runs that have ended without doing so."""
    for where, pattern in (("/run/netns", r"pk(\d+)-\w+(-\d+)?"), (folder, _FOLDERS)):
        for path in Path(where).glob("*"):
            found = re.fullmatch(pattern, path.name)
            if found is None or Path(f"/proc/{found[1]}").exists():
                continue
            # Two test runs may do this at the same time.
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                _end_processes(path.name)
                subprocess.run(["ip", "netns", "delete", path.name], check=False)


def _end_processes(network):
    """End the processes of a network: --die-with-parent is lost when setpriv changes the account."""
    shown = subprocess.run(
        ["ip", "netns", "pids", network], capture_output=True, text=True, check=False
    )
    for pid in map(int, shown.stdout.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _account(container):
    groups = ("--groups", container.extra_group) if container.extra_group else ("--clear-groups",)
    return (
        *("setpriv", "--reuid", container.user, "--regid", container.group, *groups),
        *("--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"),
    )


def _with_parents(words):
    """Return bubblewrap's options after those that make each folder above a mount, for everyone."""
    paths = {words[i + 2] for i, word in enumerate(words) if word in ("--ro-bind", "--bind")}
    parents = {str(parent) for path in paths for parent in Path(path).parents} - {"/"}
    return [*(w for path in sorted(parents) for w in ("--perms", "0755", "--dir", path)), *words]


def _options(name, values):
    return [word for key, value in values.items() for word in (name, key, value)]


def _ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@functools.cache
def _libc():
    return ctypes.CDLL(None, use_errno=True)


def _in_network(namespace, action):
    """Run an action in a thread of its own, which alone enters the network."""
    result = []

    def enter():
        try:
            with namespace.open("rb") as opened:
                refused = _libc().setns(opened.fileno(), _NEW_NETWORK)
            assert refused == 0, "setns"
            result.append((action(), None))
        except OSError as error:
            result.append((None, error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    value, error = result[0]
    if error is not None:
        raise error
    return value


def _forward(listener, target):
    while True:
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_connect, args=(accepted, target), daemon=True).start()


def _connect(accepted, target):
    with contextlib.suppress(OSError), accepted, socket.create_connection(target, 10) as connected:
        back = threading.Thread(target=_copy, args=(connected, accepted), daemon=True)
        back.start()
        _copy(accepted, connected)
        back.join()


def _copy(source, destination):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            destination.sendall(data)
    with contextlib.suppress(OSError):
        destination.shutdown(socket.SHUT_WR)
