"""The order of a polynomial in the labels, by the held-out density of the flux.

Misfit of a polynomial that is too low is common to many pixels: too small to be seen in any of them, it makes error
bars too small by a factor that grows with S/N and the number of pixels. The density of the flux of stars that were held
out, at labels that are known already, shows it at the price of a few exact solves; that of a few noisy labels does not.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..inference.map import EM, feature_moments
from ..linear import LinearModel
from ..numerics.compress import pad_stars
from ..numerics.linalg import in_float64, pack, pairs
from ..progress import bar
from ..stars import Stars

FIRST = 2
"""Order at whose labels the comparison begins."""
MOST_STARS, MOST_PIXELS = 1500, 800
"""Enough to tell orders apart."""
MOST_FEATURES = 200
"""Terms of a polynomial that is still tried."""
ITERATIONS = 25
"""Of training at an order, at most: its labels need not have settled."""
FOLDS = 2
SURE = 1.0
"""Standard errors by which a higher order must be better."""


@in_float64
def choose_order(model: Any, stars: Stars, seed: int, progress: bool | None) -> tuple[int, list[dict[str, Any]]]:
    """The order, and the scores of all that were tried: mean density a star, and its lead over the order below.

    Labels are those of the training step at the present order, of the catalogue where these are exact; all orders that
    are compared take the same.
    """
    rng = np.random.default_rng([seed, 86028157])
    n_pixel = stars["flux"].n_dim
    if len(stars) > MOST_STARS:
        stars = stars[np.sort(rng.permutation(len(stars))[:MOST_STARS])]
    if n_pixel > MOST_PIXELS:
        some = np.unique(np.linspace(0, n_pixel - 1, MOST_PIXELS).astype(int))
        model, stars = model.of_pixels(some), stars.with_block(flux=stars["flux"].select(some))
    model = model.sampled()
    fold = rng.permutation(len(stars)) % FOLDS
    orders = [x for x in model.orders if _size(model, stars, x) <= min(MOST_FEATURES, len(stars) // 2)]
    orders = orders or [min(model.orders)]
    order = max(x for x in orders if x <= FIRST)
    scores: list[dict[str, Any]] = []
    with bar(None, "order of the polynomial", progress) as shown:

        def lead(low: int, high: int, u: np.ndarray, spread: np.ndarray) -> float:
            """By how many standard errors the higher order is better."""
            densities = [_held_out(model.of_order(x), stars, fold, u, spread) for x in (low, high)]
            difference = densities[1] - densities[0]
            error = difference.std() / np.sqrt(len(difference)) + 1e-300
            scores.append(
                {"order": high, "flux_log_density": float(densities[1].mean()), "below": low,
                 "lead": float(difference.mean()), "lead_error": float(error)}
            )  # fmt: skip
            shown.update()
            return float(difference.mean() / error)

        at = _labels(model.of_order(order), stars)
        if order > min(orders) and lead(order - 1, order, *at) < SURE:
            return order - 1, scores
        while order + 1 in orders and lead(order, order + 1, *at) >= SURE:
            order += 1
            if order + 1 in orders and model.integrates_labels:
                at = _labels(model.of_order(order), stars)
    return order, scores


def _size(model: Any, stars: Stars, order: int) -> int:
    return model.of_order(order).replace(frame=None).bind(stars).features.size


def _labels(model: LinearModel, stars: Stars) -> tuple[np.ndarray, np.ndarray]:
    """Latents (N, P) and covariance (N, P, P) of the training stars."""
    em = EM(model.bind(stars), stars)
    if em.has_latents:
        em.run(ITERATIONS, 0.1, _Silent())
    return em.u, em.u_covariance


def _held_out(model: LinearModel, stars: Stars, fold: np.ndarray, u: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """ln p(flux_n) (N,) of every star by the coefficients of the other folds, at labels that have this spread."""
    out = np.zeros(len(stars))
    bound = model.bind(stars)  # one frame for all folds: the labels are scaled by it
    for f in range(FOLDS):
        test = fold == f
        em = EM(bound, stars[~test])
        em.train_given(u[~test], spread[~test])
        out[test] = _density(em, stars[test], u[test], spread[test])
    return out


def _density(em: EM, stars: Stars, u: np.ndarray, spread: np.ndarray) -> np.ndarray:
    value, error = em.model.output(stars)
    error = np.zeros_like(value) if error is None else error
    phi, second = (np.asarray(x)[: len(u)] for x in feature_moments(em.features, *map(pad_stars, (u, spread))))
    theta = em.theta * em.allowed
    both = em.allowed[:, :, None] * em.allowed[:, None, :]
    moments = pack(theta[:, :, None] * theta[:, None, :] + em.covariance * both) * pairs(theta.shape[1])[2]
    mean = phi @ theta.T
    variance = np.maximum(np.asarray(jnp.asarray(second) @ jnp.asarray(moments).T) - mean**2, 0.0)
    ok = np.isfinite(value) & np.isfinite(error) & em.trained
    total = np.where(ok, error**2 + em.scatter2 + variance, 1.0)
    residual = np.where(ok, value - mean, 0.0)
    return -0.5 * np.where(ok, residual**2 / total + np.log(2 * np.pi * total), 0.0).sum(1)


class _Silent:
    """A progress bar that shows nothing."""

    def update(self) -> None: ...

    def set_postfix(self, **told: Any) -> None: ...
