"""All pixels at once: coefficients and scatter of flux_nl = theta_l . phi_n + N(0, sigma_nl^2 + s_l^2).

The normal matrices of a block of pixels are one matrix product, (weights: B x N) @ (phi_j phi_k: N x K (K + 1) / 2).
The features may be uncertain: they enter through E[phi_n] and E[phi_n phi_n'].
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .compiling import jit
from .compress import known
from .linalg import Array, pack, pairs, solve_and_invert, unpack

SMALLEST_LOG_VARIANCE = -46.0
"""ln s_l^2, flux in units near its typical size, of a scatter that is zero for every purpose (s = 1e-10)."""

ROUGH_ALTERNATIONS = 4
"""Alternations at most in float32, which cost half and bring the scatter close."""


class CoefficientPrior(NamedTuple):
    """Gaussian prior theta ~ N(mean, precision^-1), plus l1 |theta|, within [low, high].

    precision (K, K), mean (K,), l1 (K,), low and high (K,); zeros and infinities mean flat. The mean is kept, not
    precision times mean: of coefficients that differ much in width that product has lost digits.
    """

    precision: Array
    mean: Array
    l1: Array
    low: Array
    high: Array


class Pixels(NamedTuple):
    """A trained block: coefficients (B, K), their covariance (B, K, K), scatter^2 (B,), whether it converged (B,); and
    what the stars say of the coefficients at that scatter, precision (B, K, K) and information (B, K), of flux in the
    caller's unit of work; told (B, 3): what they say of the scatter there: d (-ln p) / d s^2, which is 0 but where the
    mode is at no scatter, and the sums of w and w^2, w = 1 / (sigma^2 + s^2)."""

    theta: Array
    covariance: Array
    scatter2: Array
    converged: Array
    gram: Array
    linear: Array
    told: Array


def coordinate_descent(
    gram: Array, linear: Array, start: Array, l1: Array, low: Array, high: Array, sweeps: int = 2000,
    tolerance: float = 1e-13,
) -> Array:  # fmt: skip
    """argmin 1/2 t' gram t - linear' t + l1 |t| within [low, high] for a batch of (K, K) matrices."""
    k = linear.shape[-1]
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        t, _, count = state
        before = t
        for j in range(k):
            rest = linear[:, j] - jnp.einsum("bk,bk->b", gram[:, j], t) + diagonal[:, j] * t[:, j]
            shrunk = jnp.sign(rest) * jnp.maximum(jnp.abs(rest) - l1[j], 0) / diagonal[:, j]
            t = t.at[:, j].set(jnp.clip(shrunk, low[j], high[j]))
        change = jnp.max(jnp.abs(t - before) * jnp.sqrt(diagonal))
        return t, change, count + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        return (state[1] > tolerance * jnp.max(jnp.abs(linear))) & (state[2] < sweeps)

    start = jnp.clip(start, low, high)
    return jax.lax.while_loop(unfinished, sweep, (start, jnp.inf, 0))[0]


def scatter_step(
    x: Array, residual2: Array, variance: Array, ok: Array, scale: Array, steps: int = 3
) -> tuple[Array, Array, Array]:
    """Newton steps in x = ln s^2 on 1/2 sum [ln(sigma^2 + s^2) + r^2 / (sigma^2 + s^2)] + s^2 / (2 scale^2).

    residual2, variance, ok (B, N); x (B,). Returns x and, at the last point visited, the gradient in x and
    `Pixels.told`.
    """
    one = jnp.ones(residual2.shape[1], residual2.dtype)

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x = state[0]
        s2 = jnp.exp(x)
        w = jax.lax.optimization_barrier(ok / (variance + s2[:, None]))  # one division, not one per sum
        w2r2 = jax.lax.optimization_barrier(w * w * residual2)
        sum_w2 = (w * w) @ one
        slope = 0.5 * ((w - w2r2) @ one) + 0.5 / scale**2
        gradient, told = s2 * slope, jnp.stack([slope, w @ one, sum_w2], 1)
        fisher = 0.5 * s2**2 * sum_w2 + 0.5 * s2 / scale**2
        exact = gradient + 0.5 * s2**2 * (2 * ((w * w2r2) @ one) - sum_w2)
        curvature = jnp.where(exact > 0.2 * fisher, exact, fisher)
        move = jnp.clip(gradient / jnp.maximum(curvature, 1e-300), -2.0, 2.0)
        x = jnp.clip(x - move, SMALLEST_LOG_VARIANCE, 40.0)
        return x, gradient, told

    return jax.lax.fori_loop(0, steps, step, (x, jnp.zeros_like(x), jnp.zeros((len(x), 3), x.dtype)))


NODES, BELOW, ABOVE = 400, 8.0, 40.0
"""Points of the quadrature over a scatter, and how far they go about the mode of its square, in sds."""
LEAST = 0.05
"""Mean square of the residuals that is believed, at least, in units of the noise."""


def mean_scatter2(v_0: np.ndarray, noise2: np.ndarray, freedom: np.ndarray, scale: float) -> np.ndarray:
    """Posterior mean of s^2 (L,), what few stars leave open of it included, of a pixel of nu stars (`freedom`) with one
    noise and residuals of mean square v_0,

        p(s) ~ v^(-nu / 2) exp(-nu v_0 / 2 v) exp(-s^2 / 2 scale^2),   v = s^2 + noise2.
    """
    tiny = np.finfo(float).tiny
    v_0, mode2 = np.maximum(v_0, LEAST * noise2 + tiny), np.maximum(v_0 - noise2, 0.0)
    sd = np.maximum(v_0, noise2) * np.sqrt(2 / freedom)
    low, high = np.sqrt(np.maximum(mode2 - BELOW * sd, 0.0)), np.sqrt(mode2 + ABOVE * sd)
    t = ((np.arange(NODES) + 0.5) / NODES)[:, None]
    s2 = (low + (high - low) * t**2) ** 2  # closer together at low s, where all of it may be
    ratio = v_0 / (s2 + noise2 + tiny)
    log_p = 0.5 * freedom * (np.log(ratio) - ratio) - 0.5 * s2 / scale**2
    p = t * np.exp(log_p - log_p.max(0))
    return (p * s2).sum(0) / p.sum(0)


@functools.partial(jit, static_argnames=("learn_scatter", "integrate", "exact", "penalised", "rough"))
def train_block(
    value: Array,
    error: Array,
    phi: Array,
    products: Array,
    which: Array,
    allowed: Array,
    prior: CoefficientPrior,
    theta: Array,
    covariance: Array,
    scatter2: Array,
    scatter_scale: Array | float,
    alternations: Array | int,
    cold: Array | int,
    unit: Array | float = 1.0,
    *,
    learn_scatter: bool,
    integrate: bool,
    exact: bool,
    penalised: bool,
    rough: bool,
) -> Pixels:
    """Alternate Newton steps in s with exact solves of theta, at most `alternations` times, until neither moves.

    theta (B, K), covariance (B, K, K): from which the first step in s follows; cold: 1 where there are none, and theta
    is solved for at first. value, error (B, N); phi = E[phi_n] (N, K); products (N, Q): the packed E[phi_n phi_n'] that
    differ, and which of them each is (`FeatureProducts`); allowed (B, K), 0 where a coefficient is censored; unit: a
    power of two that brings the flux near one. `integrate`: s maximises the density with theta integrated out, else the
    joint density of (theta, s). `exact`: phi is known, so that E[phi_n phi_n'] is its outer product. `rough`: first in
    float32, which pays for many spectra and takes longer to compile.
    """
    y, variance, ok = known(value * unit, error * unit)
    k = phi.shape[1]
    _, _, multiplicity = pairs(k)
    n_used = ok.sum(1)
    usable = n_used > (allowed * (jnp.diagonal(prior.precision) == 0)).sum(1)
    ok &= usable[:, None]
    prior, both = scaled_prior(prior, unit), _both(allowed)

    def run(number: Any, x: Array, most: Array | int, tolerance: float) -> tuple[Array, ...]:
        """`Pixels` but the units, with the sums over stars in `number`; solves are in float64, in one place, which is
        compiled once."""
        y_, variance_, phi_, products_ = (jnp.asarray(v, number) for v in (y, variance, phi, products))

        def solve(x: Array, theta: Array) -> tuple[Array, Array, tuple[Array, Array]]:
            w = jax.lax.optimization_barrier(ok / (variance_ + jnp.exp(x).astype(number)[:, None]))
            gram = unpack((w @ products_).astype(phi.dtype)[:, which], k) * both
            linear = ((w * y_) @ phi_).astype(phi.dtype) * allowed
            return *solve_pixels(gram, linear, allowed, prior, usable, theta, penalised), (gram, linear)

        def residual2(theta: Array, covariance: Array) -> Array:
            effective = theta * allowed
            mean = effective.astype(number) @ phi_.T
            r2 = (y_ - mean) ** 2
            spread = covariance * both if integrate else 0.0
            if not exact:
                r2 = r2 - mean**2
                spread = spread + effective[:, :, None] * effective[:, None, :]
            if integrate or not exact:
                packed = (pack(spread) * multiplicity).astype(number)
                r2 = r2 + (products_ @ jnp.zeros((products_.shape[1], len(y)), number).at[which].add(packed.T)).T
            return jnp.maximum(r2, 0.0)

        def move(x: Array, theta: Array, covariance: Array) -> tuple[Array, Array, Array]:
            start = x.astype(number)
            new, gradient, told = scatter_step(start, residual2(theta, covariance), variance_, ok, scatter_scale * unit)
            settled = (new <= SMALLEST_LOG_VARIANCE + 1) | ~usable
            remaining = jnp.abs(new - start) + jnp.abs(gradient) / jnp.maximum(n_used, 1)
            remaining = jnp.where(settled, 0.0, remaining).astype(x.dtype)
            return new.astype(x.dtype), remaining, told.astype(x.dtype)

        def alternate(state: tuple[Array, ...]) -> tuple[Array, ...]:
            x, theta, covariance, _, remaining, told, count = state
            if learn_scatter:
                stay = lambda x, *_: (x, remaining, told)  # noqa: E731
                x, remaining, told = jax.lax.cond(count < cold, stay, move, x, theta, covariance)
            theta, covariance, own = solve(x, theta)
            return x, theta, covariance, own, remaining, told, count + 1

        def unfinished(state: tuple[Array, ...]) -> Array:
            *_, remaining, _, count = state
            return (count < 1) | ((jnp.nanmax(remaining) > tolerance) & (count < most + cold))

        own = tuple(jnp.zeros((len(y), *tail)) for tail in ((k, k), (k,)))
        remaining = jnp.full_like(x, jnp.inf) if learn_scatter else jnp.zeros_like(x)
        state = (x, theta * unit, covariance * unit**2, own, remaining, jnp.zeros((len(x), 3)), 0)
        return jax.lax.while_loop(unfinished, alternate, state)[:6]

    x = jnp.log(jnp.maximum(scatter2 * unit**2, 1e-20))
    if learn_scatter and rough:
        first = functools.partial(run, np.float32, x, ROUGH_ALTERNATIONS, 1e-4)
        near = jax.lax.cond(alternations > 1, lambda: first()[0], lambda: x)
        x = jnp.where(jnp.isfinite(near), near, x)
    x, theta, covariance, (gram, linear), remaining, told = run(phi.dtype, x, alternations, 1e-7)
    converged = remaining <= 1e-7
    scatter2 = jnp.exp(x) / unit**2 if learn_scatter else scatter2
    return Pixels(theta / unit, covariance / unit**2, scatter2, converged, gram, linear, told * _told_unit(unit))


class PixelSums(NamedTuple):
    """Sums over stars from which a step of coefficients and scatter follows, w = 1 / (sigma^2 + s^2) at the present s.

    Of w and of w^2: phi phi' (B, K (K + 1) / 2) and y phi (B, K), `gram`, `linear`, `gram2`, `linear2`; y^2 with w^2,
    `square2`; of w, w^2, w^3 r^2 with r the present residuals, and 1: `weight`, `weight2`, `bend`, `known`, (B,) each.
    """

    gram: Array
    linear: Array
    gram2: Array
    linear2: Array
    square2: Array
    weight: Array
    weight2: Array
    bend: Array
    known: Array

    def moved(self, forth: Array) -> PixelSums:
        """The same sums for the features forth phi."""

        def both(gram: Array) -> Array:
            return pack(forth @ unpack(gram, len(forth)) @ forth.T)

        return self._replace(
            gram=both(self.gram), linear=self.linear @ forth.T, gram2=both(self.gram2), linear2=self.linear2 @ forth.T
        )


@jit
def pixel_sums(
    value: Array, error: Array, phi: Array, products: Array, which: Array, theta: Array, scatter2: Array,
    unit: Array | float,
) -> PixelSums:  # fmt: skip
    """`PixelSums` of pixels of N stars, (B, N), with phi = E[phi_n] (N, K), products and which as in `train_block`, at
    theta (B, K) and scatter2 (B,)."""
    y, variance, ok = known(value * unit, error * unit)
    w = jax.lax.optimization_barrier(ok / (variance + scatter2[:, None] * unit**2))
    w2 = jax.lax.optimization_barrier(w * w)
    residual2 = (y - (theta * unit) @ phi.T) ** 2
    sums = (w @ products)[:, which], (w * y) @ phi, (w2 @ products)[:, which], (w2 * y) @ phi
    rest = (w2 * y * y).sum(1), w.sum(1), w2.sum(1), (w * w2 * residual2).sum(1), ok.sum(1).astype(y.dtype)
    return PixelSums(*sums, *rest)


CLOSE = 0.1
"""Change of the total variance, root mean square and relative, below which Newton steps take the place of scoring."""


@functools.partial(jit, static_argnames=("learn_scatter", "integrate", "penalised"))
def pixels_from_sums(
    sums: PixelSums, allowed: Array, prior: CoefficientPrior, theta: Array, scatter2: Array,
    scatter_scale: Array | float, unit: Array | float, *, learn_scatter: bool, integrate: bool, penalised: bool,
) -> tuple[Pixels, Array]:  # fmt: skip
    """`train_block` from sums over stars: theta given s, then a step in s^2 on the same objective; and the step (B,),
    relative to the total variance. Its fixed point is that of `train_block`, to which it converges quadratically."""
    k = theta.shape[1]
    prior, pinned, both = scaled_prior(prior, unit), jnp.diagonal(prior.precision) == 0, _both(allowed)
    usable = sums.known > (allowed * pinned).sum(1)
    sums = PixelSums(*(jnp.where(usable.reshape(-1, *[1] * (x.ndim - 1)), x, 0.0) for x in sums))
    own = unpack(sums.gram, k) * both, sums.linear * allowed
    solution, covariance = solve_pixels(*own, allowed, prior, usable, theta * unit, penalised)
    q, step, gradient = scatter2 * unit**2, jnp.zeros_like(scatter2), jnp.zeros_like(scatter2)
    if learn_scatter:
        effective = solution * allowed
        second = effective[:, :, None] * effective[:, None, :] + (covariance * both if integrate else 0.0)
        residual2 = sums.square2 - 2 * (effective * sums.linear2).sum(1)
        residual2 += (pack(second) * pairs(k)[2] * sums.gram2).sum(1)
        gradient = 0.5 * (sums.weight - residual2) + 0.5 / (scatter_scale * unit) ** 2
        fisher = 0.5 * sums.weight2 + 1e-300
        exact = 0.5 * (2 * sums.bend - sums.weight2)
        relative = jnp.sqrt(sums.weight2 / jnp.maximum(sums.known, 1.0))
        near = (jnp.abs(gradient / fisher) * relative < CLOSE) & (exact > 0.2 * fisher)
        new = jnp.clip(q - gradient / jnp.where(near, exact, fisher), np.exp(SMALLEST_LOG_VARIANCE), np.exp(40.0))
        new = jnp.where(usable, new, q)
        q, step = new, jnp.abs(new - q) * relative
    told = jnp.stack([gradient, sums.weight, sums.weight2], 1) * _told_unit(unit)
    return Pixels(solution / unit, covariance / unit**2, q / unit**2, step <= 1e-6, *own, told), step


def _told_unit(unit: Array | float) -> Array:
    """`Pixels.told` of flux from that of flux times unit."""
    return jnp.asarray(unit, float) ** np.array([2, 2, 4])


def scaled_prior(prior: CoefficientPrior, unit: Array | float) -> CoefficientPrior:
    """The prior of the coefficients of flux times unit."""
    return CoefficientPrior(
        prior.precision / unit**2, prior.mean * unit, prior.l1 / unit, prior.low * unit, prior.high * unit
    )


def solve_pixels(
    gram: Array, linear: Array, allowed: Array, prior: CoefficientPrior, usable: Array, start: Array, penalised: bool
) -> tuple[Array, Array]:
    """Coefficients (B, K) at the mode, and their covariance (B, K, K), from sums over stars, gram (B, K, K) and linear
    (B, K); those that nothing is known of are 0. start (B, K): where a penalised mode is sought from.

    What is solved for is theta - mean, which a narrow prior does not round.
    """
    pinned = jnp.diagonal(prior.precision) == 0
    idle = jnp.where(usable[:, None], 1 - allowed, 1.0) * pinned
    total = gram + prior.precision + idle[:, :, None] * jnp.eye(allowed.shape[1])
    offset, covariance = solve_and_invert(total, linear - (gram * prior.mean).sum(2))
    if penalised:
        linear = linear + prior.precision @ prior.mean
        return coordinate_descent(total, linear, start, prior.l1, prior.low, prior.high), covariance
    return prior.mean + offset, covariance


def _both(allowed: Array) -> Array:
    return allowed[:, :, None] * allowed[:, None, :]
