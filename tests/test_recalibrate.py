"""Factor and floor of error bars: recovered, applied in the open, and right on stars they were not learned on."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import minimize
from scipy.stats import norm
from scipy.stats import t as student_t

import bayeslabels as bl
from bayeslabels import calibration
from bayeslabels.calibration import Recalibration, recalibrate
from bayeslabels.calibration.recalibrate import fit_width
from bayeslabels.errors import BadInput
from bayeslabels.kind import Quantities
from bayeslabels.results.star_posterior import Flags

NAMES, UNITS = ("TEFF", "LOGG"), ("K", "dex")
FRAME = Quantities(NAMES, UNITS)
FACTOR, FLOOR = np.array([1.6, 0.8]), np.array([30.0, 0.08])


def made_up(n=2000, seed=0, factor=FACTOR, floor=FLOOR, n_draw=150):
    """A result with stated errors, of correlated labels, whose true errors are f sd and s together; and the truth."""
    rng = np.random.default_rng(seed)
    sd = np.array([25.0, 0.06]) * np.exp(0.5 * rng.normal(size=(n, 2)))
    mean = rng.normal(size=(n, 2)) * [300, 0.5] + [4700, 2]
    cov = sd[:, :, None] * sd[:, None] * np.array([[1, 0.5], [0.5, 1]])
    draws = mean + np.einsum("nij,snj->sni", np.linalg.cholesky(cov), rng.normal(size=(n_draw, n, 2)))
    truth = mean + np.hypot(factor * sd, floor) * rng.normal(size=(n, 2))
    coords = {"star": [f"s{i}" for i in range(n)], "labels": list(NAMES), "labels_bis": list(NAMES)}
    per_label = {"mean": mean, "p16": mean - sd, "p50": mean, "p84": mean + sd}
    table = {k: (("star", "labels"), x) for k, x in per_label.items()}
    table |= {"covariance": (("star", "labels", "labels_bis"), cov), "flags": ("star", np.full(n, int(Flags.POOR_FIT)))}
    posterior = xr.Dataset(
        {"true_labels": (("chain", "draw", "star", "labels"), draws[None])}, {x: coords[x] for x in ("star", "labels")}
    )
    data = xr.DataTree.from_dict({"posterior": posterior, "stars": xr.Dataset(table, coords)})
    return bl.StarPosterior(data, FRAME, {"inference": "made up"}), truth


def test_factor_and_floor_are_recovered():
    result, truth = made_up(4000)
    found = recalibrate(result, truth)
    assert (abs(found.factor[0] - FACTOR) < 3 * found.factor_error[0]).all()
    assert (abs(found.floor[0] - FLOOR) < 3 * found.floor_error[0]).all()
    assert (found.factor_error[0] < 0.15).all()
    assert (found.floor_error[0] < FLOOR / 4).all()
    assert found.n_star.tolist() == [[4000, 4000]]


def test_maximum_of_the_likelihood_against_scipy():
    result, truth = made_up(300, seed=3)
    error = np.array([20.0, 0.05])
    found = recalibrate(result, truth, errors=error)
    for m in range(2):
        scale = np.median(result.error[:, m])

        def loss(x, m=m, scale=scale):
            sd = np.sqrt((x[0] * result.error[:, m]) ** 2 + (x[1] * scale) ** 2 + error[m] ** 2)
            return -norm.logpdf(truth[:, m], result.mean[:, m], sd).sum()

        best = minimize(loss, [1, 1], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
        assert loss([found.factor[0, m], found.floor[0, m] / scale]) <= best.fun + 1e-6
        np.testing.assert_allclose(np.abs(best.x), [found.factor[0, m], found.floor[0, m] / scale], rtol=2e-3)


def test_wrong_labels_do_not_widen_all_error_bars():
    result, truth = made_up(3000, seed=6)
    clean = recalibrate(result, truth, freedom=4)
    truth[::50] += [3000, 5]
    gauss, robust = recalibrate(result, truth), recalibrate(result, truth, freedom=4)
    z = [calibration.robust_scatter(calibration.z_scores(x.apply(result), truth)) for x in (gauss, robust)]
    assert (z[0] < 0.5).all()
    assert np.allclose(z[1], 1, atol=0.1)
    assert np.allclose(calibration.robust_scatter(calibration.z_scores(clean.apply(result), truth)), 1, atol=0.1)


def test_student_likelihood_against_scipy():
    rng = np.random.default_rng(1)
    variance, other = rng.uniform(0.5, 2, 4000), rng.uniform(0, 1, 4000)
    c = student_t.ppf(norm.cdf(1), 3)
    offset = np.sqrt(4 * variance + 1 + other) * rng.standard_t(3, 4000) / c
    found = fit_width(offset, variance, other, True, 3.0)

    def loss(x):
        return -student_t.logpdf(offset, 3, scale=np.sqrt(x[0] ** 2 * variance + x[1] ** 2 + other) / c).sum()

    best = minimize(loss, [1, 1], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9})
    np.testing.assert_allclose(np.abs(best.x), [found.factor, found.floor], rtol=1e-3, atol=1e-3)
    assert abs(found.factor - 2) < 3 * found.factor_error < 0.5
    curvature = []  # the likelihood's own, along the factor alone
    alone = fit_width(offset, variance, other, False, 3.0)
    for step in (-1e-3, 0, 1e-3):
        curvature.append(loss([alone.factor + step, 0]))
    assert alone.factor_error == pytest.approx((curvature[0] - 2 * curvature[1] + curvature[2]) ** -0.5 * 1e-3, rel=0.1)


def test_standard_errors_are_those_of_repeated_surveys():
    found = [recalibrate(*made_up(500, seed=s, n_draw=1)) for s in range(40)]
    for value, error in (("factor", "factor_error"), ("floor", "floor_error")):
        values, errors = (np.stack([getattr(x, name)[0] for x in found]) for name in (value, error))
        assert np.allclose(values.std(0) / np.median(errors, 0), 1, atol=0.35)


def test_coverage_on_other_stars():
    result, truth = made_up(3000, seed=1)
    learn, rest = np.arange(3000) < 1500, np.arange(3000) >= 1500
    before = calibration.coverage(result[rest], truth[rest])
    assert not before.holds.any()
    better = recalibrate(result[learn], truth[learn]).apply(result[rest])
    for level in (0.5, 0.6827, 0.95):
        assert calibration.coverage(better, truth[rest], level).holds.all()
    assert np.allclose(calibration.z_scores(better, truth[rest]).std(0), 1, atol=0.05)


def test_errors_of_the_labels_and_tau_are_not_counted_twice():
    result, truth = made_up(4000, seed=2)
    error, tau = np.array([60.0, 0.1]), np.array([40.0, 0.1])
    rng = np.random.default_rng(0)
    noisy = truth + np.hypot(error, tau) * rng.normal(size=truth.shape)
    stars = bl.Stars(labels=bl.Block(noisy, np.tile(error, (4000, 1)), names=NAMES, unit=UNITS))
    found = recalibrate(result, stars, scatter=tau)
    assert (abs(found.factor[0] - FACTOR) < 3 * found.factor_error[0]).all()
    assert (abs(found.floor[0] - FLOOR) < 3 * found.floor_error[0]).all()
    whole = recalibrate(result, stars)  # the floor takes tau up
    assert (abs(whole.floor[0] - np.hypot(FLOOR, tau)) < 3 * whole.floor_error[0]).all()


def test_by_signal_to_noise():
    n = 3000
    snr = np.random.default_rng(5).uniform(10, 200, n)
    low = snr < 60
    factor = np.where(low[:, None], 2.0, 1.0) * np.ones(2)
    result, truth = made_up(n, factor=factor, floor=np.zeros(2))
    found = recalibrate(result, truth, by=snr, bins=(60,), by_name="SNR", floor=False)
    assert np.allclose(found.factor, [[2, 2], [1, 1]], atol=0.12)
    assert (found.floor == 0).all()
    snr[0] = np.nan
    better = found.apply(result, snr)
    np.testing.assert_allclose(better.error[1:] / result.error[1:], found.factor[np.where(low, 0, 1)][1:])
    assert better.error[0].tolist() == result.error[0].tolist()
    assert not better.flags[0] & Flags.RECALIBRATED
    assert (better.flags[1:] & Flags.RECALIBRATED).all()
    assert found.table().colnames[:4] == ["label", "unit", "SNR_low", "SNR_high"]
    assert recalibrate(result, truth, by=snr, bins=3).n_star[:, 0].sum() == n - 1
    with pytest.raises(BadInput, match="by=SNR"):
        found.apply(result)


def test_application_can_be_seen(tmp_path):
    result, truth = made_up(200)
    result.data["stars"]["covariance"].values[7] = np.nan
    part = ("star", "labels"), 0.5 * result.error, {"long_name": "a part"}
    result.data["stars"] = xr.DataTree(result.stars.assign(error_shared=part))
    found = recalibrate(result, truth)
    better = found.apply(result)
    table = better.table()
    wide = np.hypot(found.factor[0] * result.error, found.floor[0])
    np.testing.assert_allclose(better.error, wide)
    np.testing.assert_allclose(table["TEFF_error_stated"].value, result.error[:, 0])
    np.testing.assert_allclose((table["TEFF_p84"] - table["TEFF_p16"]).value[:7], 2 * wide[:7, 0])
    np.testing.assert_allclose(
        better.draws("LOGG").std(0)[:7], (result.draws("LOGG").std(0) * wide[:, 1] / result.error[:, 1])[:7]
    )
    correlation = better.cov[:, 0, 1] / better.error.prod(1)
    np.testing.assert_allclose(correlation[:7], 0.5)
    np.testing.assert_allclose(better.stars["error_shared"].values, 0.5 * wide)
    assert better.stars["error_shared"].attrs == {"long_name": "a part"}
    assert np.isnan(better.error[7]).all()
    assert better.flags[7] == Flags.POOR_FIT
    assert better.flags[0] == Flags.POOR_FIT | Flags.RECALIBRATED
    assert "RECALIBRATED" in repr(better)
    assert "error_stated" not in result.stars
    assert "recalibration" not in result.info
    again = [
        Recalibration.of(better),
        Recalibration.of(table),
        Recalibration.load(found.save(tmp_path / "errors.json")),
    ]
    for one in again:
        np.testing.assert_array_equal(one.apply(result).error, better.error)
        assert one.names == NAMES
    assert Recalibration.of(better[:3]).n_star.tolist() == found.n_star.tolist()
    with pytest.raises(BadInput, match="already"):
        found.apply(better)
    with pytest.raises(BadInput, match="as the test step gave it"):
        Recalibration.of(result)


def test_missing_labels():
    result, truth = made_up(400, seed=4)
    truth[::3, 0] = np.nan
    truth[:, 1] = np.nan
    found = recalibrate(result, truth)
    assert found.n_star.tolist() == [[266, 0]]
    some = np.isfinite(truth[:, 0])
    assert found.factor[0, 0] == recalibrate(result[some], truth[some]).factor[0, 0]
    better = found.apply(result)  # no truth for LOGG: its errors stay
    np.testing.assert_array_equal(better.error[:, 1], result.error[:, 1])


def test_error_bars_that_hold_are_left_alone():
    result, truth = made_up(4000, factor=np.ones(2), floor=np.zeros(2))
    found = recalibrate(result, truth)
    better = found.apply(result)
    assert np.allclose(np.median(better.error / result.error, 0), 1, atol=0.05)
    assert (found.floor[0] < 3 * found.floor_error[0]).all()


def test_equal_errors_leave_the_floor_at_zero():
    result, truth = made_up(500, factor=np.full(2, 2.0), floor=np.zeros(2))
    result.data["stars"]["covariance"].values[:] = np.diag([25.0, 0.06]) ** 2
    found = recalibrate(result, truth)
    assert (found.floor == 0).all()
    assert np.isnan(found.floor_error).all()
    z = calibration.z_scores(found.apply(result), truth)
    assert np.allclose(np.mean(z**2, 0), 1, atol=1e-4)


def test_refusals(tmp_path):
    result, truth = made_up(100)
    with pytest.raises(BadInput, match=r"19 stars with TEFF.*at least 20"):
        recalibrate(result[:19], truth[:19])
    with pytest.raises(BadInput, match=r"in bin 1 of 10.*bins=9"):
        recalibrate(result, truth, by=np.arange(100), bins=10)
    with pytest.raises(BadInput, match="by of shape"):
        recalibrate(result, truth, by=np.arange(99))
    with pytest.raises(BadInput, match="bins="):
        recalibrate(result, truth, by=np.arange(100), bins=(50, 20))
    with pytest.raises(BadInput, match="no star with both"):
        recalibrate(result, np.full_like(truth, np.nan))
    with pytest.raises(BadInput, match="freedom=0"):
        recalibrate(result, truth, freedom=0)
    with pytest.raises(BadInput, match="labels of shape"):
        recalibrate(result, truth[1:])
    other = Quantities(("TEFF", "FE_H"), UNITS)
    with pytest.raises(BadInput, match="error model of other labels"):
        recalibrate(result, truth).apply(bl.StarPosterior(result.data, other, {}))
    path = tmp_path / "other.json"
    path.write_text('{"names": ["TEFF"]}')
    with pytest.raises(BadInput, match="no error model"):
        Recalibration.load(path)


def test_learned_by_cross_validation_of_the_training_stars():
    result, truth = made_up(100)
    cv = calibration.CrossValidation(
        np.arange(100), result.mean, result.cov, np.zeros((100, 2)), np.zeros(100), np.zeros(100, int),
        result.flags, np.stack([result.draws(x) for x in NAMES], -1), FRAME, {},
    )  # fmt: skip
    np.testing.assert_array_equal(recalibrate(cv, truth).factor, recalibrate(result, truth).factor)


def test_quantities_that_are_not_labels():
    result, truth = made_up(100)
    found = recalibrate(result, truth)
    parts = {name: result.data[name].to_dataset() for name in result.data.children}
    other = {"labels": "labels", "labels_bis": "labels_bis"}
    renamed = {name: x.rename({k: v for k, v in other.items() if k in x.dims}) for name, x in parts.items()}
    better = found.apply(bl.StarPosterior(xr.DataTree.from_dict(renamed), FRAME, {}))
    np.testing.assert_array_equal(better.error, found.apply(result).error)
    np.testing.assert_array_equal(better.draws("TEFF"), found.apply(result).draws("TEFF"))
    assert better[np.arange(100) < 3].stars.sizes["labels"] == 2
    assert len(better[5]) == 1
