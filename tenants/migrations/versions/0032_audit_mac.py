"""Keyed MACs on audit records."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    op.add_column("audit", sa.Column("mac", sa.String(64), nullable=True))
