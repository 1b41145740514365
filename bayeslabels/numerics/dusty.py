"""What the magnitudes of one star say of its distance modulus mu and its reddening E, and the integral over both.

    m = M + mu 1 + E R + F z + N(0, diag(D)),   z ~ N(0, I)

F: directions in which nothing is known (errors of the labels or of the model, a scatter that all bands share). They
are projected out of 1, R and m - M by Gram-Schmidt on the columns of (D^-1/2 F; I), which needs no B x B matrix and
loses no digits. What is left is quadratic in (mu, E). E >= 0 is integrated out in closed form (`truncated`), then mu by
Gauss-Hermite quadrature about the mode of the integrand, with the parallax in parallax space:

    p(data) = int dmu p(mu) N(parallax | 10^((10 - mu) / 5) + zero, sigma^2) int_0^inf dE p(E) N(E_0 | E) N(m | mu, E)
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from . import truncated
from .linalg import Array
from .whitening import Noise, noise_of

LN10_5 = float(np.log(10) / 5)
NEWTON = 8
"""Steps to the mode of the integrand, which is nearly Gaussian; the width is that of the last."""


class Distance(Protocol):
    """p(mu) of stars (...), mu in mag; arrays with a row per star."""

    def log_density(self, mu: Array) -> Array: ...

    def slopes(self, mu: Array) -> tuple[Array, Array]:
        """d ln p / dmu and -d^2 ln p / dmu^2."""


class Reddening(Protocol):
    """p(E | mu) = exp(log_norm + pull E - precision E^2 / 2), E >= 0, of stars (...); arrays with a row per star."""

    def given(self, mu: Array) -> tuple[Array, Array, Array]:
        """Precision, pull and log_norm at mu."""

    def rough(self, mu: Array) -> tuple[Array, Array]:
        """Precision and mean of a Gaussian that is about as wide."""


class Quadratic(NamedTuple):
    """ln N(m | mu, E) = log_norm + b_mu x + b_E y - (a_mu x^2 + 2 a_both x y + a_E y^2) / 2, x = mu - mu_0, y = E - E_0

    mu_0 and E_0, any values near the truth, keep the numbers small.
    """

    a_mu: Array
    a_both: Array
    a_e: Array
    b_mu: Array
    b_e: Array
    log_norm: Array
    mu_0: Array
    e_0: Array


class Others(NamedTuple):
    """What is known besides the magnitudes: parallax [mas] less its zero point and 1 / error, reddening [mag] and
    1 / error, each 0 where unknown; and the star's own priors of its distance modulus and its reddening."""

    parallax: Array
    parallax_weight: Array
    reddening: Array
    reddening_weight: Array
    distance: Distance
    dust: Reddening


def project(factors: Array, columns: Array) -> tuple[Array, Array, Array]:
    """Basis (..., Q, B + Q) of the factors (..., Q, B), each with its unit prior, the columns (..., C, B) less their
    parts in it (..., C, B + Q), and ln det(I + F F') (...)."""
    q = factors.shape[-2]
    eye = jnp.broadcast_to(jnp.eye(q, dtype=factors.dtype), (*factors.shape[:-1], q))
    basis = [jnp.concatenate([factors[..., i, :], eye[..., i, :]], -1) for i in range(q)]
    rest = jnp.concatenate([columns, jnp.zeros((*columns.shape[:-1], q), columns.dtype)], -1)
    log_det = jnp.zeros(factors.shape[:-2], factors.dtype)
    for i in range(q):
        square = (basis[i] ** 2).sum(-1, keepdims=True)
        log_det = log_det + jnp.log(square[..., 0])
        unit = basis[i] * jax.lax.rsqrt(square)
        basis[i] = unit
        for j in range(i + 1, q):
            basis[j] = basis[j] - (unit * basis[j]).sum(-1, keepdims=True) * unit
        rest = rest - (rest * unit[..., None, :]).sum(-1, keepdims=True) * unit[..., None, :]
    return jnp.stack(basis, -2) if q else jnp.zeros((*factors.shape[:-2], 0, rest.shape[-1])), rest, log_det


def quadratic(residual: Array, vector: Array, factors: Array, variance: Array, seen: Array, e_0: Array) -> Quadratic:
    """From m - M (..., B), R (..., B), F (..., Q, B), D (..., B) or a covariance (..., B, B) in its place, seen (...,
    B): 1 if observed, else 0; E_0 (...)."""
    noise = noise_of(variance, jnp.zeros_like(seen), seen)
    mu_0 = centre_of(residual - e_0[..., None] * vector, noise)
    columns = [jnp.ones_like(vector), vector, residual - mu_0[..., None] - e_0[..., None] * vector]
    return quadratic_and_rest(jnp.stack(jnp.broadcast_arrays(*columns), -2), factors, noise, mu_0, e_0)[0]


def quadratic_and_rest(
    columns: Array, factors: Array, noise: Noise, mu_0: Array, e_0: Array
) -> tuple[Quadratic, Array]:
    """What linear columns (..., 3 + n, B) say: those of mu and E, what is left of the data at mu_0 and E_0, and n more;
    and what is left of them (..., 3 + n, B + Q) in units of the noise, F projected out."""
    _, rest, log_det = project(noise.white(factors), noise.white(columns))
    return _quadratic(rest[..., 0, :], rest[..., 1, :], rest[..., 2, :], log_det + noise.log_det, mu_0, e_0), rest


def scattered(q: Quadratic, sd: Array) -> Quadratic:
    """The same with a scatter of mu, N(0, sd^2), of the star's own: a luminosity that differs from its kind's."""
    less = 1 / (1 + sd**2 * q.a_mu)
    k = sd**2 * less
    return q._replace(
        a_mu=q.a_mu * less, a_both=q.a_both * less, a_e=q.a_e - k * q.a_both**2,
        b_mu=q.b_mu * less, b_e=q.b_e - k * q.a_both * q.b_mu,
        log_norm=q.log_norm + 0.5 * (k * q.b_mu**2 + jnp.log(less)),
    )  # fmt: skip


def about_reddening(q: Quadratic, others: Others) -> tuple[Array, Array, Array]:
    """Precision and pull of p(E | mu) at the modulus that the magnitudes have at E_0; and the precision of a prior that
    is about as narrow, or three times as wide where it is no Gaussian."""
    mu = q.mu_0 + q.b_mu / jnp.maximum(q.a_mu, 1e-6)
    hold, pull, _ = others.dust.given(mu)
    return hold, pull, jnp.maximum(hold, 0.1 * others.dust.rough(mu)[0])


def near(q: Quadratic, others: Others) -> tuple[Array, Array]:
    """mu and E of the optimum, mu free of its prior and the parallax, E >= 0 and about where its own prior has it:
    where a model is to be linear."""
    weight = others.reddening_weight**2
    hold, pull, firm = about_reddening(q, others)
    a_mu = jnp.maximum(q.a_mu, 1e-6)
    p = jnp.maximum(q.a_e - q.a_both**2 / a_mu, 0.0) + weight + firm
    h = q.b_e - q.a_both * q.b_mu / a_mu + weight * (others.reddening - q.e_0) + pull - hold * q.e_0
    e = jnp.maximum(q.e_0 + h / p, 0.0)
    return q.mu_0 + (q.b_mu - q.a_both * (e - q.e_0)) / a_mu, e


def centre_of(residual: Array, noise: Noise) -> Array:
    """Weighted mean of residuals: a first mu, constant to differentiation, as the integral does not depend on it."""
    weight = noise.precision_times(jnp.ones_like(residual)[..., None, :])[..., 0, :]
    total = weight.sum(-1)
    mean = (weight * residual).sum(-1) / jnp.where(total > 0, total, 1.0)
    return jax.lax.stop_gradient(jnp.where(total > 0, mean, 10.0))


def _quadratic(one: Array, vector: Array, residual: Array, log_det: Array, mu_0: Array, e_0: Array) -> Quadratic:
    dot = lambda a, b: (a * b).sum(-1)  # noqa: E731
    return Quadratic(
        dot(one, one), dot(one, vector), dot(vector, vector), dot(one, residual), dot(vector, residual),
        -0.5 * (dot(residual, residual) + log_det), mu_0, e_0,
    )  # fmt: skip


def _in_e(q: Quadratic, others: Others, x: Array) -> tuple[Array, Array, Array]:
    """h, p and c of exp(h y - p y^2 / 2 + c) at x = mu - mu_0, c: of p(E | mu) alone."""
    precision, pull, log_norm = others.dust.given(q.mu_0 + x)
    weight = others.reddening_weight**2
    p = jnp.maximum(q.a_e + weight + precision, 1e-8)
    h = q.b_e - q.a_both * x + weight * (others.reddening - q.e_0) + pull - precision * q.e_0
    return h, p, log_norm + q.e_0 * (pull - 0.5 * precision * q.e_0)


def mean_reddening(q: Quadratic, others: Others, x: Array) -> Array:
    """Mean of E at mu = mu_0 + x."""
    return truncated.moments(*_in_e(q, others, x)[:2], q.e_0)[0]


def log_integrand(q: Quadratic, others: Others, x: Array) -> Array:
    """ln of p(mu) p(parallax | mu) p(m, E_0 | mu), at x = mu - mu_0."""
    h, p, of_prior = _in_e(q, others, x)
    seen = others.reddening_weight > 0
    known = jnp.where(seen, jnp.log(jnp.where(seen, others.reddening_weight, 1.0) / truncated.SQRT_2PI), 0.0)
    known = known - 0.5 * (others.reddening_weight * (others.reddening - q.e_0)) ** 2
    of_e = truncated.log_integral(h, p, q.e_0) + of_prior + known
    seen = others.parallax_weight > 0
    norm = jnp.where(seen, jnp.log(jnp.where(seen, others.parallax_weight, 1.0) / truncated.SQRT_2PI), 0.0)
    misfit = others.parallax_weight * (others.parallax - parallax_at(q.mu_0 + x))
    of_mu = others.distance.log_density(q.mu_0 + x) + norm - 0.5 * misfit**2
    return q.log_norm + x * (q.b_mu - 0.5 * q.a_mu * x) + of_e + of_mu


WIDE = 5.0
"""Sd of a modulus of which nothing but the magnitudes is known, mag."""


def loose(others: Others, mu: Array, scatter: Array) -> tuple[Array, Array]:
    """Sd of modulus and reddening about mu, as free as parallax and reddening leave them; scatter: in luminosity."""
    tangent = LN10_5 * parallax_at(mu) * others.parallax_weight
    of_mu = jnp.sqrt(scatter**2 + 1 / (tangent**2 + WIDE**-2))
    return of_mu, 1 / jnp.sqrt(others.reddening_weight**2 + others.dust.rough(mu)[0])


def parallax_at(mu: Array) -> Array:
    """10^((10 - mu) / 5) mas, of mu > -15."""
    return jnp.exp(LN10_5 * (10 - jnp.maximum(mu, -15.0)))


def mode(q: Quadratic, others: Others) -> tuple[Array, Array]:
    """Mode x = mu - mu_0 and width of the integrand; in float32, good enough for where to look.

    Where E is known to grow with mu, its slope there joins both in the curvature, as if p(E | mu) were Gaussian.
    """
    dtype = q.a_mu.dtype
    q, others = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (q, others))
    precision, weight = others.parallax_weight**2, others.reddening_weight**2
    p = jnp.maximum(q.a_e + weight, 1e-8)
    alone = jnp.maximum(q.a_mu - q.a_both**2 / p, 1e-6)
    y = others.parallax
    good = y * others.parallax_weight > 3
    aim = 10 - jnp.log(jnp.where(good, y, 1.0)) / LN10_5 - q.mu_0
    strength = jnp.where(good, (LN10_5 * y) ** 2 * precision, 0.0)
    x = strength * aim / (strength + alone)

    def slopes(x: Array) -> tuple[Array, Array, Array]:
        h, p, _ = _in_e(q, others, x)
        mean, variance = truncated.moments(h, p, q.e_0)
        first, second = others.distance.slopes(q.mu_0 + x)
        at = q.mu_0 + x
        (hold, pull, _), rise = jax.jvp(others.dust.given, (at,), (jnp.ones_like(at),))
        first = first + rise[2] + mean * rise[1] - 0.5 * (mean**2 + variance) * rise[0]
        firm = jnp.maximum(hold, 1e-8)
        slope = jnp.where(hold > 0, (rise[1] - pull / firm * rise[0]) / firm, 0.0)
        both, own = q.a_both - hold * slope, q.a_mu + hold * slope**2
        true = parallax_at(q.mu_0 + x)
        tangent = -LN10_5 * true
        off = precision * (y - true)
        gradient = q.b_mu - q.a_mu * x - q.a_both * (mean - q.e_0) + first + off * tangent
        fisher = jnp.maximum(own - both**2 * variance, 0.0) + jnp.maximum(second, 1e-4) + precision * tangent**2
        return gradient, fisher, fisher - off * LN10_5**2 * true

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, _ = state
        gradient, fisher, exact = slopes(x)
        x = x + jnp.clip(gradient / jnp.maximum(exact, 0.7 * fisher), -2.0, 2.0)
        return x, 1 / jnp.sqrt(jnp.maximum(exact, 0.5 * fisher))

    x, width = jax.lax.fori_loop(0, NEWTON, step, (x, jnp.ones_like(x)))
    return x.astype(dtype), width.astype(dtype)


@functools.cache
def rule(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Points, in sd, and log weights of an integral over a nearly Gaussian function."""
    t, w = np.polynomial.hermite_e.hermegauss(nodes)
    return t, np.log(w) + 0.5 * t**2


def moved(q: Quadratic, x: Array, y: Array) -> Quadratic:
    """The same about mu_0 + x and E_0 + y."""
    return q._replace(
        b_mu=q.b_mu - q.a_mu * x - q.a_both * y, b_e=q.b_e - q.a_both * x - q.a_e * y,
        log_norm=q.log_norm + x * (q.b_mu - 0.5 * q.a_mu * x - q.a_both * y) + y * (q.b_e - 0.5 * q.a_e * y),
        mu_0=q.mu_0 + x, e_0=q.e_0 + y,
    )  # fmt: skip


class Place(NamedTuple):
    """The integrand about its mode, where numbers are small: coefficients of `Quadratic` about mu and E, the mean of E
    there; width in mu, mag."""

    a_mu: Array
    a_both: Array
    a_e: Array
    b_mu: Array
    b_e: Array
    mu: Array
    e: Array
    width: Array

    @property
    def quadratic(self) -> Quadratic:
        return Quadratic(*self[:5], jnp.zeros_like(self.b_e), self.mu, self.e)


def place(q: Quadratic, others: Others, dtype: Any = None) -> tuple[Place, Array]:
    """Where the integrand is, in float32 if that is the `dtype`, and ln p(m) there, as precise as it was."""
    fixed, beside = _as(jnp.float32, jax.lax.stop_gradient((q, others)))
    x, width = (a.astype(q.b_e.dtype) for a in mode(fixed, beside))
    y = mean_reddening(fixed, beside, x.astype(jnp.float32)).astype(x.dtype) - q.e_0
    near = moved(q, x, y)
    at = Place(near.a_mu, near.a_both, near.a_e, near.b_mu, near.b_e, near.mu_0, near.e_0, width)
    return _as(x.dtype if dtype is None else dtype, at), near.log_norm


def _as(dtype: Any, tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, dtype), tree)


def log_marginal(q: Quadratic, others: Others, nodes: int = 11) -> Array:
    """ln p(data) (...), mu and E integrated out."""
    return log_marginal_at(*place(q, others), others, nodes)


def log_marginal_at(at: Place, log_norm: Array, others: Others, nodes: int = 11) -> Array:
    """The same of `place`; to 1e-3, in a third of the time, if that is in float32."""
    q, others = at.quadratic, _as(at.mu.dtype, others)
    t, log_w = _nodes(nodes, at.mu)
    terms = log_integrand(q, others, at.width * t) + log_w
    return log_norm + jax.scipy.special.logsumexp(terms, axis=0) + jnp.log(at.width)


def _nodes(nodes: int, x: Array) -> tuple[Array, Array]:
    """Points and log weights (nodes, 1, ...) beside x (...): the first axis, so that loops run along the stars."""
    return tuple(jnp.asarray(a, x.dtype).reshape(-1, *[1] * x.ndim) for a in rule(nodes))  # type: ignore[return-value]


def rough(q: Quadratic, others: Others) -> Array:
    """About `log_marginal`, a hundred times faster: E Gaussian, or 0 where that is negative; the parallax linear."""
    # what is known of E is that at the modulus without it
    hold, usual = others.dust.rough(q.mu_0 + q.b_mu / jnp.maximum(q.a_mu, 1e-6))
    a_e = q.a_e + others.reddening_weight**2 + hold
    b_e = q.b_e + others.reddening_weight**2 * (others.reddening - q.e_0) + hold * (usual - q.e_0)
    a = jnp.maximum(q.a_mu - q.a_both**2 / a_e, 1e-6)
    b = q.b_mu - q.a_both * b_e / a_e
    free = b / a
    dusty = (b_e - q.a_both * free) / a_e + q.e_0 > 0
    a = jnp.where(dusty, a, jnp.maximum(q.a_mu, 1e-6))
    b = jnp.where(dusty, b, q.b_mu + q.a_both * q.e_0)
    x = b / a
    clear = -q.e_0 * (b_e + 0.5 * a_e * q.e_0)
    chi2 = jnp.where(dusty, 0.5 * b_e**2 / a_e, clear) + 0.5 * b**2 / a - 0.5 * jnp.log(a * a_e)
    data = others.reddening_weight**2 * (others.reddening - q.e_0) ** 2 + hold * (usual - q.e_0) ** 2
    true = parallax_at(q.mu_0 + x)
    spread = 1 + (others.parallax_weight * LN10_5 * true) ** 2 / a
    misfit = (others.parallax_weight * (others.parallax - true)) ** 2 / spread + jnp.log(spread)
    norm = 0.5 * np.log(2 * np.pi) + 0.5 * jnp.log(hold)
    for weight in (others.parallax_weight, others.reddening_weight):
        norm = norm + jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1.0) / truncated.SQRT_2PI), 0.0)
    return q.log_norm + norm + chi2 - 0.5 * data - 0.5 * misfit + others.distance.log_density(q.mu_0 + x)


class Summary(NamedTuple):
    """Mean and sd of the distance modulus and of the reddening, mag."""

    modulus: Array
    modulus_error: Array
    reddening: Array
    reddening_error: Array


def summary(q: Quadratic, others: Others, nodes: int = 11) -> Summary:
    """Posterior moments (...), by the same quadrature as `log_marginal`."""
    x, width = mode(q, others)
    t, log_w = _nodes(nodes, x)
    at = x + width * t
    p = jax.nn.softmax(log_integrand(q, others, at) + log_w, axis=0)
    e, e_variance = truncated.moments(*_in_e(q, others, at)[:2], q.e_0)
    mean = lambda a: (p * a).sum(0)  # noqa: E731
    mu, red = mean(at), mean(e)
    mu_variance = mean((at - mu) ** 2)
    red_variance = mean(e_variance + (e - red) ** 2)
    return Summary(q.mu_0 + mu, jnp.sqrt(mu_variance), red, jnp.sqrt(red_variance))


GRID = 25
"""Points in mu at which the density is followed to draw from it."""


def draw(at: Place, others: Others, uniform: tuple[Array, Array], reach: float = 5.5) -> tuple[Array, Array]:
    """mu and E at the cumulative probabilities `uniform` (...), (...), of (0, 1).

    mu from its density, log-linear between the points of a grid, then E given mu.
    """
    q, others = at.quadratic, _as(at.mu.dtype, others)
    step = at.width * (2 * reach / (GRID - 1))
    grid = step * (jnp.arange(GRID, dtype=step.dtype).reshape(-1, *[1] * step.ndim) - (GRID - 1) / 2)
    log_p = log_integrand(q, others, grid)
    log_p = log_p - log_p.max(0)
    rise = log_p[1:] - log_p[:-1]
    safe = jnp.where(jnp.abs(rise) < 1e-6, 1e-6, rise)
    mass = jnp.exp(log_p[:-1]) * jnp.expm1(safe) / safe
    # sums up to every bin as a product, and the bin by a mask: on CPUs many times faster than cumsum and gather
    cumulative = jnp.tensordot(jnp.tril(jnp.ones((GRID - 1, GRID - 1), mass.dtype)), mass, 1)
    aim = (uniform[0] * cumulative[-1]).astype(mass.dtype)
    at_bin = jnp.minimum((cumulative < aim).sum(0), GRID - 2)
    mine = at_bin == jnp.arange(GRID - 1).reshape(-1, *[1] * at_bin.ndim)
    pick = lambda a: jnp.where(mine, a, 0.0).sum(0)  # noqa: E731
    within = jnp.clip((aim - pick(cumulative) + pick(mass)) / pick(mass), 1e-12, 1.0)
    slope = pick(safe)
    x = pick(grid[:-1]) + step * jnp.log1p(within * jnp.expm1(slope)) / slope
    h, p, e_0 = _as(uniform[1].dtype, (*_in_e(q, others, x)[:2], q.e_0))
    return at.mu + x, truncated.draw(h, p, e_0, uniform[1])
