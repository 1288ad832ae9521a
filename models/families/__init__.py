"""Every family, by the name that a fit asks for. torch lives here and in `training`, nowhere else.

To add a family: its file beside these, which opens with its mathematics and holds one subclass of `Family`; its line in
`FAMILIES`; a test of its equations against known answers; a row in the README's table of families. Everything else (the
command's options, export, calibration, reports, and the conformance tests that run over `FAMILIES`) follows from these.
What it shares with others goes to `parts`.
"""

from vaegis.models.families.autoencoder import Autoencoder
from vaegis.models.families.autoregressive import Autoregressive
from vaegis.models.families.diffusion import Diffusion
from vaegis.models.families.family import (
    Batch,
    Batches,
    Draw,
    Evidence,
    Family,
    Plan,
    Progress,
    Recipe,
    make,
)
from vaegis.models.families.flow import Flow
from vaegis.models.families.gan import GAN
from vaegis.models.families.mixture import GaussianMixture
from vaegis.models.families.pca import PCA
from vaegis.models.families.vae import VAE
from vaegis.models.families.vae_flow import VAEFlow
from vaegis.models.families.vae_gan import VAEGAN

FAMILIES: dict[str, type[Family]] = {
    "vae": VAE,
    "autoencoder": Autoencoder,
    "gan": GAN,
    "diffusion": Diffusion,
    "flow": Flow,
    "autoregressive": Autoregressive,
    "vae_gan": VAEGAN,
    "vae_flow": VAEFlow,
    "mixture": GaussianMixture,
    "pca": PCA,
}

__all__ = [
    "FAMILIES",
    "Batch",
    "Batches",
    "Draw",
    "Evidence",
    "Family",
    "Plan",
    "Progress",
    "Recipe",
    "make",
]
