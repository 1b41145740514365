"""Gaussian posterior of a log-linear regression under sparse priors: variational Bayes with a full covariance.

    y_n = exp(x_n . theta + s_n z_n) + zero + noise_n,   s_n^2 = s^2 + theta' C_n theta,   theta_j ~ a scale mixture

q(theta, zero) = N(mean, covariance) maximises the evidence bound (Opper & Archambeau 2009): Newton steps on the
likelihood averaged over q. Each scale mixture acts as a ridge, the expectation of 1/scale_j^2 under its own optimal
factor; s and the prior's global scale maximise the bound. With a fixed ridge it is the Laplace approximation, but for
that averaging, without which the low-S/N end of the parallaxes drags the zero point.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import minimize_scalar
from scipy.special import exp1

from .compiling import jit
from .entries import Entries
from .linalg import Array, in_float64
from .lognormal import LARGEST, Derivatives, cold_start, derivatives, log_likelihood
from .threads import threads_for

Ridge = Callable[[np.ndarray], np.ndarray]
"""E[theta_j^2] (J,) -> E[1 / scale_j^2] (J,), the prior's global scale re-estimated on the way."""


class GaussianPosterior(NamedTuple):
    """q(theta, zero): mean (D + 1,) and covariance (D + 1, D + 1), the zero point last; s; ridge (D,); convergence."""

    mean: np.ndarray
    covariance: np.ndarray
    s: float
    ridge: np.ndarray
    iterations: int
    converged: bool

    def predict(self, x: Array, variance: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd of ln(true) of new stars: coefficients, features' errors (their variances, (N, D)) and s.

        v_n = s^2 + x_n' Cov x_n + theta' C_n theta, without tr(C_n Cov): the errors e_n of x_n = t_n + e_n are in
        x_n' Cov x_n already, whose expectation is t_n' Cov t_n + tr(C_n Cov).
        """
        theta, covariance = self.mean[:-1], self.covariance[:-1, :-1]
        total = self.s**2 + ((x @ covariance) * x).sum(1)
        if variance is not None:
            total = total + variance @ theta**2
        return x @ theta, np.sqrt(total)


@in_float64
def fit_posterior(
    x: Array,
    y: np.ndarray,
    sigma: np.ndarray,
    *,
    ridge: np.ndarray,
    sparse: np.ndarray | None = None,
    prior: Ridge | None = None,
    variance: Array | None = None,
    entries: Entries | None = None,
    zero_prior: tuple[float, float] = (0.0, 0.05),
    s_start: float = 0.1,
    max_iterations: int = 100,
    tolerance: float = 1e-3,
) -> GaussianPosterior:
    """Fit q from a cold start.

    Args:
        x: (N, D), the constant first, the others centred. y, sigma: (N,), any sign.
        ridge: (D,), 1/sd^2 of the Normal priors; where `sparse` (D,) is True, the start of what `prior` learns.
        variance: (N, V), the features' errors C_n: these entries of them (`Entries`), by default the diagonals.
        zero_prior: mean and sd of the zero point's Normal prior; sd 0 fixes it.
        tolerance: of s and the ridges' effect, relative.
    """
    n, d = x.shape
    mean, width = zero_prior
    ridge, zero, log_s = np.array(ridge, float), mean, np.log(s_start)
    shrunk = np.zeros(d) if sparse is None else sparse.astype(float)
    theta = cold_start(x, y - zero, sigma, np.zeros(d), ridge)
    squares, spread, covariance, converged, count = theta**2, np.zeros(n), np.zeros((d + 1, d + 1)), False, 0
    entries = Entries(d) if entries is None else entries
    noise = entries.products(theta)  # of coefficients without a learned prior at the mean: their spread would feed on
    # itself through s_n
    tilt, pull_of_noise = np.zeros(n), np.zeros(entries.n_entry)  # s_n falls with theta, which acts as a ridge
    last: np.ndarray | None = None
    with threads_for(x.size):
        for count in range(1, max_iterations + 1):
            extra = np.zeros(n) if variance is None else variance @ noise
            before = np.r_[log_s, zero / sigma.min(), np.sqrt((squares * ridge).sum() / d)]
            for _ in range(2):
                s = np.sqrt(np.exp(2 * log_s) + extra)
                out = averaged(zero, x @ theta, s, y, sigma, spread, tilt)
                a, own = information(x, out, width), np.diag(np.append(ridge, 0.0))
                entries.add_positive(own, pull_of_noise)
                a += own
                pull = (np.asarray(out.zero).sum() - (zero - mean) / width**2) if width > 0 else 0.0
                factor, last = factorised(a, functools.partial(_definite, x, out, x @ theta, width, own, last))
                slope = np.asarray(out.eta) @ x - ridge * theta - entries.applied(pull_of_noise, theta)
                step = cho_solve(factor, np.r_[slope, pull])
                step *= min(1.0, 1.0 / np.abs(x @ step[:d]).max())
                theta, zero = theta + step[:d], zero + step[d]
            covariance = cho_solve(factor, np.eye(d + 1))
            if width == 0:
                covariance[d, d] = 0.0
            squares = theta**2 + np.diag(covariance)[:d]
            spread = np.sqrt(np.maximum(((x @ covariance[:d, :d]) * x).sum(1), 0.0))
            tilt = x @ covariance[:d, d] / np.maximum(spread, 1e-300)
            if prior is not None and sparse is not None:
                ridge[sparse] = prior(squares[sparse])
            noise = entries.expected(theta, covariance, shrunk)
            extra = np.zeros(n) if variance is None else variance @ noise
            log_s = _scatter(log_s, zero, x @ theta, y, sigma, spread, tilt, extra)
            if variance is not None:
                by_variance = _by_variance(extra, log_s, zero, x @ theta, y, sigma, spread, tilt)
                pull_of_noise = -2 * np.asarray(by_variance) @ variance
            after = np.r_[log_s, zero / sigma.min(), np.sqrt((squares * ridge).sum() / d)]
            if np.abs(after - before).max() < tolerance and count > 3 and last is a:
                converged = True
                break
    return GaussianPosterior(np.r_[theta, zero], covariance, float(np.exp(log_s)), ridge, count, converged)


def information(x: Array, out: Derivatives, width: float) -> np.ndarray:
    """Minus the second derivatives (D + 1, D + 1) in theta and the zero point, whose prior has this width; 0: fixed.

    They are expectations over q, negative for some of the stars: what is left out of these, or bounded for each star,
    makes the errors of theta and zero point too small, by two where parallaxes are as small as their errors.
    """
    d, h = x.shape[1], np.asarray(out.eta_eta)
    a = np.zeros((d + 1, d + 1))
    half = x * np.sqrt(np.maximum(h, 0.0))[:, None]
    a[:d, :d] = half.T @ half
    if (bent := h < 0).any():
        half = x[bent] * np.sqrt(-h[bent])[:, None]
        a[:d, :d] -= half.T @ half
    a[d, d] = 1.0
    if width > 0:
        a[d, :d] = a[:d, d] = np.asarray(out.eta_zero) @ x
        a[d, d] = np.asarray(out.zero_zero).sum() + width**-2
    return a


def _definite(
    x: Array, out: Derivatives, eta: np.ndarray, width: float, own: np.ndarray, last: np.ndarray | None
) -> np.ndarray:
    """The last information without a negative eigenvalue; at first one of Fisher's approximation for every star."""
    if last is not None:
        return last
    slope = np.exp(-np.clip(eta, -LARGEST, LARGEST))
    scored = out._replace(eta_eta=out.fisher, eta_zero=out.fisher * slope, zero_zero=out.fisher * slope**2)
    return information(x, scored, width) + own


def factorised(a: np.ndarray, definite: Callable[[], np.ndarray]) -> tuple[tuple[np.ndarray, bool], np.ndarray]:
    """Cholesky factor, as `cho_solve` takes it, of a, and the matrix that has it: a itself where it is definite.

    a is of second derivatives: far from the optimum, or beside gross outliers, it may have a negative eigenvalue. Then
    it is averaged with one that has none, the last of them: the step still climbs, and an optimum stays one.
    """
    if np.isfinite(a).all():
        for share in (1.0, 0.5, 0.2, 0.05, 0.0):
            part = a if share == 1 else share * a + (1 - share) * definite()
            try:
                return cho_factor(part, lower=True), part
            except LinAlgError:
                continue
    raise LinAlgError("the information of theta and the zero point has no Cholesky factor")


def normal(second_moment: np.ndarray) -> np.ndarray:
    """theta_j ~ N(0, t^2), t learned."""
    return np.full(len(second_moment), 1 / second_moment.mean())


def laplace(second_moment: np.ndarray) -> np.ndarray:
    """theta_j ~ Laplace(t), t learned: E[1/scale_j^2] = 1 / (t sqrt(E theta_j^2))."""
    root = np.sqrt(second_moment)
    return 1 / (root.mean() * root)


def horseshoe(second_moment: np.ndarray, slab: float = 2.0) -> np.ndarray:
    """theta_j ~ N(0, t^2 l_j^2), l_j ~ half-Cauchy(1), times a slab N(0, slab^2), t learned (Piironen & Vehtari 2017).

    With u = E theta_j^2 / (2 t^2): E[1/l_j^2] = 1 / (u exp(u) E1(u)) - 1, and the bound's ln p is ln[exp(u) E1(u) / t].
    """

    def minus_log_density(log_t: float) -> float:
        return len(second_moment) * log_t - np.log(_scaled_exp1(0.5 * second_moment * np.exp(-2 * log_t))).sum()

    middle = 0.5 * np.log(np.median(second_moment))
    t = np.exp(minimize_scalar(minus_log_density, bounds=(middle - 6, middle + 3), method="bounded").x)
    u = np.maximum(0.5 * second_moment / t**2, 1e-12)
    return (1 / (u * _scaled_exp1(u)) - 1) / t**2 + slab**-2


def _scaled_exp1(u: np.ndarray) -> np.ndarray:
    """exp(u) E1(u); by its asymptotic series where the exponential would overflow."""
    small = np.minimum(u, 50.0)
    inverse = 1 / np.maximum(u, 50.0)
    series = inverse * (1 - inverse * (1 - 2 * inverse * (1 - 3 * inverse * (1 - 4 * inverse))))
    return np.where(u < 50, np.exp(small) * exp1(small), series)


_T, _W = np.polynomial.hermite_e.hermegauss(5)
_W = _W / _W.sum()


@jit
def averaged(
    zero: Array, eta: Array, s: Array, y: Array, sigma: Array, spread: Array, tilt: Array | float = 0.0
) -> Derivatives:
    """`Derivatives` of E[ln p(y_n - zero | eta, s, sigma)] over eta ~ N(eta_n, spread_n^2), the zero point with it.

    tilt: Cov(eta_n, zero) / spread_n. The two are nearly opposite where distant stars say little: averaged over eta
    alone, exp(eta) would pull the zero point up.
    """
    each = derivatives(y - zero - _T[:, None] * tilt, sigma, eta + _T[:, None] * spread, s)
    return Derivatives(*(_W @ part for part in each))


def _scatter(
    log_s: float, zero: Array, eta: Array, y: Array, sigma: Array, spread: Array, tilt: Array | float, extra: Array
) -> float:
    """ln s that maximises the averaged likelihood with a half-normal(1) prior, by safeguarded Newton steps."""
    for _ in range(3):
        slope, curvature = map(float, _scatter_derivatives(log_s, zero, eta, y, sigma, spread, tilt, extra))
        move = slope / curvature if curvature > 0 else np.sign(slope)
        log_s = max(log_s + float(np.clip(move, -0.5, 0.5)), -9.0)
    return log_s


def expected_of_stars(
    extra: Array, log_s: Array, zero: Array, eta: Array, y: Array, sigma: Array, spread: Array, tilt: Array | float
) -> Array:
    """The averaged likelihood (N,) with s_n^2 = s^2 + extra_n."""
    s = jnp.sqrt(jnp.exp(2 * log_s) + extra)
    return _W @ log_likelihood(y - zero - _T[:, None] * tilt, sigma, eta + _T[:, None] * spread, s)


def _expected(
    extra: Array, log_s: Array, zero: Array, eta: Array, y: Array, sigma: Array, spread: Array, tilt: Array | float
) -> Array:
    """That of all stars, and the prior of s."""
    of_stars = expected_of_stars(extra, log_s, zero, eta, y, sigma, spread, tilt)
    return of_stars.sum() - 0.5 * jnp.exp(2 * log_s) + log_s


_by_variance = jit(jax.grad(_expected))


@jit
def _scatter_derivatives(
    log_s: Array, zero: Array, eta: Array, y: Array, sigma: Array, spread: Array, tilt: Array | float, extra: Array
) -> tuple[Array, Array]:
    def total(log_s: Array) -> Array:
        return _expected(extra, log_s, zero, eta, y, sigma, spread, tilt)

    return jax.grad(total)(log_s), -jax.grad(jax.grad(total))(log_s)
