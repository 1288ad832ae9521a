"""A bundle from elsewhere becomes a version: whole, what it was announced as, and tried, before anything is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vaegis.models.bundle import open_bundle
from vaegis.models.errors import Refusal
from vaegis.models.trial import TrialResult, try_bundle
from vaegis.service.store.registry import Registered, Registry, check_name


@dataclass(frozen=True)
class Import:
    """What became of a bundle from elsewhere."""

    registered: Registered
    warnings: tuple[str, ...]  # what its user should know


def import_bundle(
    registry: Registry,
    name: str,
    folder: Path,
    *,
    expect: str | None = None,
    by: str = "",
    trial: Callable[[Path], TrialResult] = try_bundle,
) -> Import:
    """Registers a bundle from elsewhere as the model's next version.

    Args:
        expect: the digest, or the record digest, that the sender told on another way.
        by: who is named in the promotions log.

    Raises:
        Refusal: it is not the bundle that was announced, or is one that cannot be served; nothing is kept.
    """
    check_name(name)
    bundle = open_bundle(folder)
    if expect is not None and expect.strip().lower() not in (bundle.digest, bundle.manifest.record_digest or None):
        raise Refusal(
            f"The bundle's digest is {bundle.digest} and its record digest is "
            f"{bundle.manifest.record_digest or 'missing'}, not {expect!r:.80}, so it is not the one that was "
            "announced. Ask its sender which one it is."
        )
    outcome = trial(folder)
    warnings = bundle.warnings
    if not outcome.finite:
        warnings += ("Its evidence is not finite for any sample made up for it; it cannot be promoted like that.",)
    return Import(registry.add(name, folder, by=by), warnings)
