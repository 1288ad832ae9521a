"""The one door to letting a version answer: whoever asks, it is tried and compared with the champion first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vaegis.models.bundle import open_bundle
from vaegis.models.errors import Conflict, Damaged, NotFound, Unfit
from vaegis.models.spec import describe
from vaegis.models.trial import TrialResult, try_bundle
from vaegis.service.store.registry import CHAMPION, Promotion, Registry, Resolved
from vaegis.service.store.servings import Serving, Servings, same_samples


class Promotions:
    """Promotes versions and sets trials of them, from the command line and over HTTP alike."""

    def __init__(
        self,
        registry: Registry,
        trial: Callable[[Path], TrialResult] = try_bundle,
        prepare: Callable[[Resolved], object] = lambda version: None,
    ) -> None:
        """
        Args:
            trial: tries a bundle out; see `try_bundle`.
            prepare: called with a version that passed, before anybody is answered by it.
        """
        self._registry, self._servings = registry, Servings(registry)
        self._trial, self._prepare = trial, prepare

    def promote(
        self, name: str, target: str | int, alias: str = CHAMPION, by: str = "", override: bool = False
    ) -> Promotion:
        """Points an alias at a version that can answer.

        Args:
            override: promote a version that takes other samples than the champion.

        Raises:
            NotFound: no such model, version or alias.
            Damaged, Unfit: the version cannot answer.
            Conflict: it takes other samples than the champion.
        """
        version = self._registry.resolve(f"{name}@{target}")
        if alias == CHAMPION and not override:
            self._compare(version)
        self._try(version)
        return self._registry.promote(name, version.version, alias, by)

    def canary(self, name: str, target: str | int, share: float, by: str = "") -> Serving:
        """Lets a version that can answer do so for a share of the champion's requests.

        Raises:
            NotFound, Damaged, Unfit: as `promote`.
            Refusal: as `Servings.canary`.
        """
        self._try(self._registry.resolve(f"{name}@{target}"))
        return self._servings.canary(name, target, share, by)

    def shadow(self, name: str, target: str | int, by: str = "") -> Serving:
        """Has a version that can answer score the champion's traffic.

        Raises:
            NotFound, Damaged, Unfit: as `promote`.
            Refusal: as `Servings.shadow`.
        """
        self._try(self._registry.resolve(f"{name}@{target}"))
        return self._servings.shadow(name, target, by)

    def _try(self, version: Resolved) -> None:
        if not self._trial(version.path).finite:
            raise Unfit(
                f"Version {version.version} of {version.name} gives no finite evidence of any sample made up for it, "
                "so it would judge nothing. Look at its report, and fit the model again."
            )
        self._prepare(version)

    def _compare(self, version: Resolved) -> None:
        try:
            champion = self._registry.resolve(version.name)
            current = open_bundle(champion.path).spec
        except (NotFound, Damaged):
            return  # there is none, or one that nobody can be answered by: nothing to keep to
        spec = open_bundle(version.path).spec
        if same_samples(current, spec):
            return
        raise Conflict(
            f"Version {version.version} of {version.name} takes {describe(spec)} and the champion, version "
            f"{champion.version}, {describe(current)}: whoever sends samples now would be refused. Register it under "
            'another name, or promote it with --override (over HTTP "override": true).'
        )
