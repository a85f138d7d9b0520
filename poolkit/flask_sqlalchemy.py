"""Flask-SQLAlchemy with engines from presets, one for each bind.

    from poolkit.flask import Poolkit
    from poolkit.flask_sqlalchemy import SQLAlchemy

    db = SQLAlchemy(model_class=Base, presets={"reports": preset("script")})
    kit = Poolkit()


    def create_app():
        app = Flask(__name__)
        db.init_app(app)
        kit.init_app(app, db)  # 503 for a full pool, readiness, metrics
        return app

`SQLALCHEMY_ENGINE_OPTIONS` still win over the preset. A SQLite URL, as in tests, gets the engine
that Flask-SQLAlchemy gives it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakSet

import flask_sqlalchemy

from poolkit.config.engine import make_engine
from poolkit.config.metrics import PoolMetrics
from poolkit.config.presets import parse_url
from poolkit.config.settings import Settings, names_database

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask
    from sqlalchemy import Engine

    from poolkit.config.presets import EnginePreset

__all__ = ("SQLAlchemy",)


class SQLAlchemy(flask_sqlalchemy.SQLAlchemy):
    """Flask-SQLAlchemy's extension, whose engines are those of presets.

    The database is the one of SQLALCHEMY_DATABASE_URI and SQLALCHEMY_BINDS. Without them it is the
    one of the DATABASE_* variables, with secrets and IAM tokens.

    Args:
        arguments: as for Flask-SQLAlchemy.
        presets: the preset of each bind; None is the default bind. Others have the preset of
            POOLKIT_TARGET and POOLKIT_ENVIRONMENT, by default `web`.
        options: as for Flask-SQLAlchemy.
    """

    def __init__(
        self,
        *arguments: Any,
        presets: Mapping[str | None, EnginePreset] | None = None,
        **options: Any,
    ) -> None:
        self._presets = dict(presets or {})
        self._pool_metrics: WeakKeyDictionary[Engine, PoolMetrics] = WeakKeyDictionary()
        self._writers: WeakSet[Engine] = WeakSet()
        super().__init__(*arguments, **options)

    def init_app(self, app: Flask) -> None:
        """Make the engines of an application; see Flask-SQLAlchemy's own."""
        configured = app.config.get("SQLALCHEMY_DATABASE_URI") or app.config.get("SQLALCHEMY_BINDS")
        if not configured and names_database(os.environ):
            app.config["SQLALCHEMY_DATABASE_URI"] = Settings.from_environ().url
        super().init_app(app)

    def poolkit_metrics(self, engine: Engine) -> PoolMetrics | None:
        """Return the counters of an engine's pool; None for one that no preset made."""
        return self._pool_metrics.get(engine)

    def poolkit_expects_writes(self, engine: Engine) -> bool:
        """Return whether the engine's preset and URL expect a server that accepts writes."""
        return engine in self._writers

    def _make_engine(self, bind_key: str | None, options: dict[str, Any], app: Flask) -> Engine:
        url = parse_url(options["url"])
        if url.get_backend_name() == "sqlite":
            return super()._make_engine(bind_key, options, app)
        # The variables are read again where they name this database: they may say where its
        # password comes from, which no URL does.
        settings = Settings.from_environ() if names_database(os.environ) else None
        if settings is None or settings.url != url:
            settings = Settings.from_environ(url=url)
        if bind_key in self._presets:
            settings = replace(settings, preset=self._presets[bind_key])
        metrics = PoolMetrics()
        others = {name: value for name, value in options.items() if name != "url"}
        engine = make_engine(settings, metrics, **others)
        self._pool_metrics[engine] = metrics
        if settings.expects_writes:
            self._writers.add(engine)
        return engine
