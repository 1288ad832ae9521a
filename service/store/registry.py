"""Models by name: versions, aliases, promotions. The bundles lie beside the store, each under its digest."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from vaegis.models.bundle import Bundle, open_bundle
from vaegis.models.errors import Conflict, NotFound, Refusal
from vaegis.service.settings import Settings
from vaegis.service.store.bundles import keep
from vaegis.service.store.database import Database, open_database
from vaegis.service.store.schema import AliasRow, ModelRow, PromotionRow, ServingRow, VersionRow

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
CHAMPION = "champion"  # the alias that answers when none is named
LISTED = 10  # names in a message at most


@dataclass(frozen=True)
class Registered:
    """What became of a bundle given to `Registry.add`."""

    name: str
    version: int
    digest: str
    promoted: bool  # it is the model's champion now, being its first version
    known: bool  # the same digest was registered under this name before


@dataclass(frozen=True)
class Resolved:
    """The bundle that an address stands for."""

    name: str
    version: int
    digest: str
    path: Path

    @cached_property
    def place(self) -> str:
        """One text for the whole, to look an open version up by."""
        return f"{self.name}@{self.version}/{self.digest}"


@dataclass(frozen=True)
class Version:
    """One version of a model."""

    version: int
    digest: str
    family: str
    kind: str
    alpha: float
    training_digest: str | None  # of the clean data it was fitted on
    parent_digest: str | None  # of the bundle it was retrained from
    fitted: str  # ISO 8601
    registered: datetime
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Promotion:
    """One move of an alias."""

    alias: str
    action: str  # promote or rollback
    from_version: int | None
    to_version: int
    at: datetime
    by: str


@dataclass(frozen=True)
class Model:
    """A model with all that is known of it."""

    name: str
    versions: tuple[Version, ...]  # oldest first
    aliases: dict[str, int]
    promotions: tuple[Promotion, ...]  # oldest first


def check_name(name: str, what: str = "model") -> str:
    """Returns the name.

    Raises:
        Refusal: it is not one that a model or alias can have.
    """
    if not NAME.fullmatch(name):
        raise Refusal(
            f"{_short(name)} cannot be the name of a {what}: use up to 63 lower-case letters, digits, dots, dashes "
            "and underscores, a letter or digit first, such as line-3."
        )
    return name


def _now() -> datetime:
    return datetime.now(UTC)


class Registry:
    """Every method is one transaction, and safe when several processes share the store."""

    def __init__(self, database: Database, bundles: Path, now: Callable[[], datetime] = _now) -> None:
        self.database = database
        self._bundles, self._now = bundles, now

    @classmethod
    def open(cls, settings: Settings) -> Registry:
        """The registry that the settings name; makes home and store where they are not there.

        Raises:
            Refusal: home or store cannot be used.
        """
        return cls(open_database(settings.database_url), settings.bundles)

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, name: str, folder: Path, *, move: bool = False, by: str = "") -> Registered:
        """Registers a bundle as the model's next version; a model's first version becomes its champion.

        Args:
            folder: a bundle; it is copied, or with `move` taken over.
            by: who is named in the promotions log.

        Raises:
            Refusal: the name cannot be used, or the bundles cannot be written.
            NotFound, Damaged: `folder` is no whole bundle.
        """
        check_name(name)
        bundle = open_bundle(folder)
        keep(self._bundles, bundle, move)
        with self.database.write() as session:
            model = session.scalar(select(ModelRow).where(ModelRow.name == name).with_for_update())
            if model is None:
                model = ModelRow(name=name, created=self._now())
                session.add(model)
                session.flush()
            row = session.scalar(
                select(VersionRow).where(VersionRow.model_id == model.id, VersionRow.digest == bundle.digest)
            )
            if row is not None:
                return Registered(name, row.version, row.digest, promoted=False, known=True)
            last = session.scalar(select(func.max(VersionRow.version)).where(VersionRow.model_id == model.id)) or 0
            row = _version_row(model.id, last + 1, bundle, self._now())
            session.add(row)
            session.flush()
            first = session.get(AliasRow, (model.id, CHAMPION)) is None
            if first:
                self._move(session, model.id, CHAMPION, row.version, "promote", by)
            return Registered(name, row.version, row.digest, promoted=first, known=False)

    def resolve(self, address: str) -> Resolved:
        """The bundle that `NAME`, `NAME@VERSION` or `NAME@ALIAS` stands for.

        Raises:
            NotFound: no such model, version or alias; the message lists those there are.
        """
        name, _, target = address.partition("@")
        with self.database.read() as session:
            return self.version(session, find_model(session, name), target if "@" in address else CHAMPION)

    def version(self, session: Session, model: ModelRow, target: str) -> Resolved:
        """A version by its number or by an alias, within a transaction.

        Raises:
            NotFound: no such version or alias.
        """
        row = self._target(session, model, target)
        return Resolved(model.name, row.version, row.digest, self._bundles / row.digest)

    def list(self) -> tuple[Model, ...]:
        """Every model, by name."""
        with self.database.read() as session:
            return tuple(_read(session, m) for m in session.scalars(select(ModelRow).order_by(ModelRow.name)))

    def show(self, name: str) -> Model:
        """One model.

        Raises:
            NotFound: no such model.
        """
        with self.database.read() as session:
            return _read(session, find_model(session, name))

    def promote(self, name: str, target: str | int, alias: str = CHAMPION, by: str = "") -> Promotion:
        """Points an alias at a version, given by number or by another alias. Where it points there already, it stays.

        Raises:
            NotFound: no such model, version or alias.
            Refusal: the alias is no name, or only digits and so read as a version.
        """
        check_name(alias, "alias")
        if alias.isdigit():
            raise Refusal(f"The alias name {alias!r} would be read as a version; give it a letter.")
        with self.database.write() as session:
            model = find_model(session, name, lock=True)
            row = self._target(session, model, str(target))
            current = session.get(AliasRow, (model.id, alias))
            if current is not None and current.version == row.version:
                return Promotion(alias, "promote", current.version, current.version, self._now(), by)
            return self._move(session, model.id, alias, row.version, "promote", by)

    def rollback(self, name: str, alias: str = CHAMPION, by: str = "") -> Promotion:
        """Points an alias back at the version it had before; a second rollback goes one further back.

        Raises:
            NotFound: no such model or alias.
            Conflict: it never pointed at another version.
        """
        with self.database.write() as session:
            model = find_model(session, name, lock=True)
            current = self._target(session, model, alias)
            past = _past(session, model, alias)
            if len(past) < 2:
                raise Conflict(
                    f"{name}@{alias} is version {current.version} and was none before that is left to go back to. "
                    "Promote a version by its number instead."
                )
            return self._move(session, model.id, alias, past[-2], "rollback", by)

    def before(self, name: str, alias: str = CHAMPION) -> Resolved | None:
        """The version that a rollback of an alias would go to; None where there is none.

        Raises:
            NotFound: no such model.
        """
        with self.database.read() as session:
            model = find_model(session, name)
            past = _past(session, model, alias)
            return self.version(session, model, str(past[-2])) if len(past) >= 2 else None

    def ping(self) -> None:
        """Asks the store for nothing.

        Raises:
            Refusal: it does not answer.
        """
        with self.database.read() as session:
            session.execute(text("SELECT 1"))

    def _target(self, session: Session, model: ModelRow, target: str) -> VersionRow:
        versions = select(VersionRow).where(VersionRow.model_id == model.id)
        if target.isascii() and target.isdigit():
            row = session.scalar(versions.where(VersionRow.version == int(target[:9])))
            if row is None or len(target) > 9:
                known = session.scalars(
                    select(VersionRow.version)
                    .where(VersionRow.model_id == model.id)
                    .order_by(VersionRow.version.desc())
                ).all()
                raise NotFound(
                    f"Model {model.name} has no version {_short(target)}; it has {_few([str(v) for v in known])}."
                )
            return row
        alias = session.get(AliasRow, (model.id, target))
        if alias is None:
            aliases = session.scalars(
                select(AliasRow.alias).where(AliasRow.model_id == model.id).order_by(AliasRow.alias)
            ).all()
            raise NotFound(
                f"Model {model.name} has no alias {_short(target)}; it has {_few(list(aliases))}. "
                f"Write {model.name}@VERSION for a version by its number."
            )
        return session.scalars(versions.where(VersionRow.version == alias.version)).one()

    def _move(self, session: Session, model: int, alias: str, to: int, action: str, by: str) -> Promotion:
        current = session.get(AliasRow, (model, alias))
        before = current.version if current is not None else None
        if current is not None:
            current.version = to
        else:
            session.add(AliasRow(model_id=model, alias=alias, version=to))
        if alias == CHAMPION:  # the trials were against the one before
            ended = {"canary": None, "share": 0.0, "shadow": None}
            session.execute(update(ServingRow).where(ServingRow.model_id == model).values(ended))
        row = PromotionRow(
            model_id=model,
            alias=alias,
            action=action,
            from_version=before,
            to_version=to,
            at=self._now(),
            by=(by or "unnamed")[:128],
        )
        session.add(row)
        return Promotion(alias, action, before, to, row.at, row.by)


def _past(session: Session, model: ModelRow, alias: str) -> list[int]:
    """The versions that an alias pointed at, the current one last; those that were rolled back are gone."""
    past: list[int] = []
    for move in session.scalars(
        select(PromotionRow)
        .where(PromotionRow.model_id == model.id, PromotionRow.alias == alias)
        .order_by(PromotionRow.id)
    ):
        if move.action == "promote":
            past.append(move.to_version)
        else:
            past.pop()
    return past


def _version_row(model: int, version: int, bundle: Bundle, now: datetime) -> VersionRow:
    manifest = bundle.manifest
    return VersionRow(
        model_id=model,
        version=version,
        digest=bundle.digest,
        family=manifest.family[:64],
        kind=bundle.spec.kind,
        alpha=manifest.alpha,
        training_digest=_text(manifest.training.digest),
        parent_digest=_text(manifest.lineage.digest),
        fitted=manifest.created[:40],
        registered=now,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)[:128]


def find_model(session: Session, name: str, lock: bool = False) -> ModelRow:
    """A model's row, locked against changes by others on request.

    Raises:
        NotFound: there is none of this name.
    """
    query = select(ModelRow).where(ModelRow.name == name)
    model = session.scalar(query.with_for_update() if lock else query)
    if model is not None:
        return model
    names = session.scalars(select(ModelRow.name).order_by(ModelRow.name)).all()
    if not names:
        raise NotFound(
            f"There is no model {_short(name)}; none is registered yet. Fit one with `vaegis fit` or import one with "
            "`vaegis models import`."
        )
    raise NotFound(f"There is no model {_short(name)}; there is {_few(list(names))}.")


def _read(session: Session, model: ModelRow) -> Model:
    aliases = {
        a.alias: a.version
        for a in session.scalars(select(AliasRow).where(AliasRow.model_id == model.id).order_by(AliasRow.alias))
    }
    versions = session.scalars(
        select(VersionRow).where(VersionRow.model_id == model.id).order_by(VersionRow.version)
    ).all()
    moves = session.scalars(
        select(PromotionRow).where(PromotionRow.model_id == model.id).order_by(PromotionRow.id)
    ).all()
    return Model(
        name=model.name,
        versions=tuple(
            Version(
                version=v.version,
                digest=v.digest,
                family=v.family,
                kind=v.kind,
                alpha=v.alpha,
                training_digest=v.training_digest,
                parent_digest=v.parent_digest,
                fitted=v.fitted,
                registered=v.registered,
                aliases=tuple(a for a, to in aliases.items() if to == v.version),
            )
            for v in versions
        ),
        aliases=aliases,
        promotions=tuple(Promotion(m.alias, m.action, m.from_version, m.to_version, m.at, m.by) for m in moves),
    )


def _few(names: list[str]) -> str:
    """At most ten, and how many more."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def _short(name: str) -> str:
    return repr(name if len(name) <= 70 else name[:67] + "...")
