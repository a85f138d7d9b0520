"""A local Lambda service: real `awslambdaric` processes behind an HTTP API.

What differs from AWS, on purpose: a failed init phase is reported at once rather than tried
again; an event invoke (`Event`) is not retried; no CPU or memory limit is set; a warm
request that arrives between an answer and the runtime's next poll waits for it.
"""

from poolkit.lambda_fleet.config import FunctionConfig
from poolkit.lambda_fleet.fleet import LambdaFleet
from poolkit.lambda_fleet.invocation import Outcome
from poolkit.lambda_fleet.records import InvokeRecord, Status
from poolkit.lambda_fleet.usage import Usage

__all__ = ["FunctionConfig", "InvokeRecord", "LambdaFleet", "Outcome", "Status", "Usage"]
