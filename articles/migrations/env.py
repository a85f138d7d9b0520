"""Run by Alembic for each command; `articles.migrations` hands the connection over.

It runs in the caller's transaction. A step that cannot (CREATE INDEX CONCURRENTLY) would
end that transaction and give the advisory lock up: put such a step into a migration of its
own, and let it be safe to run twice.
"""

from __future__ import annotations

from alembic import context

from articles.models import metadata


def _configure() -> None:
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", target_metadata=metadata, literal_binds=True)
        return
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        compare_server_default=True,
    )


_configure()
with context.begin_transaction():
    context.run_migrations()
