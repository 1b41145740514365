"""Parallaxes as polynomials: errors of products against NumPy, every training route, recovery, coverage, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy.special import logsumexp
from scipy.stats import binom, norm

import bayeslabels as bl
from bayeslabels.data.batches import RowsInMemory
from bayeslabels.errors import BadInput
from bayeslabels.inference.passes import by_sweeps
from bayeslabels.kinds.parallax.sums import GaussianBySums

SPREAD, NOISE, SIGMA, SCATTER = np.array([600.0, 1.0]), np.array([30.0, 0.03]), 0.03, 0.05
MODEL = bl.Parallax(features=("magnitudes", "labels"), function="polynomial", order=2, zero_point=(0.0, 0.01))


def bright(u):
    """ln parallax less that of the magnitude: curved in both labels, dwarfs and giants."""
    return 0.4 * u[:, 0] + 0.9 * u[:, 1] - 0.25 * u[:, 1] ** 2 + 0.2 * u[:, 0] * u[:, 1]


def make(n, seed=0):
    rng = np.random.default_rng(seed)
    giant = rng.random(n) < 0.5
    u = np.column_stack([rng.normal(size=n), np.where(giant, -1.0, 1.0) + 0.3 * rng.normal(size=n)])
    mag = 12 + rng.normal(size=n)
    true = np.exp(-0.4 - 0.2 * np.log(10) * (mag - 12) + bright(u) + SCATTER * rng.normal(size=n))
    labels = np.array([5000.0, 3.0]) + SPREAD * u + NOISE * rng.normal(size=(n, 2))
    blocks = {
        "labels": bl.Block(labels, NOISE, names=("TEFF", "LOGG"), unit=("K", "dex")),
        "magnitudes": bl.Block(mag[:, None], 0.01, names=("G",), unit="mag"),
        "parallax": bl.Block(true + SIGMA * rng.normal(size=n), SIGMA, unit="mas"),
    }
    return bl.Stars(**blocks), true


@pytest.fixture(scope="module")
def case():
    return make(1400)


@pytest.fixture(scope="module")
def posterior(case):
    return bl.fit(MODEL, case[0][:800], seed=0, progress=False)


def test_features_and_their_errors(case):
    """The products, and theta' C theta with C by finite differences, of stars that miss nothing or a label."""
    model, stars = MODEL.bind(case[0]), case[0][:4]
    value = stars["labels"].value.copy()
    value[3, 0] = np.nan
    gap = stars.with_block(labels=bl.Block(value, NOISE, names=("TEFF", "LOGG"), unit=("K", "dex")))
    frame, x = model.frame, model.design(gap)
    assert frame.names == ("1", "G", "TEFF", "LOGG", "G^2", "G*TEFF", "G*LOGG", "TEFF^2", "TEFF*LOGG", "LOGG^2")
    assert frame.source[-1] == "products"
    raw = np.column_stack([stars["magnitudes"].value, stars["labels"].value])
    own = (raw - frame.products.centre) / frame.products.scale

    def every(u):
        g, t, y = u
        return np.array([g, t, y, g * g, g * t, g * y, t * t, t * y, y * y])

    theta = np.random.default_rng(1).standard_normal(10)
    with jax.enable_x64(True):
        variance = np.asarray(model.feature_variance(theta, x))
        traced = jax.jit(lambda s: model.design(s))(gap)
        for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(traced), strict=True):
            np.testing.assert_allclose(np.broadcast_to(a, np.shape(b)), b, rtol=1e-6, atol=1e-9)
    scale = np.r_[frame.scale[1:4] / frame.products.scale, frame.scale[4:]]
    errors = np.r_[0.01, NOISE] / frame.products.scale
    for n in range(3):
        centre = np.r_[(frame.centre[1:4] - frame.products.centre) / frame.products.scale, frame.centre[4:]]
        np.testing.assert_allclose(x.value[n, 1:], (every(own[n]) - centre) / scale, rtol=1e-8, atol=1e-10)
        step = 1e-5
        slope = np.stack([(every(own[n] + d) - every(own[n] - d)) / (2 * step) for d in step * np.eye(3)], 1)
        slope = slope / scale[:, None] * errors
        np.testing.assert_allclose(variance[n], theta[1:] @ slope @ slope.T @ theta[1:], rtol=1e-6)
    assert x.measured[3].tolist() == [True, True, False, True, True, False, True, False, False, True]


def test_the_programs_density(case, posterior):
    """ln p(parallax) of given parameters, by quadrature over the lognormal."""
    model, stars = posterior.model, case[0][:5]
    theta, s = posterior.moments.coefficients, 0.1
    point = {"wide": theta, "scatter": s, "zero_point": 0.005}
    with jax.enable_x64(True):

        @jax.jit
        def of_stars(point):
            whole = log_density(model, (stars,), {}, point)[0]
            return whole - log_density(model.parameters, (), {}, point)[0]

        ours, x = of_stars({k: jnp.asarray(v) for k, v in point.items()}), model.design(stars)
        eta, sd = x.value @ theta, np.sqrt(s**2 + np.asarray(model.feature_variance(theta, x)))
    y, sigma = stars["parallax"].value[:, 0], stars["parallax"].error[:, 0]
    z = np.linspace(-9, 9, 200_001)
    by_hand = [
        logsumexp(norm(np.exp(eta[n] + sd[n] * z) + 0.005, sigma[n]).logpdf(y[n]) + norm.logpdf(z))
        + np.log(z[1] - z[0])
        for n in range(5)
    ]
    np.testing.assert_allclose(float(ours), np.sum(by_hand), rtol=1e-6)


def test_recovers_the_function_and_covers(case, posterior):
    """Coefficients of the truth, held-out parallaxes of dwarfs and of giants; a linear function has neither."""
    stars, true = case[0][800:], case[1][800:]
    table = posterior.summary()
    frame = posterior.model.frame
    at = dict(zip(table["feature"], zip(table["coefficient"], table["coefficient_error"], strict=True), strict=True))
    s = frame.products.scale
    for name, expected in (("LOGG^2", -0.25 * s[2] ** 2), ("TEFF*LOGG", 0.2 * s[1] / 600 * s[2]), ("G^2", 0.0)):
        value, error = at[name]
        assert abs(value - expected) < 4 * error + 0.015, name
    result = bl.infer(posterior, stars.drop("parallax"), progress=False)
    eta, sd = (result.stars[name].values for name in ("ln_parallax", "ln_parallax_error"))
    z = (np.log(true) - eta) / sd
    giant = stars["labels"].value[:, 1] < 3
    for rows in (giant, ~giant):
        low, high = binom.interval(0.999, rows.sum(), 0.6827)
        assert low <= (np.abs(z[rows]) < 1).sum() <= high
        assert abs(z[rows].mean()) < 3.5 / np.sqrt(rows.sum())
    straight = bl.fit(MODEL.replace(function="linear"), case[0][:800], progress=False)
    worse = bl.infer(straight, stars.drop("parallax"), progress=False)
    off, wrong = np.log(true) - eta, np.log(true) - worse.stars["ln_parallax"].values
    assert off.std() < 0.6 * wrong.std()


def test_streamed_and_sparse_routes_agree(case, posterior):
    stars = case[0][:800]
    model = posterior.model
    rows = RowsInMemory(model, stars)
    streamed = by_sweeps(GaussianBySums(model, stars, 50, 0), rows, 100, False, None).moments
    for name in ("coefficients", "scatter", "zero_point"):
        np.testing.assert_allclose(getattr(streamed, name), getattr(posterior.moments, name), atol=2e-3)
    mode = bl.fit(MODEL, stars, bl.MAP(), progress=False)
    eta = [np.log(x.predict(stars[:50].drop("parallax"))[:, 0]) for x in (mode, posterior)]
    np.testing.assert_allclose(eta[0], eta[1], atol=0.02)


def test_missing_and_bad_input(case, posterior, tmp_path):
    stars = case[0][800:830].drop("parallax")
    value = stars["labels"].value.copy()
    value[:10, 1], value[10] = np.nan, np.nan
    gaps = stars.with_block(labels=bl.Block(value, NOISE, names=("TEFF", "LOGG"), unit=("K", "dex")))
    result = bl.infer(posterior, gaps, progress=False)
    sd = result.stars["ln_parallax_error"].values
    assert np.isfinite(sd).all()
    assert (sd[:10] > 3 * np.median(sd[11:])).all()
    assert result.stars["n_missing"].values[[0, 10, 20]].tolist() == [1, 2, 0]
    again = bl.infer(bl.load(posterior.save(tmp_path / "model.nc")), gaps, progress=False)
    np.testing.assert_array_equal(again.mean, result.mean)
    with pytest.raises(BadInput, match="a ln parallax that is linear in them"):
        bl.Parallax(function="network")
    with pytest.raises(BadInput, match="order=0"):
        bl.Parallax(function="polynomial", order=0)
    rng = np.random.default_rng(0)
    wide = case[0][:50].with_block(flux=bl.Block(rng.uniform(0.5, 1.5, (50, 40)), 0.01))
    with pytest.raises(BadInput, match="a polynomial of order 2 in 40 features, which has 820 products"):
        bl.Parallax(features=("ln flux",), sparse=(), function="polynomial").bind(wide)
    kept = bl.Parallax(features=("labels", "ln flux"), function="polynomial").bind(wide)
    assert kept.frame.source == ("", *["flux"] * 40, "labels", "labels", *["products"] * 3)
    kept.check(wide)
