"""Prompts of a model, and whether it is retired."""

import sqlalchemy as sa
from alembic import op

revision = "0028"
down_revision = "0027"


def upgrade() -> None:
    op.add_column("models", sa.Column("query_prompt", sa.Text, nullable=False, server_default=""))
    op.add_column(
        "models", sa.Column("document_prompt", sa.Text, nullable=False, server_default="")
    )
    op.add_column(
        "models", sa.Column("retired", sa.Boolean, nullable=False, server_default=sa.false())
    )
