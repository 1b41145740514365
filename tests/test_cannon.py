"""The Cannon on stars of known truth: its options, missing numbers and recovery."""

from __future__ import annotations

import numpy as np
import pytest

import bayeslabels as bl
from bayeslabels import Cannon, priors
from bayeslabels.star_posterior import Flags

NAMES, CENTRE, SPREAD = ("TEFF", "LOGG"), np.array([5000.0, 3.0]), np.array([300.0, 0.5])
EXPONENTS = np.array([(0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2)])


def survey(n=200, n_pixel=60, label_error=0.0, seed=0):
    """Stars of quadratic spectra with flux errors of 0.01, and their true labels."""
    rng = np.random.default_rng(seed)
    theta = np.random.default_rng(1).normal(size=(n_pixel, 6)) * np.array([0.1, 0.1, 0.1, 0.02, 0.02, 0.02])
    theta[:, 0] += 1
    u = rng.normal(size=(n, 2))
    flux = (u[:, None] ** EXPONENTS).prod(-1) @ theta.T + 0.01 * rng.normal(size=(n, n_pixel))
    labels = CENTRE + SPREAD * (u + label_error * rng.normal(size=u.shape))
    error = label_error * SPREAD if label_error else None
    stars = bl.Stars(labels=bl.Block(labels, error, names=NAMES), flux=bl.Block(flux, 0.01))
    return stars, CENTRE + SPREAD * u


@pytest.fixture(scope="module")
def exact():
    return survey()


@pytest.fixture(scope="module")
def classic(exact):
    return bl.fit(Cannon(label_noise=False), exact[0])


def test_terms_one_by_one_equal_the_order(exact, classic):
    terms = [dict(zip(NAMES, map(int, row), strict=True)) for row in EXPONENTS]
    posterior = bl.fit(Cannon(terms=terms, label_noise=False), exact[0])
    np.testing.assert_allclose(posterior.predict(exact[0]), classic.predict(exact[0]), rtol=1e-10)


def test_censored_bounded_and_sparse_coefficients(exact):
    mask = np.arange(60) < 30
    posterior = bl.fit(Cannon(label_noise=False, censor={"LOGG": mask}), exact[0])
    forbidden = ~mask[:, None] & (np.array(posterior.model.features.exponents)[:, 1] > 0)
    assert (posterior.moments.coefficients[forbidden] == 0).all()
    assert (posterior.moments.coefficients[~forbidden] != 0).all()
    bounded = bl.fit(Cannon(label_noise=False, bounds={"TEFF": (-0.01, 0.02)}), exact[0])
    slope = bounded.moments.coefficients[:, bounded.model.feature_names.index("TEFF")]
    assert slope.min() == -0.01
    assert slope.max() == 0.02
    sparse = bl.fit(Cannon(label_noise=False, scatter=0.01, coefficient_prior=priors.Laplace(2e-5)), exact[0])
    assert 0.01 < (sparse.moments.coefficients[:, 1:] == 0).mean() < 0.9


def test_fixed_scatter_is_used_as_given(exact):
    scatter = np.linspace(0.01, 0.02, 60)
    posterior = bl.fit(Cannon(label_noise=False, scatter=scatter), exact[0])
    np.testing.assert_array_equal(posterior.moments.scatter, scatter)
    _, error = posterior.predict(exact[0], with_error=True)
    assert (error > scatter).all()
    assert (error < 1.5 * scatter).all()


def test_labels_of_new_stars(classic):
    test, truth = survey(300, seed=2)
    result = bl.infer(classic, test.drop("labels"))
    z = (result.mean - truth) / result.error
    assert ((z.std(0) > 0.85) & (z.std(0) < 1.15)).all()
    far = survey(1, seed=3)[0]
    u = np.array([[8.0, 8.0]])
    flux = (u[:, None] ** EXPONENTS).prod(-1) @ np.linalg.lstsq(
        ((survey()[1] - CENTRE) / SPREAD)[:, None].__pow__(EXPONENTS).prod(-1), survey()[0].flux.value, rcond=None
    )[0]
    outside = bl.infer(classic, bl.Stars(flux=bl.Block(flux, far.flux.error)))
    assert outside.flags[0] & Flags.OUTSIDE_TRAINING
    assert not np.median(result.flags)


def test_missing_pixels_and_training_labels(exact):
    stars, _ = exact
    rng = np.random.default_rng(4)
    labels, flux = stars.labels.value.copy(), stars.flux.value.copy()
    labels[rng.random(labels.shape) < 0.3] = np.nan
    flux[rng.random(flux.shape) < 0.1] = np.nan
    gaps = bl.Stars(labels=bl.Block(labels, names=NAMES), flux=bl.Block(flux, 0.01))
    test, truth = survey(300, seed=2)
    result = bl.infer(bl.fit(Cannon(label_noise=False), gaps), test.drop("labels"))
    whole = bl.infer(bl.fit(Cannon(label_noise=False), stars), test.drop("labels"))
    assert (np.std(result.mean - truth, 0) < 1.2 * np.std(whole.mean - truth, 0)).all()


def test_noisy_labels_joint_beats_classic():
    stars, _ = survey(label_error=0.4)
    test, truth = survey(300, seed=2)
    joint = bl.fit(Cannon(label_noise="joint"), stars)
    result = bl.infer(joint, test.drop("labels"))
    classic = bl.infer(bl.fit(Cannon(label_noise=False), stars), test.drop("labels"))
    rmse = [np.sqrt(np.mean((x.mean - truth) ** 2, 0)) for x in (result, classic)]
    assert (rmse[0] < rmse[1]).all()
    assert joint.label_scatter().keys() == set(NAMES)
    assert len(joint.summary()) == 2
