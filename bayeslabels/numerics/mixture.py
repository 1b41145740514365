"""Mixtures of Gaussians learned from noisy and incomplete vectors, and what they say of each vector's true values.

    x_n = v_n + noise,   noise ~ N(0, C_n),   v_n ~ sum_k w_k N(mean_k, V_k)

Expectation-maximisation on what is observed of each x_n (extreme deconvolution: Bovy, Hogg & Roweis 2011, eq. 13-17).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import logsumexp

from .compiling import jit
from .linalg import Array, constant, in_float64

CHUNK = 256
"""Stars whose matrices stay in the cache."""
NEGLIGIBLE = 1e-5
"""Variance of noise, in units of the spread, that is as good as none where a mixture is learned."""
FEWEST = 5
"""Stars per component and number of its mean, at least."""
PATIENCE = 5
"""Iterations without a higher density of held-out stars that end the learning."""


class Mixture(NamedTuple):
    """weight (K,), mean (K, D), covariance (K, D, D)."""

    weight: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    def given(self, x: np.ndarray, noise: np.ndarray, observed: np.ndarray) -> Given:
        """What is known of the true values of x (N, D) with noise (N, D, D); where not observed, x may be anything."""
        return _given(self, x, noise, observed)

    def draw(self, n: int, seed: int) -> np.ndarray:
        """(n, D)."""
        rng = np.random.default_rng([seed, 86028121])
        k = rng.choice(len(self.weight), n, p=self.weight)
        factor = np.linalg.cholesky(self.covariance)
        return self.mean[k] + np.einsum("nij,nj->ni", factor[k], rng.standard_normal((n, self.mean.shape[1])))


class Given(NamedTuple):
    """The mixture given each star's data: weight (N, K), mean (N, K, D), covariance (N, K, D, D), and ln p(x) (N,)."""

    weight: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    log_density: np.ndarray

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (N, D) and covariance (N, D, D) over all components."""
        mean = np.einsum("nk,nkd->nd", self.weight, self.mean)
        offset = self.mean - mean[:, None]
        spread = self.covariance + offset[..., :, None] * offset[..., None, :]
        return mean, np.einsum("nk,nkij->nij", self.weight, spread)

    def draw(self, n: int, seed: int) -> np.ndarray:
        """(n, N, D)."""
        rng = np.random.default_rng([seed, 49979693])
        stars = np.arange(len(self.weight))
        k = (rng.random((n, len(stars), 1)) > np.cumsum(self.weight, 1)[None, :, :-1]).sum(-1)
        factor = _root(self.covariance)
        z = rng.standard_normal((n, len(stars), self.mean.shape[-1]))
        return self.mean[stars, k] + np.einsum("snij,snj->sni", factor[stars, k], z, optimize=True)


def learn(
    x: np.ndarray,
    noise: np.ndarray,
    observed: np.ndarray,
    n_component: int,
    *,
    tails: tuple[float, ...] = (1.0,),
    pooled: float = 0.0,
    held_out: float = 0.0,
    seed: int = 0,
    iterations: int = 200,
    tolerance: float = 1e-5,
) -> Mixture:
    """The mixture that x (N, D) with noise (N, D, D) was drawn from, what is not observed (N, D) left out.

    Columns must be scaled to about unit spread: each component has a prior worth D + 1 stars at a tenth of the spread,
    which keeps it from collapsing onto a few.

    Args:
        tails: a component is several Gaussians with covariances so many times its own, their weights learned: 1 for the
            core first. Those that take up less than half a star are left out.
        pooled: a prior worth so many times D + 1 stars that the components' covariances are alike, without which that
            of a few stars in many dimensions is too small in some direction.
        held_out: share of the stars that are left out, and end it when their density has not risen for `PATIENCE`
            iterations: components that the stars do not need would go on to fit their noise, slowly.
    """
    rng = np.random.default_rng([seed, 32452867])
    n, d = x.shape
    seen = observed.astype(float)
    count = np.maximum(seen.sum(0), 1.0)
    centre = (np.where(observed, x, 0.0)).sum(0) / count
    filled = np.where(observed, x, centre)
    k = max(1, min(n_component, n // (FEWEST * (d + 1))))
    spread = np.cov(filled.T).reshape(d, d) + 1e-6 * np.eye(d)
    value, vector = np.linalg.eigh(spread - np.where(observed[:, :, None] & observed[:, None], noise, 0.0).mean(0))
    start = (vector * np.maximum(value, 0.01 * np.diag(spread).max())) @ vector.T  # what the noise leaves
    stretch = np.array(tails)
    each = 0.2 ** np.arange(len(stretch))
    weight, centres, own = np.tile(each / (k * each.sum()), (k, 1)), _spaced(filled, k, rng), np.tile(start, (k, 1, 1))
    floor = (d + 1) * 0.01 * np.diag(np.maximum(np.diag(spread), 1e-12))
    whole = observed.all(1) & (np.einsum("nii->ni", noise) <= NEGLIGIBLE).all(1)
    kept = np.random.default_rng([seed, 15485917]).permutation(n) >= int(held_out * n)
    masks = [m for m in (kept[whole], kept[~whole]) if len(m)]
    n_kept, before, best, idle = int(kept.sum()), -np.inf, -np.inf, 0
    chosen = fit = _stretched(weight, centres, own, stretch)
    for _ in range(iterations):
        parts = [_whole(fit, filled[whole])] if whole.any() else []
        if not whole.all():
            parts.append(fit.given(filled[~whole], noise[~whole], observed[~whole]))
        total = sum(part.weight[mask].sum(0) for part, mask in zip(parts, masks, strict=True)) + 1e-12
        shares = [part.weight * mask[:, None] / np.tile(stretch, k) for part, mask in zip(parts, masks, strict=True)]
        mass = sum(q.sum(0) for q in shares).reshape(k, -1).sum(1) + 1e-12
        moment = sum(np.einsum("nk,nkd->kd", q, part.mean) for q, part in zip(shares, parts, strict=True))
        centres = moment.reshape(k, -1, d).sum(1) / mass[:, None]
        scatter = np.zeros((k * len(stretch), d, d))
        for q, part in zip(shares, parts, strict=True):
            offset = part.mean - np.repeat(centres, len(stretch), 0)
            scatter += np.einsum("nk,nki,nkj->kij", q, offset, offset, optimize=True)
            if part.covariance.size:
                scatter += np.einsum("nk,nkij->kij", q, part.covariance, optimize=True)
        scatter = scatter.reshape(k, -1, d, d).sum(1)
        weight = total.reshape(k, -1) / total.sum()
        alike = pooled * (d + 1)
        stars = n_kept * weight.sum(1) + d + 1 + alike
        own = (scatter + floor + alike * scatter.sum(0) / n_kept) / stars[:, None, None]
        density, mask = np.concatenate([part.log_density for part in parts]), np.concatenate(masks)
        now, out = float(density[mask].mean()), float(density[~mask].mean()) if n_kept < n else -np.inf
        if out > best:
            chosen, best, idle = fit, out, 0
        elif n_kept < n and (idle := idle + 1) == PATIENCE:
            break
        fit = _stretched(weight, centres, own, stretch)
        if abs(now - before) < tolerance:
            break
        before = now
    fit = chosen if n_kept < n else fit
    used = fit.weight * n > 0.5 if len(stretch) > 1 else np.ones(k, bool)
    return Mixture(fit.weight[used] / fit.weight[used].sum(), fit.mean[used], fit.covariance[used])


def _stretched(weight: np.ndarray, mean: np.ndarray, covariance: np.ndarray, stretch: np.ndarray) -> Mixture:
    """The mixture whose components are J Gaussians each, with weights (K, J)."""
    wide = covariance[:, None] * stretch[:, None, None]
    return Mixture(weight.ravel(), np.repeat(mean, len(stretch), 0), wide.reshape(-1, *covariance.shape[1:]))


def _whole(mixture: Mixture, x: np.ndarray) -> Given:
    """`Mixture.given` of vectors that are exact and complete, by matrix products; without covariances, which are 0."""
    d = x.shape[1]
    factor = np.linalg.cholesky(mixture.covariance)
    terms = np.empty((len(x), len(factor)))
    for k, (root, mean) in enumerate(zip(factor, mixture.mean, strict=True)):
        z = solve_triangular(root, (x - mean).T, lower=True)
        terms[:, k] = -0.5 * (z**2).sum(0) - np.log(np.diag(root)).sum() - 0.5 * d * np.log(2 * np.pi)
    terms += np.log(np.maximum(mixture.weight, 1e-300))
    total = logsumexp(terms, axis=1)
    mean = np.broadcast_to(x[:, None], (len(x), len(factor), d))
    return Given(np.exp(terms - total[:, None]), mean, np.zeros(0), total)


@in_float64
def _given(mixture: Mixture, x: np.ndarray, noise: np.ndarray, observed: np.ndarray) -> Given:
    """In chunks of one shape that stay in the cache."""
    n = len(x)
    size = min(CHUNK, 1 << max(n - 1, 0).bit_length())
    population = tuple(map(constant, mixture))
    arrays = (np.where(observed, x, 0.0), noise, observed)
    out: list[np.ndarray] = []
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        found = _given_chunk(*population, *(a[rows] for a in arrays))
        out = out or [np.empty((n, *a.shape[1:])) for a in found]
        for whole, part in zip(out, found, strict=True):
            whole[start : start + size] = np.asarray(part)[: n - start]
    return Given(*out)


@jit
def _given_chunk(
    weight: Array, centre: Array, covariance: Array, x: Array, noise: Array, observed: Array
) -> tuple[Array, Array, Array, Array]:
    """Arrays with the stars first, as `Given` has them."""
    d = x.shape[1]
    log_weight = jnp.log(jnp.maximum(weight, 1e-300))

    def of_component(
        x: Array, noise: Array, observed: Array, log_w: Array, m: Array, v: Array
    ) -> tuple[Array, Array, Array]:
        """Gaussian elimination of what is observed from the joint covariance of observed and true values."""
        both = observed[:, None] & observed[None]
        rest = jnp.where(observed, 0.0, 1.0) * jnp.eye(d)[:, :, None]
        across = jnp.where(observed[:, None], v[:, :, None], 0.0)
        offset = jnp.where(observed, x - m[:, None], 0.0)
        top = jnp.concatenate([jnp.where(both, v[:, :, None] + noise, 0.0) + rest, across, offset[:, None]], 1)
        own = jnp.broadcast_to(v[:, :, None], across.shape)
        low = jnp.concatenate([jnp.swapaxes(across, 0, 1), own, jnp.zeros_like(offset)[:, None]], 1)
        table = jnp.concatenate([top, low])
        density = log_w - 0.5 * np.log(2 * np.pi) * observed.sum(0)
        for _ in range(d):
            pivot, row = table[0, 0], table[0, 1:]
            density = density - 0.5 * (row[-1] ** 2 / pivot + jnp.log(pivot))
            table = table[1:, 1:] - table[1:, :1] * (row / pivot)
        return m[:, None] - table[:, -1], 0.5 * (table[:, :-1] + jnp.swapaxes(table[:, :-1], 0, 1)), density

    x, noise, observed = (jnp.moveaxis(a, 0, -1) for a in (x, noise, observed))
    each = jax.lax.map(lambda k: of_component(x, noise, observed, *k), (log_weight, centre, covariance))
    mean, spread, terms = (jnp.moveaxis(a, -1, 0) for a in each)
    total = jax.scipy.special.logsumexp(terms, 1)
    return jnp.exp(terms - total[:, None]), mean, spread, total


def _spaced(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """k rows of x far from one another (as k-means++ chooses them)."""
    chosen = [x[rng.integers(len(x))]]
    for _ in range(k - 1):
        distance = np.min([((x - c) ** 2).sum(1) for c in chosen], 0)
        chosen.append(x[rng.choice(len(x), p=distance / distance.sum())] if distance.sum() > 0 else chosen[0])
    return np.array(chosen)


def _root(covariance: np.ndarray) -> np.ndarray:
    """F with F F' = covariance, which may be singular."""
    value, vector = np.linalg.eigh(covariance)
    return vector * np.sqrt(np.maximum(value, 0.0))[..., None, :]
