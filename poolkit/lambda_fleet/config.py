"""What a Lambda function's configuration page holds, for the local fleet."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from poolkit.errors import FunctionConfigError

# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
MAX_TIMEOUT_S = 900
MIN_MEMORY_MB, MAX_MEMORY_MB = 128, 10_240

# Set by Lambda itself; see "Reserved environment variables" in the Developer Guide
# (Using environment variables). The credentials and the region of that list are left out:
# a local function has no role to take them from.
RESERVED_VARIABLES = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_LAMBDA_RUNTIME_API",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
    }
)


@dataclass(frozen=True, kw_only=True)
class FunctionConfig:
    """One function: its code, its limits and how its execution environments are treated.

    Raises `FunctionConfigError` for a value that Lambda would refuse, or that makes no sense
    here.
    """

    handler: str
    """`module.function`, with the module relative to `task_root`."""
    task_root: Path
    """The directory of the code: the working directory, and first on `sys.path`."""
    function_name: str = "function"
    env: Mapping[str, str] = field(default_factory=dict)
    """The function's own variables. The fleet's environment is not handed on."""
    timeout_s: float = 30.0
    """How long one invoke may take. Lambda's default is 3 s; HTTP API waits 30 s at most."""
    init_limit_s: float = 10.0
    """How long the init phase may take before Lambda tries it again within the invoke."""
    memory_mb: int = 128
    """Told to the function. Nothing limits it here: a laptop's cgroups belong to its owner."""
    reserved_concurrency: int = 10
    """The most invokes at once; more are throttled. 0 throttles every invoke, as in AWS."""
    idle_timeout_s: float = 600.0
    """How long an execution environment may be idle. AWS documents no number; people have
    measured 5 to 60 minutes."""
    freeze: bool = True
    """Stop the processes of an idle execution environment (SIGSTOP), as Lambda does."""
    shutdown_ms: int = 0
    """Between SIGTERM and SIGKILL: 0 without an extension (no SIGTERM at all), 500 with an
    internal, 2000 with an external one (Developer Guide, Extensions API, Shutdown phase)."""
    throttle_status: Literal[429, 503] = 429
    """What an HTTP client gets when throttled: 429 as from Lambda's own Invoke, or 503 as
    from an HTTP API, which turns a throttled integration into "Service Unavailable"."""
    execution_env: str = "AWS_Lambda_python3.12"
    """`AWS_EXECUTION_ENV`. The runtime interface client handles SIGTERM only from 3.12 on."""
    region: str = "us-east-1"
    python: Path = field(default_factory=lambda: Path(sys.executable))
    """The interpreter of the execution environments; it must have `awslambdaric`."""
    records_kept: int = 200_000
    """How many records are kept of the latest cold starts, and as many of the latest other invokes.
    The counters are never cut, and say how many records were dropped."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", MappingProxyType(dict(self.env)))
        object.__setattr__(self, "task_root", Path(self.task_root).resolve())
        object.__setattr__(self, "python", Path(self.python))
        self._check_code()
        self._check_limits()
        reserved = sorted(RESERVED_VARIABLES & self.env.keys())
        if reserved:
            raise FunctionConfigError(
                f"env holds {', '.join(reserved)}, which Lambda sets itself; take it out"
            )

    def _check_code(self) -> None:
        if "." not in self.handler.strip("."):
            raise FunctionConfigError(
                f"handler must be 'module.function', found {self.handler!r}; "
                "for example 'lambda_handler.app.handler'"
            )
        if not self.task_root.is_dir():
            raise FunctionConfigError(
                f"task_root must be the directory that holds the handler's module, "
                f"found no directory at {self.task_root}"
            )
        if not self.python.exists():
            raise FunctionConfigError(f"python must be an interpreter, found none at {self.python}")

    def _check_limits(self) -> None:
        _within("timeout_s", self.timeout_s, 0.001, MAX_TIMEOUT_S)
        _within("init_limit_s", self.init_limit_s, 0.001, MAX_TIMEOUT_S)
        _within("memory_mb", self.memory_mb, MIN_MEMORY_MB, MAX_MEMORY_MB)
        _within("reserved_concurrency", self.reserved_concurrency, 0, 100_000)
        _within("idle_timeout_s", self.idle_timeout_s, 0.001, 86_400)
        _within("shutdown_ms", self.shutdown_ms, 0, 2_000)
        _within("records_kept", self.records_kept, 0, 100_000_000)
        if self.throttle_status not in (429, 503):
            raise FunctionConfigError(
                f"throttle_status must be 429 or 503, found {self.throttle_status!r}"
            )

    @property
    def arn(self) -> str:
        """The ARN the function is told; the account is the one AWS uses in its examples."""
        return f"arn:aws:lambda:{self.region}:123456789012:function:{self.function_name}"


def _within(name: str, value: float, lowest: float, highest: float) -> None:
    if not (math.isfinite(value) and lowest <= value <= highest):
        raise FunctionConfigError(f"{name} must be {lowest} to {highest}, found {value!r}")
