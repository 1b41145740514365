"""The array mathematics against plain NumPy, SciPy and ArviZ."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from scipy.integrate import quad
from scipy.optimize import lsq_linear, minimize

import bayeslabels as bl
from bayeslabels.inference.polish import Barred
from bayeslabels.numerics.compress import STARS, Statistics, by_blocks, compress
from bayeslabels.numerics.features import Monomials
from bayeslabels.numerics.linalg import inverse_observed, inverse_psd, outer_pairs, pack, solve_and_invert, unpack
from bayeslabels.numerics.psis import smooth_weights
from bayeslabels.numerics.quartics import find_quartic_modes
from bayeslabels.numerics.regression import coordinate_descent, mean_scatter2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def positive_definite(rng, *shape):
    a = rng.normal(size=(*shape, shape[-1]))
    return a @ np.swapaxes(a, -1, -2) + 0.1 * np.eye(shape[-1])


@pytest.mark.parametrize(("order", "n_label"), [(1, 3), (2, 1), (2, 3), (3, 2)])
def test_monomials_are_products(order, n_label):
    features = Monomials.up_to(order, n_label)
    u = np.random.default_rng(0).normal(size=(5, n_label))
    expected = np.array(
        [[np.prod([x**e for x, e in zip(star, row, strict=False)]) for row in features.exponents] for star in u]
    )
    np.testing.assert_allclose(features(u), expected, rtol=1e-14)
    every = {row for row in np.ndindex(*(order + 1,) * n_label) if sum(row) <= order}
    assert set(features.exponents) == every
    assert len(features.exponents) == len(every)
    assert not any(features.exponents[0])


def test_monomials_of_uneven_powers():
    features = Monomials(((0, 0), (4, 0), (1, 2)))
    u = np.array([[2.0, 3.0], [0.0, -1.0]])
    np.testing.assert_allclose(features(u), [[1, 16, 18], [1, 0, 0]])
    np.testing.assert_allclose(features.jacobian(u)[0], [[0, 0], [32, 0], [9, 12]])
    assert features.names(("T", "G")) == ("1", "T^4", "T*G^2")
    assert features.order == 4


@pytest.mark.parametrize("order", [1, 2, 3])
def test_jacobian_is_the_finite_difference(order):
    features, u, h = Monomials.up_to(order, 3), np.random.default_rng(1).normal(size=(4, 3)), 1e-5
    rise = [(features(u + h * step) - features(u - h * step)) / (2 * h) for step in np.eye(3)]
    np.testing.assert_allclose(features.jacobian(u), np.stack(rise, -1), atol=1e-8)
    bend = [(features.jacobian(u + h * step) - features.jacobian(u - h * step)) / (2 * h) for step in np.eye(3)]
    np.testing.assert_allclose(features.hessian(u), np.stack(bend, -1), atol=1e-8)


@pytest.mark.parametrize("order", [1, 3])
def test_numpy_and_jax_compute_the_same(order):
    """What is called on arrays of NumPy is computed by NumPy, on those of JAX by JAX."""
    rng = np.random.default_rng(3)
    features, u, a = Monomials.up_to(order, 3), rng.normal(size=(4, 3)), positive_definite(rng, 4, 3)
    observed = rng.random((4, 3)) > 0.3
    for function in (features, features.jacobian, features.hessian):
        assert isinstance(function(u), np.ndarray)
        np.testing.assert_allclose(function(u), function(jnp.asarray(u)), rtol=1e-14)
    for plain, compiled in (
        (inverse_psd(a), inverse_psd(jnp.asarray(a))),
        (inverse_observed(a, observed), inverse_observed(jnp.asarray(a), jnp.asarray(observed))),
    ):
        assert isinstance(plain, np.ndarray)
        np.testing.assert_allclose(plain, compiled, rtol=1e-12, atol=1e-14)


def test_a_matrix_that_has_no_inverse_is_nan_and_spares_the_others():
    a = positive_definite(np.random.default_rng(5), 4, 3)
    a[1], a[2, 0, 0] = -a[1], np.nan
    inverse = inverse_psd(a)
    assert np.isnan(inverse[[1, 2]]).all(axis=(1, 2)).all()
    np.testing.assert_allclose(inverse[[0, 3]], np.linalg.inv(a[[0, 3]]), rtol=1e-9)


@pytest.mark.parametrize("n", [1, STARS, STARS + 1])
def test_a_function_of_blocks_of_stars_is_compiled_once(n):
    shapes = []

    @jax.jit
    def double(x, pair):
        shapes.append(x.shape)
        return 2 * x, pair[0] + pair[1]

    x = np.arange(3.0 * n).reshape(n, 3)
    twice, total = by_blocks(double, x, (x, -x))
    np.testing.assert_array_equal(twice, 2 * x)
    np.testing.assert_array_equal(total, np.zeros((n, 3)))
    assert shapes == [(STARS, 3)]


@pytest.mark.parametrize("n_label", [1, 2, 3, 5])
def test_gaussian_moments_of_quadratic_features(n_label):
    """Against a product Gauss-Hermite rule, exact for the quartics E[phi phi']."""
    rng = np.random.default_rng(n_label)
    features = Monomials.up_to(2, n_label)
    mean, covariance = rng.normal(size=(2, n_label)), positive_definite(rng, 2, n_label)
    node, weight = np.polynomial.hermite_e.hermegauss(3)
    grid = np.array(np.meshgrid(*[node] * n_label)).reshape(n_label, -1).T
    weights = np.prod(np.meshgrid(*[weight / weight.sum()] * n_label), axis=0).ravel()
    points = mean[:, None] + np.einsum("nij,sj->nsi", np.linalg.cholesky(covariance), grid)
    phi = (points[:, :, None] ** np.array(features.exponents)).prod(-1)
    first, second = features.moments(mean, covariance)
    np.testing.assert_allclose(first, np.einsum("s,nsk->nk", weights, phi), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(second, np.einsum("s,nsk,nsl->nkl", weights, phi, phi), rtol=1e-9, atol=1e-9)


def test_solves_and_inverses():
    rng = np.random.default_rng(2)
    a, b = positive_definite(rng, 6, 5), rng.normal(size=(6, 5))
    np.testing.assert_allclose(solve_and_invert(a, b)[0], np.linalg.solve(a, b[..., None])[..., 0], rtol=1e-10)
    inverse = np.asarray(inverse_psd(a))
    np.testing.assert_allclose(inverse, np.linalg.inv(a), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(inverse, np.swapaxes(inverse, 1, 2), rtol=1e-12)
    np.testing.assert_array_equal(unpack(pack(a), 5), a)


def test_solve_of_badly_scaled_matrices():
    """Labels of any scale: rows and columns that differ by 1e8."""
    rng = np.random.default_rng(3)
    scale = 10.0 ** np.array([-8, -4, 0, 4, 8])
    plain, x = positive_definite(rng, 5), rng.normal(size=5) / scale
    a = plain * scale[:, None] * scale
    np.testing.assert_allclose(solve_and_invert(a, a @ x)[0], x, rtol=1e-9)
    np.testing.assert_allclose(inverse_psd(a) * scale[:, None] * scale, np.linalg.inv(plain), rtol=1e-9)


def test_inverse_of_the_observed_block():
    rng = np.random.default_rng(4)
    covariance = positive_definite(rng, 4, 3)
    observed = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], bool)
    covariance[1, 1] = covariance[1, :, 1] = np.nan
    expected = np.zeros((4, 3, 3))
    for n, seen in enumerate(observed):
        block = np.ix_(seen, seen)
        expected[n][block] = np.linalg.inv(covariance[n][block])
    np.testing.assert_allclose(inverse_observed(covariance, observed), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_pixel", [7, 300])
@pytest.mark.parametrize("with_covariance", [False, True])
def test_compress_is_the_sum_over_pixels(n_pixel, with_covariance):
    rng = np.random.default_rng(n_pixel)
    n, k = 3, 4
    theta, scatter = rng.normal(size=(n_pixel, k)), rng.uniform(0, 0.1, n_pixel)
    covariance = 0.01 * positive_definite(rng, n_pixel, k)
    theta[2], scatter[2], covariance[2] = np.nan, np.nan, np.nan
    value, error = rng.normal(size=(n, n_pixel)), rng.uniform(0.05, 0.2, (n, n_pixel))
    value[0, 0], error[1, 3], error[2, 4] = np.nan, np.nan, np.inf
    phi = rng.normal(size=(n, k))

    gram, linear, constant = np.zeros((n, k, k)), np.zeros((n, k)), np.zeros(n)
    square, used, likelihood, chi2 = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    for i in range(n):
        for j in range(n_pixel):
            if not np.isfinite([value[i, j], error[i, j], scatter[j]]).all():
                continue
            variance = error[i, j] ** 2 + scatter[j] ** 2
            if with_covariance:
                variance += phi[i] @ covariance[j] @ phi[i]
            residual = value[i, j] - theta[j] @ phi[i]
            gram[i] += np.outer(theta[j], theta[j]) / variance
            linear[i] += value[i, j] * theta[j] / variance
            constant[i] += 0.5 * (value[i, j] ** 2 / variance + np.log(2 * np.pi * variance))
            square[i] += value[i, j] ** 2 / variance
            used[i] += 1
            chi2[i] += residual**2 / variance
            likelihood[i] -= 0.5 * (residual**2 / variance + np.log(2 * np.pi * variance))

    extra = {"theta_covariance": covariance, "feature_pairs": outer_pairs(phi)} if with_covariance else {}
    out = compress(value, error, theta, scatter, constant=True, **extra)
    tolerance = {"rtol": 1e-11, "atol": 1e-9}
    for got, expected in zip(out, (gram, linear, constant, square, used), strict=True):
        np.testing.assert_allclose(got, expected, **tolerance)
    np.testing.assert_allclose(out.log_likelihood(phi), likelihood, **tolerance)
    np.testing.assert_allclose(out.chi2(phi), chi2, **tolerance)


def test_compress_without_errors():
    rng = np.random.default_rng(5)
    theta, scatter, value = rng.normal(size=(9, 3)), rng.uniform(0.1, 0.2, 9), rng.normal(size=(2, 9))
    gram = np.einsum("l,lj,lk->jk", scatter**-2, theta, theta)
    out = compress(value, None, theta, scatter)
    np.testing.assert_allclose(out.gram, [gram, gram], rtol=1e-12, atol=1e-10)
    assert np.isnan(out.constant).all()


def test_compress_in_any_unit_of_flux():
    """W / m^2 / nm: squares of such numbers are zero in float32."""
    rng = np.random.default_rng(6)
    theta, scatter, value = rng.normal(size=(9, 3)), rng.uniform(0.1, 0.2, 9), rng.normal(size=(2, 9))
    error, phi = rng.uniform(0.1, 0.2, (2, 9)), outer_pairs(rng.normal(size=(2, 3)))
    covariance = 0.01 * positive_definite(rng, 9, 3)
    for unit in (1e-25, 1e20):
        one, other = (
            compress(value * s, error * s, theta * s, scatter * s, theta_covariance=covariance * s**2,
                     feature_pairs=phi, constant=True)
            for s in (1.0, unit)
        )  # fmt: skip
        np.testing.assert_allclose(other.gram, one.gram, rtol=1e-11, atol=1e-9)
        np.testing.assert_allclose(other.linear, one.linear, rtol=1e-11, atol=1e-9)
        np.testing.assert_allclose(other.constant - 9 * np.log(unit), one.constant, rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("with_errors", [True, False])
def test_pixels_are_at_the_mode_of_coefficients_and_scatter(with_errors):
    rng = np.random.default_rng(6)
    n, n_pixel = 40, 3
    labels = rng.normal(size=(n, 1))
    error = rng.uniform(0.01, 0.03, (n, n_pixel))
    flux = 1 + labels @ [[0.1, -0.05, 0.02]] + 0.02 * labels**2 + rng.normal(size=error.shape) * np.hypot(error, 0.03)
    flux[3, 1] = np.nan
    stars = bl.Stars(labels=bl.Block(labels, names=("A",)), flux=bl.Block(flux, error if with_errors else None))
    posterior = bl.fit(bl.Cannon(order=2, label_noise=False, coefficient_prior=None), stars)
    frame = posterior.model.frame
    u = frame.scaled(labels)[:, 0]
    phi = np.stack([np.ones(n), u, u**2], 1)
    for pixel in range(n_pixel):
        ok = np.isfinite(flux[:, pixel])
        y, design = flux[ok, pixel], phi[ok]
        known = error[ok, pixel] ** 2 if with_errors else np.zeros(ok.sum())

        def loss(x, y=y, design=design, known=known):
            variance = known + np.exp(x[-1])
            prior = np.exp(x[-1]) / (2 * frame.flux_scale**2)
            return 0.5 * (np.log(variance) + (y - design @ x[:3]) ** 2 / variance).sum() + prior

        start = np.append(np.linalg.lstsq(design, y, rcond=None)[0], 2 * np.log(0.02))
        best = minimize(loss, start, method="BFGS", options={"gtol": 1e-7}).x
        scatter = posterior.data["posterior"]["scatter"].values[0, 0, pixel]
        got = np.append(posterior.moments.coefficients[pixel], 2 * np.log(scatter))
        np.testing.assert_allclose(got, best, rtol=1e-5, atol=1e-6)
        assert loss(got) <= loss(best) + 1e-10
        weight = 1 / (known + np.exp(best[-1]))
        covariance = np.linalg.inv(design.T @ (weight[:, None] * design))
        np.testing.assert_allclose(posterior.moments.coefficient_covariance[pixel], covariance, rtol=1e-4, atol=1e-9)


def test_training_in_any_unit_of_flux():
    """W / m^2 / nm, say: the scatter is not held up by a floor meant for normalised spectra."""
    rng = np.random.default_rng(7)
    labels = rng.normal(size=(60, 1))
    flux = 1 + labels @ [[0.1, -0.05, 0.02]] + rng.normal(size=(60, 3)) * np.hypot(0.01, 0.03)
    one, other = (
        bl.fit(
            bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Normal()),
            bl.Stars(labels=bl.Block(labels, names=("A",)), flux=bl.Block(flux * unit, 0.01 * unit)),
        ).moments
        for unit in (1.0, 1e-18)
    )
    np.testing.assert_allclose(other.coefficients * 1e18, one.coefficients, rtol=1e-6)
    np.testing.assert_allclose(other.scatter * 1e18, one.scatter, rtol=1e-6)
    np.testing.assert_allclose(other.coefficient_covariance * 1e36, one.coefficient_covariance, rtol=1e-6)


def test_coordinate_descent_meets_the_optimality_conditions():
    """Subgradient of 1/2 t' A t - b' t + l |t|: zero where t is not, within l where it is."""
    rng = np.random.default_rng(7)
    gram, linear = positive_definite(rng, 20, 6), 3 * rng.normal(size=(20, 6))
    l1 = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 4.0])
    free = np.full(6, np.inf)
    t = np.asarray(coordinate_descent(gram, linear, jnp.zeros((20, 6)), l1, -free, free))
    gradient = np.einsum("bij,bj->bi", gram, t) - linear
    zero = t == 0
    assert 0.1 < zero[:, 1:].mean() < 0.9
    assert not zero[:, 0].any()
    np.testing.assert_allclose((gradient + l1 * np.sign(t))[~zero], 0, atol=1e-9)
    assert (np.abs(gradient) <= l1 + 1e-9)[zero].all()


def test_coordinate_descent_within_bounds():
    rng = np.random.default_rng(8)
    design, y = rng.normal(size=(10, 30, 4)), rng.normal(size=(10, 30))
    low, high = np.array([-np.inf, 0.0, -0.1, -0.05]), np.array([np.inf, np.inf, 0.1, 0.02])
    gram, linear = np.swapaxes(design, 1, 2) @ design, np.einsum("bni,bn->bi", design, y)
    t = np.asarray(coordinate_descent(gram, linear, jnp.zeros((10, 4)), np.zeros(4), low, high))
    expected = [lsq_linear(a, b, (low, high), method="bvls", tol=1e-14).x for a, b in zip(design, y, strict=True)]
    np.testing.assert_allclose(t, expected, atol=1e-9)
    assert ((t >= low) & (t <= high)).all()
    assert ((t == low) | (t == high)).any()


@pytest.mark.parametrize("n_draw", [99, 100, 226, 900, 1000, 4001])
@pytest.mark.parametrize("width", [0.7, 1.3, 3.0])
def test_pareto_smoothing_as_in_arviz(n_draw, width):
    """A normal target under a wider proposal, whose ratios are bounded, or a narrower one, with heavy tails."""
    x = np.random.default_rng(9).normal(size=n_draw) / np.sqrt(width)
    log_ratio = -0.5 * (1 - width) * x**2
    weights, khat = smooth_weights(log_ratio)
    expected, expected_khat = array_stats.psislw(-log_ratio)  # which takes a log likelihood
    np.testing.assert_allclose(khat, expected_khat, atol=1e-6)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    np.testing.assert_allclose(np.exp(weights).sum(), 1, rtol=1e-12)


@pytest.mark.parametrize(("shape", "n_draw"), [(0.3, 1000), (0.9, 1000), (1.5, 777)])
def test_pareto_smoothing_of_pareto_ratios_as_in_arviz(shape, n_draw):
    ratio = np.random.default_rng(3).pareto(1 / shape, n_draw)
    weights, khat = smooth_weights(np.log(ratio))
    expected, expected_khat = array_stats.psislw(-np.log(ratio))
    np.testing.assert_allclose(khat, expected_khat, atol=1e-6)
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_both_modes_of_a_quartic():
    """u^2 seen at 1 with error sigma, prior N(m, 1): stationary where 2 u (u^2 - 1) / sigma^2 + u = m."""
    features, w = Monomials.up_to(2, 1), np.array([4.0, 25.0, 100.0])
    mean = np.array([0.05, 0.0, -0.3])
    e3 = np.array([0.0, 0.0, 1.0])
    zero = np.zeros(3)
    statistics = Statistics(*map(jnp.asarray, (w[:, None, None] * np.outer(e3, e3), w[:, None] * e3, zero, w, zero)))
    starts = np.tile(np.array([-2.0, -0.3, 0.4, 3.0])[:, None, None], (1, 3, 1))
    modes = find_quartic_modes(statistics, np.ones((3, 1, 1)), mean[:, None], features, starts)
    for n in range(3):
        roots = np.real_if_close(np.roots([2 * w[n], 0, 1 - 2 * w[n], -mean[n]]))
        curvature = w[n] * (6 * roots**2 - 2) + 1
        roots, curvature = roots[curvature > 0], curvature[curvature > 0]
        value = 0.5 * w[n] * (roots**2 - 1) ** 2 + 0.5 * roots**2 - mean[n] * roots - 0.5 * w[n]
        order = np.argsort(value)
        location = np.asarray(modes.location)[:2, n, 0]
        found = np.argsort(location) if mean[n] == 0 else [0, 1]
        order = np.argsort(roots) if mean[n] == 0 else order
        np.testing.assert_allclose(location[found], roots[order], atol=1e-6)
        np.testing.assert_allclose(np.asarray(modes.objective)[:2, n], value[order], atol=1e-9)
        np.testing.assert_allclose(np.asarray(modes.covariance)[:2, n, 0, 0][found], 1 / curvature[order], rtol=1e-5)
        weight = np.exp(-(value - value.min())) / np.sqrt(curvature)
        np.testing.assert_allclose(np.asarray(modes.weight)[:2, n][found], (weight / weight.sum())[order], rtol=1e-5)
        assert np.isinf(modes.objective[2, n])
        assert modes.converged[:2, n].all()


def test_a_far_worse_mode_is_left_out():
    features, e3 = Monomials.up_to(2, 1), np.array([0.0, 0.0, 1.0])
    zero = np.zeros(1)
    statistics = Statistics(*map(jnp.asarray, (100.0 * np.outer(e3, e3)[None], 100.0 * e3[None], zero, zero, zero)))
    starts = np.array([-1.5, 1.5])[:, None, None]
    modes = find_quartic_modes(statistics, np.ones((1, 1, 1)), np.array([[20.0]]), features, starts)
    assert modes.location[0, 0, 0] > 1
    assert np.isinf(modes.objective[1, 0])
    np.testing.assert_allclose(modes.weight[:, 0], [1, 0])


def test_a_line_search_turns_back_where_the_function_is_no_number():
    """The first step, of length 1, lies far beyond the wall at 0.15, and the mode close to it."""
    mode, curvature, visited = np.array([0.14, -0.02]), np.array([300.0, 40.0]), []

    def valley(x):
        visited.append(bool(np.abs(x).max() < 0.15))
        if not visited[-1]:
            return np.nan, np.full(2, np.nan)
        return float(((x - mode) ** 2 * curvature).sum()), 2 * (x - mode) * curvature

    found = minimize(Barred(valley), np.array([-0.14, 0.14]), jac=True, method="L-BFGS-B")
    assert not all(visited)
    np.testing.assert_allclose(found.x, mode, atol=1e-4)


@pytest.mark.parametrize("unit", [1.0, 1e-17])
@pytest.mark.parametrize("freedom", [10.0, 54.0, 1e4, 1e7])
@pytest.mark.parametrize("excess", [-0.7, -0.1, 0.0, 0.1, 1.0, 9.0])
def test_mean_of_a_scatter_squared(excess, freedom, unit):
    noise2 = 1.0
    v_0 = excess + noise2

    def density(s):
        ratio = v_0 / (s**2 + noise2)
        best = v_0 / max(v_0, noise2)
        return np.exp(0.5 * freedom * (np.log(ratio) - ratio - np.log(best) + best))

    mode2 = max(excess, 0.0)
    fall = max(freedom * max(-excess, 0.0) / noise2**2, np.sqrt(freedom) / (noise2 + mode2))  # per s^2
    ends = np.sqrt([max(mode2 - 12 / fall, 0.0), mode2 + 200 / fall])
    expected = quad(lambda s: s**2 * density(s), *ends, epsabs=0)[0] / quad(density, *ends, epsabs=0)[0]
    known = (np.array([x]) * unit**2 for x in (v_0, noise2))
    found = mean_scatter2(*known, np.array([freedom]), 1e3 * unit)
    np.testing.assert_allclose(found / unit**2, expected, rtol=5e-3)
