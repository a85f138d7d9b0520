"""posts table"""

import sqlalchemy as sa
from alembic import op

revision = "780739b227a7"
down_revision = None


def upgrade():
    op.create_table(
        "post",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
