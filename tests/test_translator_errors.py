"""Stated errors of the translator's labels: believed where they can be right, found out where they cannot."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy.stats import lognorm, multivariate_normal
from test_translator import NAMES, PLAIN, SHORT, SPREAD, UNITS, surveys, theta_of, with_gaps

import bayeslabels as bl
from bayeslabels.errors import DoubtfulErrors
from bayeslabels.kinds.translator.frame import plain_scatter

pytestmark = pytest.mark.long


def with_errors(stars, y, real, stated, seed=0):
    """The outputs y measured anew, with errors (N, M) or numbers in units of the spread."""
    rng = np.random.default_rng([seed, 1])
    d = y.shape[1]
    sd = np.broadcast_to(np.asarray(real, float), y.shape) * SPREAD[:d]
    error = np.broadcast_to(np.asarray(stated, float), y.shape) * SPREAD[:d]
    block = bl.Block(y + sd * rng.standard_normal(y.shape), error, names=NAMES[:d], unit=UNITS[:d])
    return stars.with_block(target_labels=block)


def fitted(model, stars, inference=SHORT):
    """The posterior and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        posterior = bl.fit(model, stars, inference, seed=0, progress=False)
    return posterior, " ".join(str(w.message) for w in said if w.category is DoubtfulErrors)


def test_the_likelihood_scales_each_stated_error():
    """Against SciPy, correlated stated errors, outputs missing here and there; and the factor's prior."""
    stars, _, _ = surveys(60, d=2)
    root = np.random.default_rng(1).normal(size=(60, 2, 2)) * 0.3
    covariance = SPREAD[:2, None] * (root @ root.swapaxes(1, 2) + 0.02 * np.eye(2)) * SPREAD[:2]
    value = with_gaps(stars.target_labels, 0.2, 2).value
    stars = stars.with_block(target_labels=bl.Block(value, covariance, names=NAMES[:2], unit=UNITS[:2]))
    with jax.enable_x64(True):
        model = PLAIN.bind(stars)
        theta, frame, rows = theta_of(model, stars), model.frame, model.arrays(stars)

        @jax.jit
        def densities(theta, rows, k):
            prior = jax.vmap(lambda k: log_density(model.parameters, (), {}, {**theta, "error_factor": k})[0])(k)
            return model.log_likelihood(theta, rows), *model.outputs(theta, rows.x), prior

        factors = np.array([[0.3, 0.3], [1.0, 1.0]])
        found, mean, s, prior = (np.asarray(a) for a in densities(theta, rows, factors))
    factor, k = np.asarray(theta["correlation"]), np.asarray(theta["error_factor"])
    for n in range(0, 60, 3):
        at = np.flatnonzero(stars.target_labels.observed[n])
        if not len(at):
            continue
        sd = s[n] * frame.target_scale
        total = np.outer(sd, sd) * (factor @ factor.T) + k[:, None] * covariance[n] * k
        offset = (value[n] - frame.target_centre - frame.target_scale * mean[n])[at]
        want = multivariate_normal(np.zeros(len(at)), total[np.ix_(at, at)]).logpdf(offset)
        assert found[n] == pytest.approx(want + np.log(frame.target_scale[at]).sum(), rel=1e-8, abs=1e-8)
    of = lambda k: np.log(0.95 * lognorm(0.1).pdf(k) + 0.05 * lognorm(2.0).pdf(k))  # noqa: E731
    assert prior[1] - prior[0] == pytest.approx(2 * (of(1.0) - of(0.3)), rel=1e-9)


@pytest.mark.slow
def test_errors_that_are_right_stay_whatever_the_function():
    """Although all of one size, so that noise and scatter cannot be told apart: the error is that of the true label.
    Of networks; of polynomials the next test says so of a label whose errors are right."""
    stars, _, y = surveys(2500, seed=11, d=2)
    stars = with_errors(stars, y, 0.3, 0.3)
    posterior, said = fitted(PLAIN.replace(function="network", members=3), stars[:1500], bl.MAP())
    assert not said
    np.testing.assert_allclose(posterior.moments.error_factor, 1.0, atol=0.1)
    result = bl.infer(posterior, stars[1500:].drop("target_labels"), progress=False)
    z = (y[1500:] - result.mean) / result.error
    assert np.abs(z.std(0) - 1).max() < 0.15


@pytest.mark.parametrize("robust", [False, True])
def test_errors_of_one_size_that_are_too_large_are_found_out(robust):
    """Stated 0.8, nothing real: the error of a translated label is what held-out labels are off by; gaps do no harm.
    Errors of another label that are right stay. In the other direction labels are believed as far as they scatter."""
    stars, x, y = surveys(1800, seed=12, d=2, scatter=0.1, curve=0.0)
    stars = with_errors(stars, y, [0.0, 0.3], [0.8, 0.3])
    whole = stars[900:]
    stars = stars.with_block(target_labels=with_gaps(stars.target_labels, 0.1, 3))
    model = PLAIN.replace(robust=robust, order=1)
    posterior, said = fitted(model, stars[:900])
    assert "TEFF (median 240 K)" in said
    assert "LOGG" not in said
    factor = posterior.moments.error_factor[0]
    assert factor[0] < 0.1
    assert factor[1] == pytest.approx(1.0, abs=0.15)
    test = stars[900:]
    result = bl.infer(posterior, test.drop("target_labels"), progress=False)
    z = (test.target_labels.value - result.mean)[:, 0] / result.error[:, 0]
    assert 0.9 < np.nanstd(z) < 1.1
    assert np.all(np.abs(np.nanstd(bl.calibration.z_scores(result, test), 0) - 1) < 0.15)
    z = (y[900:] - result.mean)[:, 1] / result.error[:, 1]
    assert 0.85 < z.std() < 1.15
    if robust:
        return
    back = bl.infer(posterior, whole.drop("labels"), seed=0, progress=False)
    z = (x[900:] - back.mean) / back.error
    assert np.abs(z.std(0) - 1).max() < 0.15
    assert (back.error[:, 0] < 0.4 * SPREAD[0]).all()
    believed, said = fitted(model.replace(error_factor=False), stars[:900])
    assert not said
    result = bl.infer(believed, test.drop("target_labels"), progress=False)
    assert np.nanstd((test.target_labels.value - result.mean)[:, 0] / result.error[:, 0]) > 1.5


def test_a_factor_that_the_stars_know_is_recovered():
    """Errors that differ from star to star, stated 2.5 times too large, beside a scatter as large: both are found."""
    rng = np.random.default_rng(4)
    n = 4000
    stars, _, y = surveys(n, seed=13, d=2, scatter=0.15)
    real = np.exp(rng.normal(np.log(0.15), 0.8, (n, 2)))
    stars = with_errors(stars, y, real, real * [2.5, 1.0])
    posterior, said = fitted(PLAIN, stars[:3000])
    assert "TEFF" in said
    assert "LOGG" not in said
    assert posterior.moments.error_factor[0, 0] == pytest.approx(0.4, abs=0.06)
    np.testing.assert_allclose(posterior.summary()["error_factor"], posterior.moments.error_factor[0])
    result = bl.infer(posterior, stars[3000:].drop("target_labels"), progress=False)
    z = (y[3000:] - result.mean) / result.error
    assert np.abs(z.std(0) - 1).max() < 0.12
    assert np.abs(bl.calibration.z_scores(result, stars[3000:]).std(0) - 1).max() < 0.12


def test_input_errors_that_are_too_large_are_told():
    stars, x, _ = surveys(900, seed=15, d=2, curve=0.1, scatter=0.03)
    noisy = bl.Block(stars.labels.value, np.full(x.shape, 0.4) * SPREAD[:2], names=NAMES[:2], unit=UNITS[:2])
    _, said = fitted(PLAIN, stars.with_block(labels=noisy))
    assert "TEFF, LOGG are too large" in said


def test_plain_scatter_is_that_of_least_squares_on_other_stars():
    stars, _, y = surveys(400, seed=16, d=2, scatter=0.2)
    stars = with_errors(stars, y, 0.1, 0.1)
    model = PLAIN.bind(stars)
    x = (stars.labels.value - model.frame.centre) / model.frame.scale
    design = np.column_stack([np.ones(400), x, x**2])
    residual = []
    for n in range(400):
        rest = np.arange(400) != n
        target = stars.target_labels.value[:, 0] - stars.labels.value[:, 0]
        residual.append(target[n] - design[n] @ np.linalg.lstsq(design[rest], target[rest], rcond=None)[0])
    want = np.median(np.abs(residual)) / 0.6745 / model.frame.target_scale[0]
    assert plain_scatter(model.frame, stars)[0] == pytest.approx(want, rel=1e-6)
    assert np.isinf(plain_scatter(model.frame, stars[:40])).all()
