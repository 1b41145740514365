from __future__ import annotations

import numpy as np
import pytest
from conftest import simulate
from scipy.stats import binom, kstest, multivariate_normal

import bayeslabels as bl
from bayeslabels import calibration
from bayeslabels.errors import BadInput
from bayeslabels.kind import Quantities

FRAME = Quantities(("TEFF", "LOGG"), ("K", "dex"))


def made_up(n=4000, n_draw=200, inflate=1.0, seed=0):
    """A result whose error bars are `inflate` times right, its truth, and labels that scatter about the truth."""
    rng = np.random.default_rng(seed)
    sd = np.array([50.0, 0.1])
    truth = rng.normal(size=(n, 2)) * [300, 0.5]
    mean = truth + sd * rng.normal(size=(n, 2))
    samples = mean + inflate * sd * rng.normal(size=(n_draw, n, 2))
    cov = np.tile(np.diag((inflate * sd) ** 2), (n, 1, 1))
    result = calibration.CrossValidation(
        np.arange(n), mean, cov, np.zeros((n, 2)), np.zeros(n), np.zeros(n, int), np.zeros(n, int), samples, FRAME, {}
    )
    error = np.tile([80.0, 0.2], (n, 1))
    return result, truth, truth + error * rng.normal(size=(n, 2)), error


def test_right_error_bars_pass():
    result, truth, noisy, error = made_up()
    assert np.allclose(calibration.z_scores(result, truth).std(0), 1, atol=0.04)
    assert np.allclose(calibration.robust_scatter(calibration.z_scores(result, noisy, error)), 1, atol=0.05)
    for level in (0.5, 0.6827, 0.95):
        assert calibration.coverage(result, truth, level).holds.all()
        assert calibration.coverage(result, noisy, level, errors=error).holds.all()
    for values in (calibration.pit(result, truth), calibration.pit(result, noisy, errors=error)):
        assert all(kstest(column, "uniform").pvalue > 1e-3 for column in values.T)


@pytest.mark.parametrize(("inflate", "side"), [(0.5, -1), (2.0, 1)])
def test_wrong_error_bars_are_seen(inflate, side):
    result, truth, *_ = made_up(n=1000, inflate=inflate)
    found = calibration.coverage(result, truth)
    assert not found.holds.any()
    assert (side * (found.share - 0.6827) > 0.1).all()
    assert np.allclose(calibration.robust_scatter(calibration.z_scores(result, truth)) * inflate, 1, atol=0.1)


def together(seed, part, n=500, n_draw=300):
    """A result of 500 stars that share `part` of their errors, along a label of theirs, and its truth."""
    rng = np.random.default_rng(seed)
    sd = np.array([50.0, 0.1])
    shape = np.concatenate([np.ones((n, 1)), rng.normal(size=(n, 2))], 1) / np.sqrt(3)
    off = part * shape @ rng.normal(size=(n_draw + 1, 3, 2)) + np.sqrt(1 - part**2) * rng.normal(
        size=(n_draw + 1, n, 2)
    )
    samples = off[1:] * sd
    mean, cov = np.zeros((n, 2)), np.tile(np.diag(sd**2), (n, 1, 1))
    folds = np.zeros((n, 2)), np.zeros(n), np.zeros(n, int), np.zeros(n, int)
    return calibration.CrossValidation(np.arange(n), mean, cov, *folds, samples, FRAME, {}), off[0] * sd


def test_the_band_allows_for_errors_that_stars_share():
    """Of 100 results 95 lie inside. Alone, stars would have a band that three of four results miss."""
    found = [calibration.coverage(*together(seed, 0.8)) for seed in range(100)]
    alone = binom.interval(0.95, 500, 0.6827)
    holds, missed = (
        np.array([x.holds for x in found]),
        [(x.share * 500 < alone[0]) | (x.share * 500 > alone[1]) for x in found],
    )
    assert binom.cdf(holds.sum(), holds.size, 0.95) > 0.01 / 2
    assert np.mean(missed) > 0.2
    narrow = calibration.coverage(*together(1, 0.0))
    np.testing.assert_allclose(narrow.high - narrow.low, (alone[1] - alone[0]) / 500, rtol=0.25)


def test_coverage_of_several_levels():
    result, truth, *_ = made_up(n=200)
    truth[:5, 0] = np.nan
    several = calibration.coverage(result, truth, [0.3, 0.9])
    for level, one in zip((0.3, 0.9), zip(*several[:3], strict=True), strict=True):
        for part, alone in zip(one, calibration.coverage(result, truth, level), strict=False):
            np.testing.assert_array_equal(part, alone)
    at = np.abs(calibration.pit(result, truth) - 0.5) <= 0.45
    np.testing.assert_array_equal(several.share[1], at.sum(0) / [195, 200])


def test_scatter_counts_like_an_error():
    result, _, noisy, error = made_up(n=300)
    both = calibration.z_scores(result, noisy, scatter=error[0])
    np.testing.assert_allclose(both, calibration.z_scores(result, noisy, error))
    np.testing.assert_allclose(
        calibration.pit(result, noisy, scatter=error), calibration.pit(result, noisy, errors=error)
    )


def test_log_density_against_scipy():
    result, truth, _, error = made_up(n=6)
    truth[1, 0] = np.nan
    truth[2] = np.nan
    value = calibration.log_density(result, truth, error)
    total = result.cov + error[:, :, None] ** 2 * np.eye(2)
    assert np.isclose(value[0], multivariate_normal(result.mean[0], total[0]).logpdf(truth[0]))
    assert np.isclose(value[1], multivariate_normal(result.mean[1, 1:], total[1, 1:, 1:]).logpdf(truth[1, 1]))
    assert np.isnan(value[2])
    assert np.isnan(calibration.pit(result, truth)[2]).all()
    assert calibration.coverage(result, truth).n_star.tolist() == [4, 5]


def test_refusals():
    result, truth, *_ = made_up(n=10)
    with pytest.raises(BadInput, match=r"labels of shape \(9, 2\), expected \(10, 2\)"):
        calibration.z_scores(result, truth[1:])
    with pytest.raises(BadInput, match="errors of shape"):
        calibration.z_scores(result, truth, np.ones(3))
    with pytest.raises(BadInput, match=r"level=68"):
        calibration.coverage(result, truth, 68)
    with pytest.raises(BadInput, match="'MASS'"):
        result.draws("MASS")


def test_cross_validation():
    n_star = 60
    stars, true = simulate(n_star, seed=4, label_error=0.02)
    stars = bl.Stars(id=[f"s{i}" for i in range(n_star)], labels=stars.labels, flux=stars.flux)
    values = calibration.cross_validate(bl.Cannon(order=1, label_noise=False), stars, folds=3)
    assert len(values) == n_star
    assert values.folds == 3
    assert np.bincount(values.fold).tolist() == [20, 20, 20]
    assert (calibration.robust_scatter(values.mean - true) < [60, 0.1]).all()
    z = calibration.z_scores(values, stars)
    assert (abs(z.std(0) - 1) < 3 / np.sqrt(2 * n_star)).all()
    np.testing.assert_allclose(values.log_density, calibration.log_density(values, stars, values.label_scatter))
    np.testing.assert_array_equal(calibration.label_scatter(values), np.zeros((n_star, 2)))
    assert values.elpd == pytest.approx(values.log_density.sum())
    table = values.table()
    assert table["id"].tolist() == stars.id.tolist()
    assert str(table["TEFF_error"].unit) == "K"
    assert "CrossValidation of 60 stars in 3 folds" in repr(values)

    # by hand, for one fold: the star never sees itself
    out = values.fold == 1
    alone = bl.infer(bl.fit(bl.Cannon(order=1, label_noise=False), stars[~out]), stars[out].drop("labels"))
    np.testing.assert_array_equal(alone.mean, values.mean[out])
    np.testing.assert_array_equal(alone.draws("LOGG"), values.draws("LOGG")[:, out])
    assert calibration.coverage(alone, stars[out]).n_star.tolist() == [20, 20]
    np.testing.assert_allclose(calibration.pit(alone, stars[out]), calibration.pit(values, stars)[out])


def test_too_many_folds(training):
    with pytest.raises(BadInput, match="folds=41 for 40 stars"):
        calibration.cross_validate(bl.Cannon(order=1, label_noise=False), training, folds=41)


@pytest.mark.long
@pytest.mark.parametrize("noise", ["joint", "cut"])
def test_scatter_of_the_catalogue_counts_once(noise):
    """Of labels without stated errors tau is the catalogue's noise, or the stars' own and in their errors already."""
    train, _, _ = bl.simulate.simulate(200, 40, seed=1)
    value = np.asarray(train["labels"].value)
    bare = train.with_block(labels=bl.Block(value, names=train["labels"].names, unit=train["labels"].units))
    held_out = bl.cross_validate(bl.Cannon(order=2, label_noise=noise), bare, folds=2, progress=False)
    tau = calibration.label_scatter(held_out)
    assert (tau > 0).all() == (noise == "joint")
    assert ("TEFF_catalogue_error" in held_out.table().colnames) == (noise == "joint")
    assert np.all(np.abs(np.std(calibration.z_scores(held_out, bare, scatter=tau), 0) - 1) < 0.2)
    assert calibration.coverage(held_out, bare, scatter=tau).holds.all()
