"""The sample's domain, shared by all its deployables: articles, and documents cut into chunks.

Delete this package and put yours in its place: docs/replace-the-sample.md shows how.

    models.py       the tables, as declarative models
    schemas.py      input and output, as pydantic models
    service.py      the operations: functions that take a session
    chunking.py     cuts a text into chunks
    errors.py       the errors of the operations
    migrations/     the schema's history, for Alembic

It imports SQLAlchemy and pydantic, but no web framework, queue or driver, and not poolkit: an
engine from a preset is SQLAlchemy's own.
"""
