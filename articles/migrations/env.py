"""Run by Alembic for each command, on the connection that `articles.migrations` passes.

It runs in the caller's transaction. A step that cannot (CREATE INDEX CONCURRENTLY) would
end that transaction and release the advisory lock. Put such a step into a migration of its
own that is safe to run twice.
"""

from __future__ import annotations

from alembic import context

from articles.models import Base
from poolkit import tables

METADATA = [Base.metadata, tables.metadata]

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=METADATA, literal_binds=True)
else:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=METADATA,
        compare_server_default=True,
    )
with context.begin_transaction():
    context.run_migrations()
