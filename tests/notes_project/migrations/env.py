from sqlalchemy import Column, Integer, MetaData, Table

from poolkit import alembic

metadata = MetaData()
Table("notes", metadata, Column("id", Integer, primary_key=True))
alembic.run(metadata)
