"""Moments of the training posterior from its draws, for inferences that sample it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from ..model import FLAT_POPULATION, LinearModel
from ..numerics.linalg import Array, in_float64
from ..stars import Stars
from .base import Moments


@in_float64
def moments_from_draws(model: LinearModel, stars: Stars, draws: dict[str, np.ndarray]) -> Moments:
    """What the test step integrates over, from draws {site: (chain, draw, ...)} of a linear model.

    The uncertainty of the label system is the part of the labels' draws that is a common function g . phi(u) of the
    labels: regressed out draw by draw.
    """
    frame = model.require_frame()
    flat = {name: np.asarray(x, float).reshape(-1, *x.shape[2:]) for name, x in draws.items()}
    n_draw = len(flat["coefficients"])
    m = len(frame.names)
    theta = flat["coefficients"] * model.allowed()
    mean = theta.mean(0)
    covariance = np.einsum("dlj,dlk->ljk", theta - mean, theta - mean, optimize=True) / max(n_draw - 1, 1)
    fixed = model.scatter_prior
    scatter = fixed if isinstance(fixed, np.ndarray) else np.sqrt((flat["scatter"] ** 2).mean(0))
    tau = flat["label_scatter"].mean(0) if "label_scatter" in flat else np.zeros(m)
    system = np.zeros((m, model.features.size, m, model.features.size))
    u = np.asarray(model.measured(stars).value)
    if model.integrates_labels and "u" in flat:
        u = flat["u"].mean(0)
        phi = np.asarray(model.features(jnp.asarray(u)))
        g = np.linalg.lstsq(phi, np.moveaxis(flat["u"] - u, 1, 0).reshape(len(u), -1), rcond=None)[0]
        g = g.reshape(-1, n_draw, m)
        system = np.einsum("kdm,ldn->mknl", g, g, optimize=True) / max(n_draw - 1, 1)
    population = np.zeros(m), FLAT_POPULATION * np.eye(m)
    if not model.flat_population:
        population = flat["population_mean"].mean(0), flat["population_covariance"].mean(0)
    return Moments(
        mean,
        covariance,
        scatter,
        tau,
        *population,
        system,
        u,
    )


def jittered(values: dict[str, Array], n_chain: int, width: float, seed: int) -> dict[str, Array]:
    """Unconstrained starting points (n_chain, ...) dispersed around `values`."""
    rng = np.random.default_rng([seed, 15485863])
    return {
        name: jnp.asarray(np.asarray(x) + width * rng.standard_normal((n_chain, *np.shape(x))))
        for name, x in values.items()
    }
