"""R-hat and effective sample size of many parameters at once, rank-normalised (Vehtari et al. 2021): ArviZ's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def rhat(draws: np.ndarray) -> np.ndarray:
    """R-hat of draws (chain, draw, ...); NaN for one chain or fewer than four draws, or a constant."""
    if draws.shape[0] < 2 or draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    return _of_arviz("rhat", draws, "rank")


def ess(draws: np.ndarray) -> np.ndarray:
    """Effective sample size of draws (chain, draw, ...), the bulk-ESS; NaN of fewer than four draws."""
    if draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    return _of_arviz("ess", draws, "bulk")


def _of_arviz(name: str, draws: np.ndarray, method: str) -> np.ndarray:
    from arviz_stats.base import array_stats  # slow to import

    with np.errstate(all="ignore"):
        return np.asarray(getattr(array_stats, name)(np.asarray(draws), chain_axis=0, draw_axis=1, method=method))


def worst(draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`rhat_max` and `ess_min` of all numbers of sites {name: (chain, draw, ...)}; NaN where chains cannot tell."""
    rhats = np.concatenate([rhat(x).ravel() for x in draws.values()])
    sizes = np.concatenate([ess(x).ravel() for x in draws.values()])
    known, counted = rhats[np.isfinite(rhats)], sizes[np.isfinite(sizes)]
    return {
        "rhat_max": float(known.max()) if known.size else np.nan,
        "ess_min": float(counted.min()) if counted.size else np.nan,
    }
