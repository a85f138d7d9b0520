"""SQLAlchemy in a Lambda function written with Powertools.

    from aws_lambda_powertools import Logger
    from poolkit.powertools import ExecutionEnvironment, Resolver, instrument

    logger = Logger()
    environment = ExecutionEnvironment.open()  # the engine, made in the init phase
    app = Resolver(logger=logger)

    @app.get("/articles/<article_id>")
    def get_article(article_id: str):
        with environment.read_session() as session:
            return {"title": session.get_one(Article, article_id).title}

    @instrument(environment, logger)
    def handler(event, context):
        return app.resolve(event, context)

A name is imported at its first use, so a function imports only what it uses: Powertools'
Idempotency imports boto3, and the resolvers import what a queue's function does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit.execution_environment import ExecutionEnvironment
    from poolkit.powertools.batch import process_sqs_batch
    from poolkit.powertools.idempotency import SqlPersistenceLayer
    from poolkit.powertools.resolver import Resolver, problem_response
    from poolkit.powertools.telemetry import instrument

__all__ = (
    "ExecutionEnvironment",
    "Resolver",
    "SqlPersistenceLayer",
    "instrument",
    "problem_response",
    "process_sqs_batch",
)

_MODULES = {
    "ExecutionEnvironment": "poolkit.execution_environment",
    "Resolver": "poolkit.powertools.resolver",
    "SqlPersistenceLayer": "poolkit.powertools.idempotency",
    "instrument": "poolkit.powertools.telemetry",
    "problem_response": "poolkit.powertools.resolver",
    "process_sqs_batch": "poolkit.powertools.batch",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found  # so that this function is not called again
    return found
