"""Every use of Locust's private parts, and the versions it was written for.

Private are names with an underscore, names that Locust's documentation does not mention, and
methods that are replaced. `scripts/test-locust-versions` runs the tests under the oldest and the
newest version; a new upper bound goes into `SUPPORTED` and pyproject.toml after a run of it.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import contextmanager, suppress
from functools import cache, partial, wraps
from importlib.metadata import version
from inspect import unwrap
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urljoin, urlsplit

import gevent

from poolkit.errors import RedirectRefused
from poolkit.loadtest.host_safety import check_redirect

SUPPORTED = ">=2.43,<2.48"
"""As in pyproject.toml."""

try:
    # locust before requests: its import replaces the modules that requests takes.
    from locust import runners  # isort: skip
    import requests
    from geventhttpclient.client import HTTPClient
    from geventhttpclient.connectionpool import ConnectionPool, SSLConnectionPool
    from locust import User
    from locust.clients import HttpSession
    from locust.contrib.fasthttp import FastRequest
    from locust.exception import StopUser
    from locust.html import get_html_report
    from locust.runners import STATE_MISSING, STATE_STOPPED, MasterRunner, locust_exception_handler
    from locust.stats import StatsCSVFileWriter, StatsError
    from locust.user.task import (
        LOCUST_STATE_RUNNING,
        LOCUST_STATE_STOPPING,
        LOCUST_STATE_WAITING,
        DefaultTaskSet,
        TaskSet,
    )
    from locust.user.users import PytestUser
    from urllib3.connection import HTTPConnection, HTTPSConnection
except ImportError as error:
    raise ImportError(
        f"poolkit works with locust{SUPPORTED}, found {version('locust')}: {error}; "
        f"install one of those: pip install 'locust{SUPPORTED}'"
    ) from None

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator

    from gevent import Greenlet
    from locust.argument_parser import LocustArgumentParser
    from locust.env import Environment
    from locust.event import EventHook
    from locust.runners import WorkerRunner
    from locust.stats import RequestStats

# ruff: noqa: SLF001  (this is the one file that may)

_PROCESSES_WITHIN_S = 20.0

logger = logging.getLogger("poolkit.loadtest")


def warn_if_untested() -> None:
    """Warn in one line if the installed Locust is not one that poolkit was tested with."""
    installed = version("locust")
    oldest, below = (tuple(map(int, each.split("."))) for each in re.findall(r"[\d.]+", SUPPORTED))
    number = tuple(int(part) for part in re.findall(r"\d+", installed)[:2])
    if not oldest <= number < below:
        logger.warning(
            "poolkit was tested with locust%s, and this is locust %s: its figures may be wrong",
            *(SUPPORTED, installed),
        )


# -- options and processes ------------------------------------------------------------------


def around_parsing(
    parser: LocustArgumentParser, before: Callable[[], None], after: Callable[[Namespace], None]
) -> None:
    """Call a function before the options are parsed, and one with the options right after.

    Locust has no event between that and the start of the processes of `--processes`, which would
    wait for minutes for a master that has ended.
    """
    parse = parser.parse_args

    def parse_args(*args: Any, **kwargs: Any) -> Namespace:
        before()
        options: Namespace = parse(*args, **kwargs)
        after(options)
        return options

    parser.parse_args = parse_args


def option_names(parser: LocustArgumentParser) -> set[str]:
    """Return the names of all options that a parser has, such as `--host` and `-H`."""
    return set(parser._option_string_actions)


def wait_for_processes(environment: Environment) -> None:
    """Wait until all `--processes` have joined.

    A process that starts after its master has ended would wait for it for minutes.
    """
    runner, options = environment.runner, environment.parsed_options
    if isinstance(runner, MasterRunner) and options is not None and options.processes:
        with gevent.Timeout(_PROCESSES_WITHIN_S, False):
            while len(runner.clients) < options.processes:
                gevent.sleep(0.02)


def listen_first(event: EventHook, listener: Callable[..., None]) -> None:
    """Call a listener before those that were added so far; a locustfile's may take minutes."""
    event._handlers.insert(0, listener)


def count_as_stopped(environment: Environment) -> None:
    """Keep Locust from ending a test again that cannot be ended; the process ends nevertheless."""
    if environment.runner is not None:
        environment.runner.update_state(STATE_STOPPED)


def refuse_test_start(why: str) -> None:
    """Keep a `test_start` listener's test from starting any user.

    Locust logs any other exception of a listener with its traceback, and starts the users.
    """
    raise gevent.GreenletExit(why)


# -- users ----------------------------------------------------------------------------------


def was_waiting(user: User) -> bool:
    """Return whether a user that has ended was between two tasks."""
    return user._state == LOCUST_STATE_WAITING


def users_of(environment: Environment) -> Any:
    """Return the gevent group of this process's running users."""
    assert environment.runner is not None  # noqa: S101  (a test runs)
    return environment.runner.user_greenlets


def living_users(environment: Environment) -> list[User]:
    """Return this process's users that have not ended."""
    # gevent forgets the arguments of a greenlet that has ended.
    return [each.args[0] for each in users_of(environment) if each.args and not each.dead]


def spawning_has_ended(environment: Environment) -> bool:
    """Return whether Locust is starting no users in this process now."""
    assert environment.runner is not None  # noqa: S101  (a test runs)
    spawning = environment.runner.spawning_greenlet
    return spawning is not None and spawning.ready()


def fail_run(environment: Environment, reason: str) -> None:
    """End the run with the reason in the log and exit status 1; a web page stays open."""
    logger.error(reason)
    environment.process_exit_code = 1
    runner = environment.runner
    if runner is not None:
        # In a greenlet of its own: this one may end with the test.
        gevent.spawn(runner.quit if environment.web_ui is None else runner.stop)


def start_user(environment: Environment, user: User) -> Greenlet:
    """Start one more user, in addition to Locust's own."""
    return user.start(users_of(environment))


def end_run_on_error(environment: Environment, greenlet: Greenlet) -> None:
    """Treat an exception in a greenlet as Locust treats its own: the exit status is 2."""
    greenlet.link_exception(locust_exception_handler(environment))


def end_users_only_when(environment: Environment, has_stopped: Callable[[], bool]) -> None:
    """Keep Locust from ending users to reach `--users`; an open loop sets their number itself."""
    runner: Any = environment.runner
    stop_users = runner.stop_users

    def stop_at_the_end(counts: dict[str, int]) -> None:
        if has_stopped():
            stop_users(counts)

    runner.stop_users = stop_at_the_end


TAGS = "poolkit_tags"
"""The attribute of a user's greenlet that has the tags of its present task."""
USER_CLASS = "poolkit_user_class"
"""The one that has the name of the user's class."""


@cache
def note_tags() -> None:
    """Make every task note its tags, and its user's class, in its user's greenlet."""

    def noting(execute: Callable[[TaskSet, Any], None]) -> Callable[[TaskSet, Any], None]:
        def execute_task(self: TaskSet, task: Any) -> None:
            # A nested TaskSet has no tags of its own: Locust gives them to its tasks.
            greenlet = gevent.getcurrent()
            setattr(greenlet, TAGS, frozenset(getattr(task, "locust_tag_set", ())))
            setattr(greenlet, USER_CLASS, type(self.user).__name__)
            execute(self, task)

        return execute_task

    for task_set in (TaskSet, DefaultTaskSet):
        task_set.execute_task = noting(task_set.execute_task)  # type: ignore[method-assign]


def tags_of(user_classes: Iterable[type[User]]) -> set[str]:
    """Return the tags of all tasks of some classes."""

    def of_tasks(tasks: Any) -> Iterator[str]:
        for task in tasks or ():
            yield from getattr(task, "locust_tag_set", ())
            yield from of_tasks(getattr(task, "tasks", None))

    return {tag for user_class in user_classes for tag in of_tasks(user_class.tasks)}


def has_own_loop(user_class: type[User]) -> bool:
    """Return whether the users of a class run something else than Locust's tasks.

    Locust has marked `User.run` as final, but does not enforce it.
    """
    for one in user_class.__mro__:
        run = vars(one).get("run")
        if run is None:
            continue
        if unwrap(run) in (User.run, PytestUser.run):  # also when an earlier test was bound
            return False
        # One that calls the method it overrides is a preparation of it.
        if not {"super", "run"} <= {*getattr(getattr(run, "__code__", None), "co_names", ())}:
            return True
    return True


def wait_for_arrivals(
    user_classes: Iterable[type[User]],
    *,
    arrived: Callable[[User], None],
    wait: Callable[[User], bool],
) -> None:
    """Make the users of some classes wait before their first task and between any two.

    Args:
        user_classes: classes that were not passed here before, and have no loop of their own.
        arrived: called with a user that is ready for its first task.
        wait: called with an idle user; returns when there is a task for it, and True if there was
            one already.
    """

    def wait_time(user: User) -> float:
        wait(user)
        return 0.0

    def started(user_class: type[User], own: Any) -> Callable[[User], None]:
        def on_start(user: User) -> None:
            own(user)
            if type(user) is user_class:  # and not called as the parent's
                arrived(user)
                # A shorter way than by wait_time, after which Locust sleeps for 0 s.
                user._taskset_instance.wait = partial(_wait_in_task_set, user, wait)  # type: ignore[method-assign,union-attr]
                # Its on_start may have set another.
                user.wait_time = partial(wait_time, user)  # type: ignore[method-assign]
                # Locust ends a stopping user before its first task; from here it would be an error.
                if user._state != LOCUST_STATE_STOPPING:
                    _wait_in_task_set(user, wait)

        return on_start

    # All are read before any is replaced: one class may be the parent of another.
    for user_class, own in [(one, one.on_start) for one in user_classes]:
        if issubclass(user_class, PytestUser):
            _wait_before_functions(user_class, arrived, wait)
            continue
        user_class.on_start = started(user_class, own)  # type: ignore[assignment,method-assign]
        user_class.wait_time = wait_time
        for task_set in _task_sets(user_class.tasks):
            # One with a wait time of its own would begin tasks that are not scheduled.
            task_set.wait_time = TaskSet.wait_time  # type: ignore[method-assign]
            task_set.wait = TaskSet.wait  # type: ignore[method-assign]


def _wait_before_functions(
    user_class: type[PytestUser],
    arrived: Callable[[User], None],
    wait: Callable[[User], bool],
) -> None:
    """Make the users of a pytest-style locustfile wait before each test function."""
    own: Any = user_class.run

    @wraps(own)
    def run(user: PytestUser) -> None:
        before = partial(_wait_in_task_set, user, wait)
        user.functions = cast("Any", [_ArrivingFunction(each, before) for each in user.functions])
        arrived(user)
        with suppress(StopUser):
            own(user)

    user_class.run = run  # type: ignore[method-assign,misc]


class _ArrivingFunction:
    """A test function of a pytest-style locustfile that waits for an arrival before it runs."""

    def __init__(self, function: Any, wait: Callable[[], None]) -> None:
        self.fixturedef = function.fixturedef
        self._function, self._wait = function, wait

    def obj(self, fixture: Any) -> None:
        self._wait()
        self._function.obj(fixture)


def _wait_in_task_set(user: User, wait: Callable[[User], bool]) -> None:
    """Wait in the place of `TaskSet.wait`, with its changes of the user's state."""
    if user._state == LOCUST_STATE_STOPPING:
        raise StopUser
    user._state = LOCUST_STATE_WAITING
    if wait(user):
        gevent.sleep(0)  # a user that always has a task leaves some time to the others
    user._state = LOCUST_STATE_RUNNING


def _task_sets(tasks: Any) -> Iterator[type[TaskSet]]:
    for task in tasks or ():
        if isinstance(task, type) and issubclass(task, TaskSet):
            yield task
            yield from _task_sets(task.tasks)


# -- HTTP -----------------------------------------------------------------------------------


def check_redirects() -> None:
    """Make both of Locust's HTTP clients ask `check_redirect` before they follow one; call it once."""
    find_target, redirect = HttpSession.get_redirect_target, FastRequest.redirect

    def get_redirect_target(self: HttpSession, response: requests.Response) -> str | None:
        target = find_target(self, response)
        if target is not None:
            to_host = urlsplit(urljoin(response.url, target)).hostname
            try:
                check_redirect(urlsplit(response.url).hostname, to_host)
            except RedirectRefused as error:
                # Locust counts requests' own errors as failures.
                raise requests.ConnectionError(str(error)) from None
        return target

    def redirect_if_allowed(self: FastRequest, code: int, location: str) -> None:
        check_redirect(self.url_split.host, self.url_split.redirect(location).host)
        redirect(self, code, location)

    HttpSession.get_redirect_target = get_redirect_target  # type: ignore[assignment,method-assign]
    FastRequest.redirect = redirect_if_allowed  # type: ignore[assignment,method-assign]


_NOT_COUNTED: set[Greenlet] = set()
"""Greenlets whose HTTP clients are not those of a user."""


@contextmanager
def not_counted_as_client() -> Iterator[None]:
    """Keep what this greenlet sends out of `count_client_connects`."""
    greenlet = gevent.getcurrent()
    _NOT_COUNTED.add(greenlet)
    try:
        yield
    finally:
        _NOT_COUNTED.discard(greenlet)


def count_client_connects(
    *,
    connected: Callable[[float, bool], None],
    failed: Callable[[], None],
    sent: Callable[[], None],
) -> None:
    """Count the connects of both of Locust's HTTP clients, and their requests; call it once.

    It is measured where the sockets are made: FastHttpUser's in geventhttpclient's pools, whose
    `_create_socket` is private, and HttpUser's in urllib3's connections.

    Args:
        connected: called with the time of a connect in ms, and whether it was one of TLS.
        failed: called for each connect that raised an error.
        sent: called for each request.
    """

    def timed(connect: Callable[..., Any], *, tls: bool | None = None) -> Callable[..., Any]:
        @wraps(connect)
        def timed_connect(self: Any, *args: Any, **kwargs: Any) -> Any:
            if _NOT_COUNTED and gevent.getcurrent() in _NOT_COUNTED:
                return connect(self, *args, **kwargs)
            began = time.perf_counter()
            try:
                found = connect(self, *args, **kwargs)
            except Exception:
                failed()
                raise
            took_ms = (time.perf_counter() - began) * 1000
            connected(took_ms, isinstance(self, SSLConnectionPool) if tls is None else tls)
            return found

        return timed_connect

    def counted(send: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(send)
        def counted_send(self: Any, *args: Any, **kwargs: Any) -> Any:
            found = send(self, *args, **kwargs)
            if not _NOT_COUNTED or gevent.getcurrent() not in _NOT_COUNTED:
                sent()
            return found

        return counted_send

    patched: Any
    for patched, name, wrapped in (
        (ConnectionPool, "_create_socket", timed(ConnectionPool._create_socket)),
        (ConnectionPool, "get_socket", counted(ConnectionPool.get_socket)),
        (HTTPConnection, "connect", timed(HTTPConnection.connect, tls=False)),
        (HTTPSConnection, "connect", timed(HTTPSConnection.connect, tls=True)),
        (HTTPConnection, "request", counted(HTTPConnection.request)),
    ):
        setattr(patched, name, wrapped)


def count_resent_requests(resent: Callable[[int], None]) -> None:
    """Count the requests that geventhttpclient sends again; call it once.

    It sends a request again when the server closes the connection without an answer, up to twelve
    times, if the method is idempotent. Locust reports one request. Each attempt takes a socket.

    Args:
        resent: called with the number of times that one request was sent again.
    """
    attempts: dict[Any, int] = {}
    """By greenlet that sends a request."""

    def attempted(get_socket: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(get_socket)
        def attempt(self: Any) -> Any:
            greenlet = gevent.getcurrent()
            if greenlet in attempts:
                attempts[greenlet] += 1
            return get_socket(self)

        return attempt

    def repeated(request: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(request)
        def repeated_request(self: Any, *args: Any, **kwargs: Any) -> Any:
            greenlet = gevent.getcurrent()
            attempts[greenlet] = 0
            try:
                return request(self, *args, **kwargs)
            finally:
                times = attempts.pop(greenlet) - 1
                if times > 0 and greenlet not in _NOT_COUNTED:
                    resent(times)

        return repeated_request

    ConnectionPool.get_socket = attempted(ConnectionPool.get_socket)  # type: ignore[method-assign]
    HTTPClient.request = repeated(HTTPClient.request)  # type: ignore[method-assign]


# -- workers --------------------------------------------------------------------------------


def report_interval_s() -> float:
    """Return the seconds between two reports of a worker."""
    return float(runners.WORKER_REPORT_INTERVAL)


def report_to_master(environment: Environment, runner: WorkerRunner) -> None:
    """Send a report to the master now, as Locust does every three seconds."""
    data: dict[str, Any] = {}
    send = environment.events.report_to_master.fire
    send(client_id=runner.client_id, data=data)  # type: ignore[no-untyped-call]
    runner.send_message("stats", data)


def workers_of(runner: MasterRunner) -> dict[str, bool]:
    """Return by worker that has joined whether it still sends heartbeats."""
    return {worker.id: worker.state != STATE_MISSING for worker in runner.clients.all}


def users_of_workers(runner: MasterRunner) -> dict[str, int]:
    """Return by worker that still sends heartbeats the number of its users."""
    alive = (worker for worker in runner.clients.all if worker.state != STATE_MISSING)
    return {worker.id: worker.user_count for worker in alive}


def spawn_in_test(runner: MasterRunner, function: Callable[[], None]) -> Greenlet:
    """Run a function in a greenlet that ends with the runner at the latest."""
    return runner.greenlet.spawn(function)


def worker_index(runner: MasterRunner, worker: str) -> int:
    """Return a worker's number, which Locust prints too."""
    return int(runner.get_worker_index(worker))  # type: ignore[no-untyped-call]


# -- statistics and files -------------------------------------------------------------------


def add_failures(stats: RequestStats, name: str, error: str, count: int) -> None:
    """Add failures for which no event was fired to Locust's statistics, in all their tables.

    Args:
        stats: Locust's.
        name: of the row.
        error: the text in the table of failures.
        count: at least 1. An overloaded server may leave millions of arrivals unsent.
    """
    # As Locust counts a request without a response time; the others are the same once more.
    stats.log_request("", name, None, 0)  # type: ignore[arg-type]
    stats.log_error("", name, error)
    for entry in (stats.total, stats.get(name, "")):
        entry.num_requests += count - 1
        entry.num_none_requests += count - 1
        entry.num_failures += count - 1
    stats.errors[StatsError.create_key("", name, error)].occurrences += count - 1


def html_report(environment: Environment) -> str:
    """Return Locust's report of the run so far, as `--html` writes it."""
    report: str = get_html_report(environment, show_download_link=False)  # type: ignore[no-untyped-call]
    return report


def end_csv_writer_before_its_files() -> None:
    """Make Locust's writer of CSV files end before the files are closed, with the last figures.

    Locust closes the files and leaves the writer asleep. With `--processes` it then waits for its
    workers, long enough for the writer to wake and fail on a closed file. Call this once.
    """
    write, close = StatsCSVFileWriter.stats_writer, StatsCSVFileWriter.close_files
    writing: list[Greenlet] = []

    def stats_writer(self: StatsCSVFileWriter) -> None:
        writing.append(gevent.getcurrent())
        write(self)

    def close_files(self: StatsCSVFileWriter) -> None:
        gevent.killall(writing)
        # Once more, with the last second and the failures that are known only at the end.
        for file in (self.requests_csv_filehandle, self.failures_csv_filehandle):
            file.seek(0)
            file.truncate()
        self.requests_csv(self.requests_csv_writer)
        self.failures_csv(self.failures_csv_writer)
        close(self)

    StatsCSVFileWriter.stats_writer = stats_writer  # type: ignore[method-assign]
    StatsCSVFileWriter.close_files = close_files  # type: ignore[method-assign]
