"""What families have in common that are fitted by a look at the samples, with no steps."""

from __future__ import annotations

from torch import Tensor, nn

from vaegis.models.families.family import Batch, Batches, Family, Progress, Recipe
from vaegis.models.families.parts.normaliser import Normaliser


class ClosedForm(Family):
    """Learns all it knows in `finish`, from normalised values."""

    normaliser: Normaliser

    @property
    def recipe(self) -> Recipe:
        return Recipe(steps=1, batch=256, rate=1e-3)

    def notes(self) -> tuple[str, ...]:
        return self.normaliser.notes()

    def log_jacobian(self) -> float | None:
        return self.normaliser.log_jacobian()

    def start(self, batches: Batches) -> None:
        """Normalisation."""
        self.normaliser.fit(batches)

    def players(self) -> dict[str, nn.Module]:
        return {}

    def loss(self, batch: Batch, player: str, at: Progress) -> dict[str, Tensor]:
        raise AssertionError("no player learns by steps")
