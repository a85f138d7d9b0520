"""Powertools' Logger and Metrics: JSON lines, and metrics in lines that CloudWatch reads.

No tracer: X-Ray's SDK would patch the drivers, and its import would lengthen each cold start.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from aws_lambda_powertools import Logger
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.metrics.provider.cloudwatch_emf.cloudwatch import (
    AmazonCloudWatchEMFProvider,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lambda_handler.configuration import FunctionSettings
    from lambda_handler.execution_environment import ExecutionEnvironment


class Telemetry:
    """The logger and the metrics of one execution environment.

    Metrics, with the dimensions target, environment and service:

    | metric | unit | when |
    |---|---|---|
    | `ColdStart` | count | the first invoke, except with provisioned concurrency |
    | `ConnectionsOpened` | count | every invoke |
    | `CheckoutWait` | ms | an invoke that checked a connection out: the sum of its waits |
    """

    def __init__(
        self,
        environment: ExecutionEnvironment,
        settings: FunctionSettings,
        stream: TextIO | None = None,
    ) -> None:
        self._environment = environment
        self.logger = Logger(service=settings.service, utc=True, stream=stream)
        # Not Metrics: its instances share one set of dimensions.
        self._metrics = AmazonCloudWatchEMFProvider(
            namespace=settings.namespace,
            service=settings.service,
            default_dimensions={
                "target": environment.settings.target,
                "environment": environment.settings.environment,
            },
        )
        # With provisioned concurrency no request waited for the init phase.
        kind = os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE")
        self._is_cold = kind != "provisioned-concurrency"

    @contextmanager
    def invoke(self, context: Any, correlation_id: str | None) -> Iterator[None]:
        """Add the invoke's ids to every log line, and write its metrics at its end."""
        self.logger.append_keys(
            function_request_id=context.aws_request_id, cold_start=self._is_cold
        )
        self.logger.set_correlation_id(correlation_id)
        before = self._environment.snapshot()
        try:
            yield
        finally:
            after = self._environment.snapshot()
            if self._is_cold:
                self._metrics.add_metric("ColdStart", MetricUnit.Count, 1)
            opened = after.opened - before.opened
            self._metrics.add_metric("ConnectionsOpened", MetricUnit.Count, opened)
            if after.checkouts > before.checkouts:
                waited_ms = (after.checkout_wait.total - before.checkout_wait.total) * 1000
                self._metrics.add_metric("CheckoutWait", MetricUnit.Milliseconds, waited_ms)
            self._metrics.flush_metrics()
            self._is_cold = False
