"""Data-driven models of stars, with error bars that hold."""

from . import kinds as _kinds  # noqa: F401  (registers every kind of models)
from .calibration import cross_validate
from .catalogues.catalog import infer_catalog
from .core import priors
from .data.stars import Block, Stars
from .errors import BadInput, NotConverged
from .fit import fit, infer
from .inference import MAP, NUTS, SVI, Gibbs, Importance, Laplace
from .kinds.parallax.parallax import Parallax
from .kinds.photometry.photometry import Photometry
from .kinds.spectra import nuisances
from .kinds.spectra.cannon import Cannon
from .kinds.spectra.lux import Lux
from .kinds.translator.translator import Translator
from .numerics.neighbours import label_distance
from .results.posterior import Posterior, load, version_of
from .results.star_posterior import StarPosterior, flag_names

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
