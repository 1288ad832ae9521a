"""Vaegis: learns what clean product looks like, and says how strange a sample is, where, and how sure it is.

    import vaegis

    scorer = vaegis.Scorer(vaegis.open_bundle("bundles/parts"))
    verdicts = scorer.score(images, alpha=0.01)  # (N, H, W), whole numbers
    print(verdicts.anomalous, verdicts.evidence["score"], verdicts.p_values["score"])

Importing this package loads none of its parts: `open_bundle`, `Scorer` and `Client` are imported when first asked for,
so that a program that only talks to a service loads neither onnxruntime nor torch.

`vaegis.models` says what a model is, `vaegis.training` makes one, `vaegis.service` serves it. In a checkout they are
links to the folders of the same names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaegis.client import Client
    from vaegis.models.bundle import open_bundle
    from vaegis.models.scorer import Scorer

__all__ = ["Client", "Scorer", "open_bundle"]

_HOMES = {"Client": "vaegis.client", "Scorer": "vaegis.models.scorer", "open_bundle": "vaegis.models.bundle"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"vaegis has no {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
