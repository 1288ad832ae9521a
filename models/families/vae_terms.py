"""What the VAE's evidence is called and means, and which of it a score fuses; the mathematics stands in `vae`."""

from __future__ import annotations

from collections.abc import Mapping

from vaegis.models.families.fusion import Form, chosen
from vaegis.models.families.parts.relations import RESIDUAL_MEANING
from vaegis.models.spec import InputSpec

MEANING = {
    "reconstruction_error": "mean squared error per value of the reconstruction from the posterior mean",
    "negative_elbo": "negative evidence lower bound, nats: how improbable the sample is under the model",
    "kl": "KL divergence of the posterior from the prior, nats: how much the sample says about its latent",
    "latent_distance": "Mahalanobis distance of the posterior mean from the clean latents",
    "latent_density": "negative log-density of the posterior mean among the clean latents, nats",
    "map_peak": "largest value of the map: the strangest place, in units of clean variance",
}
DISTANCE_MEANING = {
    "residual_distance": RESIDUAL_MEANING,
    "input_distance": "Mahalanobis distance of the values themselves from clean ones (Hotelling's T2)",
}
# Which terms a score fuses was told by synthetic defects (docs/benchmarks.md), not by labels.
FUSED: dict[str, dict[str, Form]] = {
    "image": {"latent_density": "linear", "map_peak": "log", "residual_distance": "log"},
    "series": {"map_peak": "log", "residual_distance": "log", "input_distance": "log"},
    "vector": {"residual_distance": "log", "input_distance": "log"},
    "varied": {"reconstruction_error": "log", "residual_distance": "log"},
}
# Where values may be missing there are no such distances: at its mean a gap breaks the very relations they hold it to.
FUSED_MISSING: dict[str, Form] = {"reconstruction_error": "log", "latent_density": "linear", "map_peak": "log"}


def fused(spec: InputSpec, whole: bool) -> Mapping[str, Form]:
    """The terms that enter the score. `whole`: distances between values are among the evidence."""
    return chosen(FUSED, spec) if whole else FUSED_MISSING
