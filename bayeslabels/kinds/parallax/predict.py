"""What a trained log-linear model says of ln parallax of new stars, and how far they are from those it learned from."""

from __future__ import annotations

import numpy as np

from ...numerics.surroundings import learn
from .model import LogLinearModel, ScaledFeatures
from .training import LogLinearMoments

EXTRAPOLATION = 0.5
"""Growth of the error of ln parallax outside of the training set, in units of its spread there per spread of the
features: what is learned inside says no more of the outside than that the relation may turn by half."""


def coordinates(model: LogLinearModel, theta: np.ndarray, x: ScaledFeatures) -> np.ndarray:
    """(N, K): what each block of features adds to ln parallax, and the leading directions of the features.

    The former show best where the relation ends: of all directions they are those that it has learned to look at.
    """
    frame = model.require_frame()
    source = np.array(frame.source)
    blocks = [x.value[:, at] @ theta[at] for at in (source == name for name in dict.fromkeys(frame.source[1:]))]
    return np.column_stack([*blocks, x.factors @ frame.leading.T])


def outside(model: LogLinearModel, moments: LogLinearMoments, x: ScaledFeatures) -> np.ndarray:
    """Distance (N,) from the training stars, in units of their spread; 0 where it is not known where they are."""
    if not np.isfinite(moments.near_usual):
        return np.zeros(len(x.value))
    return moments.surroundings.distance(coordinates(model, moments.coefficients, x))


def with_surroundings(model: LogLinearModel, moments: LogLinearMoments, x: ScaledFeatures) -> LogLinearMoments:
    """The moments with where the training stars, or some of them, are: of features x."""
    near = learn(coordinates(model, moments.coefficients, x))
    told = {f"near_{name}": np.asarray(value) for name, value in near._asdict().items()}
    return moments._replace(**told, growth=np.array(EXTRAPOLATION * (x.value @ moments.coefficients).std()))


def ln_parallax(model: LogLinearModel, moments: LogLinearMoments, x: ScaledFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (N,) of ln parallax given the features."""
    theta, factor, own = moments.coefficients, moments.coefficient_factor, moments.coefficient_variance
    second = (factor**2).sum(1) + own
    variance = moments.scatter**2 + ((x.value @ factor) ** 2).sum(1) + x.value**2 @ own
    variance = variance + np.asarray(model.feature_variance(theta, x))
    variance = variance + (moments.growth * np.maximum(outside(model, moments, x) - moments.near_usual, 0.0)) ** 2
    if not x.complete:
        frame = model.require_frame()
        for n in np.flatnonzero(~x.measured.all(1)):
            missing = np.flatnonzero(~x.measured[n])
            along = frame.loadings[missing - 1].T @ factor[missing]
            spread = x.spread[n]
            variance[n] += np.einsum("qr,qp,rp->", spread, along, along, optimize=True)
            variance[n] += frame.noise[missing - 1] @ second[missing]
            loadings = frame.loadings[missing - 1]
            variance[n] += ((loadings @ spread) * loadings).sum(1) @ own[missing]
    return x.value @ theta, np.sqrt(variance)
