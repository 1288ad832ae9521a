"""Access keys. A key is shown once, when it is made; the store keeps the SHA-256 of it.

A plain hash is enough: the secret is 256 random bits, which no dictionary holds.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select

from vaegis.models.errors import Conflict, NotFound, Refusal
from vaegis.service.store.database import Database
from vaegis.service.store.schema import KeyRow

SCOPES: dict[str, str] = {
    "score": "score samples",
    "audit": "start, read and cancel audits",
    "train": "certify data and start retraining",
    "admin": "promote, roll back, load and unload; includes the other scopes",
}


@dataclass(frozen=True)
class Key:
    """What is known of a key; not the key itself."""

    id: str  # public part, shown in lists
    name: str
    sha256: str
    scopes: frozenset[str]
    rate: float | None  # samples a second, 0 = any number; None = as the service is set
    created: datetime
    revoked: datetime | None


class Keys:
    """The keys of a store."""

    def __init__(self, database: Database, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database, self._now = database, now

    def create(self, name: str, scopes: Iterable[str], rate: float | None = None) -> str:
        """Makes a key and returns its text, which cannot be had again.

        Args:
            rate: samples a second that it may ask for; 0 sets no bounds, None leaves it to the service's settings.

        Raises:
            Refusal: an unknown scope, none at all, no usable name, or a rate that is none.
        """
        wanted = set(scopes)
        if not 0 < len(name) <= 63 or not name.isprintable():
            raise Refusal("A key needs a name of 1 to 63 printable characters that says who uses it, such as line-3.")
        if unknown := sorted(wanted - set(SCOPES)):
            raise Refusal(f"There is no scope {unknown[0]!r}; a key can have {', '.join(SCOPES)}.")
        if not wanted:
            raise Refusal(f"A key needs at least one scope of {', '.join(SCOPES)}.")
        if rate is not None and not (math.isfinite(rate) and rate >= 0):
            raise Refusal(f"A key's rate cannot be {rate}; give samples a second, such as 50, or 0 for no bounds.")
        # Hexadecimal, so that the underscores which separate the parts occur in none of them.
        ident = secrets.token_hex(6)
        text = f"vg_{ident}_{secrets.token_hex(32)}"
        with self._database.write() as session:
            session.add(
                KeyRow(
                    id=ident,
                    name=name,
                    sha256=digest(text),
                    scopes=" ".join(sorted(wanted)),
                    rate=rate,
                    created=self._now(),
                )
            )
        return text

    def stamp(self) -> int | None:
        """A number that changes when keys may have changed; None where the store cannot tell quickly."""
        return self._database.stamp()

    def list(self) -> tuple[Key, ...]:
        """Every key, oldest first, revoked ones included."""
        with self._database.read() as session:
            return tuple(_key(r) for r in session.scalars(select(KeyRow).order_by(KeyRow.created, KeyRow.id)))

    def revoke(self, ident: str) -> Key:
        """Ends a key for good.

        Raises:
            NotFound: no key has this id.
            Conflict: it was revoked before.
        """
        with self._database.write() as session:
            row = session.get(KeyRow, ident)
            if row is None:
                raise NotFound(f"There is no key {ident[:70]!r}; `vaegis keys list` shows the ids.")
            if row.revoked is not None:
                raise Conflict(f"Key {ident} was revoked on {row.revoked:%Y-%m-%d %H:%M} UTC already.")
            row.revoked = self._now()
            return _key(row)


def _key(row: KeyRow) -> Key:
    return Key(row.id, row.name, row.sha256, frozenset(row.scopes.split()), row.rate, row.created, row.revoked)


def digest(text: str) -> str:
    """What the store keeps of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def public_id(text: str) -> str:
    """The id within a key's text, or an empty string where it is no key."""
    parts = text.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == "vg" else ""
