"""R-hat and effective sample size of many parameters at once, rank-normalised (Vehtari et al. 2021): ArviZ's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import chdtri

RHAT_LIMIT = 1.02
"""R-hat of one number above which the chains do not agree."""
RARE = 0.01
"""Share of runs whose chains agree that may be called different."""


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


def rhat_limit(n_chain: int, n_number: int) -> float:
    """The highest R-hat among so many numbers with which the chains count as agreeing: 1.02 for one number.

    Of chains that agree, R-hat^2 - 1 of one number is proportional to chi^2 with 2 n_chain - 1 degrees of freedom (the
    halves of all chains). The highest of many is higher by chance alone: the limit is that which many numbers exceed as
    seldom as one number exceeds 1.02, where that is one run in a hundred.
    """
    quantile = float(chdtri(2 * n_chain - 1, RARE / max(n_number, 1)) / chdtri(2 * n_chain - 1, RARE))
    return float(np.sqrt(1 + (RHAT_LIMIT**2 - 1) * quantile))


def worst(draws: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """`rhat_max` and `ess_min` of all numbers of sites {name: (chain, draw, ...)}, NaN where chains cannot tell; and
    `converged`, whether R-hat is below `rhat_limit`."""
    rhats = np.concatenate([rhat(x).ravel() for x in draws.values()])
    sizes = np.concatenate([ess(x).ravel() for x in draws.values()])
    known, counted = rhats[np.isfinite(rhats)], sizes[np.isfinite(sizes)]
    highest = float(known.max()) if known.size else np.nan
    limit = rhat_limit(len(next(iter(draws.values()))), known.size)
    return {
        "rhat_max": highest, "rhat_limit": limit, "ess_min": float(counted.min()) if counted.size else np.nan,
        "converged": highest < limit,
    }  # fmt: skip
