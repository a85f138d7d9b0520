"""The schema's history, run by Alembic through env.py."""
