"""How models are served: loaded or not, a canary for a share of requests, a shadow that is only compared.

Kept in the store, so that every worker and every replica does the same. A promotion of the champion ends both trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from vaegis.models.bundle import open_bundle
from vaegis.models.errors import Refusal
from vaegis.models.spec import InputSpec, SeriesSpec, describe
from vaegis.service.store.registry import CHAMPION, Registry, Resolved, find_model
from vaegis.service.store.schema import ModelRow, PromotionRow, ServingRow


@dataclass(frozen=True)
class Serving:
    """How one model is served."""

    loaded: bool = True  # false: closed until somebody loads it
    canary: int | None = None  # version that answers `share` of the champion's requests
    share: float = 0.0
    shadow: int | None = None  # version that scores the same traffic and is only compared


@dataclass(frozen=True)
class Route:
    """What answers an address: the version it stands for and, of a champion, the versions on trial beside it."""

    main: Resolved
    loaded: bool = True
    canary: Resolved | None = None
    share: float = 0.0  # of requests that the canary answers
    shadow: Resolved | None = None


State = tuple[int | None, Serving]  # of a model: its last promotion, how it is served


class Servings:
    """Reads and changes how models are served; every method is one transaction."""

    def __init__(self, registry: Registry, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._registry, self._now = registry, now

    def route(self, address: str) -> Route:
        """What answers an address.

        Raises:
            NotFound: no such model, version or alias.
        """
        name, _, target = address.partition("@")
        with self._registry.database.read() as session:
            model = find_model(session, name)
            main = self._registry.version(session, model, target if "@" in address else CHAMPION)
            serving = _read(session, model.id)
            if "@" in address and target != CHAMPION:
                return Route(main, serving.loaded)
            canary, shadow = (
                None if number is None else self._registry.version(session, model, str(number))
                for number in (serving.canary, serving.shadow)
            )
            return Route(main, serving.loaded, canary, serving.share, shadow)

    def of(self, name: str) -> Serving:
        """How a model is served.

        Raises:
            NotFound: there is no such model.
        """
        with self._registry.database.read() as session:
            return _read(session, find_model(session, name).id)

    def states(self) -> dict[str, State]:
        """By model, what changes whenever an address of it may stand for something else."""
        last = select(PromotionRow.model_id, func.max(PromotionRow.id).label("last")).group_by(PromotionRow.model_id)
        moved = last.subquery()
        with self._registry.database.read() as session:
            rows = session.execute(
                select(ModelRow.name, moved.c.last, ServingRow)
                .outerjoin(moved, moved.c.model_id == ModelRow.id)
                .outerjoin(ServingRow, ServingRow.model_id == ModelRow.id)
            )
            return {name: (at, _serving(row)) for name, at, row in rows}

    def load(self, name: str, loaded: bool, by: str = "") -> Serving:
        """Has a model served, or closed until it is loaded again.

        Raises:
            NotFound: there is no such model.
        """
        with self._registry.database.write() as session:
            row = self._row(session, find_model(session, name, lock=True), by)
            row.loaded = loaded
            return _serving(row)

    def canary(self, name: str, target: str | int | None, share: float = 0.0, by: str = "") -> Serving:
        """Lets a version answer a share of the champion's requests; None ends it.

        Raises:
            NotFound: no such model, version or alias.
            Refusal: the share is not between 0 and 1, the version is the champion or takes other samples.
        """
        if target is not None and not 0 < share < 1:
            raise Refusal(f"The canary's share cannot be {share:g}; give one above 0 and below 1, such as 0.05.")
        with self._registry.database.write() as session:
            model = find_model(session, name, lock=True)
            version = self._rival(session, model, target)
            row = self._row(session, model, by)
            row.canary, row.share = version, share if version is not None else 0.0
            return _serving(row)

    def shadow(self, name: str, target: str | int | None, by: str = "") -> Serving:
        """Has a version score the champion's traffic too, to be compared; None ends it.

        Raises:
            NotFound: no such model, version or alias.
            Refusal: the version is the champion or takes other samples.
        """
        with self._registry.database.write() as session:
            model = find_model(session, name, lock=True)
            version = self._rival(session, model, target)
            row = self._row(session, model, by)
            row.shadow = version
            return _serving(row)

    def _row(self, session: Session, model: ModelRow, by: str) -> ServingRow:
        row = session.get(ServingRow, model.id)
        if row is None:
            row = ServingRow(model_id=model.id, loaded=True, share=0.0)
            session.add(row)
        row.at, row.by = self._now(), (by or "unnamed")[:128]
        return row

    def _rival(self, session: Session, model: ModelRow, target: str | int | None) -> int | None:
        if target is None:
            return None
        champion = self._registry.version(session, model, CHAMPION)
        rival = self._registry.version(session, model, str(target))
        if rival.version == champion.version:
            raise Refusal(
                f"Version {rival.version} of {model.name} is its champion and answers already; name another version."
            )
        ours, other = open_bundle(champion.path).spec, open_bundle(rival.path).spec
        if not same_samples(ours, other):
            raise Refusal(
                f"Version {rival.version} of {model.name} takes {describe(other)} and the champion, version "
                f"{champion.version}, {describe(ours)}; both must take the same samples."
            )
        return rival.version


def same_samples(a: InputSpec, b: InputSpec) -> bool:
    """Whether two specs read samples alike."""
    if isinstance(a, SeriesSpec) and isinstance(b, SeriesSpec):
        # A step is measured, and earlier versions have none.
        if a.step is not None and b.step is not None and abs(a.step - b.step) > 0.1 * a.step:
            return False
        a, b = replace(a, step=None), replace(b, step=None)
    ours, theirs = (replace(spec, invariances=(), calibrate_by=None) for spec in (a, b))
    return ours == theirs


def _read(session: Session, model: int) -> Serving:
    return _serving(session.get(ServingRow, model))


def _serving(row: ServingRow | None) -> Serving:
    return Serving() if row is None else Serving(row.loaded, row.canary, row.share, row.shadow)
