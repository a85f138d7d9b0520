"""poolkit: one SQLAlchemy codebase as a Lambda function, a web service and a worker.

The names in `__all__` are the public API, imported from here: `from poolkit import make_engine`.
A release that changes or removes one of them says so in CHANGELOG.md. The command line, its exit
statuses, the environment variables and the files that it writes are public too. Everything
else may change in any release.

A name is imported at its first use, so the cold start of a Lambda function includes only what it
uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit.attached import Attached, attach
    from poolkit.config.engine import (
        make_async_engine,
        make_engine,
        start_async_engine,
        start_engine,
    )
    from poolkit.config.metrics import PoolMetrics
    from poolkit.config.presets import EnginePreset, PresetError, drain, preset
    from poolkit.config.session import unit_of_work, unit_of_work_async
    from poolkit.config.settings import Settings, preset_from_environ
    from poolkit.errors import (
        BinaryMissingError,
        BudgetError,
        ConfigurationError,
        CredentialsError,
        DatabaseUnavailable,
        DeployError,
        DeploymentFailed,
        DrillError,
        FleetNotRunning,
        FormError,
        FunctionConfigError,
        FunctionInitError,
        InvalidInput,
        LambdaFleetError,
        LoadFailedError,
        LocalStackError,
        LockTimeout,
        MalformedResponse,
        MigrationError,
        MonitoringNotAllowed,
        NoThread,
        NotReadyError,
        NotStarted,
        PackageError,
        PoolExhausted,
        PoolkitError,
        PortInUseError,
        PreparationFailed,
        ProcessEndedError,
        RedirectRefused,
        ResultsUploadError,
        RoleError,
        RunFolderError,
        ServerStartError,
        StateDirectoryError,
        StatementCancelled,
        StatementTimeout,
        TaskGivenUp,
        TaskLost,
        TemplateError,
        TemporaryFailure,
        TransactionConflict,
        UnknownEvent,
        UnprivilegedAccountError,
        UnreadableMessage,
        WrongDatabaseError,
    )

__all__ = (
    "Attached",
    "BinaryMissingError",
    "BudgetError",
    "ConfigurationError",
    "CredentialsError",
    "DatabaseUnavailable",
    "DeployError",
    "DeploymentFailed",
    "DrillError",
    "EnginePreset",
    "FleetNotRunning",
    "FormError",
    "FunctionConfigError",
    "FunctionInitError",
    "InvalidInput",
    "LambdaFleetError",
    "LoadFailedError",
    "LocalStackError",
    "LockTimeout",
    "MalformedResponse",
    "MigrationError",
    "MonitoringNotAllowed",
    "NoThread",
    "NotReadyError",
    "NotStarted",
    "PackageError",
    "PoolExhausted",
    "PoolMetrics",
    "PoolkitError",
    "PortInUseError",
    "PreparationFailed",
    "PresetError",
    "ProcessEndedError",
    "RedirectRefused",
    "ResultsUploadError",
    "RoleError",
    "RunFolderError",
    "ServerStartError",
    "Settings",
    "StateDirectoryError",
    "StatementCancelled",
    "StatementTimeout",
    "TaskGivenUp",
    "TaskLost",
    "TemplateError",
    "TemporaryFailure",
    "TransactionConflict",
    "UnknownEvent",
    "UnprivilegedAccountError",
    "UnreadableMessage",
    "WrongDatabaseError",
    "attach",
    "drain",
    "make_async_engine",
    "make_engine",
    "preset",
    "preset_from_environ",
    "start_async_engine",
    "start_engine",
    "unit_of_work",
    "unit_of_work_async",
)

# The modules of the names that are not in poolkit.errors.
_MODULES = {
    "Attached": "poolkit.attached",
    "EnginePreset": "poolkit.config.presets",
    "PoolMetrics": "poolkit.config.metrics",
    "PresetError": "poolkit.config.presets",
    "Settings": "poolkit.config.settings",
    "attach": "poolkit.attached",
    "drain": "poolkit.config.presets",
    "make_async_engine": "poolkit.config.engine",
    "make_engine": "poolkit.config.engine",
    "preset": "poolkit.config.presets",
    "preset_from_environ": "poolkit.config.settings",
    "start_async_engine": "poolkit.config.engine",
    "start_engine": "poolkit.config.engine",
    "unit_of_work": "poolkit.config.session",
    "unit_of_work_async": "poolkit.config.session",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_MODULES.get(name, "poolkit.errors")), name)
    globals()[name] = found  # so that this function is not called again
    return found


def __dir__() -> list[str]:
    """Return the public names, whether they are imported yet or not."""
    return sorted({*globals(), *__all__})
