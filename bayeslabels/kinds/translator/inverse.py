"""The other direction of a `Translator`: the labels of survey A from those of survey B.

    p(x_n | data_n) ~ p(x_n | labels_n) 1/E sum_e p(target_labels_n | x_n, theta_e)

p(x | labels) is the inputs' mixture given what there may be of them. Draws come from the Gaussians that the target
labels make of its components, f being linear about each one's solution (iterated Kalman filter: Bell & Cathey 1993),
and have the weights that make them exact (`inference.importance`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.model import Bound
from ...data.stars import Stars
from ...inference.importance import Importance, Weighted
from ...inference.starwise import StarProblem
from ...kind import TrainedModel
from ...numerics.compiling import jit
from ...numerics.linalg import Array, in_float64
from ...numerics.modes import Energy, Modes
from ...numerics.propagate import log_normal
from .frame import Inputs, TranslatorFrame, measured
from .translator import Translator, TranslatorData, TranslatorMoments

STEPS = 5
"""Iterations of the filter."""
COMPONENTS = 8
"""Gaussians that are drawn from, at most."""
CHUNK = 128
"""Stars side by side."""
AT_ONCE = 32


class InputPrior(NamedTuple):
    """A mixture of Gaussians for each of N stars: ln weight (N, K), mean (N, K, D), root^-1 of the covariance."""

    log_weight: Array
    mean: Array
    whiten: Array

    def log_density(self, x: Array) -> Array:
        """Density of points x (S, D) of one star, up to (2 pi)^(-D / 2)."""
        z = jnp.einsum("kij,skj->ski", self.whiten, x[:, None] - self.mean)
        log_det = jnp.log(jnp.diagonal(self.whiten, axis1=-2, axis2=-1)).sum(-1)
        return jax.scipy.special.logsumexp(self.log_weight + log_det - 0.5 * (z**2).sum(-1), axis=-1)


class InverseData(NamedTuple):
    """What belongs to each star: the prior of every group of inputs, and the outputs as in `TranslatorData`."""

    priors: tuple[InputPrior, ...]
    y: Array
    noise: Array
    observed: Array


@dataclass(frozen=True)
class InputEnergy(Energy):
    """-ln p(x | data) of points x (S, D) of one star, up to a constant."""

    bound: Bound[Translator]

    def __call__(self, x: Array, shared: Any, own: InverseData) -> Array:
        model = self.bound.model
        points = x.astype(shared["coefficients"].dtype)
        each = TranslatorData(points, jnp.zeros((*points.shape, 0), points.dtype), *own[1:])
        density = jax.vmap(lambda theta: model.log_likelihood(theta, each))(shared)
        groups = zip(model.require_frame().groups, own.priors, strict=True)
        return -jax.scipy.special.logsumexp(density, 0) - sum(prior.log_density(x[:, at]) for at, prior in groups)


@in_float64
def inverse(
    posterior: TrainedModel[Translator, TranslatorMoments],
    stars: Stars,
    draws: int,
    keys: np.ndarray,
    progress: bool | None,
) -> Weighted:
    """Draws (S, N, D) of the true inputs, scaled, of stars with `target_labels`, and what is known of each."""
    model, frame = posterior.model, posterior.model.require_frame()
    weight, precision = posterior.moments.tails
    given, outputs = measured(frame, stars), model.outputs_of(stars)
    theta = {name: jnp.asarray(x) for name, x in posterior.moments.theta.items()}
    bound, tail = Bound(model), float((weight / precision).sum())
    parts, n = [], len(stars)
    size = min(CHUNK, 1 << max(n - 1, 0).bit_length())
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        priors, components = _prior(frame, given, rows)
        own = InverseData(priors, *(x[rows] for x in outputs))
        factor = np.asarray(posterior.moments.error_factor)
        noise = own.noise * (factor[:, :, None] * factor[:, None]).mean(0)
        centre, spread, evidence = _updated(bound, theta, tail, own._replace(noise=noise), *components[1:])
        log_weight = components[0] + np.asarray(evidence)
        best = np.argsort(-log_weight, 1)[:, :COMPONENTS]
        at = tuple(np.take_along_axis(np.asarray(x), best.reshape(*best.shape, *[1] * (x.ndim - 2)), 1)
                   for x in (centre, spread, log_weight))  # fmt: skip
        kept = min(size, n - start)
        parts.append(jax.tree.map(lambda x, k=kept: x[:k], (own, at)))
    own, (centre, spread, log_weight) = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    objective = 0.5 * np.linalg.slogdet(spread)[1] - log_weight
    location, covariance = (np.moveaxis(x, 1, 0) for x in (centre, spread))
    modes = Modes(location, covariance, objective.T, np.ones(objective.T.shape, bool))
    # for the weights float32 is enough: the function right to a millionth of the spread
    fast = {name: x.astype(jnp.float32) for name, x in theta.items()}
    problem = StarProblem(InputEnergy(bound), fast, own, modes, at_once=AT_ONCE)
    found = Importance(draws=draws, rescue=False).infer(problem, keys, progress)
    told = found.star_stats
    mean, covariance = np.asarray(found.mean), np.asarray(found.covariance)
    return Weighted(found.u[0], None, told["khat"], told["ess"], mean, covariance)


def _prior(
    frame: TranslatorFrame, given: Inputs, rows: np.ndarray
) -> tuple[tuple[InputPrior, ...], tuple[np.ndarray, ...]]:
    """The inputs' priors given what is measured of them, by group; and Gaussians of all inputs to start from: of the
    first, the intrinsic group every component, of the second its mean and covariance."""
    d = len(frame.centre)
    priors, log_weight, mean, covariance = [], np.zeros((len(rows), 1)), np.zeros(d), np.zeros((d, d))
    for i, (group, population) in enumerate(zip(frame.groups, frame.mixtures, strict=True)):
        known = population.given(*given.select(rows, group))
        root = np.linalg.cholesky(known.covariance)
        log_weights = np.log(np.maximum(known.weight, 1e-300))
        priors.append(InputPrior(log_weights, known.mean, np.linalg.inv(root)))
        if i == 0:
            log_weight = log_weights
            mean, covariance = np.zeros((*log_weights.shape, d)), np.zeros((*log_weights.shape, d, d))
            centre, spread = known.mean, known.covariance
        else:
            centre, spread = (x[:, None] for x in known.moments())
        mean[..., group] = centre
        covariance[..., group[:, None], group] = spread
    return tuple(priors), (log_weight, mean, covariance)


@functools.partial(jit, static_argnums=0)
def _updated(
    bound: Bound[Translator], theta: dict[str, Array], tail: float, own: InverseData, mean: Array, covariance: Array
) -> tuple[Array, Array, Array]:
    """Mean (N, K, D) and covariance of each component given the outputs, and ln p(outputs | component) (N, K)."""
    m = own.y.shape[-1]

    def outputs(x: Array) -> Array:
        return jax.vmap(lambda t: bound.model.raw_outputs(t, x))(theta)

    def about(x: Array) -> tuple[Array, Array, Array]:
        """Prediction at one point: the outputs' mean over members, its slopes, and the covariance about it."""
        both, slopes = outputs(x), jax.jacfwd(lambda x: outputs(x)[:, :m].mean(0))(x)
        offset = both[:, :m] - both[:, :m].mean(0)
        s, factor = jnp.exp(both[:, m:]), theta["correlation"]
        intrinsic = jnp.einsum("ei,eij,ekj,ek->ik", s, factor, factor, s) / len(s)
        return both[:, :m].mean(0), slopes, offset.T @ offset / max(len(s) - 1, 1) + tail * intrinsic

    def of_component(
        mean: Array, covariance: Array, y: Array, noise: Array, observed: Array
    ) -> tuple[Array, Array, Array]:
        def step(x: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            value, slopes, spread = about(x)
            slopes = jnp.where(observed[:, None], slopes, 0.0)
            both = observed[:, None] & observed
            total = slopes @ covariance @ slopes.T + jnp.where(both, spread + noise, jnp.eye(m))
            off = jnp.where(observed, y - value - slopes @ (mean - x), 0.0)
            gain = jnp.linalg.solve(total, slopes @ covariance).T
            return mean + gain @ off, (covariance - gain @ total @ gain.T, log_normal(off, total, observed))

        x, (spread, evidence) = jax.lax.scan(step, mean, None, STEPS)
        return x, 0.5 * (spread[-1] + spread[-1].T), evidence[-1]

    over_components = jax.vmap(of_component, (0, 0, None, None, None))
    return jax.vmap(over_components)(mean, covariance, own.y, own.noise, own.observed)
