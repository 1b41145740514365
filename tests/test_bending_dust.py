"""Extinction that bends, scatter in luminosity, and covariances of magnitudes: against dense grids in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

import bayeslabels as bl
from bayeslabels.astro.extinction import PASSBANDS, band_bend, band_extinction
from bayeslabels.kinds.photometry.luminosity import luminosity_sd
from bayeslabels.kinds.photometry.scattered import Scattered
from bayeslabels.numerics import dusty, tangent
from bayeslabels.numerics.whitening import Correlated, Independent, noise_of, whitening
from bayeslabels.simulate import simulate_photometry

BANDS = ("G", "BP", "RP", "J", "Ks")


def covariances(n, b, rng, shared=0.05):
    """Errors of 0.02 mag to 0.04 mag, and one that the first three bands share."""
    common = shared * (np.arange(b) < 3)
    return rng.uniform(0.02, 0.04, (n, b, 1)) ** 2 * np.eye(b) + common[:, None] * common


def test_noise_is_the_dense_gaussian():
    rng = np.random.default_rng(0)
    c, y = covariances(4, 5, rng), 0.05 * rng.standard_normal((4, 5))
    extra = np.full((4, 5), 0.01**2)
    seen = np.ones((4, 5))
    seen[1, 2] = seen[2, 0] = seen[2, 4] = 0.0
    with jax.enable_x64(True):
        x, z = rng.standard_normal((2, 7, 5))

        @jax.jit
        def told(c):
            noise = noise_of(c, jnp.asarray(extra), jnp.asarray(seen))
            assert isinstance(noise, Correlated if c.ndim == 3 else Independent)
            white = noise.white(jnp.asarray(seen * y)[:, None])[:, 0]
            times = noise.precision_times(jnp.asarray(y)[:, None])[:, 0]
            density = -0.5 * ((white**2).sum(1) + noise.log_det)
            return density, noise.log_det, noise.products(jnp.asarray(x), jnp.asarray(z)), times

        ours, _, products, times = map(np.asarray, told(c))
        variance = np.einsum("nbb->nb", c)
        same = [map(np.asarray, told(x)[1:3]) for x in (variance, variance[:, None] * np.eye(5))]
        sample = jax.jit(
            lambda c, key: Scattered(jnp.zeros((4, 5)), c, extra[0], 0.0, 0.0, seen, jnp.ones(5)).sample(key, (4000,))
        )(c, jax.random.key(0))
    for n, mask in enumerate(seen > 0):
        dense = (c[n] + np.diag(extra[n]))[np.ix_(mask, mask)]
        np.testing.assert_allclose(
            ours[n], multivariate_normal(np.zeros(mask.sum()), dense).logpdf(y[n, mask]), rtol=1e-10
        )
        inverse = np.zeros((5, 5))
        inverse[np.ix_(mask, mask)] = np.linalg.inv(dense)
        np.testing.assert_allclose(products[n], np.einsum("si,ij,sj->s", x, inverse, z), rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(times[n], inverse @ y[n], rtol=1e-9, atol=1e-6)
    for a, b in zip(*same, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
    np.testing.assert_allclose(np.cov(np.asarray(sample)[:, 0].T), c[0] + np.diag(extra[0]), atol=3e-4)


def test_the_slope_of_whitening():
    rng = np.random.default_rng(1)
    c, weight = covariances(3, 4, rng), rng.standard_normal((3, 4, 4))

    def f(s):
        return (weight * whitening(jnp.asarray(c) + s[:, None] * jnp.eye(4))).sum()

    with jax.enable_x64(True):
        s = jnp.full((3, 4), 0.02**2)
        ours, f, step = np.asarray(jax.jit(jax.grad(f))(s)), jax.jit(f), 1e-8
        numeric = [(f(s.at[0, i].add(step)) - f(s.at[0, i].add(-step))) / (2 * step) for i in range(4)]
    np.testing.assert_allclose(ours[0], numeric, rtol=1e-5)


def test_scatter_in_luminosity_is_a_factor_of_all_bands():
    rng = np.random.default_rng(2)
    vector, variance = np.array([2.6, 3.4, 1.9, 0.8, 0.3]), rng.uniform(0.02, 0.04, 5) ** 2
    factors = 0.2 * rng.normal(size=(2, 5))
    residual = 9 + 0.3 * vector + 0.03 * rng.normal(size=5)
    with jax.enable_x64(True):
        args = jnp.asarray(variance), jnp.ones(5), jnp.asarray(0.2)
        both = jnp.concatenate([factors, 0.15 * np.ones((1, 5))])
        quadratic = jax.jit(dusty.quadratic)
        joint = quadratic(residual, vector, both, *args)
        ours = dusty.scattered(quadratic(residual, vector, jnp.asarray(factors), *args), 0.15)
    np.testing.assert_allclose(np.array(ours), np.array(joint), rtol=1e-9, atol=1e-9)
    u = jnp.asarray(rng.standard_normal((6, 2)))
    flat = luminosity_sd(0.1, jnp.zeros(5), u)
    np.testing.assert_allclose(flat, 0.1, rtol=1e-6)
    steep = luminosity_sd(0.1, jnp.array([100.0, 0, 0, 0, 0]), u)
    assert 0.1 * np.exp(-3.01) < float(steep.min()) < float(steep.max()) < 0.1 * np.exp(3.01)


def test_how_far_bands_bend():
    """G: -0.037 mag at A_G = 1 (Green+21, app. B); to second order what the law gives by integration."""
    w = band_bend(("G", "PS1_r", "r", "nobody's"))
    assert 0.03 < w[0] < 0.045
    assert w[1] == w[2] < 0.005
    assert w[3] == 0
    at = [band_extinction([5500.0], ("G",), a_v=a)[0, 0] * a for a in (1e-3, 0.5)]
    straight = at[0] * 500
    np.testing.assert_allclose((straight - at[1]) / straight**2, w[0], rtol=0.15)
    e, vector = jnp.linspace(0.1, 1.0, 4), jnp.array([[2.6, 0.3]])
    numeric = (tangent.extinction(e + 1e-2, vector, 0.04) - tangent.extinction(e - 1e-2, vector, 0.04)) / 2e-2
    np.testing.assert_allclose(tangent.slope(e, vector, 0.04), numeric, rtol=1e-3)
    assert set(PASSBANDS) >= set(BANDS)


@pytest.fixture(scope="module")
def survey():
    return simulate_photometry(1200, BANDS, seed=1, length=0.6)


@pytest.mark.parametrize("reddening", [True, False])
def test_the_collapsed_density_is_the_integral_of_the_programs(survey, reddening):
    """With bent extinction, covariances, and a scatter that depends on the star, at E = 1; E on a grid."""
    rng, stars = np.random.default_rng(3), survey[0][:5]
    bound = 0.02 if reddening else 0.1  # bent by -w (R y)^2 within a wide posterior of E
    model = bl.Photometry(function="polynomial", order=1, components=1, distance_prior=bl.priors.NormalModulus())
    model = model.bind(survey[0])
    theta = model.start(survey[0], 0) | {"reddening_bend": np.array([0.04, 0.015, 0.02, 0.003, 0.0])}
    theta["weights"] = 0.1 * rng.normal(size=theta["weights"].shape)
    theta["luminosity_scatter_slope"] = 0.1 * rng.normal(size=9)
    vector = np.exp(theta["reddening_log"])
    c, e = covariances(5, 5, rng, 0.03), rng.uniform(0.8, 1.2, (5, 1))
    a = e * vector
    value = stars.magnitudes.value + a * (1 - theta["reddening_bend"] * a)
    stars = stars.with_block(
        magnitudes=bl.Block(value, c, names=BANDS, unit="mag"),
        reddening=bl.Block(e + 0.1 * rng.normal(size=e.shape), 0.02 + 0.1 * e, unit="mag"),
    )
    stars = stars if reddening else stars.drop("reddening")
    with jax.enable_x64(True):
        ours = np.asarray(jax.jit(model.log_likelihood)(theta, jax.tree.map(jnp.asarray, model.arrays(stars))))
        frame = model.frame
        base = np.asarray(model.absolute(jnp.asarray(theta["weights"]), jnp.zeros((1, 3))))[0]
        slope = np.asarray(model.absolute(jnp.asarray(theta["weights"]), jnp.eye(3))) - base
    _, (mean,), (population,) = frame.population
    nodes, weights = np.polynomial.legendre.leggauss(200)
    for n in range(len(stars)):
        u = (stars.labels.value[n] - frame.centre) / frame.scale
        spread = population + np.diag(stars.labels.error[n] / frame.scale) ** 2
        gain = population @ np.linalg.inv(spread)
        centre, rest = mean + gain @ (u - mean), population - gain @ population
        seen = stars.magnitudes.observed[n]
        with jax.enable_x64(True):
            sd = float(
                luminosity_sd(theta["luminosity_scatter"], theta["luminosity_scatter_slope"], jnp.asarray(centre))
            )
        residual = (stars.magnitudes.value[n] - base - centre @ slope)[seen]
        grid_e = 1.5 * (nodes + 1)
        bent = grid_e[:, None] * vector
        bent = (bent * (1 - theta["reddening_bend"] * bent))[:, seen]
        mu = np.median(residual - (e[n] * vector * (1 - theta["reddening_bend"] * e[n] * vector))[seen]) + 3 * nodes
        total = -np.inf
        for wide, share in ((0.0, 1 - 0.02), (model.outlier_width, 0.02)):
            covariance = c[n] + np.diag(theta["scatter"] ** 2 + wide**2) + slope.T @ rest @ slope + sd**2
            inverse = np.linalg.inv(covariance[np.ix_(seen, seen)])
            off = residual - mu[:, None, None] - bent
            p = -0.5 * np.einsum("abi,ij,abj->ab", off, inverse, off) + 0.5 * np.linalg.slogdet(inverse / 2 / np.pi)[1]
            p += np.asarray(model.distance_prior.log_density(mu))[:, None]
            p += norm(stars.parallax.value[n, 0], stars.parallax.error[n, 0]).logpdf(10 ** (0.2 * (10 - mu)))[:, None]
            p -= grid_e / frame.reddening_scale + np.log(frame.reddening_scale)
            if reddening:
                p += norm(stars.reddening.value[n, 0], stars.reddening.error[n, 0]).logpdf(grid_e)
            total = np.logaddexp(
                total, np.log(share) + np.log((np.exp(p) * 3 * weights[:, None] * 1.5 * weights).sum())
            )
        np.testing.assert_allclose(ours[n], total + multivariate_normal(mean, spread).logpdf(u), atol=bound)
