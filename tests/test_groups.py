"""Further groups of ArviZ's schema: the density of every star, predictive draws, and what is refused."""

from __future__ import annotations

import warnings

import arviz_stats
import numpy as np
import pytest

import bayeslabels as bl


def test_log_likelihood_of_spectra_is_that_of_plain_numpy(trained, training):
    tree = trained.to_arviz(training, prior=0)
    moments, flux = trained.moments, training["flux"]
    u = trained.model.require_frame().scaled(training["labels"].value)
    off = flux.value - np.asarray(trained.model.features(u)) @ moments.coefficients.T
    variance = flux.error**2 + tree["posterior"]["scatter"].values[0, 0] ** 2
    expected = -0.5 * (off**2 / variance + np.log(2 * np.pi * variance)).sum(1)
    assert set(tree.children) == {"posterior", "observed_data", "constant_data", "log_likelihood"}
    np.testing.assert_allclose(tree["log_likelihood/flux"].values[0, 0], expected, rtol=1e-9)
    np.testing.assert_array_equal(tree["observed_data/flux"].values, flux.value)
    np.testing.assert_array_equal(tree["constant_data/flux_error"].values, flux.error)


def test_pixels_that_could_not_be_trained_are_left_out(training):
    flux = training["flux"]
    blank = np.where(np.arange(flux.n_dim) == 3, np.nan, flux.value)
    stars = training.with_block(flux=bl.Block(blank, flux.error))
    model = bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat())
    posterior = bl.fit(model, stars, progress=False)
    filled = posterior.to_arviz(training)  # the pixel is measured, but its coefficients are not known
    assert np.isnan(filled["observed_data/flux"].values[:, 3]).all()
    gaps = posterior.to_arviz(stars)
    np.testing.assert_allclose(filled["log_likelihood/flux"].values, gaps["log_likelihood/flux"].values, rtol=1e-12)


@pytest.fixture(scope="module")
def giants():
    stars = bl.simulate.simulate_photometry(60, seed=1)[0]
    model = bl.Parallax(features=("magnitudes",))
    return stars, bl.fit(model, stars, bl.NUTS(chains=2, draws=60, warmup=60), progress=False)


def test_arviz_takes_what_is_asked_for(giants):
    stars, posterior = giants
    tree = posterior.to_arviz(stars, posterior_predictive=True, prior=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 120 draws are few
        loo = arviz_stats.loo(tree, pointwise=True)
    each = tree["log_likelihood/parallax"].values
    assert each.shape == (2, 60, 60)
    in_sample = np.log(np.exp(each).mean((0, 1))).sum()
    assert 0 < in_sample - float(loo.elpd) < 60  # effective parameters
    assert tree["prior_predictive/parallax"].shape == (1, 30, 60)
    assert "coefficients" in tree["prior"]
    assert "diverging" in tree["sample_stats"]
    # predictive draws are of the data: the share of parallaxes below their draws is level
    draws = tree["posterior_predictive/parallax"].values.reshape(120, 60)
    below = (draws < stars["parallax"].value[:, 0]).mean(0)
    n_middle = ((below > 0.16) & (below < 0.84)).sum()
    assert abs(n_middle - 0.68 * 60) < 4 * np.sqrt(0.68 * 0.32 * 60)


def test_unknowns_of_stars_stand_apart_from_parameters(training):
    stars = bl.Stars(labels=training.labels, flux=training.flux, id=[f"star {i}" for i in range(len(training))])
    model = bl.Cannon(order=1, label_noise="joint", coefficient_prior=bl.priors.Normal())
    posterior = bl.fit(model, stars, bl.Gibbs(chains=2, draws=5, warmup=5), progress=False)
    tree = posterior.to_arviz(stars, posterior_predictive=True)
    assert "star" not in tree["posterior"].dims
    assert not set(tree["posterior"].data_vars) & set(tree["posterior_of_stars"].data_vars)
    kept = posterior.data["posterior"]
    assert {*tree["posterior"].data_vars, *tree["posterior_of_stars"].data_vars} == set(kept.data_vars)
    np.testing.assert_array_equal(tree["posterior_of_stars/u"].values, kept["u"].values)
    for group in ("posterior_of_stars", "observed_data", "log_likelihood", "posterior_predictive"):
        assert list(tree[group]["star"].values) == list(stars.id)
    assert list(tree["observed_data/labels"]["labels_column"].values) == list(stars.labels.names)


def test_same_seed_same_draws(giants):
    stars, posterior = giants
    one, two, three = (
        posterior.to_arviz(stars, log_likelihood=False, posterior_predictive=True, seed=seed) for seed in (3, 3, 4)
    )
    name = "posterior_predictive/parallax"
    np.testing.assert_array_equal(one[name].values, two[name].values)
    assert (one[name].values != three[name].values).any()


def test_other_stars_than_those_of_the_draws_are_refused(training):
    posterior = bl.fit(bl.Cannon(order=1, label_noise="joint"), training, progress=False)
    with pytest.raises(bl.BadInput, match="training stars, in their order"):
        posterior.to_arviz(training[:7])
    with pytest.raises(bl.BadInput, match="number of draws"):
        posterior.to_arviz(training, prior=-1)
