"""Flask: an engine from a preset, errors of the database as 503, readiness and metrics.

    kit = Poolkit()


    def create_app():
        app = Flask(__name__)
        kit.init_app(app)  # DATABASE_URL, POOLKIT_ENVIRONMENT
        return app


    @blueprint.get("/notes")
    def notes():
        with kit.unit_of_work() as session:
            return [note.text for note in session.scalars(select(Note))]

With Flask-SQLAlchemy, `kit.init_app(app, db)` does the same for the engines of `db`; see
`poolkit.flask_sqlalchemy` for engines from a preset.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from flask import Response, current_app, g, request
from sqlalchemy import exc
from sqlalchemy.orm import sessionmaker
from werkzeug.exceptions import HTTPException, InternalServerError, ServiceUnavailable

from poolkit.attached import attach
from poolkit.config.engine import check_connection, make_engine
from poolkit.config.holds import unit
from poolkit.config.metrics import PoolMetrics, PoolSnapshot
from poolkit.config.session import translated, unit_of_work
from poolkit.config.settings import Settings
from poolkit.errors import TemporaryFailure
from poolkit.problems import MEDIA_TYPE, Problem, problem_of, status_problem
from poolkit.prometheus import CONTENT_TYPE, exposition

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from flask import Flask
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session

    from poolkit.config.holds import CallSite, Unit

__all__ = ("Poolkit", "problem_answer")

_NAME = "poolkit"


class _Database(Protocol):
    """Flask-SQLAlchemy's extension."""

    @property
    def engines(self) -> Mapping[str | None, Engine]:
        """The engines of the current application, by bind key."""
        ...


class Poolkit:
    """A Flask extension; it stores what belongs to an application in `app.extensions["poolkit"]`.

    Args:
        app: as `init_app`; without it call `init_app` later.
        options: as `init_app`.
    """

    def __init__(self, app: Flask | None = None, **options: Any) -> None:
        if app is not None:
            self.init_app(app, **options)

    def init_app(
        self,
        app: Flask,
        db: _Database | None = None,
        *,
        settings: Settings | None = None,
        ready: str | None = "/readyz",
        metrics: str | None = "/metrics",
        every_error: bool = False,
    ) -> None:
        """Add engines, error handlers, readiness and metrics to an application.

        Args:
            app: the application.
            db: Flask-SQLAlchemy's extension, already initialised: its engines are used. One that
                `poolkit.flask_sqlalchemy` did not make is attached (`poolkit.attach`).
            settings: of the engine that is made without `db`; by default from the environment.
            ready: the path that answers 200 if each database answers, else 503; None for none. A
                read-only server counts as none, unless `target_session_attrs` admits a standby.
            metrics: the path of the pools' counters for Prometheus; None for none.
            every_error: answer Flask's own errors, such as 404, as problem documents too.

        Raises:
            ConfigurationError: a DATABASE_* or POOLKIT_* variable is missing or wrong.
        """
        if db is None:
            settings = settings or Settings.from_environ(default_target="web")
            counters = PoolMetrics()
            engine = make_engine(settings, counters)
            writers = {settings.target} if settings.expects_writes else set()
            state = _State({settings.target: engine}, {settings.target: counters}, writers)
            weakref.finalize(app, engine.dispose)
        else:
            state = _state_of(app, db)
        app.extensions[_NAME] = state
        _watch_holds(app)
        for kind in (TemporaryFailure, exc.TimeoutError, exc.DBAPIError, exc.InvalidRequestError):
            app.register_error_handler(kind, _answer_failure)
        if every_error:
            app.register_error_handler(HTTPException, _answer_http_error)
        if ready is not None:
            app.add_url_rule(ready, "poolkit_ready", _ready)
        if metrics is not None:
            app.add_url_rule(metrics, "poolkit_metrics", _metrics)

    @property
    def engine(self) -> Engine:
        """The current application's engine; with several, the one of the default bind."""
        return next(iter(_state().engines.values()))

    def unit_of_work(self) -> AbstractContextManager[Session]:
        """Return a session that commits at the end of the block, and rolls back on an error.

        Raises:
            PoolExhausted, DatabaseUnavailable, StatementTimeout: as `poolkit.unit_of_work`; the
                client receives 503.
        """
        return unit_of_work(_state().sessions)


@dataclass(frozen=True)
class _State:
    """What an application has: its engines, the default bind's first, and their pools' counters."""

    engines: dict[str, Engine]
    metrics: dict[str, PoolMetrics]
    writers: set[str]
    """The names of the engines whose connections must accept writes."""

    @cached_property
    def sessions(self) -> sessionmaker[Session]:
        return sessionmaker(next(iter(self.engines.values())))

    def snapshots(self) -> dict[str, PoolSnapshot]:
        return {
            name: metrics.snapshot(self.engines[name].pool)
            for name, metrics in self.metrics.items()
        }

    def call_sites(self) -> dict[str, list[CallSite]]:
        return {name: metrics.holds.rows() for name, metrics in self.metrics.items()}


def _state_of(app: Flask, db: _Database) -> _State:
    with app.app_context():
        binds = sorted(db.engines.items(), key=lambda item: item[0] is not None)
    of_ours = getattr(db, "poolkit_metrics", lambda engine: None)
    expects_writes = getattr(db, "poolkit_expects_writes", lambda engine: False)
    engines, metrics, writers = {}, {}, set()
    for bind, engine in binds:
        name = bind or "web"
        engines[name] = engine
        if expects_writes(engine):
            writers.add(name)
        # Tests use SQLite, and expect the pool that SQLAlchemy gives it.
        if engine.dialect.name != "sqlite":
            metrics[name] = of_ours(engine) or attach(engine).metrics
    return _State(engines, metrics, writers)


def _state() -> _State:
    state: _State = current_app.extensions[_NAME]
    return state


def _watch_holds(app: Flask) -> None:
    """Make each request a unit of work, such as `GET /notes/<int:note_id>`, until it is sent."""

    def begin() -> None:
        rule = request.url_rule.rule if request.url_rule is not None else "(no route)"
        g._poolkit_unit = unit(f"{request.method} {rule}").__enter__()  # noqa: SLF001

    def watch(response: Response) -> Response:
        work: Unit | None = g.get("_poolkit_unit")
        if work is not None:
            response.call_on_close(work.responded)
            if response.is_streamed:
                # Flask ends the request before it iterates over the stream.
                response.call_on_close(work.close)
                g.pop("_poolkit_unit")
        return response

    def end(error: BaseException | None) -> None:
        # Sessions are closed after this, at the end of the application's context.
        work: Unit | None = g.pop("_poolkit_unit", None)
        if work is not None:
            work.close()

    app.before_request(begin)
    app.after_request(watch)
    app.teardown_request(end)


# -- answers --------------------------------------------------------------------------------


def problem_answer(problem: Problem) -> Response:
    """Return a problem document as Flask's response."""
    body = b"" if request.method == "HEAD" else problem.body()
    return Response(body, problem.status, dict(problem.headers), mimetype=MEDIA_TYPE)


def _answer_failure(error: Exception) -> Any:
    """Answer 503 to a temporary failure; let any other error of SQLAlchemy be Flask's 500."""
    problem = problem_of(error)
    if problem.status != 503:
        raise error
    current_app.logger.warning("%s %s: %s", request.method, request.path, error)
    # A site has a page for it: @app.errorhandler(503). An API gets the document.
    unavailable = ServiceUnavailable(
        problem.detail, retry_after=int(problem.headers["Retry-After"])
    )
    answer = current_app.handle_http_exception(unavailable)
    if answer is unavailable:
        return problem_answer(problem)
    response = current_app.make_response(answer)
    response.headers.setdefault("Retry-After", problem.headers["Retry-After"])
    return response


def _answer_http_error(error: HTTPException) -> Any:
    if isinstance(error, InternalServerError):
        return problem_answer(problem_of(error))
    if error.response is not None or error.code is None:  # a redirect, or made by the application
        return error
    headers = {k: v for k, v in error.get_headers() if k.lower() != "content-type"}
    return problem_answer(status_problem(error.code, error.description or "", headers))


def _ready() -> Response:
    for name, engine in _state().engines.items():
        with translated(), engine.connect() as connection:
            check_connection(connection, expects_writes=name in _state().writers)
    return Response("ready\n", mimetype="text/plain")


def _metrics() -> Response:
    state = _state()
    text = exposition(state.snapshots(), state.call_sites())
    return Response(text, content_type=CONTENT_TYPE)
