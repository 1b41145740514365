"""Features whose errors are correlated: theta' C_n theta in every route, against NumPy, quadrature and coverage."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from conftest import ln_p
from scipy.integrate import quad
from scipy.stats import norm

import bayeslabels as bl
from bayeslabels.data.batches import RowsInMemory
from bayeslabels.inference.passes import by_sweeps
from bayeslabels.kinds.parallax.sums import GaussianBySums, ModeBySums
from bayeslabels.kinds.parallax.training import data_of, fit_mode, fit_q
from bayeslabels.numerics.entries import Entries

BANDS = ("a", "b", "c")
MODEL = bl.Parallax(features=("magnitudes", "ln flux"), sparse=())
TRAIN = 1000
SHARED, OWN, SIGMA, SCATTER = 0.05, 0.01, 0.02, 0.02


def make(n, seed=0):
    """Three bands that share an error of 0.05 mag, and two fluxes of correlated noise; magnitudes alone count."""
    rng = np.random.default_rng(seed)
    mag = 12 + rng.normal(size=(n, 1)) + 0.3 * rng.normal(size=(n, 3))
    true = np.exp(0.2 + (mag - 12) @ [-0.7, 0.4, -0.1] + SCATTER * rng.normal(size=n))
    seen = mag + SHARED * rng.normal(size=(n, 1)) + OWN * rng.normal(size=(n, 3))
    covariance = np.broadcast_to(SHARED**2 + OWN**2 * np.eye(3), (n, 3, 3))
    flux, noise = rng.uniform(0.5, 1.5, (n, 2)), 1e-4 * np.array([[1.0, 0.7], [0.7, 2.0]])
    blocks = {
        "magnitudes": bl.Block(seen, covariance, names=BANDS, unit="mag"),
        "flux": bl.Block(flux, np.broadcast_to(noise, (n, 2, 2))),
        "parallax": bl.Block(true + SIGMA * rng.normal(size=n), SIGMA, unit="mas"),
    }
    return bl.Stars(**blocks), true


def diagonal(stars):
    """The same with the diagonals alone."""
    blocks = {}
    for name in ("magnitudes", "flux"):
        block = stars[name]
        sd = np.sqrt(np.diagonal(block.error, axis1=1, axis2=2))
        blocks[name] = bl.Block(block.value, sd, names=block.names, unit=block.unit)
    return stars.with_block(**blocks)


@pytest.fixture(scope="module")
def case():
    return make(3000)


@pytest.fixture(scope="module")
def stars(case):
    return case[0][:TRAIN]


def matrices(model, stars):
    """C_n (N, D, D) of the scaled features, in NumPy; 0 of what is missing."""
    frame, n = model.require_frame(), len(stars)
    c = np.zeros((n, len(frame.names), len(frame.names)))
    for name, at in (("magnitudes", slice(1, 4)), ("flux", slice(4, 6))):
        block = stars[name]
        slope = np.ones(block.value.shape) if name == "magnitudes" else 1 / block.value
        seen = block.observed & (slope > 0)
        slope = np.where(seen, slope, 0.0)
        covariance = np.where(seen[:, :, None] & seen[:, None], block.error, 0.0)
        c[:, at, at] = slope[:, :, None] * covariance * slope[:, None, :]
    return c / (frame.scale[:, None] * frame.scale)


def with_gaps(stars):
    """A value, a variance and a flux are missing."""
    magnitudes, flux = stars["magnitudes"], stars["flux"]
    value, error, ln = magnitudes.value.copy(), magnitudes.error.copy(), flux.value.copy()
    value[0, 1], error[1, 2, 2], ln[2, 0] = np.nan, np.nan, -0.1
    return stars.with_block(magnitudes=bl.Block(value, error, names=BANDS, unit="mag"), flux=bl.Block(ln, flux.error))


def test_entries_are_those_of_the_matrices():
    entries, rng = Entries(6, ((1, 3), (3, 6))), np.random.default_rng(0)
    i, j, _ = entries.index
    assert len(i) == entries.n_entry == 6 + 1 + 3
    pull, theta = rng.normal(size=len(i)), rng.normal(size=6)
    p = np.zeros((6, 6))
    p[i, j] = p[j, i] = pull
    assert (p[:3, 3:] == 0).all()
    assert pull @ entries.products(theta) == pytest.approx(theta @ p @ theta)
    np.testing.assert_allclose(entries.applied(pull, theta), p @ theta)
    spread = np.cov(rng.normal(size=(6, 9)))
    some = np.array([1, 0, 0, 1, 1, 1])
    second = np.outer(theta, theta) + spread * np.outer(some, some)
    assert pull @ entries.expected(theta, spread, some) == pytest.approx((p * second).sum())
    a = np.zeros((7, 7))
    entries.add_positive(a, pull)
    values, vectors = np.linalg.eigh(p)
    np.testing.assert_allclose(a[:6, :6], (vectors * np.maximum(values, 0)) @ vectors.T, atol=1e-12)


def test_variance_of_the_features_is_the_whole_quadratic_form(stars):
    """Of plain and of traced stars, with rows and columns of what is missing left out."""
    model, some = MODEL.bind(stars), with_gaps(stars[:8])
    theta = np.random.default_rng(1).normal(size=6)
    with jax.enable_x64(True):
        design = model.design(some)
        ours = np.asarray(model.feature_variance(theta, design))
        traced = np.asarray(jax.jit(lambda s: model.feature_variance(theta, model.design(s)))(some))
        missing = np.where(design.measured, 0.0, theta)[:, 1:]
    frame = model.require_frame()
    own = np.einsum("jq,nqr,kr->njk", frame.loadings, design.spread, frame.loadings) + np.diag(frame.noise)
    expected = np.einsum("i,nij,j->n", theta, matrices(model, some), theta)
    assert (~design.measured).sum(1).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    expected += np.einsum("ni,nij,nj->n", missing, own, missing)
    np.testing.assert_allclose(ours, expected, rtol=1e-10)
    np.testing.assert_allclose(traced, expected, rtol=1e-10)


def test_program_density(stars):
    """ln p(parallax | sites) of the NumPyro program by quadrature over the intrinsic scatter."""
    model, some = MODEL.replace(zero_point=(0.0, 0.1)).bind(stars), stars[:3]
    sites = {
        "wide": np.array([0.1, -0.6, 0.3, -0.1, 0.2, -0.1]),
        "scatter": np.array(0.1),
        "zero_point": np.array(-0.02),
    }
    with jax.enable_x64(True):
        total = ln_p(model, some, sites)
        x = model.design(some).value
    expected = norm.logpdf(sites["wide"], 0, 10).sum() + norm.logpdf(-0.02, 0, 0.1) + np.log(2) + norm.logpdf(0.1)
    for eta, y, c in zip(x @ sites["wide"], some["parallax"].value[:, 0], matrices(model, some), strict=True):
        s = np.sqrt(0.01 + sites["wide"] @ c @ sites["wide"])
        integrand = lambda z: norm.pdf(y, np.exp(eta + s * z) - 0.02, SIGMA) * norm.pdf(z)  # noqa: B023, E731
        at = (np.log(max(y + 0.02, 1e-3)) - eta) / s
        expected += np.log(quad(integrand, -9, 9, points=[np.clip(at, -8, 8)], epsabs=1e-14, limit=200)[0])
    assert total == pytest.approx(expected, rel=1e-8)


def test_errors_are_those_of_bands_that_share_a_calibration(case, posterior_of):
    """Stated errors are true with the covariances, and too large by a third or more without them."""
    stars, true = case
    spread = {}
    for name, seen in (("whole", stars), ("diagonal", diagonal(stars))):
        result = bl.infer(posterior_of(name), seen[TRAIN:], bl.MAP())
        off = np.log(true[TRAIN:]) - result.stars["ln_parallax"].values
        spread[name] = np.std(off / result.stars["ln_parallax_error"].values)
    assert abs(spread["whole"] - 1) < 0.12  # 2000 stars: the sd of sampling is 0.016, and s is known to 0.04 of it
    assert spread["diagonal"] < 0.75
    assert posterior_of("whole").moments.scatter == pytest.approx(SCATTER, abs=0.006)


@pytest.fixture(scope="module")
def posterior_of(stars):
    found = {name: bl.fit(MODEL, x, seed=0) for name, x in (("whole", stars), ("diagonal", diagonal(stars)))}
    assert all(x.info["converged"] for x in found.values())
    return found.__getitem__


def test_covariances_that_are_diagonal_change_nothing(stars):
    model = MODEL.bind(stars)
    eye = np.eye(3) * np.diagonal(stars["magnitudes"].error, axis1=1, axis2=2)[:, None]
    same = diagonal(stars).with_block(magnitudes=bl.Block(stars["magnitudes"].value, eye, names=BANDS, unit="mag"))
    with jax.enable_x64(True):
        a, b = (fit_q(model, data_of(model, x)) for x in (same, diagonal(stars)))
        m, n = (fit_mode(model, data_of(model, x), 0) for x in (same, diagonal(stars)))
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-8)
    np.testing.assert_allclose(a.covariance, b.covariance, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(m.moments.coefficients, n.moments.coefficients, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["Laplace", "MAP"])
def test_passes_end_where_memory_does(name, stars):
    rows = RowsInMemory(MODEL.bind(stars), stars, np.ones(len(stars), bool), stars)
    with jax.enable_x64(True):
        if name == "Laplace":
            ours = by_sweeps(GaussianBySums(rows.model, rows.stars, 10, 0, 1e-5), rows, 60, False).moments
            theirs = fit_q(rows.model, data_of(rows.model, stars))
            mean, s = theirs.mean[:-1], theirs.s
            sd = np.sqrt(np.diag(theirs.covariance))[:-1]
        else:
            ours = by_sweeps(ModeBySums(rows.model, rows.stars, len(stars), 0), rows, 60, False).moments
            theirs = fit_mode(rows.model, data_of(rows.model, stars), 0).moments
            mean, s, sd = theirs.coefficients, theirs.scatter, 0.002
    np.testing.assert_allclose((ours.coefficients - mean) / sd, 0.0, atol=0.05)
    assert float(ours.scatter) == pytest.approx(float(s), rel=0.02)


def test_a_result_says_which_column_is_the_median(case, posterior_of):
    result = bl.infer(posterior_of("whole"), case[0][TRAIN : TRAIN + 10].drop("parallax"))
    table, eta = result.table(), result.stars["ln_parallax"].values
    np.testing.assert_allclose(table["parallax_sp_p50"].value, np.exp(eta), rtol=1e-12)
    np.testing.assert_allclose(
        table["parallax_sp"].value, np.exp(eta + 0.5 * result.stars["ln_parallax_error"].values ** 2), rtol=1e-12
    )
    assert "median" in table["parallax_sp_p50"].info.description
    assert "mean" in table["parallax_sp"].info.description
