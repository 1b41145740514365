"""Wrong parallaxes among right ones: a first look that they cannot spoil, and training on those that are right.

Whatever a likelihood with a learned scatter s starts from, gross outliers in it make s so large that they are part of
it: an optimum, and a bad one. The first look is a regression on the features' leading factors, of the stars that it
fits best (concentration steps of least trimmed squares: Rousseeuw & Van Driessen 2006). Each star is judged by

    r_n = |y_n - exp(eta_n)| / sqrt(sigma_n^2 + c^2 exp(2 eta_n)),   c such that r_n is of unit spread
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from ...data.stars import Stars
from ...inference.base import Trained
from ...numerics.linalg import in_float64
from ...numerics.lognormal import LARGEST, cold_start, log_likelihood
from .model import LogLinearModel, outlier_density
from .predict import ln_parallax
from .training import ParallaxData, data_of

KEPT = 0.9
"""Share of the stars that the first look is fitted to."""
GROSS, TOLD = 5.0, 10.0
"""r_n beyond which a parallax is left out of the first training, and beyond which a model without outliers is
doubted."""
SHARE = 2e-3
"""Share of parallaxes beyond `TOLD`, and at least two, at which it is."""


@in_float64
def misfit(model: LogLinearModel, data: ParallaxData) -> np.ndarray:
    """r_n (N,) of the first look."""
    x, frame = data.features, model.require_frame()
    z, _ = frame.population.factors(x.value[:, 1:], x.measured[:, 1:])
    design = np.column_stack([np.ones(len(z)), z])
    ridge, y = np.full(design.shape[1], 1e-2), data.y - model.zero_prior[0]
    middle, width = frame.outlier
    rows = np.abs(y - middle) < 3 * width
    for _ in range(10):
        theta = cold_start(design[rows], y[rows], data.sigma[rows], 0 * ridge, ridge)
        r = _standardised(y, data.sigma, np.exp(np.minimum(design @ theta, LARGEST)))
        before, rows = rows, r <= np.quantile(r, KEPT)
        if (rows == before).all():
            break
    return r


def _standardised(y: np.ndarray, sigma: np.ndarray, true: np.ndarray) -> np.ndarray:
    def of(ln_c: float) -> np.ndarray:
        return np.abs(y - true) / np.hypot(sigma, np.exp(ln_c) * true)

    def excess(ln_c: float) -> float:
        return float(np.median(of(ln_c))) - 0.6745

    low, high = np.log(1e-3), np.log(10.0)
    return of(low if excess(low) <= 0 else high if excess(high) >= 0 else brentq(excess, low, high, xtol=1e-3))


def first_rows(model: LogLinearModel, data: ParallaxData) -> np.ndarray:
    """The stars (N,) that training begins with: all, unless some parallaxes are taken to be wrong."""
    return misfit(model, data) < GROSS if model.has_outliers else np.ones(len(data.y), bool)


def doubted(model: LogLinearModel, data: ParallaxData) -> dict[str, Any]:
    """What is to be said in a result's `info` where parallaxes are wrong and the model has none such."""
    if model.has_outliers:
        return {}
    n = int((misfit(model, data) > TOLD).sum())
    if n < max(2, SHARE * len(data.y)):
        return {}
    advice = (
        f"{type(model).__name__}(outliers=True): of {n} of {len(data.y)} stars the {model.predicted} is more than "
        f"{TOLD:.0f} times its spread from what the features say, and the scatter takes them in"
    )
    return {"converged": False, "advice": advice}


@in_float64
def without_outliers(model: LogLinearModel, stars: Stars, train: Callable[[ParallaxData], Trained]) -> Trained:
    """Train on the parallaxes that are right, where the model has others."""
    data = data_of(model, stars)
    if not model.has_outliers:
        trained = train(data)
        return replace(trained, stats={**trained.stats, **doubted(model, data)})
    trained, kept, fraction = settled(model, data, train)
    trained.moments = trained.moments._replace(outlier_fraction=np.array(fraction))
    return replace(trained, stats={**trained.stats, "n_outlier": int((~kept).sum())})


def settled(
    model: LogLinearModel, data: ParallaxData, train: Callable[[ParallaxData], Trained]
) -> tuple[Trained, np.ndarray, float]:
    """The result of training on the parallaxes that are right with probability above one half, until that set is
    settled; that set (N,); and the fraction of the others, whose prior is Beta(1, 20)."""
    kept, outlier, fraction = first_rows(model, data), model.require_frame().outlier, 0.01
    for _ in range(10):
        trained = train(data.rows(kept))
        moments = trained.moments
        eta, sd = ln_parallax(model, moments, data.features)
        good = np.asarray(log_likelihood(data.y - moments.zero_point, data.sigma, eta, sd))
        bad = np.asarray(outlier_density(data.y, data.sigma, outlier))
        for _ in range(20):
            wrong = expit(bad - good + logit(fraction))
            fraction = wrong.sum() / (len(wrong) + 19)
        before, kept = kept, wrong < 0.5
        if (kept == before).all():
            break
    return trained, before, float(fraction)
