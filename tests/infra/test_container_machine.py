"""The machine for containers leaves nothing behind, also when its test run is killed."""

import subprocess
import sys
from pathlib import Path

import pytest
from infra.container_machine import NEEDED, Container, Image, Machine
from processes import ROOT, wait_until

pytestmark = [pytest.mark.process, *NEEDED]

SLEEPER = Container(
    name="sleeper",
    image=Image({"PATH": "/usr/bin"}, "/", "10001", [], [], None, []),
    command=["sleep", "300"],
    variables={},
    user="10001",
    group="10001",
    writable={"/tmp": 0o1777},
)
PROGRAM = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from infra.container_machine import Machine
from infra.test_container_machine import SLEEPER
machine = Machine(Path(sys.argv[1])).__enter__()
print(machine.token, machine.start(SLEEPER).pid, flush=True)
time.sleep(300)
"""


def test_a_killed_run_leaves_nothing(tmp_path):
    """Its containers, networks and folders go when the next machine is made."""
    folders = [str(ROOT / "tests"), str(ROOT)]
    command = [sys.executable, "-c", PROGRAM, tmp_path, *folders]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed:
        token, pid = killed.stdout.readline().split()
        killed.kill()
    left = set(Path("/run/netns").glob(f"{token}*"))
    assert len(left) == 2
    assert list(tmp_path.iterdir())
    with Machine(tmp_path):
        assert not left & set(Path("/run/netns").iterdir())
        assert not list(tmp_path.iterdir())
        wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=10)


def test_a_machine_ends_its_containers(tmp_path):
    """Process 1 of a container ends with the machine, also after it changed its account."""
    with Machine(tmp_path) as machine:
        sleeper = machine.start(SLEEPER)
        wait_until(lambda: Path(f"/proc/{sleeper.pid}/comm").read_text() == "sleep\n")
    wait_until(lambda: not Path(f"/proc/{sleeper.pid}").exists(), timeout_s=10)
    assert not list(Path("/run/netns").glob(f"{machine.token}*"))


def test_the_networks_of_a_running_test_are_kept(tmp_path):
    """Several test runs on one machine do not disturb each other."""
    with Machine(tmp_path) as first:
        sleeper = first.start(SLEEPER)
        with Machine(tmp_path):
            assert (Path("/run/netns") / first.token).exists()
        assert sleeper.process.poll() is None
        assert sleeper.answers({"exec": {"command": ["true"]}, "timeoutSeconds": 10})[0]
