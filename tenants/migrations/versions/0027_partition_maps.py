"""Partition maps of each tenant's documents topic."""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "partition_maps",
        sa.Column("tenant", sa.String(64), primary_key=True),
        sa.Column("epoch", sa.Integer, primary_key=True),
        sa.Column("topic_id", sa.String(64), nullable=False),
        sa.Column("partitions", sa.Integer, nullable=False),
        sa.Column("starts", sa.Text, nullable=False),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("row_version", sa.BigInteger, nullable=False, index=True),
    )
