"""Data-driven models of stars, with error bars that hold."""

from . import families as _families  # noqa: F401  (registers every kind of models)
from . import nuisances, priors
from .calibration import cross_validate
from .catalog import infer_catalog
from .errors import BadInput, NotConverged
from .fit import fit, infer
from .inference import MAP, NUTS, SVI, Gibbs, Importance, Laplace
from .models.cannon import Cannon
from .models.lux import Lux
from .models.parallax import Parallax
from .models.photometry import Photometry
from .models.translator import Translator
from .numerics.neighbours import label_distance
from .posterior import Posterior, load, version_of
from .star_posterior import StarPosterior, flag_names
from .stars import Block, Stars

__version__ = version_of("bayeslabels")

__all__ = [
    "MAP",
    "NUTS",
    "SVI",
    "BadInput",
    "Block",
    "Cannon",
    "Gibbs",
    "Importance",
    "Laplace",
    "Lux",
    "NotConverged",
    "Parallax",
    "Photometry",
    "Posterior",
    "StarPosterior",
    "Stars",
    "Translator",
    "cross_validate",
    "fit",
    "flag_names",
    "infer",
    "infer_catalog",
    "label_distance",
    "load",
    "nuisances",
    "priors",
]  # fmt: skip
