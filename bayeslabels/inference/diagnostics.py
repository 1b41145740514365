"""R-hat and effective sample size of many parameters at once, rank-normalised (Vehtari et al. 2021), as ArviZ's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from scipy.special import ndtri


def rhat(draws: np.ndarray) -> np.ndarray:
    """R-hat of draws (chain, draw, ...): the larger one of their ranks, and of the ranks of their distances from the
    median; NaN for one chain or fewer than four draws, or a constant."""
    draws = np.asarray(draws)
    if draws.shape[0] < 2 or draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    halves = _split(draws)
    away = np.abs(halves - np.median(halves, axis=(0, 1)))
    with np.errstate(invalid="ignore", divide="ignore"):
        bulk, tail = (np.asarray(gelman_rubin(_normal_ranks(x))) for x in (halves, away))
    return np.asarray(np.maximum(bulk, tail))


def ess(draws: np.ndarray) -> np.ndarray:
    """Effective sample size of draws (chain, draw, ...), of their ranks: ArviZ's bulk-ESS; NaN where they are
    constant."""
    draws = np.asarray(draws)
    if draws.shape[1] < 4:
        return np.full(draws.shape[2:], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        sizes = np.asarray(effective_sample_size(_normal_ranks(_split(draws))))
        n = draws.shape[0] * draws.shape[1]
        return np.asarray(n / np.maximum(n / sizes, 1 / np.log10(n)))  # of draws that repel one another, no more


def worst(draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`rhat_max` and `ess_min` of all numbers of sites {name: (chain, draw, ...)}; NaN where chains cannot tell."""
    rhats = np.concatenate([rhat(x).ravel() for x in draws.values()])
    sizes = np.concatenate([ess(x).ravel() for x in draws.values()])
    known, counted = rhats[np.isfinite(rhats)], sizes[np.isfinite(sizes)]
    return {
        "rhat_max": float(known.max()) if known.size else np.nan,
        "ess_min": float(counted.min()) if counted.size else np.nan,
    }


def _split(draws: np.ndarray) -> np.ndarray:
    """Each chain as two."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _normal_ranks(draws: np.ndarray) -> np.ndarray:
    """Normal quantiles of the ranks of draws (chain, draw, ...) among those of all chains, equal ones sharing their
    mean rank; NaN where one is."""
    n = draws.shape[0] * draws.shape[1]
    values = np.ascontiguousarray(draws.reshape(n, -1).T)
    quantile = ndtri((np.arange(2 * n - 1) / 2 + 0.625) / (n + 0.25))  # of ranks 1, 1.5, 2, ...
    found, at = np.full(values.shape, np.nan), np.arange(n)
    for row, out in zip(values, found, strict=True):
        order = np.argsort(row)
        ordered = row[order]
        if np.isnan(ordered[-1]):
            continue
        new = np.flatnonzero(np.diff(ordered)) + 1
        if len(new) == n - 1:
            out[order] = quantile[2 * at]
        else:
            sizes = np.diff(new, prepend=0, append=n)
            first = np.repeat(np.concatenate([[0], new]), sizes)
            out[order] = quantile[2 * first + np.repeat(sizes, sizes) - 1]
    return found.T.reshape(draws.shape)
