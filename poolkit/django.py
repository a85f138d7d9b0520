"""Django: a database from a preset, errors of the database as 503, readiness and metrics.

    # settings.py
    from poolkit.django import database

    DATABASES = {"default": database("web")}
    MIDDLEWARE = ["poolkit.django.Failures", ...]

    # urls.py
    urlpatterns = [path("", include("poolkit.django")), ...]
    handler500 = "poolkit.django.server_error"

`database` returns plain settings for Django's own PostgreSQL backend, so all that Django documents
about it holds. docs/integrations/django.md lists what a preset means there, and the limits.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings as django_settings
from django.db import Error, connections
from django.http import HttpResponse
from django.urls import path
from django.utils.deprecation import MiddlewareMixin
from django.views import defaults

from poolkit.config.holds import unit
from poolkit.config.presets import PresetError
from poolkit.config.session import sqlstate, translate
from poolkit.config.settings import Settings
from poolkit.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    PoolExhausted,
    TemporaryFailure,
    how_to_install,
)
from poolkit.problems import MEDIA_TYPE, problem_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from django.http import HttpRequest
    from prometheus_client.core import Metric
    from sqlalchemy import URL

    from poolkit.config.presets import EnginePreset

__all__ = ("Failures", "database", "failure_of", "metrics", "ready", "server_error", "urlpatterns")

_log = logging.getLogger(__name__)


# -- settings.py ----------------------------------------------------------------------------


def database(
    target: str = "web", *, url: str | URL | None = None, preset: EnginePreset | None = None
) -> dict[str, Any]:
    """Return the settings of one database for DATABASES.

    A preset with more than one connection becomes a pool of psycopg, which the threads of a
    process share. One with a single connection (a prefork child of Celery, `lambda_warm`) becomes
    a persistent connection (CONN_MAX_AGE), a null pool a connection for each request.

    Args:
        target: the preset, where POOLKIT_TARGET does not name another.
        url: the database instead of DATABASE_URL. A SQLite URL, as in tests, gets Django's own
            settings.
        preset: instead of the one of the variables.

    Raises:
        ConfigurationError: a variable is missing, wrong or unsafe; the database is neither
            PostgreSQL nor SQLite, or its password is not in the URL.
        PresetError: the preset is asynchronous.
    """
    settings = Settings.from_environ(url=url, default_target=target)
    found, preset = settings.url, preset or settings.preset
    if found.get_backend_name() == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": found.database or ":memory:"}
    if settings.credentials != "url" or found.get_backend_name() != "postgresql":
        raise ConfigurationError(
            "poolkit.django wants a PostgreSQL URL with its password in DATABASE_URL; Django "
            "reads the password once, so a secret or a token that changes is not supported"
        )
    if preset.is_async:
        raise PresetError(
            f"{preset.target} is asynchronous, and Django's ORM is synchronous", "target"
        )
    driver = "psycopg" if find_spec("psycopg") else "psycopg2"
    name = settings.application_name() if settings.instance else preset.application_name()
    options = preset.replace(driver=driver).engine_options(
        settings.engine_url().set(drivername=f"postgresql+{driver}"), application_name=name
    )["connect_args"]
    _renew_after_fork()
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": found.database,
        "USER": found.username or "",
        "PASSWORD": found.password or "",
        "HOST": found.host or "",
        "PORT": found.port or "",
        # A pooler in transaction mode gives each transaction another server connection.
        "DISABLE_SERVER_SIDE_CURSORS": preset.transaction_pooling,
        "CONN_HEALTH_CHECKS": preset.pool_pre_ping and preset.pool == "queue",
        **_keeping(preset, {**found.query, **options}, driver),
    }


def _keeping(preset: EnginePreset, options: dict[str, Any], driver: str) -> dict[str, Any]:
    """Return the settings that say how long connections are kept."""
    if preset.pool == "null":
        return {"CONN_MAX_AGE": 0, "OPTIONS": options}
    if preset.max_connections_per_process == 1:
        age = None if preset.pool_recycle < 0 else int(preset.pool_recycle)
        return {"CONN_MAX_AGE": age, "OPTIONS": options}
    if driver != "psycopg" or not find_spec("psycopg_pool"):
        raise ConfigurationError(
            f"the preset {preset.target}/{preset.environment} has a pool, which Django has with "
            f"psycopg 3 and psycopg_pool only; {how_to_install('django')}"
        )
    pool: dict[str, Any] = {
        "min_size": preset.prewarm,
        "max_size": preset.max_connections_per_process,
        "timeout": preset.pool_timeout,
        "max_waiting": preset.max_waiting,
        # A server that is away should fail a request, and not be tried for minutes in the back.
        "reconnect_timeout": float(preset.connect_timeout),
    }
    if preset.pool_recycle > 0:
        pool["max_lifetime"] = preset.pool_recycle
    return {"CONN_MAX_AGE": 0, "OPTIONS": {**options, "pool": pool}}


@functools.cache
def _renew_after_fork() -> None:
    """Make each forked child begin without connections and with a name of its own."""
    parent = os.getpid()
    inherited: list[Any] = []

    def renew() -> None:
        if not django_settings.configured:
            return
        for connection in connections.all(initialized_only=True):
            # Kept, because collecting it would end the parent's session.
            inherited.append(connection.connection)
            connection.connection = None
        # A pool has threads, which the child does not have.
        inherited.extend(_open_pools().values())
        _open_pools().clear()
        for settings in connections.settings.values():
            options, ending = settings.get("OPTIONS", {}), f"-{parent}"
            if (name := options.get("application_name", "")).endswith(ending):
                options["application_name"] = f"{name.removesuffix(ending)}-{os.getpid()}"

    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=renew)


def _open_pools() -> dict[str, Any]:
    """Return psycopg's pools of this process by alias: private to Django, from 5.1 to 6.1."""
    backend = sys.modules.get("django.db.backends.postgresql.base")
    wrapper = getattr(backend, "DatabaseWrapper", None)
    pools: dict[str, Any] = getattr(wrapper, "_connection_pools", {})
    return pools


# -- failures -------------------------------------------------------------------------------


def failure_of(error: BaseException | None) -> TemporaryFailure | None:
    """Return poolkit's exception for a failure of the database or the pool, else None."""
    if isinstance(error, TemporaryFailure):
        return error
    if not isinstance(error, Error):
        return None
    cause = error.__cause__
    if "psycopg_pool" in sys.modules:
        from psycopg_pool import PoolTimeout, TooManyRequests  # noqa: PLC0415  (an option)

        if isinstance(cause, PoolTimeout | TooManyRequests):
            stats = [pool.get_stats() for pool in _open_pools().values()]
            full = any(each["pool_size"] >= each["pool_max"] for each in stats)
            return PoolExhausted(str(cause)) if full else DatabaseUnavailable(str(cause))
    known = None if cause is None else translate(cause)
    return known if isinstance(known, TemporaryFailure) else None


class Failures(MiddlewareMixin):  # type: ignore[misc]  # Django has no types
    """The middleware that answers 503 with Retry-After where a view meets a full pool or no server.

    Anywhere in MIDDLEWARE; errors in other middlewares are for `server_error`.

    It makes each request a unit of work too, such as `GET orders/<int:pk>/`, for engines of
    SQLAlchemy that are measured beside Django's own connections.
    """

    def process_request(self, request: HttpRequest) -> None:
        """Begin the unit of work."""
        method = request.method

        def label() -> str:
            match = getattr(request, "resolver_match", None)
            return f"{method} {match.route if match is not None else '(no route)'}"

        request._poolkit_unit = unit(label).__enter__()  # noqa: SLF001

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """End the unit of work; what is out when the response has been sent is counted."""
        work = getattr(request, "_poolkit_unit", None)
        if work is not None:
            work.close()
            # Django closes these when the server has sent the response.
            response._resource_closers.append(work.responded)  # noqa: SLF001
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Answer a failure of the database; leave any other error to Django."""
        failure = failure_of(error)
        return None if failure is None else _unavailable(request, failure, error)


def server_error(request: HttpRequest, *arguments: Any, **options: Any) -> HttpResponse:
    """Answer 503 to a failure of the database, and Django's 500 to any other error; `handler500`."""
    error = sys.exc_info()[1]
    failure = failure_of(error)
    if failure is not None:
        return _unavailable(request, failure, error)
    return defaults.server_error(request, *arguments, **options)


def _unavailable(
    request: HttpRequest, failure: TemporaryFailure, error: BaseException | None
) -> HttpResponse:
    _log.warning("%s %s: %s", request.method, request.path, error)
    if error is not None and sqlstate(error.__cause__) == "25006":
        _leave_read_only_server()
    problem = problem_of(failure)
    return HttpResponse(
        problem.body(), status=problem.status, headers=problem.headers, content_type=MEDIA_TYPE
    )


def _leave_read_only_server() -> None:
    """Replace every connection of this process: the primary was demoted, and lives on."""
    for pool in list(_open_pools().values()):
        if hasattr(pool, "drain"):  # from psycopg_pool 3.3 on
            pool.drain()
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:  # a test's transaction
            connection.close()


# -- urls.py --------------------------------------------------------------------------------


def ready(request: HttpRequest) -> HttpResponse:
    """Answer 200 if each database answers, and accepts writes where it has to; else 503."""
    for connection in connections.all():
        options = connection.settings_dict.get("OPTIONS", {})
        must_write = options.get("target_session_attrs") in ("read-write", "primary")
        try:
            with connection.cursor() as cursor:
                if not must_write:
                    cursor.execute("SELECT 1")
                    continue
                cursor.execute("SELECT current_setting('transaction_read_only')")
                is_read_only = cursor.fetchone() == ("on",)
            if is_read_only:
                _leave_read_only_server()
                refusal = DatabaseUnavailable("the server is read-only")
                return _unavailable(request, refusal, refusal)
        except Error as error:
            failure = failure_of(error)
            if failure is None:
                raise
            return _unavailable(request, failure, error)
    return HttpResponse("ready\n", content_type="text/plain")


_TEXTS: Final = {
    "size": "Connections that the pool keeps open when idle.",
    "checked_out": "Connections in use.",
    "waiting": "Callers that have asked for a connection and wait for it.",
    "checkouts": "Checkouts that got a connection.",
    "checkout_timeouts": "Checkouts that gave up after pool_timeout.",
    "opened": "Connections opened.",
    "connect_failures": "Attempts to open a connection that failed.",
}
_GAUGES: Final = ("size", "checked_out", "waiting")


def metrics(request: HttpRequest) -> HttpResponse:
    """Answer the counters of this process's pools, for Prometheus."""
    # Not at the top: settings.py imports this module.
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry  # noqa: PLC0415
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415
    from prometheus_client.exposition import generate_latest  # noqa: PLC0415
    from prometheus_client.registry import Collector  # noqa: PLC0415

    pools = {alias: _measures(pool.get_stats()) for alias, pool in list(_open_pools().items())}

    class Pools(Collector):
        def collect(self) -> Iterator[Metric]:
            for name, text in _TEXTS.items():
                kind = GaugeMetricFamily if name in _GAUGES else CounterMetricFamily
                family = kind(f"poolkit_pool_{name}", text, labels=["target"])
                for alias, measures in pools.items():
                    family.add_metric([alias], measures[name])
                yield family

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Pools())
    return HttpResponse(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _measures(stats: Mapping[str, int]) -> dict[str, int]:
    """Return psycopg's statistics of a pool in poolkit's words."""
    attempts, failures = stats.get("connections_num", 0), stats.get("connections_errors", 0)
    requests, errors = stats.get("requests_num", 0), stats.get("requests_errors", 0)
    return {
        "size": stats["pool_min"],
        "checked_out": stats["pool_size"] - stats["pool_available"],
        "waiting": stats["requests_waiting"],
        "checkouts": requests - errors,
        "checkout_timeouts": errors,
        "opened": attempts - failures,
        "connect_failures": failures,
    }


urlpatterns = [path("readyz", ready), path("metrics", metrics)]
