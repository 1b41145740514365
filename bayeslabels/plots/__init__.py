"""Pictures of results.

Each function returns a matplotlib Figure, or draws on the axes it is given, and shows nothing: save with
``figure.savefig(path)``.
"""

from .catalogue import kiel
from .inference import energy, khat, loss, pair, ppc, prior_to_posterior, ranks
from .panels import BLACK, BLUE, GREEN, GREY, ORANGE
from .photometry import colour_magnitude, distance_ladder, magnitude_residuals, reddening_vector
from .stars import coefficients, corner, residual_map, spectrum
from .truth import ONE_SIGMA, calibration, one_to_one, precision, reliability

__all__ = [
    "BLACK",
    "BLUE",
    "GREEN",
    "GREY",
    "ONE_SIGMA",
    "ORANGE",
    "calibration",
    "coefficients",
    "colour_magnitude",
    "corner",
    "distance_ladder",
    "energy",
    "khat",
    "kiel",
    "loss",
    "magnitude_residuals",
    "one_to_one",
    "pair",
    "ppc",
    "precision",
    "prior_to_posterior",
    "ranks",
    "reddening_vector",
    "reliability",
    "residual_map",
    "spectrum",
]
