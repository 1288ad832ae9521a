"""Every family, by the name it is asked for. torch lives here and in `training`, nowhere else."""

from models.families.family import Batches, Evidence, Family, Progress, Recipe, make
from models.families.vae import VAE

FAMILIES: dict[str, type[Family]] = {
    "vae": VAE,
}

__all__ = ["FAMILIES", "Batches", "Evidence", "Family", "Progress", "Recipe", "make"]
