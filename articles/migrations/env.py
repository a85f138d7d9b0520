"""Run by Alembic for each command."""

from articles.models import metadata
from poolkit import alembic

alembic.run(metadata)
