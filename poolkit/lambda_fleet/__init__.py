"""A local Lambda service for one function: real `awslambdaric` processes behind an HTTP server.

    config = FunctionConfig(handler="lambda_handler.app.handler", task_root=Path())
    with LambdaFleet(config, log_dir=Path("logs")) as fleet:
        outcome = fleet.invoke({"version": "2.0", ...})   # or HTTP requests to fleet.url

What it emulates:

* the Runtime API, on one loopback port per execution environment;
* the init phase with its time limit, and one more try within the invoke;
* freeze and thaw: the processes of an idle execution environment are stopped (SIGSTOP);
* reserved concurrency with throttling, idle timeout, function timeout, the Shutdown phase;
* two front doors: HTTP, with the events of an HTTP API, a REST API or a load balancer, and Lambda's
  own Invoke.

What differs from AWS, on purpose:

* a failed init phase is reported at once and not tried again;
* an event invoke (`Event`) is not retried;
* nothing limits CPU or memory;
* a warm request that arrives between an answer and the runtime's next poll waits for that poll.

`python -m poolkit.lambda_fleet` runs it as a process. The names below are public; the modules
are not.
"""

from poolkit.lambda_fleet.config import FunctionConfig
from poolkit.lambda_fleet.fleet import LambdaFleet
from poolkit.lambda_fleet.function import Usage
from poolkit.lambda_fleet.invocation import InvokeRecord, Outcome, Status

__all__ = ["FunctionConfig", "InvokeRecord", "LambdaFleet", "Outcome", "Status", "Usage"]
