"""Reads a target's SQLAlchemy engines, and gives them another pool if an option asks for one.

Python imports a module of this name at start, from PYTHONPATH. `poolkit compare` puts this folder
there, for the processes of a target that it starts. It runs in the target's interpreter, so it
imports the standard library only, and works on Python 3.9 and SQLAlchemy 1.4.

    _POOLKIT_SHIM_FOLDER       the folder of the records, one JSON file per process
    _POOLKIT_SHIM_POOL         "now": engines stay as they are; else the name of a preset
    _POOLKIT_SHIM_ENVIRONMENT  the preset's numbers, such as "prod"
    _POOLKIT_SHIM_SIZE         "10+5": engines with a queue get this pool_size and max_overflow
    _POOLKIT_SHIM_PER_TASK     set for a worker, whose children run one task at a time
    _POOLKIT_SHIM_PRESETS      poolkit/config/presets.py, which works alone, as holds.py beside it does
    _POOLKIT_HOLDS_FOLDER      the folder of the tables of who holds connections
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import json
import os
import sys
import threading
import weakref
from time import perf_counter
from typing import Any

NOW = "now"
MANY = 50
"""Engines made in one process; a process that makes more makes one per request."""
_CREATE = "sqlalchemy.engine.create"
"""The module of the one function that every way to an engine calls: `create_async_engine`,
`engine_from_config` and the frameworks' own functions too."""
_POOLS = {"psycopg_pool.base": "BasePool", "asyncpg.pool": "Pool"}
"""Pools of the drivers: module and class."""
_DJANGO = "django.db"
_STARLETTE = "starlette.applications"
_FLASK = "flask.app"
_CELERY = "celery.signals"
# What a preset decides; the application's other arguments stay.
_OF_THE_POOL = (
    *("poolclass", "pool", "pool_size", "max_overflow", "pool_timeout", "pool_recycle"),
    *("pool_pre_ping", "pool_use_lifo"),
)
_OF_SQLALCHEMY = ("_is_async", "future")


class Engines:
    """The engines of this process, and their record in the folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.made = 0
        self.inherited = False
        self.connected = False
        self.other_pools: list[dict[str, Any]] = []
        self.has_django = False
        self.reports_holds = False
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def add(self, engine: Any) -> None:
        """Take a new engine; its first connection is noted too."""
        from sqlalchemy import event  # noqa: PLC0415  (it is being imported when this file begins)

        self.made += 1
        if self.made > MANY + 1 or not hasattr(engine, "pool"):  # a mock of SQLAlchemy 1.4
            return
        self.alive.add(engine)
        # The engines of poolkit itself report their holds.
        if "_POOLKIT_HOLDS_FOLDER" in os.environ and "Measured" not in type(engine.pool).__name__:
            with contextlib.suppress(Exception):
                _watch_holds(engine)
                self.reports_holds = True
        weakref.finalize(engine, self.write).atexit = False

        def note_connection(connection: Any, record: Any) -> None:
            if not self.connected:
                self.connected = True
                self.write()

        # A process that never connects, such as a master before its forks, holds nothing.
        event.listen(engine, "connect", note_connection)
        self.write()

    def watch_create_engine(self, module: Any) -> None:
        """Wrap SQLAlchemy's `create_engine`: each engine is noted, and has the preset's pool."""
        original = module.create_engine

        def create_engine(url: Any, **options: Any) -> Any:
            changes = os.environ.get("_POOLKIT_SHIM_POOL", NOW) != NOW
            # SQLite beside it, as in a test's fallback, keeps its pool.
            if changes and str(url).startswith("postgres"):
                engine = _with_preset(original, url, options)
            else:
                engine = original(url, **_with_size(url, options))
            self.add(engine)
            return engine

        module.create_engine = functools.wraps(original)(create_engine)

    def watch_pool(self, module: Any) -> None:
        """Note the limits of a driver's own pools, which are no part of SQLAlchemy."""
        kind = getattr(module, _POOLS[module.__name__])
        original = kind.__init__

        def __init__(pool: Any, *args: Any, **options: Any) -> None:  # noqa: N807
            original(pool, *args, **options)
            most = getattr(pool, "max_size", None) or getattr(pool, "_maxsize", None)
            name = module.__name__.partition(".")[0]
            self.other_pools.append({"pool": name, "most": most})
            self.write()

        kind.__init__ = __init__

    def _after_fork(self) -> None:
        self._lock = threading.RLock()
        self.inherited, self.connected = True, False
        if self.made or self.other_pools or self.has_django:
            self.write()

    def write(self) -> None:
        """Replace the record of this process, or leave it: the target matters more than that."""
        with self._lock, contextlib.suppress(Exception):
            record = {
                "pid": os.getpid(),
                "parent": os.getppid(),
                "inherited": self.inherited,
                "connected": self.connected,
                "made": self.made,
                "engines": [_described(engine) for engine in list(self.alive)],
                "other_pools": self.other_pools,
                "has_django": self.has_django,
            }
            file = os.path.join(self.folder, f"{os.getpid()}.json")
            with open(f"{file}.partial", "w", encoding="utf-8") as partial:
                json.dump(record, partial)
            os.replace(f"{file}.partial", file)


def _described(engine: Any) -> dict[str, Any]:
    """Return an engine's pool and its database, without user and password."""
    pool, url = engine.pool, engine.url
    kind = type(pool)
    names = {each.__name__ for each in kind.__mro__}
    most = None
    if "QueuePool" in names:  # AsyncAdaptedQueuePool is one, too
        size, overflow = pool.size(), getattr(pool, "_max_overflow", -1)
        most = size + overflow if size > 0 and overflow >= 0 else None
    elif names & {"StaticPool", "AssertionPool"}:
        most = 1
    return {
        "pool": kind.__name__,
        "size": pool.size() if "QueuePool" in names else None,
        "max_overflow": getattr(pool, "_max_overflow", None),
        "most": most,
        "is_null": "NullPool" in names,
        "backend": engine.dialect.name,
        "driver": engine.dialect.driver,
        "host": url.host,
        "port": url.port,
    }


def _with_size(url: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return an engine's options with the size of `--pool-sizes`, if its pool is a queue."""
    size = os.environ.get("_POOLKIT_SHIM_SIZE")
    poolclass = options.get("poolclass")
    names = {each.__name__ for each in getattr(poolclass, "__mro__", ())}
    if not size or not str(url).startswith("postgres") or options.get("pool") is not None:
        return options
    if poolclass is not None and "QueuePool" not in names:
        return options
    pool_size, _, overflow = size.partition("+")
    return {**options, "pool_size": int(pool_size), "max_overflow": int(overflow)}


def _with_preset(create_engine: Any, url: Any, options: dict[str, Any]) -> Any:
    """Return an engine like `create_engine(url, **options)` with the pool of a preset."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415

    word, environment = os.environ["_POOLKIT_SHIM_POOL"], os.environ["_POOLKIT_SHIM_ENVIRONMENT"]
    presets = _presets()
    url = make_url(url)
    # psycopg's one name stands for both kinds; SQLAlchemy 1.4 has the dialect alone.
    is_async = bool(options.get("_is_async") or url.get_dialect().is_async)
    chosen = presets.preset(word, environment)
    if os.environ.get("_POOLKIT_SHIM_PER_TASK"):
        chosen = chosen.per_task()
    null = chosen.pool == "null"
    if is_async and not chosen.is_async:
        # An asynchronous engine needs an asynchronous driver's arguments.
        fields = {f: getattr(chosen, f) for f in ("pool_timeout", "pool_recycle", "pool_use_lifo")}
        fields |= {"pool_size": chosen.pool_size, "max_overflow": chosen.max_overflow}
        chosen = presets.preset("web_async", environment).replace(**fields)
    elif chosen.is_async and not is_async:
        chosen = presets.preset("web", environment)
    if "+" not in url.drivername:
        # The application's driver, as its SQLAlchemy understands the URL: not the preset's.
        url = url.set(drivername=f"{url.drivername}+{url.get_dialect().driver}")
    kept = {k: v for k, v in options.items() if k not in (*_OF_THE_POOL, *_OF_SQLALCHEMY)}
    # The name on the server is that of the preset that was asked for.
    name = chosen.application_name().replace(f"{chosen.target}:", f"{word}:", 1)
    name = None if chosen.target == word else name
    merged = chosen._merged(url, name, {"echo": False, **kept})  # noqa: SLF001
    merged |= {k: options[k] for k in _OF_SQLALCHEMY if k in options}
    if null:
        from sqlalchemy.pool import NullPool  # noqa: PLC0415

        merged = {k: v for k, v in merged.items() if k not in _OF_THE_POOL}
        merged["poolclass"] = NullPool
    engine = create_engine(chosen.url(url), **merged)
    chosen.add_checks(engine)
    return engine


def _watch_holds(engine: Any) -> None:
    """Measure who holds the connections of an engine, and how much of the time SQL runs on them."""
    from sqlalchemy import event  # noqa: PLC0415

    if engine.dialect.name == "sqlite":
        return
    holds_file = _module("holds")
    holds = holds_file.Holds()
    records = _module("hold_records")
    use = records.PoolUse(engine, holds_file.bucket_of)
    # First, since the methods below are bound as they are then.
    records.record(holds, use)
    kind = type(engine.pool)

    def connect(pool: Any) -> Any:
        beside = holds_file.connections_out()
        began = perf_counter()
        try:
            connection = kind.connect(pool)
        except Exception as error:
            if (
                type(error).__name__ == "TimeoutError"
                and type(error).__module__ == "sqlalchemy.exc"
            ):
                use.timeouts += 1
            raise
        with contextlib.suppress(Exception):
            now = perf_counter()
            use.took(pool, now - began)
            holds.begin(connection._connection_record, beside, now)  # noqa: SLF001
        return connection

    # The class, because dispose() makes the next pool from it.
    own = {"connect": connect, "recorded_by_poolkit": True}
    engine.pool.__class__ = type(kind.__name__, (kind,), own)
    event.listen(engine.pool, "checkin", holds.end)
    event.listen(engine.pool, "detach", holds.end)
    holds.watch(engine.dialect)


def _label_starlette(module: Any, engines: Engines) -> None:
    """Make each request of FastAPI and Starlette a unit of work, such as `GET /orders/{number}`."""
    original = module.Starlette.__call__

    async def __call__(app: Any, scope: Any, receive: Any, send: Any) -> None:  # noqa: N807
        # The engines of poolkit itself label their requests.
        if scope["type"] != "http" or not engines.reports_holds:
            await original(app, scope, receive, send)
            return

        def label() -> str:
            # The router stores the route; without one there is no label with few values.
            path = getattr(scope.get("route"), "path", "(unknown)")
            return f"{scope['method']} {path}"

        with _module("holds").unit(label) as work:

            async def send_and_note(message: Any) -> None:
                await send(message)
                if message["type"] == "http.response.body" and not message.get("more_body"):
                    work.responded()

            await original(app, scope, receive, send_and_note)

    module.Starlette.__call__ = __call__


def _label_flask(module: Any, engines: Engines) -> None:
    """Make each request of Flask a unit of work, such as `GET /orders/<int:number>`."""
    of_server, dispatch = module.Flask.wsgi_app, module.Flask.full_dispatch_request

    def wsgi_app(app: Any, environ: Any, start_response: Any) -> Any:
        if not engines.reports_holds:
            return of_server(app, environ, start_response)
        with _module("holds").unit(f"{environ.get('REQUEST_METHOD', '')} (unknown)"):
            return of_server(app, environ, start_response)

    def full_dispatch_request(app: Any, *arguments: Any) -> Any:
        from flask import request  # noqa: PLC0415

        work = _module("holds").current_unit()
        if work is not None and request.url_rule is not None:
            work.label = f"{request.method} {request.url_rule}"
        return dispatch(app, *arguments)

    module.Flask.wsgi_app = wsgi_app
    module.Flask.full_dispatch_request = full_dispatch_request


def _label_celery(module: Any, engines: Engines) -> None:
    """Make each task of Celery a unit of work, with the task's name."""
    units: dict[str, Any] = {}

    def begin(task_id: str, task: Any, **_: Any) -> None:
        if not engines.reports_holds:
            return
        units[task_id] = _module("holds").unit(task.name)
        units[task_id].__enter__()

    def end(task_id: str, **_: Any) -> None:
        if work := units.pop(task_id, None):
            work.__exit__(None, None, None)

    module.task_prerun.connect(begin, weak=False)
    module.task_postrun.connect(end, weak=False)


_LABELS = {_STARLETTE: _label_starlette, _FLASK: _label_flask, _CELERY: _label_celery}
"""By module, what makes the requests or tasks of a framework units of work."""


def _module(name: str) -> Any:
    """Return a file beside that of the presets as a module of its own."""
    full = f"_poolkit_{name}"
    if full not in sys.modules:
        folder = os.path.dirname(os.environ["_POOLKIT_SHIM_PRESETS"])
        spec = importlib.util.spec_from_file_location(full, os.path.join(folder, f"{name}.py"))
        assert spec is not None and spec.loader is not None  # noqa: S101, PT018
        module = sys.modules[full] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full]


def _presets() -> Any:
    """Return the preset file as a module, under a name that the application cannot have."""
    if sys.version_info < (3, 10):  # noqa: UP036  (the application's own)
        version = ".".join(map(str, sys.version_info[:2]))
        raise RuntimeError(
            f"poolkit: the presets need Python 3.10, and this application runs on {version}; "
            "--pool now works there"
        )
    return _module("presets")


class _AfterImport:
    """A finder that changes a few modules as soon as they are imported, and no others."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in (_CREATE, _DJANGO, *_LABELS, *_POOLS):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            if name == _CREATE:
                self.engines.watch_create_engine(module)
            elif name == _DJANGO:
                self.engines.has_django = True
                self.engines.write()
            elif name in _LABELS:
                if "_POOLKIT_HOLDS_FOLDER" in os.environ:
                    _LABELS[name](module, self.engines)
            else:
                self.engines.watch_pool(module)

        loader.exec_module = exec_module
        return spec


def _run_the_next_one() -> None:
    """Run the sitecustomize that this one hides: the interpreter's, or a tool's."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if "_POOLKIT_SHIM_FOLDER" in os.environ and __name__ == "sitecustomize":
    sys.meta_path.insert(0, _AfterImport(Engines(os.environ["_POOLKIT_SHIM_FOLDER"])))
    _run_the_next_one()
