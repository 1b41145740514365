"""R-hat and effective sample size of many parameters at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin


def rhat(draws: np.ndarray) -> np.ndarray:
    """Split R-hat of draws (chain, draw, ...); NaN for one chain or fewer than four draws, or a constant."""
    if draws.shape[0] < 2 or draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(split_gelman_rubin(np.asarray(draws)))


def ess(draws: np.ndarray) -> np.ndarray:
    """Effective sample size of draws (chain, draw, ...)."""
    if draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(effective_sample_size(np.asarray(draws)))


def worst(draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`rhat_max` and `ess_min` of all numbers of sites {name: (chain, draw, ...)}; NaN where chains cannot tell."""
    rhats = np.concatenate([rhat(x).ravel() for x in draws.values()])
    sizes = np.concatenate([ess(x).ravel() for x in draws.values()])
    known, counted = rhats[np.isfinite(rhats)], sizes[np.isfinite(sizes)]
    return {
        "rhat_max": float(known.max()) if known.size else np.nan,
        "ess_min": float(counted.min()) if counted.size else np.nan,
    }
