"""The check of a release before it gets traffic: each new version must reach its database.

A function without a database answers 503 and does not fail, so no metric of Lambda's shows it. The
check asks the new versions themselves, inside their network and with their own variables, and
answers CodeDeploy: a version that cannot connect gets no traffic at all.

Sources: AWS CodeDeploy User Guide, "AppSpec 'hooks' section" (BeforeAllowTraffic; the hook
receives DeploymentId and LifecycleEventHookExecutionId, and answers with
PutLifecycleEventHookExecutionStatus); AWS Lambda API Reference, Invoke (FunctionError).
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select

from poolkit.errors import DatabaseUnavailable, PoolExhausted

if TYPE_CHECKING:
    from poolkit.execution_environment import ExecutionEnvironment

__all__ = ("CHECK", "check_connection", "handler")

CHECK: Final = {"poolkit": "does this version reach its database?"}
"""The event that `instrument` answers itself. Clients of an HTTP API or a queue cannot send it: what
they send is one field of an event."""

TRIES: Final = 3
PAUSE: Final = 5.0
"""Seconds between two tries: a full database or a throttled invoke may pass."""


def check_connection(environment: ExecutionEnvironment) -> dict[str, Any]:
    """Run a statement on a connection; return whether it was possible, and if not, why."""
    try:
        with environment.read_connection() as connection:
            connection.execute(select(1))
    except (DatabaseUnavailable, PoolExhausted) as error:
        return {"connected": False, "error": f"{type(error).__name__}: {error}"}
    return {"connected": True}


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Answer CodeDeploy whether the versions in `POOLKIT_CHECKED_VERSIONS` reach their database.

    The handler of a function of its own outside the VPC, from the package of the functions that it
    checks. It needs lambda:InvokeFunction on their versions, and
    codedeploy:PutLifecycleEventHookExecutionStatus.

    Environment variables:
        POOLKIT_CHECKED_VERSIONS: ARNs of the new versions, separated by commas.
    """
    import boto3  # noqa: PLC0415  (of Lambda's runtime; no other function of the package needs it)

    versions = [each for each in os.environ["POOLKIT_CHECKED_VERSIONS"].split(",") if each]
    functions = boto3.client("lambda")
    failures = {arn: reason for arn in versions if (reason := _failure(functions, arn))}
    status = "Succeeded" if versions and not failures else "Failed"
    answer = {"status": status, "failures": failures}
    print(json.dumps(answer))  # noqa: T201  (the function's log)
    boto3.client("codedeploy").put_lifecycle_event_hook_execution_status(
        deploymentId=event["DeploymentId"],
        lifecycleEventHookExecutionId=event["LifecycleEventHookExecutionId"],
        status=status,
    )
    return answer


def _failure(functions: Any, arn: str) -> str | None:
    """Return why a version does not connect, as its last try says, or None if one try did."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415  (as boto3 above)

    reason = ""
    for number in range(TRIES):
        time.sleep(PAUSE if number else 0)
        try:
            answer = functions.invoke(FunctionName=arn, Payload=json.dumps(CHECK))
        except (BotoCoreError, ClientError) as error:
            reason = str(error)
            continue
        reason = answer["Payload"].read().decode()[:1000]
        if "FunctionError" not in answer and json.loads(reason) == {"connected": True}:
            return None
    return reason
