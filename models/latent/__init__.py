"""What people do with a latent space, on exported graphs alone: encode, generate, walk, complete, clean, map.

Nothing here knows a family: a bundle has an encoder and a decoder, a sampler, or neither, and then the error says so.
"""

from vaegis.models.latent.coder import Coder
from vaegis.models.latent.gaps import Imputed, impute
from vaegis.models.latent.paths import combine, interpolate, parse_arith, traverse
from vaegis.models.latent.plane import Plane, plane_of
from vaegis.models.latent.probe import linear_probe
from vaegis.models.latent.samples import as_raw, assembled, stacked

__all__ = [
    "Coder",
    "Imputed",
    "Plane",
    "as_raw",
    "assembled",
    "combine",
    "impute",
    "interpolate",
    "linear_probe",
    "parse_arith",
    "plane_of",
    "stacked",
    "traverse",
]
