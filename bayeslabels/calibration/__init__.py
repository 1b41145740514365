"""Do the error bars hold? Held-out predictions, z scores, coverage, PIT."""

from .cross_validation import CrossValidation, cross_validate
from .recalibrate import Recalibration, recalibrate
from .scores import (
    Coverage,
    Labels,
    Reference,
    Result,
    compared,
    coverage,
    label_scatter,
    log_density,
    pit,
    robust_scatter,
    z_scores,
)

__all__ = [
    "Coverage",
    "CrossValidation",
    "Labels",
    "Recalibration",
    "Reference",
    "Result",
    "compared",
    "coverage",
    "cross_validate",
    "label_scatter",
    "log_density",
    "pit",
    "recalibrate",
    "robust_scatter",
    "z_scores",
]
