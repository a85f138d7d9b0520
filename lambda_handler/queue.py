"""The composition root of the queue's function: `lambda_handler.queue.handler`."""

from lambda_handler import without_garbage_collection

with without_garbage_collection():
    import os

    from lambda_handler.configuration import FunctionSettings
    from lambda_handler.execution_environment import ExecutionEnvironment, dispose_at_end
    from lambda_handler.ingest_queue import make_handler

    environment = ExecutionEnvironment.open(os.environ)
    dispose_at_end(environment)
    handler = make_handler(environment, FunctionSettings.from_environ(os.environ))
