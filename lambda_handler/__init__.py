"""Deployable 1: the articles API and the ingest queue as AWS Lambda functions.

    app.py                    `lambda_handler.app.handler`: HTTP, made in the init phase
    queue.py                  `lambda_handler.queue.handler`: SQS, made in the init phase
    http_events.py            which service sent an HTTP event, and what the request was
    http_api.py               the endpoints of `articles.api` behind Powertools' resolvers
    ingest_queue.py           a batch of SQS messages, each ingested once or given up
    idempotency.py            Powertools' Idempotency on PostgreSQL
    execution_environment.py  the engine, from the init phase to SIGTERM or a snapshot
    telemetry.py              Powertools' Logger and Metrics
    init_phase.py             what makes the init phase shorter
    configuration.py          the `LAMBDA_*` variables
    errors.py                 every exception

Only app.py and queue.py read the environment and make an engine when they are imported.
"""
