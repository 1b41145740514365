"""z scores, coverage and PIT of results whose truth, or a measurement of it, is known.

    z_nm = (label_nm - mean_nm) / sqrt(C_nmm + sigma_nm^2 + tau_m^2)

with C the posterior's covariance, sigma the stated error of the label compared with and tau its scatter beyond that.
Where the error bars hold, z has unit standard deviation, the central 68 per cent interval holds 68 per cent of the
labels, and the probability integral transform (PIT) is uniform.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom, norm

from ..data.stars import Stars
from ..errors import bad_input
from ..numerics.gaussian import log_density_of
from ..results.star_posterior import StarPosterior
from ..simulate import Truth
from .cross_validation import CrossValidation

Result = StarPosterior | CrossValidation
ENOUGH = 20_000
"""Stars from which it is seen how much errors have in common."""
Labels = Stars | np.ndarray | Truth


class Reference(NamedTuple):
    """Labels to compare with, NaN where unknown (N, M), and the covariance of what separates them from the truth."""

    value: np.ndarray
    covariance: np.ndarray


def compared(result: Result, labels: Labels, errors: Any = None, scatter: Any = None) -> Reference:
    """The labels that a result is compared with, in its own layout; arguments as in `z_scores`."""
    frame, shape = result.frame, result.mean.shape
    factors = result.info.get("error_factor", {}).get(frame.block, {})
    covariance = np.zeros((*shape, shape[1]))
    if isinstance(labels, Stars):
        block = labels[frame.block]
        units = dict(zip(frame.names, frame.units, strict=True))
        names = block.names or ()
        if not names or any(units.get(name) != unit for name, unit in zip(names, block.units, strict=True)):
            raise bad_input(
                f"labels {names} in {block.units}", f"some of {frame.names} in {frame.units}",
                "other columns than fitted",
            )  # fmt: skip
        at = [frame.names.index(name) for name in names]
        value = np.full((len(labels), len(units)), np.nan)
        value[:, at] = np.where(block.observed, block.value, np.nan)
        if block.error is not None and errors is None and value.shape == shape:
            factor = np.array([factors.get(name, 1.0) for name in names])
            own = block.error if block.has_covariance else block.error[:, :, None] ** 2 * np.eye(len(at))
            own = own * factor[:, None] * factor
            for i, row in enumerate(at):
                covariance[:, row, at] += np.where(np.isfinite(own[:, i]), own[:, i], 0.0)
    else:
        value = np.asarray(labels.test_labels if isinstance(labels, Truth) else labels, float)
    if value.shape != shape:
        raise bad_input(f"labels of shape {value.shape}", f"{shape}, as the result's", "other stars or labels")
    for name, part in (("errors", errors), ("scatter", scatter)):
        if part is None:
            continue
        part = np.asarray(part, float)
        if part.shape == covariance.shape and name == "errors":
            covariance += np.where(np.isfinite(part), part, 0.0)
        elif part.shape in ((), shape[1:], shape):
            variance = np.broadcast_to(np.where(np.isfinite(part), part, 0.0) ** 2, shape)
            covariance += variance[:, :, None] * np.eye(shape[1])
        else:
            raise bad_input(f"{name} of shape {part.shape}", f"{shape[1:]} or {shape}")
    return Reference(value, covariance)


def label_scatter(result: Result) -> np.ndarray:
    """What labels of the catalogue's kind scatter beyond the errors of a result, in label units: tau of the training
    step, or 0 where the errors include it; (M,), or (N, M) where folds differ.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> bl.calibration.label_scatter(result).shape
        (3,)
    """
    return result.label_scatter


def log_density(result: Result, labels: Labels, scatter: Any = None) -> np.ndarray:
    """Log density (N,) of labels under N(mean, C + labels' covariance + scatter^2); NaN where either is missing.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> bl.calibration.log_density(result, truth.test_labels).shape
        (20,)
    """
    truth = compared(result, labels, None, scatter)
    return log_density_of(truth.value - result.mean, result.cov + truth.covariance)


def z_scores(result: Result, labels: Labels, errors: Any = None, scatter: Any = None) -> np.ndarray:
    """(label - mean) / sd (N, M), NaN where the label or the answer is missing.

    Args:
        labels: (N, M) in label units; a `simulate.Truth`: of its test stars; or Stars: their labels block, its errors
            included, times the factor that a `Translator` has found them to be wrong by.
        errors: of the labels, (M,), (N, M) or covariances (N, M, M), in the place of the block's.
        scatter: tau, (M,) or (N, M): what the labels scatter beyond their errors, such as `label_scatter`.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> bl.calibration.z_scores(result, truth.test_labels).shape
        (20, 3)
    """
    truth = compared(result, labels, errors, scatter)
    return (truth.value - result.mean) / np.sqrt(np.einsum("nmm->nm", result.cov + truth.covariance))


def robust_scatter(x: np.ndarray) -> np.ndarray:
    """Half the range from the 15.87th to the 84.13th percentile of every column, NaN left out: sd if Gaussian.

    Example:
        >>> import numpy as np
        >>> import bayeslabels as bl
        >>> bl.calibration.robust_scatter(np.array([[-1.0], [0.0], [1.0], [100.0], [np.nan]])).round(2)
        array([26.7])
    """
    low, high = np.nanpercentile(x, [15.866, 84.134], axis=0)
    return (high - low) / 2


class Coverage(NamedTuple):
    """Share of labels within their central interval, (M,) or (P, M) for P levels, with the band [low, high] that holds
    95 per cent of the shares of so many (`n_star`, (M,)) stars where the error bars hold. The band allows for what the
    stars have in common, such as the errors of the training labels' scale, where there are draws of it (not by MAP).

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> share = bl.calibration.coverage(result, truth.test_labels)
        >>> bool(((share.low <= 0.6827) & (share.high >= 0.6827)).all())
        True
    """

    share: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_star: np.ndarray

    @property
    def holds(self) -> np.ndarray:
        return (self.low <= self.share) & (self.share <= self.high)


def coverage(
    result: Result, truth: Labels, level: Any = 0.6827, *, errors: Any = None, scatter: Any = None
) -> Coverage:
    """How often the central interval of probability `level` holds the label.

    Args:
        level: between 0 and 1, or several (P,). The others as in `z_scores`.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> bl.calibration.coverage(result, truth.test_labels).n_star
        array([20, 20, 20])
    """
    levels = np.asarray(level, float)
    if levels.ndim > 1 or not ((levels > 0) & (levels < 1)).all():
        raise bad_input(f"level={level}", "a probability between 0 and 1", fix="level=0.9")
    depth = 2 * np.abs(pit(result, truth, errors=errors, scatter=scatter) - 0.5)
    return shares(depth, levels, correlation(result, compared(result, truth, errors, scatter), levels))


def shares(depth: np.ndarray, levels: np.ndarray, together: np.ndarray) -> Coverage:
    """Coverage at levels (P,) or () of stars whose label lies at the edge of the central interval of `depth` (N, M);
    together: `correlation`.

    n stars of which every two are correlated by r tell as much as n / (1 + (n - 1) r) that are not.
    """
    depth = np.sort(depth, axis=0)
    n = np.isfinite(depth).sum(0)
    inside = np.stack([np.searchsorted(column[:k], levels, "right") for column, k in zip(depth.T, n, strict=True)], -1)
    alone = np.ceil(n / (1 + np.maximum(n - 1, 0) * together))
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = (np.asarray(x) / alone for x in binom.interval(0.95, alone, levels[..., None]))
        return Coverage(inside / n, low, high, n)


def correlation(result: Result, reference: Reference, levels: np.ndarray) -> np.ndarray:
    """Correlation, between two stars, of whether their labels lie inside their central intervals, (M,) or (P, M).

    Each draw of the posteriors has the same label system, zero points, ... for all stars, so that the share of the
    stars inside varies from draw to draw by more than chance where stars share a good part of their errors. 0 where
    there is one draw, or no more than so few draws may show.
    """
    whole = np.sqrt(np.einsum("nmm->nm", result.cov + reference.covariance))
    noise = np.sqrt(np.einsum("nmm->nm", reference.covariance))
    known = np.isfinite(reference.value) & np.isfinite(whole)
    edges = norm.ppf(0.5 + 0.5 * levels)
    rng, out = np.random.default_rng(0), np.zeros((*levels.shape, whole.shape[1]))
    for m, name in enumerate(result.frame.names):
        some = np.flatnonzero(known[:, m])[:ENOUGH]
        draws = result.draws(name)[:, some]
        if len(draws) < 2 or len(some) < 2:
            continue
        offset = draws - result.mean[some, m] + noise[some, m] * rng.standard_normal(draws.shape)
        z = np.sort(np.abs(offset) / whole[some, m])
        inside = np.stack([np.searchsorted(one, edges, "right") for one in z]) / len(some)
        share = inside.mean(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            excess = inside.var(0, ddof=1) * len(some) / (share * (1 - share)) - 1
        by_few_draws = 3 * np.sqrt(2 / (len(draws) - 1))
        out[..., m] = np.where(excess > by_few_draws, np.clip(excess / (len(some) - 1), 0.0, 1.0), 0.0)
    return out


def pit(result: Result, truth: Labels, *, errors: Any = None, scatter: Any = None) -> np.ndarray:
    """Probability integral transform (N, M): the posterior's probability below each label, uniform if calibrated.

    From the draws, each widened by the labels' errors and scatter; from mean and sd where there is one draw (MAP).

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, progress=False)
        >>> bl.calibration.pit(result, truth.test_labels).shape
        (20, 3)
    """
    true = compared(result, truth, errors, scatter)
    out = norm.cdf(z_scores(result, truth, errors, scatter))
    for m, name in enumerate(result.frame.names):
        draws = result.draws(name)
        if len(draws) < 2:
            continue
        sd = np.sqrt(true.covariance[:, m, m])
        offset = true.value[:, m] - draws
        sharp = (0.5 + (offset > 0).sum(0)) / (len(draws) + 1)
        wide = norm.cdf(offset / np.where(sd > 0, sd, 1.0)).mean(0)
        out[:, m] = np.where(np.isfinite(out[:, m]), np.where(sd > 0, wide, sharp), np.nan)
    return out
