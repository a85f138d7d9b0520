"""Log lines with the invoke's ids, and the pool's metrics in CloudWatch's embedded format.

No tracer: X-Ray's SDK would patch the drivers, and its import would lengthen each cold start.
"""

from __future__ import annotations

import functools
import os
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import (
    AmazonCloudWatchEMFProvider,
)

from poolkit.config.holds import unit
from poolkit.powertools.events import correlation_id_of
from poolkit.powertools.release import CHECK, check_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from aws_lambda_powertools import Logger

    from poolkit.execution_environment import ExecutionEnvironment

__all__ = ("instrument",)

Result = TypeVar("Result")


def instrument(
    environment: ExecutionEnvironment, logger: Logger, *, namespace: str | None = None
) -> Callable[[Callable[[Any, Any], Result]], Callable[[Any, Any], Result]]:
    """Decorate a handler: ids in each log line, and one line of metrics for each invoke.

        @instrument(environment, logger)
        def handler(event, context):
            return app.resolve(event, context)

    Log lines have `function_request_id`, `cold_start`, and `correlation_id`: the sender's own id of
    an HTTP request, or else the invoke's. Metrics, with the dimensions target, environment and
    service:

    | metric | unit | when |
    |---|---|---|
    | `ColdStart` | count | the first invoke, except with provisioned concurrency |
    | `ConnectionsOpened` | count | every invoke |
    | `CheckoutWait` | ms | an invoke that checked a connection out: the sum of its waits |
    | `HoldTime` | ms | an invoke that gave a connection back: the time for which it was out |
    | `BusyShare` | percent | the same: the part of that time in which SQL ran |
    | `NestedCheckouts` | count | an invoke that had a connection and checked out a second one |
    | `DeadLetters` | count | an invoke of `process_sqs_batch` that gave messages up |
    | `ServerErrors` | count | an invoke that answered an HTTP request with 5xx |

    They are written beside those of a `Metrics` of your own. `ServerErrors` has one more dimension,
    the function's version, so that an alarm sees a new version among the requests of an old one.

    An event equal to `poolkit.powertools.release.CHECK` does not reach the handler: the answer
    says whether this version reaches its database.

    Args:
        environment: whose pool is measured.
        logger: whose lines have the ids; its service is the metrics' too.
        namespace: by default `POWERTOOLS_METRICS_NAMESPACE`, or else `poolkit`.
    """
    metrics = AmazonCloudWatchEMFProvider(  # not Metrics: its instances share one set of dimensions
        namespace=namespace or os.environ.get("POWERTOOLS_METRICS_NAMESPACE") or "poolkit",
        service=logger.service,
    )
    # With provisioned concurrency no request waited for the init phase.
    is_cold = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "provisioned-concurrency"

    def decorate(handler: Callable[[Any, Any], Result]) -> Callable[[Any, Any], Result]:
        @functools.wraps(handler)
        def instrumented(event: Any, context: Any) -> Any:
            nonlocal is_cold
            if event == CHECK:
                return check_connection(environment)
            request_id = context.aws_request_id
            logger.append_keys(function_request_id=request_id, cold_start=is_cold)
            logger.set_correlation_id(correlation_id_of(event) or request_id)
            before, given_up = environment.snapshot(), environment.dead_letters
            answer: Any = None
            try:
                with unit(_kind(event)):
                    answer = handler(event, context)
                    return answer
            finally:
                after = environment.snapshot()
                if is_cold:
                    metrics.add_metric("ColdStart", MetricUnit.Count, 1)
                opened = after.opened - before.opened
                metrics.add_metric("ConnectionsOpened", MetricUnit.Count, opened)
                if after.checkouts > before.checkouts:
                    waited_ms = (after.checkout_wait.total - before.checkout_wait.total) * 1000
                    metrics.add_metric("CheckoutWait", MetricUnit.Milliseconds, waited_ms)
                held = after.hold_time.total - before.hold_time.total
                if held > 0:
                    metrics.add_metric("HoldTime", MetricUnit.Milliseconds, held * 1000)
                    seen = held - (after.unseen_seconds - before.unseen_seconds)
                    busy = after.busy_seconds - before.busy_seconds
                    if seen > 0:
                        share = min(100.0, 100 * busy / seen)
                        metrics.add_metric("BusyShare", MetricUnit.Percent, share)
                nested = after.nested_checkouts - before.nested_checkouts
                if nested:
                    metrics.add_metric("NestedCheckouts", MetricUnit.Count, nested)
                if environment.dead_letters > given_up:
                    letters = environment.dead_letters - given_up
                    metrics.add_metric("DeadLetters", MetricUnit.Count, letters)
                # Not as default_dimensions, about which releases before 3.30 warn at each flush.
                metrics.add_dimension("target", environment.settings.target)
                metrics.add_dimension("environment", environment.settings.environment)
                metrics.flush_metrics()
                _count_server_error(answer, metrics, environment)
                is_cold = False

        return instrumented

    return decorate


def _count_server_error(
    answer: object,
    metrics: AmazonCloudWatchEMFProvider,
    environment: ExecutionEnvironment,
) -> None:
    """Write one `ServerErrors` of this version if the answer to an HTTP request is 5xx."""
    status = answer.get("statusCode") if isinstance(answer, dict) else None
    if isinstance(status, int) and status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        metrics.add_metric("ServerErrors", MetricUnit.Count, 1)
        metrics.add_dimension("target", environment.settings.target)
        metrics.add_dimension("environment", environment.settings.environment)
        version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        metrics.add_dimension("version", version)
        metrics.flush_metrics()


def _kind(event: object) -> str:
    """Return where an event comes from, such as `aws:sqs`; a resolver names the route."""
    records = event.get("Records") if isinstance(event, dict) else None
    if isinstance(records, list) and records and isinstance(records[0], dict):
        return str(records[0].get("eventSource") or records[0].get("EventSource") or "event")
    return "event"
