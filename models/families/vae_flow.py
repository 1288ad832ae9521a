"""VAE whose prior is a normalising flow (Chen et al. 2017, arXiv:1611.02731; the gap that a standard normal prior
leaves: Rosca et al. 2018, arXiv:1802.06847). With u = f(z), f invertible, and u ~ N(0, I):

    log p(z)       = sum_l (-u_l^2 / 2 - log(2 pi) / 2) + log|det du/dz|
    KL(q || p)     = -1/2 sum_l (1 + log sigma_l^2 + log 2 pi) - E_q[log p(z)]     nats

The entropy is exact; the expectation has no closed form. Training takes it from its one draw, `negative_elbo` and `kl`
from the K stored noises: an average over draws of q is an unbiased bound all the same, and the same at each call.

Everything else is the VAE's (`vae.py`), `latent_density` too: -log p(mu) would be of little use there. The prior learns
where draws of q lie, spread as they are, and a defect that the encoder makes little of has its mean in their midst.
A sample is decoded from z = f^-1(u), which `sampler.onnx` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vaegis.models.bundle import SAMPLER
from vaegis.models.errors import Refusal
from vaegis.models.families.family import Batch, Draw, Plan, in_range
from vaegis.models.families.parts.transforms import HALF_LOG_2PI, Vectors, negative_log_density
from vaegis.models.families.vae import VAE
from vaegis.models.spec import InputSpec

PRIORS = ("realnvp", "spline")  # transforms whose inverse is one pass


class VAEFlow(VAE):
    """See the module's mathematics."""

    def __init__(
        self,
        spec: InputSpec,
        *,
        prior: str = "realnvp",
        prior_layers: int = 4,
        prior_width: int = 64,
        **vae: Any,
    ) -> None:
        """Builds the networks.

        Args:
            prior: realnvp or spline.
            prior_layers: couplings of the prior, at least 1.
            prior_width: units of the networks within.
            vae: the VAE's arguments; `free_bits` counts all latent units together.

        Raises:
            Refusal: an argument out of its range.
        """
        super().__init__(spec, **vae)
        if prior not in PRIORS:
            raise Refusal(f"Argument prior is {prior!r}; choose {' or '.join(PRIORS)}.")
        in_range("prior_layers", prior_layers, 1, 64)
        in_range("prior_width", prior_width, 1, 4096)
        self.prior, self.prior_layers, self.prior_width = prior, prior_layers, prior_width
        self.flow = Vectors(self.latent, prior, prior_layers, prior_width, bins=8)

    def sample(self, draw: Draw) -> Tensor:
        u = draw.normal(self.latent).to(self.centre.device)
        return self.decode(Batch(self.flow.inverse(u), draw.condition))

    def more_graphs(self) -> dict[str, Plan]:
        inputs = {"noise": torch.zeros(3, self.latent)}
        if self.spec.conditions:
            inputs["condition"] = torch.arange(3) % len(self.spec.conditions)
        return {SAMPLER: Plan(PriorSampler(self), inputs, ("sample",))}

    def _divergence(self, mean: Tensor, log_variance: Tensor, z: Tensor) -> Tensor:
        """KL(q || p) in nats of all units together, (B, 1), from one draw."""
        entropy = (0.5 * (1 + log_variance) + HALF_LOG_2PI).sum(1)
        return (negative_log_density(*self.flow(z)) - entropy)[:, None]


class PriorSampler(nn.Module):
    """`noise` (and `condition`) -> `sample`."""

    def __init__(self, family: VAEFlow) -> None:
        super().__init__()
        self.family = family

    def forward(self, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.family.decode(Batch(self.family.flow.inverse(noise), condition))
