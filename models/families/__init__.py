"""Every family, by the name it is asked for. torch lives here and in `training`, nowhere else."""

from models.families.autoencoder import Autoencoder
from models.families.autoregressive import Autoregressive
from models.families.diffusion import Diffusion
from models.families.family import Batches, Conditioned, Evidence, Family, Plan, Progress, Recipe, conditioned, make
from models.families.flow import Flow
from models.families.gan import GAN
from models.families.hybrids import VAEGAN, VAEFlow
from models.families.mixture import GaussianMixture
from models.families.pca import PCA
from models.families.vae import VAE

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
