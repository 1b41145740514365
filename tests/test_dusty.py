"""The integral over distance modulus and reddening, against dense matrices and grids in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy.special import log_ndtr
from scipy.stats import kstest, multivariate_normal, norm

from bayeslabels.core import priors
from bayeslabels.core.reddening_priors import Falling
from bayeslabels.numerics import dusty, truncated
from bayeslabels.numerics.density import density_of, peak_density
from bayeslabels.numerics.modes import find_modes

N_BAND, N_FACTOR = 5, 3


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def case(seed, parallax=True, reddening=True, missing=(), prior=priors.NormalModulus()):  # noqa: B008
    """A star: what `quadratic` takes, and what is known beside."""
    rng = np.random.default_rng(seed)
    vector = np.array([2.6, 3.4, 1.9, 0.8, 0.3])
    factors = 0.2 * rng.normal(size=(N_FACTOR, N_BAND))
    variance = rng.uniform(0.02, 0.04, N_BAND) ** 2
    seen = np.ones(N_BAND)
    seen[list(missing)] = 0.0
    mu, e = 9.0 + rng.normal(), rng.exponential(0.2)
    noise = factors.T @ rng.normal(size=N_FACTOR) + np.sqrt(variance) * rng.normal(size=N_BAND)
    residual = np.where(seen > 0, mu + e * vector + noise, 0.0)
    w, sigma = 10 ** (0.2 * (10 - mu)), 0.3
    others = dusty.Others(
        *(np.asarray(x) for x in (w + sigma * rng.normal() if parallax else 0.0, 1 / sigma if parallax else 0.0,
          e + 0.05 * rng.normal() if reddening else 0.0, 20.0 if reddening else 0.0)),
        prior, Falling(np.asarray(6.0)),
    )  # fmt: skip
    return residual, vector, factors, variance, seen, others


def log_joint(mu, e, residual, vector, factors, variance, seen, others):
    """ln p(mu, E, data) by dense matrices."""
    at = seen > 0
    covariance = (np.diag(variance) + factors.T @ factors)[np.ix_(at, at)]
    out = multivariate_normal(np.zeros(at.sum()), covariance).logpdf((residual - mu - e * vector)[at])
    out += np.log(6.0) - 6.0 * e
    if others.parallax_weight > 0:
        out += norm(10 ** (0.2 * (10 - mu)), 1 / others.parallax_weight).logpdf(others.parallax)
    if others.reddening_weight > 0:
        out += norm(e, 1 / others.reddening_weight).logpdf(others.reddening)
    return out + float(others.distance.log_density(jnp.asarray(mu)))


def quadratic(residual, vector, factors, variance, seen, e_0):
    return jax.jit(dusty.quadratic)(*map(jnp.asarray, (residual, vector, factors, variance, seen)), jnp.asarray(e_0))


summary, log_marginal, draw = jax.jit(dusty.summary), jax.jit(dusty.log_marginal), jax.jit(dusty.draw)


@jax.jit
def in_single(q, others):
    at, log_norm = dusty.place(q, others, jnp.float32)
    assert at.mu.dtype == jnp.float32
    return dusty.log_marginal_at(at, log_norm, others)


CASES = [{}, {"parallax": False}, {"reddening": False}, {"missing": (1, 4)}, {"parallax": False, "missing": (0, 2, 3)}]
PRIORS = [priors.NormalModulus(), priors.ExponentialDisk()]


@pytest.mark.parametrize("given", CASES)
def test_the_quadratic_is_the_dense_gaussian(given):
    residual, vector, factors, variance, seen, others = case(3, **given)
    flat = others._replace(parallax_weight=0.0, reddening_weight=0.0)
    for e_0 in (0.0, 0.3):
        q = quadratic(residual, vector, factors, variance, seen, e_0)
        for mu, e in ((9.0, 0.1), (10.2, 0.7)):
            x, y = mu - q.mu_0, e - e_0
            ours = q.log_norm + q.b_mu * x + q.b_e * y - 0.5 * (q.a_mu * x**2 + 2 * q.a_both * x * y + q.a_e * y**2)
            dense = log_joint(mu, e, residual, vector, factors, variance, seen, flat)
            dense -= np.log(6.0) - 6.0 * e + float(priors.NormalModulus().log_density(jnp.asarray(mu)))
            np.testing.assert_allclose(ours, dense, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("given", CASES)
@pytest.mark.parametrize("seed", [1, 2])
def test_the_integral_over_modulus_and_reddening(given, prior, seed):
    parts = case(seed, **given, prior=prior)
    others = parts[-1]
    q = quadratic(*parts[:-1], 0.2)
    told = summary(q, others)
    mu, mu_w = np.polynomial.legendre.leggauss(200)
    e, e_w = np.polynomial.legendre.leggauss(200)
    mu = told.modulus + 8 * told.modulus_error * mu
    low = max(0.0, float(told.reddening - 9 * told.reddening_error))
    high = float(told.reddening + 9 * told.reddening_error)
    e = low + 0.5 * (high - low) * (e + 1)
    grid = grid_log_joint(mu, e, parts)
    weight = np.outer(mu_w * 8 * told.modulus_error, e_w * 0.5 * (high - low))
    p = weight * np.exp(grid - grid.max())
    brute = np.log(p.sum()) + grid.max()
    np.testing.assert_allclose(log_marginal(q, others), brute, atol=2e-3)
    np.testing.assert_allclose(in_single(q, others), brute, atol=4e-3)
    np.testing.assert_allclose(told.modulus, (p.sum(1) * mu).sum() / p.sum(), atol=0.02 * told.modulus_error)
    np.testing.assert_allclose(told.reddening, (p.sum(0) * e).sum() / p.sum(), atol=0.02 * told.reddening_error)
    np.testing.assert_allclose(dusty.rough(q, others), brute, atol=1.0)


def grid_log_joint(mu, e, parts):
    residual, vector, factors, variance, seen, others = parts
    at = seen > 0
    inverse = np.linalg.inv((np.diag(variance) + factors.T @ factors)[np.ix_(at, at)])
    off = (residual - mu[:, None, None] - e[:, None] * vector)[..., at]
    out = -0.5 * np.einsum("abi,ij,abj->ab", off, inverse, off) + 0.5 * np.linalg.slogdet(inverse / (2 * np.pi))[1]
    out += np.log(6.0) - 6.0 * e + np.asarray(others.distance.log_density(jnp.asarray(mu)))[:, None]
    if others.parallax_weight > 0:
        out += norm(10 ** (0.2 * (10 - mu)), 1 / others.parallax_weight).logpdf(others.parallax)[:, None]
    if others.reddening_weight > 0:
        out += norm(e, 1 / others.reddening_weight).logpdf(others.reddening)
    return out


def test_draws_follow_the_density():
    parts = case(4, parallax=False, prior=priors.ExponentialDisk())
    others = parts[-1]
    q = quadratic(*parts[:-1], 0.0)
    uniform = np.random.default_rng(0).random((2, 4000))
    wide = jax.tree.map(lambda x: jnp.broadcast_to(x, 4000), (q, jax.tree.map(jnp.asarray, others)))
    told = summary(q, others)
    both = jnp.asarray(uniform[0]), jnp.asarray(uniform[1])
    grid_mu = np.linspace(-8, 8, 400) * told.modulus_error + told.modulus
    grid_e = np.linspace(0, told.reddening + 10 * told.reddening_error, 400)
    p = grid_log_joint(grid_mu, grid_e, parts)
    p = np.exp(p - p.max())
    for dtype in (jnp.float32, jnp.float64):
        mu, e = draw(jax.jit(dusty.place, static_argnums=2)(*wide, dtype)[0], wide[1], both)
        for drawn, grid, density in ((mu, grid_mu, p.sum(1)), (e, grid_e, p.sum(0))):
            cdf = integrate.cumulative_trapezoid(density, grid, initial=0)
            assert kstest(np.interp(drawn, grid, cdf / cdf[-1]), "uniform").pvalue > 1e-3


def test_truncated_gaussians():
    t = -np.logspace(-3, 1.5, 60)
    np.testing.assert_allclose(truncated.scaled_log_ndtr(jnp.asarray(t)), t**2 / 2 + log_ndtr(t), atol=1e-11)
    uniform = jnp.asarray((np.arange(20000) + 0.5) / 20000)

    @jax.jit
    def told(h, p, c):
        value, slope = jax.value_and_grad(truncated.log_integral)(h, p, c)
        return value, slope, *truncated.moments(h, p, c), truncated.draw(h, p, c, uniform)

    for h, p, c in [(3.0, 2.0, 0.5), (-30.0, 0.1, 0.0), (5.0, 40.0, 0.3), (-200.0, 3000.0, 0.1), (-3e4, 1.0, 0.0)]:
        scale = min(1 / np.sqrt(p), 1 / max(-(h + p * c), 1e-9)) * 40
        brute = integrate.quad(lambda y, h=h, p=p: np.exp(h * y - p * y * y / 2), -c, -c + scale, limit=300)[0]
        value, slope, mean, variance, drawn = map(np.asarray, told(h, p, c))
        if h > -1e3:
            np.testing.assert_allclose(value, np.log(brute), atol=1e-8)
        np.testing.assert_allclose(slope + c, mean, rtol=1e-5, atol=1e-12)
        np.testing.assert_allclose([drawn.mean(), drawn.var()], [mean, variance], rtol=0.01)
        assert drawn.min() >= 0


def test_priors_of_distance():
    for prior in PRIORS:
        mu = jnp.linspace(-15.0, 35.0, 4001)
        np.testing.assert_allclose(np.trapezoid(np.exp(prior.log_density(mu)), mu), 1.0, atol=5e-3)
        np.testing.assert_allclose(prior.distribution().log_prob(mu), prior.log_density(mu), rtol=1e-8, atol=1e-8)
        slope = jax.grad(prior.log_density)
        ours, by_jax = jax.jit(
            lambda mu, f=slope, p=prior: (p.slopes(mu), jax.vmap(lambda x: (f(x), -jax.grad(f)(x)))(mu))
        )(mu)
        np.testing.assert_allclose(ours[0], by_jax[0], rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(ours[1], by_jax[1], rtol=1e-7, atol=1e-10)


class DoubleWell:
    @staticmethod
    def in_passing(u, shared, own):
        return ((u[:, 0] ** 2 - own) ** 2) * 4 + 0.3 * u[:, 0] + 0.5 * (u[:, 1] / shared) ** 2, u[:, 0] ** 2


def bends(u, shared, own, square):
    steep = jnp.maximum(48 * square - 16 * own, 4.0)
    return jnp.stack([steep, jnp.full_like(steep, shared**-2)], -1)[..., None] * jnp.eye(2)


def test_both_modes_are_found():
    own = jnp.array([1.0, 2.0, 0.5])
    starts = jnp.tile(jnp.array([[2.0, 1.0], [-2.0, 1.0], [0.4, -3.0]]), (3, 1, 1))
    modes = find_modes(DoubleWell(), bends, jnp.asarray(0.7), own, starts)
    assert modes.converged[:2].all()
    x = np.linspace(-3, 3, 20001)
    for n, a in enumerate(np.asarray(own)):
        f = 4 * (x**2 - a) ** 2 + 0.3 * x
        low = x[(f < np.roll(f, 1)) & (f < np.roll(f, -1))]
        np.testing.assert_allclose(np.sort(modes.location[:2, n, 0]), np.sort(low), atol=1e-3)
        best = modes.location[0, n, 0]
        np.testing.assert_allclose(1 / modes.covariance[0, n, 0, 0], 48 * best**2 - 16 * a, rtol=1e-5)
        left = np.exp(-(f - f.min()))[x < 0].sum() / np.exp(-(f - f.min())).sum()
        np.testing.assert_allclose(modes.weight[0, n], left, atol=0.06)


def test_density_of_training_points():
    rng = np.random.default_rng(0)
    training, seen = rng.normal(size=(500, 3)), rng.random((500, 2)) < [1.0, 0.5]
    seen[np.abs(training[:, 0]) < 0.5, 1] = False
    peak = peak_density(training, seen)
    density = density_of(training, seen, peak, np.array([[0.0, 0, 0], [20.0, 0, 0], [np.nan, 0, 0]]))
    assert density[0, 0] > 0.3
    assert density[0, 1] < 0.2 * density[0, 0]
    assert density[1].max() == 0
    assert np.isnan(density[2]).all()
    np.testing.assert_allclose(density_of(training, seen, peak, training)[:, 0].max(), 1.0)
