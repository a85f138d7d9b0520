"""Does connect_timeout keep a Lambda function alive?

You may have read that a Lambda function gets NullPool and connect_timeout=5 (1.33). Here the
database falls silent: it takes connections and answers nothing. Each function is invoked once, with
and without connect_timeout, and with different time limits of its own.

Time is scaled: 2 s stand for the 5 s of the advice, 1.2 s for the 3 s after which Lambda ends a
function by default, and 4 s for a limit of 10 s.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from poolkit.experiment import Lab, experiment
from poolkit.lambda_fleet import Status

FUNCTION = """
import os
from sqlalchemy import NullPool, create_engine, text

engine = create_engine(os.environ["DATABASE_URL"], poolclass=NullPool, connect_args=ARGUMENTS)

def handler(event, context):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT 1"))
"""
ENDS = {
    Status.OK: "an answer",
    Status.HANDLER_ERROR: "an exception, which the handler could answer",
    Status.TIMEOUT: "ended by Lambda",
}


@experiment(
    question="Does connect_timeout keep a Lambda function alive?", rows=("1.33",), seconds=6
)
def run(
    lab: Lab, *, connect_timeout_s: int = 2, short_limit_s: float = 1.2, limit_s: float = 4.0
) -> None:
    timeout = {"connect_timeout": connect_timeout_s}
    arms = {
        "no connect_timeout": ({}, limit_s),
        "a time limit of 10 s": (timeout, limit_s),
        "Lambda's default limit of 3 s": (timeout, short_limit_s),
    }
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(len(arms)))
        line = stack.enter_context(lab.network())
        functions = []
        lab.say(f"starting {len(arms)} functions")
        for arguments, limit in arms.values():
            source = FUNCTION.replace("ARGUMENTS", repr(arguments))
            function = lab.function(source, url=line.address.url(), timeout_s=limit)
            functions.append(stack.enter_context(function))
            functions[-1].prewarm(1)
        lab.say("an invoke of each, while the database is silent")
        line.network.go_silent()
        found = threads.map(lambda function: function.invoke({}).status, functions)
        ends = dict(zip(arms, found, strict=True))

    rows = [(arm, ENDS.get(status, status)) for arm, status in ends.items()]
    lab.table("An invoke while the database is silent", ("function", "end"), rows)
    without = ends.pop("no connect_timeout")
    lab.judge(
        "1.33",
        "with connect_timeout=5 a function survives a database that does not answer",
        holds={arm: status is Status.HANDLER_ERROR for arm, status in ends.items()},
        measured="; ".join(f"{arm}: {ENDS.get(status, status)}" for arm, status in ends.items())
        + f"; without connect_timeout: {ENDS.get(without, without)}",
        why="connect_timeout turns the wait into an exception, which the handler can answer, and "
        "the execution environment stays warm. That works only if it is shorter than the "
        "function's own limit; otherwise Lambda ends the process first, and the caller gets a "
        "timeout. Without it libpq waits until the operating system gives up, minutes later.",
    )
