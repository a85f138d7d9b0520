"""Deployable 1: the articles API and the ingest queue as AWS Lambda functions.

app.py       `lambda_handler.app.handler`: HTTP, with a Powertools resolver
queue.py     `lambda_handler.queue.handler`: SQS, with Powertools' batch and Idempotency
schemas.py   input and output, with msgspec

app.py and queue.py are made to be imported by Lambda: each reads the environment and makes an engine
when it is imported.
"""
