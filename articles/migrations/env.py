"""Run by Alembic for each command."""

from articles.models import Base
from poolkit import alembic, tables

alembic.run(Base.metadata, tables.metadata)
