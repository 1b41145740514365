"""Do the error bars hold? Held-out predictions, z scores, coverage and PIT.

    z_nm = (label_nm - mean_nm) / sqrt(C_nmm + sigma_nm^2 + tau_m^2)

with C the posterior's covariance, sigma the stated error of the label compared with and tau its scatter beyond that.
Where the error bars hold, z has unit standard deviation, the central 68 per cent interval holds 68 per cent of the
labels, and the probability integral transform (PIT) is uniform.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from astropy import units
from astropy.table import QTable
from scipy.stats import binom, norm

from .errors import bad_input
from .family import family_of
from .fit import fit, fold_of, infer
from .inference.base import Inference
from .model import Model
from .progress import bar
from .simulate import Truth
from .star_posterior import StarPosterior
from .stars import Stars


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """Labels of N stars, each inferred by a model trained without it; rows in the order of the stars given.

    Attributes:
        mean (N, M), cov (N, M, M): of the true labels, in label units; NaN for stars that failed.
        label_scatter (N, M): tau of the training folds, in label units.
        log_density (N,): ln p(catalogue labels | spectrum, the other folds), the labels' errors and tau included;
            NaN for stars without labels or without an answer.
        fold (N,): in which fold the star was left out.
        flags (N,): of the test step, see `Flags`.
        samples (draw, N, M): of the true labels.
        frame: names and units of the labels, scales of all stars together.
        info: inference, settings, seed, and what was chosen in every fold.
        stars: per-star results of the test step, such as percentiles.

    For `Parallax` the "labels" are `parallax_sp`, in which a star's own parallax has no part, not even through
    training, `parallax_combined` with it, and `distance`; `log_density` is that of the measured parallax.
    """

    id: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    label_scatter: np.ndarray
    log_density: np.ndarray
    fold: np.ndarray
    flags: np.ndarray
    samples: np.ndarray
    frame: Any
    info: dict[str, Any]
    stars: xr.Dataset = field(default_factory=xr.Dataset, repr=False)

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def error(self) -> np.ndarray:
        """(N, M): posterior standard deviations, in label units."""
        return np.sqrt(np.einsum("nmm->nm", self.cov))

    @property
    def folds(self) -> int:
        return int(self.fold.max()) + 1

    @property
    def elpd(self) -> float:
        """Expected log predictive density: the sum of `log_density` over the stars that have one."""
        return float(np.nansum(self.log_density))

    @property
    def elpd_error(self) -> float:
        """Standard error of `elpd`."""
        return float(np.sqrt(np.isfinite(self.log_density).sum()) * np.nanstd(self.log_density))

    def draws(self, name: str) -> np.ndarray:
        """Draws (draw, N) of one label, in its own unit."""
        if name not in self.frame.names:
            raise bad_input(f"draws({name!r})", f"one of {self.frame.names}")
        return self.samples[:, :, self.frame.names.index(name)]

    def table(self) -> QTable:
        """One row per star: id, labels with errors in their units, log_density, fold, flags.

        `<label>_catalogue_error` adds tau, as in `StarPosterior.table`.
        """
        columns: dict[str, Any] = {"id": self.id}
        for m, (name, unit) in enumerate(zip(self.frame.names, self.frame.units, strict=True)):
            sd = self.error[:, m]
            numbers = {name: self.mean[:, m], f"{name}_error": sd}
            if self.label_scatter[:, m].any():
                numbers[f"{name}_catalogue_error"] = np.hypot(sd, self.label_scatter[:, m])
            columns |= {key: x * units.Unit(unit) if unit else x for key, x in numbers.items()}
            for percent in [x for x in ("p16", "p50", "p84") if x in self.stars and "quantity" in self.stars.dims]:
                x = self.stars[percent].values[:, m]
                columns[f"{name}_{percent}"] = x * units.Unit(unit) if unit else x
        return QTable(columns | {"log_density": self.log_density, "fold": self.fold, "flags": self.flags})

    def __repr__(self) -> str:
        return (
            f"CrossValidation of {len(self)} stars in {self.folds} folds: {', '.join(self.frame.names)}; "
            f"elpd {self.elpd:.1f} +- {self.elpd_error:.1f}, "
            f"{int(np.isnan(self.log_density).sum())} stars without a density"
        )


def cross_validate(
    model: Model,
    stars: Stars,
    inference: Inference | None = None,
    folds: int = 8,
    *,
    infer_with: Inference | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> CrossValidation:
    """Every star's labels by a model trained on the other folds.

    What the model's settings leave open is chosen anew within every training set, so that no star has a say in how it
    is predicted itself; `cross_validate(fit(model, stars).model, ...)` keeps a choice that was made.

    Args:
        model, stars, inference: as in `fit`. infer_with: the test step's inference, as in `infer`.
        folds: the stars are split at random, by seed, into so many equal parts.
    """
    family = family_of(model)
    fold = fold_of(len(stars), folds, seed)
    n, parts = len(stars), []
    density = np.full(n, np.nan)
    info: dict[str, Any] = {"seed": seed, "selection": [], "converged": []}
    with bar(folds, "cross-validation", progress) as shown:
        for f in range(folds):
            out = fold == f
            posterior = fit(model, stars[~out], inference, seed=seed, progress=False)
            test = family.held_out_view(posterior.model, stars[out])
            result = infer(posterior, test, infer_with, seed=seed, progress=False)
            density[out] = family.log_density(posterior, result, stars[out])
            parts.append(result)
            info["selection"].append(posterior.info.get("selection"))
            info["converged"].append(posterior.info.get("converged"))
            shown.update()
    order = np.argsort(np.concatenate([np.flatnonzero(fold == f) for f in range(folds)]))

    def joined(of: Callable[[StarPosterior], Any]) -> np.ndarray:
        return np.concatenate([of(part) for part in parts])[order]

    names = parts[0].frame.names
    scatter = joined(lambda x: np.tile(x.info.get("label_scatter", np.zeros(len(names))), (len(x), 1)))
    samples = joined(lambda x: np.stack([x.draws(name).T for name in names], -1)).swapaxes(0, 1)
    info |= {"inference": posterior.info["inference"], "settings": posterior.info["settings"]}
    info |= {"infer_with": result.info["inference"], "versions": result.info["versions"]}
    ids = np.arange(n) if stars.id is None else stars.id
    frame = family.quantities(model.bind(stars))
    return CrossValidation(
        ids, joined(lambda x: x.mean), joined(lambda x: x.cov), scatter, density, fold, joined(lambda x: x.flags),
        samples, frame, info, xr.concat([x.stars for x in parts], "star").isel(star=order),
    )  # fmt: skip


Result = StarPosterior | CrossValidation
Labels = Stars | np.ndarray | Truth


class Reference(NamedTuple):
    """Labels to compare with, NaN where unknown (N, M), and the covariance of what separates them from the truth."""

    value: np.ndarray
    covariance: np.ndarray


def compared(result: Result, labels: Labels, errors: Any = None, scatter: Any = None) -> Reference:
    """The labels that a result is compared with, in its own layout; arguments as in `z_scores`."""
    frame, shape = result.frame, result.mean.shape
    covariance = np.zeros((*shape, shape[1]))
    if isinstance(labels, Stars):
        block = labels[getattr(frame, "block", "labels")]
        if block.names != frame.names or block.units != frame.units:
            raise bad_input(
                f"labels {block.names} in {block.units}", f"{frame.names} in {frame.units}", "other columns than fitted"
            )
        value = np.where(block.observed, block.value, np.nan).astype(float)
        errors = block.error if errors is None else errors
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
    """tau of the training step, in label units: (M,), or (N, M) where folds differ."""
    return np.asarray(result.label_scatter if isinstance(result, CrossValidation) else result.info["label_scatter"])


def log_density(result: Result, labels: Labels, scatter: Any = None) -> np.ndarray:
    """Log density (N,) of labels under N(mean, C + labels' covariance + scatter^2); NaN where either is missing."""
    truth = compared(result, labels, None, scatter)
    out = np.full(len(truth.value), np.nan)
    for n, (x, centre) in enumerate(zip(truth.value, result.mean, strict=True)):
        at = np.flatnonzero(np.isfinite(x))
        if len(at) and np.isfinite(centre).all():
            covariance = (result.cov[n] + truth.covariance[n])[np.ix_(at, at)]
            offset = (x - centre)[at]
            log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
            out[n] = -0.5 * (offset @ np.linalg.solve(covariance, offset) + log_det)
    return out


def z_scores(result: Result, labels: Labels, errors: Any = None, scatter: Any = None) -> np.ndarray:
    """(label - mean) / sd (N, M), NaN where the label or the answer is missing.

    Args:
        labels: (N, M) in label units; a `simulate.Truth`: of its test stars; or Stars: their labels block, its errors
            included.
        errors: of the labels, (M,), (N, M) or covariances (N, M, M), in the place of the block's.
        scatter: tau, (M,) or (N, M): what the labels scatter beyond their errors, such as `label_scatter`.
    """
    truth = compared(result, labels, errors, scatter)
    return (truth.value - result.mean) / np.sqrt(np.einsum("nmm->nm", result.cov + truth.covariance))


def robust_scatter(x: np.ndarray) -> np.ndarray:
    """Half the range from the 15.87th to the 84.13th percentile of every column, NaN left out: sd if Gaussian."""
    low, high = np.nanpercentile(x, [15.866, 84.134], axis=0)
    return (high - low) / 2


class Coverage(NamedTuple):
    """Share of labels within their central interval, (M,) or (P, M) for P levels, with the band [low, high] that holds
    95 per cent of the shares of so many (`n_star`, (M,)) stars where the error bars hold."""

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
    """
    levels = np.asarray(level, float)
    if levels.ndim > 1 or not ((levels > 0) & (levels < 1)).all():
        raise bad_input(f"level={level}", "a probability between 0 and 1", fix="level=0.9")
    depth = np.sort(2 * np.abs(pit(result, truth, errors=errors, scatter=scatter) - 0.5), axis=0)
    n = np.isfinite(depth).sum(0)
    inside = np.stack([np.searchsorted(column[:k], levels, "right") for column, k in zip(depth.T, n, strict=True)], -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = (np.asarray(x) / n for x in binom.interval(0.95, n, levels[..., None]))
        return Coverage(inside / n, low, high, n)


def pit(result: Result, truth: Labels, *, errors: Any = None, scatter: Any = None) -> np.ndarray:
    """Probability integral transform (N, M): the posterior's probability below each label, uniform if calibrated.

    From the draws, each widened by the labels' errors and scatter; from mean and sd where there is one draw (MAP).
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
