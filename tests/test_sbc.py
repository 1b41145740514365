"""Simulation-based calibration: what the verdict finds in ranks, and a real small model end to end."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

import bayeslabels as bl
from bayeslabels.calibration import SBC, sbc
from bayeslabels.calibration.sbc import ranked
from bayeslabels.calibration.verdict import ecdf_band, ranks_of
from bayeslabels.core import priors
from bayeslabels.core.program import Program
from bayeslabels.errors import BadInput, CannotDo

N_SIM, N_QUANTITY, N_DRAW = 300, 8, 99


def made_up(seed, widen=1.0, shift=0.0, prior_sd=1.0, n_sim=N_SIM, correlation=0.7):
    """Ranks of correlated theta ~ N(0, prior_sd^2 R), measured with unit error, among draws of their exact posterior
    under the prior N(0, R), distorted: sds times `widen`, means moved by `shift` sds."""
    rng = np.random.default_rng(seed)
    r = correlation + (1 - correlation) * np.eye(N_QUANTITY)
    truth = prior_sd * rng.standard_normal((n_sim, N_QUANTITY)) @ np.linalg.cholesky(r).T
    y = truth + rng.standard_normal(truth.shape)
    covariance = np.linalg.inv(np.linalg.inv(r) + np.eye(N_QUANTITY))
    root, sd = np.linalg.cholesky(covariance), np.sqrt(np.diag(covariance))
    z = rng.standard_normal((n_sim, N_DRAW, N_QUANTITY))
    draws = (y @ covariance + shift * sd)[:, None] + widen * z @ root.T
    names = tuple(f"theta{q}" for q in range(N_QUANTITY))
    return ranked(names, truth, draws, np.full(n_sim, np.nan), {}, seed, {"inference": "made up"})


@pytest.mark.long
def test_right_posteriors_hold():
    p = np.array([made_up(seed).p_value for seed in range(150)])
    for level in (0.01, 0.05, 0.2, 0.5):  # Bonferroni: conservative, the more correlated the more
        assert (p < level).mean() <= level + 3 * np.sqrt(level * (1 - level) / len(p))
    assert p.min() > 1e-5
    alone = np.array([made_up(seed, correlation=0.0).p_value for seed in range(150)])
    assert (alone < 0.5).mean() > 0.3  # and not for want of sensitivity


@pytest.mark.parametrize(
    "wrong", [{"widen": 0.8}, {"widen": 1.3}, {"shift": 0.3}, {"shift": -0.3}, {"prior_sd": 2.0}], ids=str
)
def test_wrong_posteriors_are_rejected(wrong):
    for seed in range(20):
        found = made_up(seed, **wrong)
        assert found.p_value < 1e-3
        assert not found.holds


def test_ranks():
    rng = np.random.default_rng(0)
    draws = np.repeat([[0.0], [1.0], [1.0], [3.0]], 2000, axis=1)
    ties = ranks_of(np.ones(2000), draws, rng)
    assert np.bincount(ties, minlength=5)[[0, 4]].tolist() == [0, 0]
    assert (np.abs(np.bincount(ties)[1:4] / 2000 - 1 / 3) < 0.05).all()
    assert ranks_of(np.array([-1.0, 9.0, np.nan]), draws[:, :3], rng).tolist() == [0, 4, -1]


def test_the_band_holds_the_curve_of_uniform_numbers_as_often_as_said():
    x, low, high = ecdf_band(50, 0.9)
    u = np.random.default_rng(1).random((1000, 50))
    curve = (u[:, :, None] <= x).mean(1) - x
    inside = ((low - 1e-12 <= curve) & (curve <= high + 1e-12)).all(1).mean()
    assert inside == pytest.approx(0.9, abs=0.03)


def test_the_result():
    found = made_up(3)
    assert found.ranks.shape == (N_SIM, N_QUANTITY)
    assert "holds, p = " in repr(found)
    assert "DOES NOT HOLD" in repr(made_up(0, widen=0.5))
    assert found.table()["quantity"].tolist()[0] == "theta0"
    group = found.data["prior_sbc"]
    assert group["theta1"].dims == ("chain", "draw")
    assert group["theta1"].shape == (1, N_SIM)
    assert stats.kstest(group["theta1"].values[0], "uniform").pvalue > 1e-3
    x, difference, low, high = found.band()
    assert difference.shape == (N_QUANTITY, len(x))
    assert ((low <= difference) & (difference <= high)).mean() > 0.95
    worse = dataclasses.replace(found, ranks=np.where(np.arange(N_SIM)[:, None] < 10, -1, found.ranks))
    assert worse.n_failed == 10
    assert np.isfinite(worse.p_value)
    assert "10 without an answer" in repr(worse)


def template(n=20, n_pixel=8):
    rng = np.random.default_rng(0)
    labels = np.array([5000.0, 3.0]) + rng.standard_normal((n, 2)) * [300, 0.5]
    flux = 1 + 0.05 * rng.standard_normal((n, n_pixel))
    flux[0, 3] = np.nan
    block = bl.Block(labels, np.tile([60, 0.1], (n, 1)), names=("TEFF", "LOGG"), unit=("K", "dex"))
    return bl.Stars(labels=block, flux=bl.Block(flux, np.full(flux.shape, 0.02)))


MODEL = bl.Cannon(
    order=1, label_noise="joint", coefficient_prior=priors.Normal(0.1), scatter_distribution=priors.HalfNormal(0.03)
)


def test_simulations_have_the_moments_of_the_program():
    stars = template()
    program = Program(MODEL.bind(stars), stars)
    assert program.observed == ("labels", "flux")
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 2000)
        sites = {k: np.asarray(x) for k, x in jax.jit(lambda keys: jax.lax.map(program.simulate, keys))(keys).items()}
    noise = (sites["labels"] - sites["true_labels"]) / np.hypot([60, 0.1], sites["label_scatter"])[:, None]
    assert stats.kstest(noise[:, 5, 0], "norm").pvalue > 1e-3
    u, theta = sites["u"][:, 5], sites["coefficients"][:, 2]
    flux = theta[:, 0] + (theta[:, 1:] * u).sum(1)
    noise = (sites["flux"][:, 5, 2] - flux) / np.hypot(0.02, sites["scatter"][:, 2])
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    again = program.stars({name: x[0] for name, x in sites.items()})
    np.testing.assert_array_equal(again.labels.value, sites["labels"][0])
    np.testing.assert_array_equal(again.flux.observed, stars.flux.observed)


EXACT = MODEL.replace(label_noise=False, population="learned")
TEST = template(3).drop("labels")


@pytest.mark.slow
def test_gibbs_of_a_small_cannon():
    gibbs = bl.Gibbs(chains=2, draws=200, warmup=100)
    found = sbc(EXACT, template(), gibbs, 60, test=TEST, infer_with=bl.Laplace(draws=99), n_draw=29)
    assert isinstance(found, SBC)
    assert found.n_draw == 29
    assert found.n_failed == 0
    assert found.n_correlated < 10
    assert {"scatter[0]", "coefficients[0, 0]", "population_mean[1]", "TEFF of test star 2"} <= set(found.names)
    assert found.holds, found.table()
    alone = found.select(["TEFF of test star 0"])
    np.testing.assert_array_equal(alone.ranks[:, 0], found.ranks[:, found.names.index("TEFF of test star 0")])


def test_the_test_step_alone():
    """Right of stars of the training posterior's kind; wrong with half of the variance of their population."""
    stars = template(40)
    posterior = bl.fit(EXACT, stars, bl.MAP())
    laplace = bl.Laplace(draws=200)
    spectra = stars.drop("labels")
    found = sbc(posterior, spectra, laplace, 300)
    assert found.names == ("TEFF", "LOGG")
    assert found.holds, found.table()
    np.testing.assert_array_equal(sbc(posterior, spectra, laplace, 300).ranks, found.ranks)
    moments = posterior.moments
    sure = posterior.with_moments(moments._replace(population_covariance=0.5 * moments.population_covariance))
    assert sbc(sure, spectra, laplace, 300).p_value < 1e-3


@pytest.mark.slow
def test_gibbs_of_a_small_cannon_in_300_simulations():
    found = sbc(EXACT, template(), bl.Gibbs(2, 250, 100), 300, test=TEST, infer_with=bl.Laplace(draws=99), n_draw=49)
    assert found.n_failed == 0
    assert found.n_correlated < 15
    assert found.holds, found.table()


def test_refusals():
    stars = template()
    for model in (
        bl.Cannon(order=1, label_noise="joint", coefficient_prior=priors.Flat()),
        bl.Cannon(1, label_noise=False),
    ):
        with pytest.raises(CannotDo, match="flat prior"):
            sbc(model, stars, bl.Gibbs(), 10)
    with pytest.raises(BadInput, match="leaves a setting open"):
        sbc(bl.Cannon(order=1), stars, bl.Gibbs(), 10)
    with pytest.raises(CannotDo, match="no fit step"):
        sbc(MODEL, stars, bl.Importance(), 10)
