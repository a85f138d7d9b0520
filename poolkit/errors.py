"""Every exception that poolkit raises.

    PoolkitError
    ├── ConfigurationError (ValueError)           a setting is missing, wrong or unsafe
    │   └── WrongDatabaseError                    a target uses another database than it was given
    ├── TemporaryFailure                          the database or the pool failed; retry later
    │   ├── CredentialsError                      a password or token could not be fetched
    │   ├── NoThread                              the system refused to start a thread
    │   ├── PoolExhausted (TimeoutError)          no connection became free, or too many wait for one
    │   ├── StatementTimeout (TimeoutError)       a statement took longer than statement_timeout
    │   ├── StatementCancelled                    a statement was cancelled from outside
    │   ├── LockTimeout (TimeoutError)            a lock did not become free in time
    │   ├── TransactionConflict                   a deadlock or a serialization failure
    │   └── DatabaseUnavailable (ConnectionError) the database cannot be reached, or is full
    ├── InvalidInput (ValueError)                 a request or a message breaks its schema
    ├── UnknownEvent (ValueError)                 a function cannot handle the event it received
    ├── TaskLost                                  a worker ended while it had the task
    ├── TaskGivenUp                               a task ended as a dead letter
    ├── UnreadableMessage (ValueError)            a message is no task of this worker
    ├── NotStarted (RuntimeError)                 a database was used outside its lifespan
    ├── MigrationError                            the schema cannot be upgraded
    ├── RoleError                                 the application's role cannot be made
    ├── PreparationFailed                         the command `schema` or `seed` failed
    ├── MonitoringNotAllowed (PermissionError)    the role may not read the server's activity
    ├── RunFolderError (ValueError)               a folder is no run, or a file in it is broken
    ├── BudgetError (ValueError)                  the connection budget cannot be computed
    │   └── TemplateError                         a template or a parameter file is wrong
    ├── RedirectRefused (ConnectionError)         an application redirects a load test to another host
    ├── FormError                                 a page's form could not be sent by a load test
    ├── LoadFailedError                           the load generator did not start, or ended early
    ├── DrillError                                a drill cannot be made, or not to its end
    ├── ResultsUploadError                        a load test's files cannot be uploaded to S3
    ├── PackageError (ValueError)                 a package cannot be made, or AWS would refuse it
    ├── DeployError                               refused before anything was changed
    │   └── DeploymentFailed                      AWS began and failed
    └── LocalStackError                           the embedded stack cannot start or keep running
        ├── StateDirectoryError (OSError)         a directory cannot be made, written or reached
        ├── BinaryMissingError (OSError)          a server's program is missing or does not run
        ├── UnprivilegedAccountError              root has no other account to run a server under
        ├── PortInUseError (OSError)              another program listens on the requested port
        ├── ServerStartError                      a server ended, or refused, before it was ready
        ├── NotReadyError (TimeoutError)          a process did not become ready in time
        ├── ProcessEndedError                     a process ended without being stopped
        └── LambdaFleetError                      the local Lambda fleet cannot do what was asked
            ├── FunctionConfigError (ValueError)  a function's configuration is wrong
            ├── FunctionInitError                 the handler's module failed in the init phase
            ├── FleetNotRunning (RuntimeError)    used before start() or after stop()
            └── MalformedResponse (ValueError)    a function's response is not HTTP

In brackets is the built-in exception that an error also is, so that code which catches
that one works unchanged. The preset file works alone, so its `PresetError` (a `ValueError`) is
defined there; Settings turn it into a ConfigurationError.
"""

from __future__ import annotations

from typing import Any


class PoolkitError(Exception):
    """The base of every error below: `except PoolkitError` catches them all."""


class ConfigurationError(PoolkitError, ValueError):
    """A setting is missing, wrong or unsafe; the message names it and what is allowed."""


class WrongDatabaseError(ConfigurationError):
    """A measured target takes its database from elsewhere; the message says where from, if known."""


class TemporaryFailure(PoolkitError):
    """The database or the pool failed, and the caller is not to blame: a later try may succeed.

    The one place that decides which failures these are. A web service answers 503 with
    `Retry-After: retry_after` and `public_detail`; a queue worker retries with backoff. The error's
    own text names hosts and roles, so it belongs in the log and not in an answer.
    """

    retry_after = 5
    """Seconds after which a new try makes sense."""
    public_detail = "the database is not available; try again later"
    """The text that a client may read."""


class CredentialsError(TemporaryFailure):
    """A password or token could not be fetched; the message names where from."""


class NoThread(TemporaryFailure):
    """The system refused to start a thread: a limit of processes is reached, or memory is short."""

    # The threads of other requests become idle all the time.
    retry_after = 1
    public_detail = "the service is at its limit; try again later"


class PoolExhausted(TemporaryFailure, TimeoutError):
    """No connection became free within `pool_timeout`, or `max_waiting` others wait for one.

    A preset's pool sets `retry_after` from the measured hold time: 1 to 30 s.
    """

    retry_after = 1
    public_detail = "every database connection is in use; try again later"


class StatementTimeout(TemporaryFailure, TimeoutError):
    """The server ended a statement that took longer than `statement_timeout`."""

    # Most often the statement waited for a lock.
    retry_after = 1
    public_detail = "the database took too long; try again later"


class StatementCancelled(TemporaryFailure):
    """A statement was cancelled from outside: `pg_cancel_backend`, MySQL's `KILL QUERY`.

    It is no time limit: an administrator, or another thread of the program, has ended the statement.
    The work is not done and can be tried again. To end it for good, revoke its task.
    """

    public_detail = "the work was cancelled; try again later"


class LockTimeout(TemporaryFailure, TimeoutError):
    """A lock did not become free: within `lock_timeout`, or at once with NOWAIT.

    Another transaction holds the row or the table. A later try may find it free.
    """

    retry_after = 1
    public_detail = "the data is being changed by another request; try again later"


class TransactionConflict(TemporaryFailure):
    """A transaction was rolled back because of another one: a deadlock, a serialization failure.

    The whole unit of work can be tried again at once, from its beginning; the server has chosen it
    so that the other transaction could go on.
    """

    # The smallest whole number of seconds.
    retry_after = 1
    public_detail = "the data was changed by another request; try again"


class DatabaseUnavailable(TemporaryFailure, ConnectionError):
    """The database cannot be reached, refuses connections, or went away in the middle.

    A restart or a failover takes longer than the second of the other failures: `retry_after` is 5.
    """


class InvalidInput(PoolkitError, ValueError):
    """A request or a message breaks its schema.

    Args:
        problem: the answer to its sender, a `poolkit.problems.Problem`.
    """

    def __init__(self, problem: Any) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return str(self.problem.detail)


class UnknownEvent(PoolkitError, ValueError):
    """A Lambda function was invoked with an event of a kind that it does not handle."""

    def __init__(self, wanted: str, event: object) -> None:
        super().__init__(wanted, event)
        self.wanted = wanted
        self.event = event

    def __str__(self) -> str:
        if isinstance(self.event, dict):
            found = f"an object with the members {', '.join(map(str, self.event)) or 'none'}"
        else:
            found = f"a {type(self.event).__name__}"
        return (
            f"wanted {self.wanted}, found {found[:500]}; "
            "connect the function to one of these, or invoke it with such an event"
        )


# Queues (poolkit.celery).


class TaskLost(PoolkitError):
    """A worker died, was killed, or lost its broker while it had the task."""


class TaskGivenUp(PoolkitError):
    """A task ended as a dead letter; the message has the number of deliveries and the last error.

    Raised in place of errors that Celery uses itself, such as SoftTimeLimitExceeded. Any other task
    fails with its own error.
    """


class UnreadableMessage(PoolkitError, ValueError):
    """A message that is no task of this worker: its name is unknown, or its form is wrong."""


class NotStarted(PoolkitError, RuntimeError):
    """A database was used before its application's lifespan began, or after it was over."""


class MigrationError(PoolkitError):
    """The schema cannot be upgraded by this role, now or by this version; the message says why."""


class RoleError(PoolkitError):
    """The application's role cannot be made, or has more rights than an application may have."""


class PreparationFailed(PoolkitError):
    """The project's own command `schema` or `seed` failed; the message has its last lines."""


class MonitoringNotAllowed(PoolkitError, PermissionError):
    """The role lacks `pg_monitor`, so the server hides other roles' activity from it."""


class RunFolderError(PoolkitError, ValueError):
    """A folder is no run of `poolkit compare`, or a file in it is missing or broken."""


class BudgetError(PoolkitError, ValueError):
    """The connection budget cannot be computed from the input; the message says why."""


class TemplateError(BudgetError):
    """A template or a parameter file is wrong; the message begins with its file and line."""

    def __init__(self, problem: str, where: Any = None) -> None:
        """Store the problem and its location, a `SourceLocation`; without one it is in the text."""
        super().__init__(problem if where is None else f"{where}: {problem}")
        self.problem, self.where = problem, where


class RedirectRefused(PoolkitError, ConnectionError):
    """An application redirects a load test to another host; the message says how to allow it."""


class FormError(PoolkitError):
    """A page's form could not be sent by a load test; the message names the page and its fields."""


class LoadFailedError(PoolkitError):
    """The load generator did not start, or ended early; the message names its log."""


class DrillError(PoolkitError):
    """A drill cannot be made, or a fault not to its end; the message says why."""


class ResultsUploadError(PoolkitError):
    """A load test's files cannot be uploaded to S3; the message names the bucket and the run."""


# Packages and stacks (poolkit.deploy).


class PackageError(PoolkitError, ValueError):
    """A package cannot be made, or AWS would not take it; the message says what is wrong."""


class DeployError(PoolkitError):
    """A deployment or deletion was refused before anything was changed."""


class DeploymentFailed(DeployError):
    """AWS began to change a stack and failed; the message has the first cause."""


# The embedded stack (poolkit.local).


class LocalStackError(PoolkitError):
    """The embedded stack could not be started or kept running."""


class StateDirectoryError(LocalStackError, OSError):
    """A directory of the stack cannot be made, written to or reached."""


class BinaryMissingError(LocalStackError, OSError):
    """A server's program is not installed, or cannot be run here."""


class UnprivilegedAccountError(LocalStackError):
    """Root has no other account to run a server under."""


class PortInUseError(LocalStackError, OSError):
    """Another program listens on the requested port."""


class ServerStartError(LocalStackError):
    """A server ended, or refused, before it was ready."""


class NotReadyError(LocalStackError, TimeoutError):
    """A process did not become ready in time."""


class ProcessEndedError(LocalStackError):
    """A supervised process ended without being stopped."""


class LambdaFleetError(LocalStackError):
    """The local Lambda fleet cannot do what was asked."""


class FunctionConfigError(LambdaFleetError, ValueError):
    """A function's configuration is wrong; the message names the field and what is allowed."""


class FunctionInitError(LambdaFleetError):
    """The handler's module failed in the init phase; the message holds the reason."""


class FleetNotRunning(LambdaFleetError, RuntimeError):
    """The fleet was asked for something before `start()` or after `stop()`."""


class MalformedResponse(LambdaFleetError, ValueError):
    """A function's return value is no HTTP response; the client receives a 500."""


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra of poolkit, for messages about a missing module.

    From a checkout, because this project is on no package index: `pip install poolkit` would
    install whatever is published there under that name.
    """
    return f"pip install '.[{extra}]' in a checkout of poolkit"
