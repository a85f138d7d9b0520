"""What killed runs leave behind is found and removed; everything else stays."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from processes import CACHE, is_listening, runs, started, wait_until

from poolkit.errors import StateDirectoryError
from poolkit.local import leftovers
from poolkit.local.leftovers import ProcessIdentity

pytestmark = pytest.mark.process


STACK = f"""
from poolkit.local.broker import EmbeddedBroker
from poolkit.local.postgres import EmbeddedPostgres
from poolkit.local.processes import Supervisor
import psutil
state = Path({{state!r}})
with (
    EmbeddedPostgres(state, durable=False, cache_dir=Path({str(CACHE)!r})) as postgres,
    EmbeddedBroker(state) as broker,
    Supervisor(state / "run") as supervisor,
):
    plain = supervisor.start("plain", ["sleep", "300"])
    family = supervisor.start("family", ["sh", "-c", "(setsid sleep 301 &); exec sleep 302"])
    tell(
        pids=[postgres.pid, broker.pid, plain.pid, family.pid],
        ports=[postgres.port, broker.port],
        directories=[str(postgres.log.parent), str(broker.log.parent)],
    )
    wait_for_a_signal()
"""


@pytest.fixture
def stack(owner, open_dir):
    """Start a process that runs PostgreSQL, a broker and two processes."""
    return owner(STACK.format(state=str(open_dir / "state")))


@pytest.fixture
def is_gone(own_records):
    """A function that returns whether nothing of a stack is left."""

    def ask(told):
        sleepers = [p for p in psutil.process_iter() if _says(p, own_records)]
        return (
            not any(runs(pid) for pid in told["pids"])
            and not any(is_listening(port) for port in told["ports"])
            and not any(Path(directory).exists() for directory in told["directories"])
            and not sleepers
            and leftovers.read_records() == []
        )

    return ask


def _says(process, own_records):
    """Return whether a claimed process came of this test."""
    try:
        environ = process.environ()
    except (psutil.Error, OSError):
        return False
    return leftovers.CLAIM_VARIABLE in environ and environ.get("TMPDIR") == str(own_records)


@pytest.mark.parametrize(
    ("number", "status"), [("SIGINT", -signal.SIGINT), ("SIGTERM", 128 + signal.SIGTERM)]
)
def test_ctrl_c_and_sigterm_end_everything_before_the_owner(stack, is_gone, number, status):
    """When the owner has ended after a signal, so has all that it started, with its files."""
    stack.process.send_signal(signal.Signals[number])
    assert stack.process.wait(60) == status
    assert is_gone(stack.told)


def test_crash_of_the_owner_ends_everything(owner, open_dir, is_gone):
    """An unhandled exception ends the stack with the owner."""
    script = STACK.replace("    wait_for_a_signal()", "    raise RuntimeError").format(
        state=str(open_dir / "state")
    )
    crashed = owner(script)
    assert crashed.process.wait(60) == 1
    assert is_gone(crashed.told)


def test_reaper_cleans_up_after_sigkill_of_the_owner(stack, is_gone):
    """An owner that is killed outright leaves nothing behind, without another run."""
    assert len(stack.reapers()) == 1
    stack.process.kill()
    stack.process.wait()
    wait_until(lambda: is_gone(stack.told))


def test_next_run_cleans_up_when_the_reaper_was_killed_too(stack, is_gone):
    """With owner and reaper killed, the stack runs on until the next run finds it."""
    (reaper,) = stack.reapers()
    reaper.kill()
    stack.process.kill()
    stack.process.wait()
    assert all(runs(pid) for pid in stack.told["pids"])
    assert len(leftovers.clean_leftovers()) == 4
    assert is_gone(stack.told)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_owned_folder_goes_after_the_servers_that_live_in_it(owner, is_gone, number):
    """Whether its owner ends by itself or is killed, and although the server still writes there."""
    living = owner(
        "from poolkit.local.broker import EmbeddedBroker\n"
        "from poolkit.local.processes import owned_folder, sigterm_exits\n"
        "with sigterm_exits(), owned_folder() as folder, EmbeddedBroker(folder) as broker:\n"
        "    tell(pids=[broker.pid], ports=[broker.port], directories=[str(folder)])\n"
        "    wait_for_a_signal()\n"
    )
    living.process.send_signal(number)
    living.process.wait()
    wait_until(lambda: is_gone(living.told))


def test_reaper_goes_with_the_last_claim(owner, open_dir):
    """An owner that closes what it started and lives on has no reaper any more."""
    closed = owner(
        "from poolkit.local.broker import EmbeddedBroker\n"
        f"with EmbeddedBroker(Path({str(open_dir / 'state')!r})) as broker: pid = broker.pid\n"
        "tell(pid=pid)\n"
        "wait_for_a_signal()\n"
    )
    assert not runs(closed.told["pid"])
    assert closed.reapers() == []


def test_exit_without_closing_ends_the_server_first(owner, open_dir):
    """A script that forgets to close its server ends it at the interpreter's exit."""
    forgetful = owner(
        "from poolkit.local.broker import EmbeddedBroker\n"
        f"broker = EmbeddedBroker(Path({str(open_dir / 'state')!r})).start()\n"
        "tell(pid=broker.pid)\n"
    )
    assert forgetful.process.wait(60) == 0
    assert not runs(forgetful.told["pid"])


@pytest.fixture
def foreign():
    """A process without a claim."""
    with started("sleep", "300", new_session=True) as process:
        yield process


@pytest.fixture
def dead_owner():
    """The identity of a process that has ended."""
    with started("sleep", "300") as process:
        identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    return identity


def record_of(owner, process=None, directory=None):
    """Write a record as an owner would have done."""
    record = leftovers.new_record(what="a test", directory=directory, stop_signal=signal.SIGTERM)
    record = replace(record, owner=owner, process=process)
    leftovers.write_record(record)
    return record


def test_foreign_process_with_a_recorded_pid_is_left_alone(own_records, foreign, dead_owner):
    """A pid that was used again does not make its new owner a leftover."""
    recorded = replace(ProcessIdentity.of(foreign.pid), started="1")
    record_of(dead_owner, recorded)
    assert leftovers.clean_leftovers() == ["a test"]
    assert runs(foreign.pid)


def test_process_of_a_living_owner_is_left_alone(own_records, foreign):
    """Another run's processes are left alone while that run lives."""
    record = record_of(ProcessIdentity.of(os.getpid()), ProcessIdentity.of(foreign.pid))
    assert leftovers.clean_leftovers() == []
    assert runs(foreign.pid)
    assert leftovers.read_records() == [record]


def test_owner_in_another_pid_namespace_counts_as_living(own_records, dead_owner, foreign):
    """A container beside this one is invisible from here, so its processes are left alone."""
    elsewhere = replace(dead_owner, realm=dead_owner.realm._replace(namespace="pid:[1]"))
    record_of(elsewhere, replace(ProcessIdentity.of(foreign.pid), realm=elsewhere.realm))
    assert leftovers.clean_leftovers() == []
    assert runs(foreign.pid)


def test_leftover_of_an_earlier_boot_is_removed_without_ending_anything(
    own_records, dead_owner, foreign, tmp_path
):
    """After a reboot the pids of old records mean nothing; the directories still do."""
    directory = tmp_path / "state"
    directory.mkdir()
    earlier = replace(dead_owner, realm=leftovers.Realm("another-boot", "pid:[1]"))
    record_of(earlier, replace(ProcessIdentity.of(foreign.pid), realm=earlier.realm), directory)
    assert leftovers.clean_leftovers() == ["a test"]
    assert runs(foreign.pid)
    assert not directory.exists()


def test_directory_without_the_records_mark_is_left_alone(own_records, dead_owner, tmp_path):
    """A new directory at the path of a recorded one is not the recorded one."""
    record_of(dead_owner, directory=tmp_path)
    (tmp_path / ".poolkit-claim").write_text("another's")
    leftovers.clean_leftovers()
    assert tmp_path.exists()


@pytest.fixture
def marked(own_records, dead_owner):
    """A process that only its environment connects with a record."""
    record = record_of(dead_owner)
    with started("sleep", "300", environ={leftovers.CLAIM_VARIABLE: record.token}) as process:
        # The kernel shows it a moment after the program has been started.
        wait_until(lambda: leftovers.CLAIM_VARIABLE in psutil.Process(process.pid).environ())
        yield process


def test_process_that_was_started_but_never_recorded_is_found(marked):
    """An owner killed between the start and the record leaves the mark in the environment."""
    leftovers.clean_leftovers()
    assert marked.wait(60) == -signal.SIGTERM


def test_stopped_process_is_ended_too(marked):
    """A process stopped by SIGSTOP is continued, so that it receives the signal."""
    marked.send_signal(signal.SIGSTOP)
    leftovers.clean_leftovers()
    assert marked.wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}'])
def test_file_that_is_no_record_is_skipped(own_records, text):
    """A half-written file, or a record of a later version, has no effect."""
    (leftovers.records_directory() / "x.json").write_text(text)
    assert leftovers.clean_leftovers() == []


def test_record_survives_writing_and_reading(own_records, dead_owner):
    record = record_of(dead_owner, ProcessIdentity.of(os.getpid()))
    assert leftovers.read_records() == [record]
    assert json.loads(leftovers.write_record(record).read_text())["schema"] == 2


def test_records_that_others_could_have_written_are_refused(own_records):
    """Other users could have written any order to an open directory, so it is not read."""
    leftovers.records_directory().chmod(0o777)
    with pytest.raises(StateDirectoryError, match="cannot be trusted"):
        leftovers.clean_leftovers()
