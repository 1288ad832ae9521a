"""How a model is served: loaded or not, its canary and its shadow."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "servings",
        sa.Column("model_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("loaded", sa.Boolean(), nullable=False),
        sa.Column("canary", sa.Integer(), nullable=True),
        sa.Column("share", sa.Double(), nullable=False),
        sa.Column("shadow", sa.Integer(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("by", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("model_id", name="pk_servings"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_servings_model_id"),
        sa.ForeignKeyConstraint(
            ["model_id", "canary"], ["versions.model_id", "versions.version"], name="fk_servings_canary"
        ),
        sa.ForeignKeyConstraint(
            ["model_id", "shadow"], ["versions.model_id", "versions.version"], name="fk_servings_shadow"
        ),
    )


def downgrade() -> None:
    op.drop_table("servings")
