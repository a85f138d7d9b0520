"""The processes of one execution environment: start, freeze, thaw, end."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from poolkit.lambda_fleet.config import FunctionConfig

_LAUNCH = Path(__file__).with_name("launch.py")
# Only where there is no pidfd (anything but Linux 5.3 or later).
_POLL_S = 0.05


def environment_variables(config: FunctionConfig, *, api: str, stream: str) -> dict[str, str]:
    """Return the variables Lambda sets, and the function's own.

    Source: Lambda Developer Guide, "Using environment variables", defined runtime variables.
    """
    own = {
        "AWS_DEFAULT_REGION": config.region,
        "AWS_REGION": config.region,
        "LANG": "en_US.UTF-8",
        "PATH": os.environ.get("PATH", os.defpath),
        "TZ": ":UTC",
    }
    if "LD_LIBRARY_PATH" in os.environ:
        own["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    reserved = {
        "_HANDLER": config.handler,
        "AWS_EXECUTION_ENV": config.execution_env,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(config.memory_mb),
        "AWS_LAMBDA_FUNCTION_NAME": config.function_name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{config.function_name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": stream,
        "AWS_LAMBDA_RUNTIME_API": api,
        "LAMBDA_TASK_ROOT": str(config.task_root),
    }
    return {**own, **config.env, **reserved}


class FunctionProcess:
    """One running `awslambdaric` with whatever it starts: a session and process group of its own.

    Must be made and used on the event loop's thread: the kernel ends the process when the thread
    that started it ends.
    """

    def __init__(
        self,
        config: FunctionConfig,
        *,
        variables: dict[str, str],
        log_fd: int,
        on_exit: Callable[[], None],
    ) -> None:
        self._popen = subprocess.Popen(
            [config.python, "-P", _LAUNCH, str(os.getpid()), config.handler],
            cwd=config.task_root,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            start_new_session=True,
        )
        self.pid = self._popen.pid
        self.frozen = False
        self._on_exit = on_exit
        self._pidfd: int | None = None
        self._watch(asyncio.get_running_loop())

    @property
    def exit_reason(self) -> str:
        """Say in Lambda's words how the process ended. Only once it has."""
        code = self._popen.returncode
        if code == 0:
            return "Runtime exited without providing a reason"
        if code < 0:
            return f"Runtime exited with error: signal: {_signal_description(-code)}"
        return f"Runtime exited with error: exit status {code}"

    @property
    def ended(self) -> bool:
        """Whether the process has been seen to end."""
        return self._popen.returncode is not None

    def freeze(self) -> None:
        """Stop every process of the group; costs one system call."""
        if not self.frozen and not self.ended:
            self._signal(signal.SIGSTOP)
            self.frozen = True

    def thaw(self) -> None:
        """Let the group run on."""
        if self.frozen:
            self.frozen = False
            self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask the function to end.

        Thawed first: a signal sent to a stopped process goes to whichever of its threads runs
        first, and when that is not the main thread, Python does not wake up to handle it.
        """
        self.thaw()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group now."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        # The group's leader is reaped on this thread only, so until then its id is not reused.
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            self._pidfd = os.pidfd_open(self.pid)
            loop.add_reader(self._pidfd, self._reap, loop)
        else:
            loop.call_later(_POLL_S, self._poll, loop)

    def _poll(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._popen.poll() is None:
            loop.call_later(_POLL_S, self._poll, loop)
        else:
            self._reap(loop)

    def _reap(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._pidfd is not None:
            loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        # What the function started must not outlive its execution environment.
        self.kill()
        self._popen.wait()
        self._on_exit()


def _signal_description(number: int) -> str:
    # Go's words, which are what Lambda reports: "killed", "segmentation fault", "terminated".
    return (signal.strsignal(number) or f"signal {number}").partition(" (")[0].lower()
