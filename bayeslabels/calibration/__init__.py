"""Do the error bars hold? Held-out predictions, z scores, coverage, PIT."""

from .cross_validation import CrossValidation, cross_validate
from .sbc import SBC, sbc
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
    "SBC",
    "Coverage",
    "CrossValidation",
    "Labels",
    "Reference",
    "Result",
    "compared",
    "coverage",
    "cross_validate",
    "label_scatter",
    "log_density",
    "pit",
    "robust_scatter",
    "sbc",
    "z_scores",
]
