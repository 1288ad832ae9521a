"""Every family, by the name it is asked for. torch lives here and in `training`, nowhere else."""

from vaegis.models.families.autoencoder import Autoencoder
from vaegis.models.families.autoregressive import Autoregressive
from vaegis.models.families.diffusion import Diffusion
from vaegis.models.families.family import (
    Batches,
    Conditioned,
    Evidence,
    Family,
    Plan,
    Progress,
    Recipe,
    conditioned,
    make,
)
from vaegis.models.families.flow import Flow
from vaegis.models.families.gan import GAN
from vaegis.models.families.mixture import GaussianMixture
from vaegis.models.families.pca import PCA
from vaegis.models.families.vae import VAE
from vaegis.models.families.vae_gan import VAEGAN, VAEFlow

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
    "Batches",
    "Conditioned",
    "Evidence",
    "Family",
    "Plan",
    "Progress",
    "Recipe",
    "conditioned",
    "make",
]
