"""The tables. A change here needs a migration beside it; a test compares the two."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Double, ForeignKey, ForeignKeyConstraint, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class Utc(TypeDecorator[datetime]):
    """A moment in UTC. SQLite forgets time zones, so they are put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert isinstance(value, datetime)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class StoreTable(DeclarativeBase):
    """Every constraint has a name, so that a migration can speak of it."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class ModelRow(StoreTable):
    """A model's name. Its row is locked while versions and aliases of it change."""

    __tablename__ = "models"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(63), unique=True)
    created: Mapped[datetime] = mapped_column(Utc)


class VersionRow(StoreTable):
    """A registered bundle under a model's name."""

    __tablename__ = "versions"
    __table_args__ = (UniqueConstraint("model_id", "digest", name="uq_versions_model_id_digest"),)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)  # 1, 2, ... within the model
    digest: Mapped[str] = mapped_column(String(64))
    family: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    alpha: Mapped[float] = mapped_column(Double)  # false-alarm rate used when none is asked for
    training_digest: Mapped[str | None] = mapped_column(String(128))  # of the clean data
    parent_digest: Mapped[str | None] = mapped_column(String(128))  # of the bundle it was retrained from
    fitted: Mapped[str] = mapped_column(String(40))  # when, as its manifest says
    registered: Mapped[datetime] = mapped_column(Utc)


class AliasRow(StoreTable):
    """A name that points at a version: `champion` and others."""

    __tablename__ = "aliases"
    __table_args__ = (ForeignKeyConstraint(["model_id", "version"], ["versions.model_id", "versions.version"]),)
    model_id: Mapped[int] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(String(63), primary_key=True)
    version: Mapped[int]


class ServingRow(StoreTable):
    """How a model is served, where that is not simply by its champion."""

    __tablename__ = "servings"
    __table_args__ = (
        ForeignKeyConstraint(
            ["model_id", "canary"], ["versions.model_id", "versions.version"], name="fk_servings_canary"
        ),
        ForeignKeyConstraint(
            ["model_id", "shadow"], ["versions.model_id", "versions.version"], name="fk_servings_shadow"
        ),
    )
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), primary_key=True, autoincrement=False)
    loaded: Mapped[bool] = mapped_column(default=True)  # false: closed until somebody loads it
    canary: Mapped[int | None]  # version that answers a share of the champion's requests
    share: Mapped[float] = mapped_column(Double, default=0.0)  # of requests that the canary answers
    shadow: Mapped[int | None]  # version that scores the champion's traffic and is only compared
    at: Mapped[datetime] = mapped_column(Utc)
    by: Mapped[str] = mapped_column(String(128))


class PromotionRow(StoreTable):
    """The log of every move of an alias, never changed."""

    __tablename__ = "promotions"
    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"), index=True)
    alias: Mapped[str] = mapped_column(String(63))
    action: Mapped[str] = mapped_column(String(16))  # promote or rollback
    from_version: Mapped[int | None]
    to_version: Mapped[int]
    at: Mapped[datetime] = mapped_column(Utc)
    by: Mapped[str] = mapped_column(String(128))  # who: a key's or a user's name


class KeyRow(StoreTable):
    """An access key: only the hash of its secret is kept."""

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(63))
    sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[str] = mapped_column(String(128))  # separated by spaces
    rate: Mapped[float | None] = mapped_column(Double)  # samples a second; None = the service's own default
    created: Mapped[datetime] = mapped_column(Utc)
    revoked: Mapped[datetime | None] = mapped_column(Utc)
