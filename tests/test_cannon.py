"""The Cannon on stars of known truth: its options, missing numbers and recovery."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from conftest import ln_p
from scipy.optimize import minimize_scalar

import bayeslabels as bl
from bayeslabels import MAP, Cannon
from bayeslabels.core import priors
from bayeslabels.kinds.spectra.em import settled
from bayeslabels.kinds.spectra.labels import scatter_of_labels
from bayeslabels.numerics.linalg import in_float64
from bayeslabels.results.star_posterior import Flags

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
    return bl.fit(Cannon(order=2, label_noise=False), exact[0])


def test_terms_one_by_one_equal_the_order(exact, classic):
    terms = [dict(zip(NAMES, map(int, row), strict=True)) for row in EXPONENTS]
    posterior = bl.fit(Cannon(terms=terms, label_noise=False), exact[0])
    np.testing.assert_allclose(posterior.predict(exact[0]), classic.predict(exact[0]), rtol=1e-10)


def test_censored_bounded_and_sparse_coefficients(exact):
    mask = np.arange(60) < 30
    posterior = bl.fit(Cannon(order=2, label_noise=False, censor={"LOGG": mask}), exact[0])
    forbidden = ~mask[:, None] & (np.array(posterior.model.features.exponents)[:, 1] > 0)
    assert (posterior.moments.coefficients[forbidden] == 0).all()
    assert (posterior.moments.coefficients[~forbidden] != 0).all()
    bounded = bl.fit(Cannon(order=2, label_noise=False, bounds={"TEFF": (-0.01, 0.02)}), exact[0])
    slope = bounded.moments.coefficients[:, bounded.model.feature_names.index("TEFF")]
    assert slope.min() == -0.01
    assert slope.max() == 0.02
    sparse = bl.fit(Cannon(order=2, label_noise=False, scatter=0.01, coefficient_prior=priors.Laplace(2e-5)), exact[0])
    assert 0.01 < (sparse.moments.coefficients[:, 1:] == 0).mean() < 0.9


def test_fixed_scatter_is_used_as_given(exact):
    scatter = np.linspace(0.01, 0.02, 60)
    posterior = bl.fit(Cannon(order=2, label_noise=False, scatter=scatter), exact[0])
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
    result = bl.infer(bl.fit(Cannon(order=2, label_noise=False), gaps), test.drop("labels"))
    whole = bl.infer(bl.fit(Cannon(order=2, label_noise=False), stars), test.drop("labels"))
    assert (np.std(result.mean - truth, 0) < 1.2 * np.std(whole.mean - truth, 0)).all()


def test_noisy_labels_joint_beats_classic():
    stars, _ = survey(label_error=0.4)
    test, truth = survey(300, seed=2)
    joint = bl.fit(Cannon(order=2, label_noise="joint"), stars)
    result = bl.infer(joint, test.drop("labels"))
    classic = bl.infer(bl.fit(Cannon(order=2, label_noise=False), stars), test.drop("labels"))
    rmse = [np.sqrt(np.mean((x.mean - truth) ** 2, 0)) for x in (result, classic)]
    assert (rmse[0] < rmse[1]).all()
    assert joint.label_scatter().keys() == set(NAMES)
    assert len(joint.summary()) == 2


def test_prior_of_the_label_scatter():
    """At its mode, of labels the errors of which nobody states; and what a narrow prior says of them is believed."""
    n, width = 9, 0.5
    second = np.random.default_rng(0).chisquare(1, (n, 1, 1))
    noise, observed = np.zeros((n, 1, 1)), np.ones((n, 1), bool)
    with jax.enable_x64(True):
        found = float(scatter_of_labels(np.ones(1), second, noise, observed, width)[0])
    at = minimize_scalar(lambda t: 0.5 * (n * np.log(t) + second.sum() / t + t / width**2), bounds=(1e-3, 10)).x
    assert found == pytest.approx(at, rel=1e-4)
    assert found < 0.7 * second.mean()
    stars, _ = survey(60, label_error=0.2)
    model = Cannon(order=1, label_noise="joint", label_scatter_distribution=priors.HalfNormal(1e-3))
    posterior = bl.fit(model, stars)
    assert (np.array(list(posterior.label_scatter().values())) < 3e-3 * posterior.model.frame.scale).all()
    with pytest.raises(bl.BadInput, match=r"label_scatter_distribution=0.1.*expected priors.HalfNormal"):
        bl.fit(model.replace(label_scatter_distribution=0.1), stars)
    with pytest.raises(bl.BadInput, match="scale > 0"):
        priors.HalfNormal(0.0)


def test_noisy_labels_of_simulated_stars_are_modelled_jointly():
    posterior = bl.fit(Cannon(), survey(label_error=0.4)[0])
    assert posterior.model.label_noise == "free"
    scores = {score["variant"]: score["log_density"] for score in posterior.info["selection"] if "variant" in score}
    assert scores["label_noise='free'"] > scores["label_noise='cut'"]


@pytest.mark.parametrize("way", ["memory", "minibatches", "file"])
def test_outliers_among_the_training_labels_are_dropped_and_counted(way, tmp_path):
    stars, _ = survey(label_error=0.1)
    labels, planted = stars.labels.value.copy(), [3, 50, 99, 120, 180]
    labels[planted] += 3 * SPREAD * np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1]])
    dirty = stars.with_block(labels=bl.Block(labels, stars.labels.error, names=NAMES))
    clean = stars[np.delete(np.arange(200), planted)]
    by = bl.SVI(steps=200) if way == "minibatches" else bl.MAP()
    if way == "file":
        for name, some in (("dirty", dirty), ("clean", clean)):
            some.to_table().write(tmp_path / f"{name}.fits")
        dirty, clean = tmp_path / "dirty.fits", tmp_path / "clean.fits"
    named = {"columns": {"labels": NAMES, "labels_error": [f"{x}_error" for x in NAMES]}} if way == "file" else {}
    posterior = bl.fit(Cannon(order=2, label_noise=False, outlier_sigma=10), dirty, by, **named)
    assert posterior.info["n_outlier"] == 5
    assert posterior.info["n_star"] == 195
    if way == "minibatches":  # in another order than those of a table without them
        return
    clean = bl.fit(Cannon(order=2, label_noise=False), clean, by, **named)
    np.testing.assert_allclose(posterior.moments.coefficients, clean.moments.coefficients, rtol=1e-10)


def scatter_in(result):
    """tau (M,) where errors include it, else 0."""
    return np.array(result.info["label_scatter"]) * result.info["label_scatter_included"]


@pytest.mark.parametrize("noise", ["joint", "cut"])
def test_missing_noisy_training_labels(noise):
    """With a fifth of the labels gone the answers stay where they were, within their error bars, which hold."""
    stars, _ = survey(label_error=0.2)
    test, truth = survey(300, seed=2)
    labels = stars.labels.value.copy()
    labels[np.random.default_rng(5).random(labels.shape) < 0.2] = np.nan
    gaps = stars.with_block(labels=bl.Block(labels, stars.labels.error, names=NAMES))
    whole, some = (bl.infer(bl.fit(Cannon(order=2, label_noise=noise), x), test.drop("labels")) for x in (stars, gaps))
    moved = (some.mean - whole.mean) / whole.error
    assert (np.sqrt(np.mean(moved**2, 0)) < 0.8).all()
    own = [x.cov.diagonal(0, 1, 2) - scatter_in(x) ** 2 for x in (some, whole)]  # tau of 200 stars is itself uncertain
    assert (np.abs(np.log(np.median(own[0] / own[1], 0))) < 2 * np.log(1.2)).all()
    assert (np.sqrt(np.mean(((some.mean - truth) / some.error) ** 2, 0)) < 1.2).all()


def test_covariances_of_the_labels_are_used():
    """Label errors correlated by 0.95: the difference of the labels is known four times as well as from their sds."""
    covariance = 0.4**2 * np.array([[1, 0.95], [0.95, 1]])
    theta = np.random.default_rng(1).normal(size=(60, 3)) * 0.1 + np.array([1, 0, 0])

    def stars(n, seed, correlated):
        rng = np.random.default_rng(seed)
        u = rng.normal(size=(n, 2))
        flux = np.column_stack([np.ones(n), u]) @ theta.T + 0.08 * rng.normal(size=(n, 60))
        noisy = CENTRE + SPREAD * (u + rng.multivariate_normal(np.zeros(2), covariance, n))
        stated = np.tile(covariance * np.outer(SPREAD, SPREAD), (n, 1, 1)) if correlated else 0.4 * SPREAD
        return bl.Stars(labels=bl.Block(noisy, stated, names=NAMES), flux=bl.Block(flux, 0.08)), u

    rmse = {}
    for correlated in (True, False):
        posterior = bl.fit(Cannon(order=1, label_noise="joint"), stars(600, 13, correlated)[0])
        test, u = stars(300, 14, correlated)
        result = bl.infer(posterior, test)
        offset = (result.mean - CENTRE) / SPREAD - u
        for name, sign in (("difference", -1), ("sum", 1)):
            along = np.array([1, sign]) / SPREAD
            sd = np.sqrt(np.einsum("i,nij,j->n", along, result.cov, along))
            rmse[correlated, name] = np.sqrt(np.mean((offset[:, 0] + sign * offset[:, 1]) ** 2))
            if correlated:
                z = (offset[:, 0] + sign * offset[:, 1]) / sd
                assert 0.8 < np.sqrt(np.mean(z**2)) < 1.2
    assert rmse[True, "difference"] < 0.75 * rmse[False, "difference"]


def test_a_cold_start_finds_the_right_mode_of_every_star():
    """Spectra that are nearly even in a label: one starting point leaves a fifth of the stars on its wrong side."""
    theta = np.random.default_rng(1).normal(size=(60, 6)) * np.array([0.1, 0.02, 0.02, 0.1, 0.1, 0.1])

    def stars(seed):
        rng = np.random.default_rng(seed)
        u = rng.normal(size=(300, 2))
        flux = (u[:, None] ** EXPONENTS).prod(-1) @ theta.T + 1 + 0.01 * rng.normal(size=(300, 60))
        return bl.Stars(labels=bl.Block(CENTRE + SPREAD * u, names=NAMES), flux=bl.Block(flux, 0.01))

    posterior, test = bl.fit(Cannon(order=2, label_noise=False), stars(1)), stars(2)
    wrong = {}
    for starts in (1, MAP().starts):
        result = bl.infer(posterior, test.drop("labels"), MAP(starts=starts))
        wrong[starts] = (np.abs(result.mean - test.labels.value) > 6 * result.error).any(1).sum()
    assert wrong[1] > 30
    assert wrong[MAP().starts] == 0


def test_noisy_labels_and_spectra_together_are_the_product_of_gaussians():
    """A linear model with everything that was learned taken as known: an oracle in NumPy."""
    rng = np.random.default_rng(6)
    u = rng.normal(size=(250, 2))
    theta = rng.normal(size=(20, 3)) * 0.1 + np.array([1, 0, 0])
    flux = np.column_stack([np.ones(250), u]) @ theta.T + 0.1 * rng.normal(size=(250, 20))
    labels = bl.Block(CENTRE + SPREAD * (u + 0.3 * rng.normal(size=u.shape)), 0.3 * SPREAD, names=NAMES)
    stars = bl.Stars(labels=labels, flux=bl.Block(flux, 0.1))
    posterior = bl.fit(Cannon(order=1, label_noise="joint"), stars[:200])
    learned = posterior.moments
    known = learned._replace(
        coefficient_covariance=np.zeros_like(learned.coefficient_covariance),
        label_system_covariance=np.zeros_like(learned.label_system_covariance),
        label_scatter=np.array([60.0, 0.2]),
    )
    posterior, test = posterior.with_moments(known), stars[200:]
    result = bl.infer(posterior, test)

    frame, slope = posterior.model.frame, learned.coefficients[:, 1:] / posterior.model.frame.scale
    prior = np.linalg.inv(learned.population_covariance * np.outer(frame.scale, frame.scale))
    catalogue = np.diag(1 / ((0.3 * SPREAD) ** 2 + known.label_scatter**2))
    weight = 1 / (0.1**2 + learned.scatter**2)
    covariance = np.linalg.inv(prior + catalogue + (slope.T * weight) @ slope)
    residual = test.flux.value - learned.coefficients[:, 0] + slope @ frame.centre
    information = (residual * weight) @ slope + test.labels.value @ catalogue
    information += prior @ (frame.centre + frame.scale * learned.population_mean)
    np.testing.assert_allclose(result.mean, information @ covariance, rtol=1e-7)
    np.testing.assert_allclose(result.cov, np.broadcast_to(covariance, result.cov.shape), rtol=1e-6)
    for block in ("labels", "flux"):
        assert (bl.infer(posterior, test.drop(block)).error > 1.1 * result.error).all()


@pytest.mark.parametrize("label_noise", ["free", "cut", "joint"])
def test_the_label_scatter_is_one_number(label_noise):
    posterior = bl.fit(Cannon(order=1, label_noise=label_noise), survey(label_error=0.3)[0])
    site = posterior.data["posterior"]["label_scatter"].values[0, 0]
    np.testing.assert_array_equal(site, list(posterior.label_scatter().values()))


def test_which_error_to_quote_is_told_where_the_catalogue_is_noisier_than_it_states(caplog):
    stars, truth = survey(label_error=0.1)
    bl.fit(Cannon(order=2, label_noise="joint"), stars)
    assert not caplog.records
    noisy = stars.labels.value + np.array([300.0, 0.0]) * np.random.default_rng(3).normal(size=truth.shape)
    noisy_stars = stars.with_block(labels=bl.Block(noisy, [30, 0.05], names=NAMES))
    bl.fit(Cannon(order=2, label_noise="joint"), noisy_stars)
    (record,) = caplog.records
    assert "TEFF" in record.getMessage()
    assert "LOGG" not in record.getMessage()
    assert "<label>_catalogue_error" in record.getMessage()
    caplog.clear()
    bl.cross_validate(Cannon(order=2, label_noise="joint"), noisy_stars, folds=2, progress=False)
    assert not caplog.records  # of models that the user does not see


def test_what_was_learned_of_the_labels_in_their_units(exact, classic):
    rng = np.random.default_rng(8)
    truth = survey(600)[1]
    tau, error = np.array([150.0, 0.1]), np.array([60.0, 0.2])
    labels = truth + np.hypot(tau, error) * rng.normal(size=truth.shape)
    block = bl.Block(labels, error, names=NAMES, unit=("K", "dex"))
    posterior = bl.fit(Cannon(order=2, label_noise="joint"), survey(600)[0].with_block(labels=block))
    scatter = posterior.label_scatter()
    assert list(scatter) == list(NAMES)
    # the sd of a sample of 600 is known to 1 / sqrt(1200), and the stated errors are taken off it
    doubt = np.hypot(tau, error) ** 2 / (tau * np.sqrt(1200))
    assert (np.abs(np.array(list(scatter.values())) - tau) < 3.5 * doubt).all()
    summary = posterior.summary()
    assert list(summary["label"]) == list(NAMES)
    assert list(summary["unit"]) == ["K", "dex"]
    np.testing.assert_array_equal(summary["label_scatter"], list(scatter.values()))
    assert (np.abs(summary["population_mean"] - truth.mean(0)) < 4 * np.hypot(tau, error) / np.sqrt(600)).all()
    np.testing.assert_allclose(summary["population_sd"], truth.std(0), rtol=0.1)

    flat = classic.summary()
    assert np.isnan(flat["population_sd"]).all()
    assert np.isnan(flat["population_mean"]).all()
    assert classic.label_scatter() == {"TEFF": 0.0, "LOGG": 0.0}
    learned = bl.fit(Cannon(order=2, label_noise=False, population="learned"), exact[0]).summary()
    np.testing.assert_allclose(learned["population_sd"], exact[1].std(0), rtol=0.05)


def holes(stars, seed=1):
    """These stars without some of their labels, one of them without any; and which are gone."""
    labels = stars.labels.value.copy()
    gone = np.random.default_rng(seed).random(labels.shape) < 0.15
    gone[7] = True
    labels[gone] = np.nan
    return stars.with_block(labels=bl.Block(labels, names=NAMES)), gone


@in_float64
def test_missing_exact_labels_complete_the_program():
    stars, _ = survey(30, 12)
    gaps, gone = holes(stars)
    model = Cannon(order=2, label_noise=False, coefficient_prior=priors.Flat()).bind(gaps)
    values = {"coefficients": 0.1 * np.random.default_rng(0).normal(size=(12, 6)), "scatter": np.full(12, 0.02)}
    missing = model.frame.scaled(stars.labels.value)[gone]
    whole = ln_p(model, stars, values)
    completed = ln_p(model, gaps, values | {"labels_missing": missing})
    assert completed == pytest.approx(whole, rel=1e-12)
    other = ln_p(model, gaps, values | {"labels_missing": missing[::-1]})
    assert abs(other - whole) > 1


@pytest.mark.slow
def test_minibatches_with_missing_exact_labels():
    """Each missing label is its own star's, whichever stars are in the batch: against Gibbs, which has no batches."""
    gaps, gone = holes(survey(60, 12, seed=3)[0])
    model = Cannon(order=1, label_noise=False).bind(gaps)
    svi = bl.SVI(steps=2000, batch_size=20)
    approximate = svi.fit(model, gaps, 0, False).draws["labels_missing"]
    exact = bl.Gibbs(chains=2, draws=300, warmup=100).fit(model, gaps, 0, False).draws["labels_missing"]
    assert approximate.shape[2:] == exact.shape[2:] == (gone.sum(),)
    sd = exact.std((0, 1))
    shift = (approximate.mean((0, 1)) - exact.mean((0, 1))) / sd
    assert np.sqrt(np.mean(shift**2)) < 0.5
    # a mean field leaves out correlations, those between two missing labels of a star too
    np.testing.assert_allclose(approximate.std((0, 1)) / sd, 1, atol=0.4)
    assert (sd < 0.5).all()


@pytest.mark.parametrize("prior", [bl.priors.Flat(), bl.priors.Learned()])
def test_the_scatter_that_few_stars_tell_is_that_of_quadrature(prior):
    train, _, _ = bl.simulate.simulate(25, 60, seed=2, n_test=1)
    model = bl.Cannon(order=1, label_noise=False, coefficient_prior=prior).bind(train)
    em = settled(model, train, 100, 1e-3)
    phi, precision = np.asarray(em.features(em.u)), np.asarray(em.prior.precision)
    mean = np.asarray(em.prior.mean)
    exact = np.zeros(60)
    for pixel in range(60):
        ok = np.isfinite(em.value[:, pixel] + em.error[:, pixel])
        y, e, x = em.value[ok, pixel] - phi[ok] @ mean, em.error[ok, pixel], phi[ok]
        s = np.linspace(0, 0.05, 600)
        log_p = np.zeros(len(s))
        for i, variance in enumerate(e**2 + s[:, None] ** 2):
            total = x.T @ (x / variance[:, None]) + precision
            told = x.T @ (y / variance)
            log_p[i] = told @ np.linalg.solve(total, told) - (np.log(variance) + y**2 / variance).sum()
            log_p[i] -= np.linalg.slogdet(total)[1] + s[i] ** 2 / em.scatter_scale**2
        p = np.exp(0.5 * (log_p - log_p.max()))
        exact[pixel] = np.sqrt((p * s**2).sum() / p.sum())
    found = np.log(em.scatter() / exact)
    assert abs(found.mean()) < 0.05
    assert found.std() < 0.12
    assert np.log(np.sqrt(em.scatter2) / exact).mean() < -1  # the mode, where two thirds have none
