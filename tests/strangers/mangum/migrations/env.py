import os

from alembic import context
from sqlalchemy import create_engine

from api.database import Base

with create_engine(os.environ["PG_DSN"]).connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
