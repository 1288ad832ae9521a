"""What a key may ask for in a second."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("keys", sa.Column("rate", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("keys", "rate")
