"""The sample domain that all deployables share: articles, and documents cut into chunks.

Delete this package and put yours in its place. Keep its shape: it imports SQLAlchemy Core and the
standard library, but no web framework, queue or driver, and does no input or output. So one
definition of each operation and HTTP answer serves a threaded web service, an asyncio one, a Lambda
function and a worker.

    models.py       tables and the frozen records read from them
    operations.py   the operations on them: generators that yield statements
    chunking.py     cuts a text into chunks
    validation.py   strict JSON and the small part of JSON Schema the API uses
    contract.py     input and output over HTTP and over the queue
    problems.py     errors as RFC 9457 problem documents
    api.py          the endpoints, as data
    errors.py       every exception
    migrations/     the schema's history, for Alembic
"""
