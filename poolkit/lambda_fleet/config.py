"""The configuration of the function that a local Lambda fleet runs."""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from poolkit.errors import FunctionConfigError
from poolkit.lambda_fleet.events import DOORS, Event

# The time limit and the memory: Lambda Developer Guide, "Lambda quotas"
# (https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html).
_RANGES: dict[str, tuple[float, float]] = {
    "timeout_s": (0.001, 900),
    "init_limit_s": (0.001, 900),
    "memory_mb": (128, 10_240),
    "reserved_concurrency": (0, 100_000),
    "idle_timeout_s": (0.001, 86_400),
    "shutdown_ms": (0, 2_000),
    "records_kept": (0, 100_000_000),
}

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
    """One function: its code, its limits and the treatment of its execution environments.

    Raises:
        FunctionConfigError: a value that Lambda would refuse, or that makes no sense here.
    """

    handler: str
    """`module.function`, with the module relative to `task_root`."""
    task_root: Path
    """The directory of the code: the working directory, and first on `sys.path`."""
    function_name: str = "function"
    env: Mapping[str, str] = field(default_factory=dict)
    """The function's own variables. It inherits nothing from the environment of the fleet."""
    timeout_s: float = 30.0
    """The time limit of one invoke. Lambda's default is 3 s; an HTTP API waits 30 s at most."""
    init_limit_s: float = 10.0
    """The time limit of the init phase; after it Lambda tries once more within the invoke."""
    memory_mb: int = 128
    """The size that the function is told. Nothing enforces it: that would take cgroups, and root."""
    reserved_concurrency: int = 10
    """The most invokes at once; more are throttled. 0 throttles every invoke, as in AWS."""
    idle_timeout_s: float = 600.0
    """The time after which an idle execution environment ends. AWS documents no number; published
    measurements range from 5 to 60 minutes."""
    freeze: bool = True
    """Stop the processes of an idle execution environment (SIGSTOP), as Lambda does."""
    shutdown_ms: int = 0
    """The time between SIGTERM and SIGKILL: 0 without an extension (no SIGTERM at all), 500 with
    an internal, 2000 with an external one (Developer Guide, Extensions API, Shutdown phase)."""
    event: Event = "http"
    """The events of HTTP requests: an HTTP API's, a REST API's or a load balancer's."""
    throttle_status: Literal[429, 503] = 429
    """The status of a throttled HTTP request: 429 as from Lambda's own Invoke, or 503 as from an
    HTTP API, which turns a throttled integration into "Service Unavailable"."""
    execution_env: str = "AWS_Lambda_python3.12"
    """`AWS_EXECUTION_ENV`. The runtime interface client handles SIGTERM only from 3.12 on."""
    region: str = "us-east-1"
    python: Path = field(default_factory=lambda: Path(sys.executable))
    """The interpreter of the execution environments. Where it has no `awslambdaric`, the fleet's own
    is used (launch.py)."""
    records_kept: int = 200_000
    """The number of records that are kept of the latest cold starts, and again of the latest other
    invokes. The counters cover all invokes and include the number of dropped records."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", MappingProxyType(dict(self.env)))
        object.__setattr__(self, "task_root", Path(self.task_root).resolve())
        object.__setattr__(self, "python", Path(self.python))
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
        for name, (lowest, highest) in _RANGES.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and lowest <= value <= highest):
                raise FunctionConfigError(f"{name} must be {lowest} to {highest}, found {value!r}")
        for name, allowed in (("event", tuple(DOORS)), ("throttle_status", (429, 503))):
            if getattr(self, name) not in allowed:
                raise FunctionConfigError(
                    f"{name} must be {' or '.join(map(str, allowed))}, "
                    f"found {getattr(self, name)!r}"
                )
        self._check_env()

    def _check_env(self) -> None:
        if reserved := sorted(RESERVED_VARIABLES & self.env.keys()):
            raise FunctionConfigError(
                f"env holds {', '.join(reserved)}, which Lambda sets itself; take it out"
            )
        for name, text in self.env.items():
            # Checked here, because Popen would refuse it only at each cold start.
            if not isinstance(text, str):
                raise FunctionConfigError(f"env must map names to strings, found {name}={text!r}")

    @property
    def arn(self) -> str:
        """The ARN that the function is told; the account is the one in AWS's examples."""
        return f"arn:aws:lambda:{self.region}:123456789012:function:{self.function_name}"

    def environment_variables(self, *, api: str, stream: str) -> dict[str, str]:
        """Return the variables of an execution environment: Lambda's and the function's own.

        Args:
            api: host and port of the Runtime API.
            stream: the name of the log stream.

        Source: Lambda Developer Guide, "Using environment variables", defined runtime variables.
        """
        defaults = {
            "AWS_DEFAULT_REGION": self.region,
            "AWS_REGION": self.region,
            "LANG": "en_US.UTF-8",
            "PATH": os.environ.get("PATH", os.defpath),
            "TZ": ":UTC",
        }
        if "LD_LIBRARY_PATH" in os.environ:
            defaults["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        reserved = {
            "_HANDLER": self.handler,
            "AWS_EXECUTION_ENV": self.execution_env,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(self.memory_mb),
            "AWS_LAMBDA_FUNCTION_NAME": self.function_name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{self.function_name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": stream,
            "AWS_LAMBDA_RUNTIME_API": api,
            "LAMBDA_TASK_ROOT": str(self.task_root),
        }
        return {**defaults, **self.env, **reserved}
