"""Do the error bars hold? Held-out predictions, z scores, coverage, PIT, simulation-based calibration."""

from .compare import compare
from .cross_validation import CrossValidation, cross_validate
from .recalibrate import Recalibration, recalibrate
from .reliability import Pairs, pairs, reliability
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
    "Pairs",
    "Recalibration",
    "Reference",
    "Result",
    "compare",
    "compared",
    "coverage",
    "cross_validate",
    "label_scatter",
    "log_density",
    "pairs",
    "pit",
    "recalibrate",
    "reliability",
    "robust_scatter",
    "sbc",
    "z_scores",
]
