"""The tests' own helper: a wait that cannot fail would make every other test worthless."""

import sys

import pytest
from processes import run_python, runs, started, wait_until

pytestmark = pytest.mark.process

LINES = "import time; print('one', flush=True); print('port 42', flush=True); time.sleep(600)"


def test_a_line_is_waited_for_and_the_process_ends_with_its_block():
    """Lines that were read before are found as well."""
    with started(sys.executable, "-c", LINES) as process:
        assert process.wait_for(r"port (\d+)")[1] == "42"
        assert process.wait_for("one")
        assert [process.next_line(), process.next_line()] == ["one", "port 42"]
        pid = process.pid
        assert runs(pid)
    assert not runs(pid)


def test_a_process_that_ends_too_early_fails_the_wait_at_once_and_shows_its_output():
    with started(sys.executable, "-c", "import sys; sys.exit('no such port')") as process:
        with pytest.raises(AssertionError, match=r"ended without(?s:.)*no such port"):
            process.wait_for("listening")
        assert process.wait() == 1


def test_a_condition_that_never_holds_fails_in_time():
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: the moon"):
        wait_until(lambda: False, "the moon", timeout_s=0.05)


def test_a_finished_command_keeps_its_status_and_both_outputs():
    code = "import sys; print(sys.stdin.read()); print('bad', file=sys.stderr); sys.exit(3)"
    done = run_python("-c", code, typed="good")
    assert (done.returncode, done.stdout, done.stderr) == (3, "good\n", "bad\n")
