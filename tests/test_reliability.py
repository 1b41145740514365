"""Coverage by bins, pairs of observations, and comparison of models by held-out density."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import binom
from test_calibration import made_up as cross_validated
from test_recalibrate import NAMES, made_up

from bayeslabels import calibration
from bayeslabels.calibration import compare, pairs, reliability
from bayeslabels.errors import BadInput

RIGHT = {"factor": np.ones(2), "floor": np.zeros(2)}


def test_error_bars_that_hold_hold_in_every_bin():
    result, truth = made_up(4000, **RIGHT)
    snr = np.random.default_rng(1).uniform(10, 200, 4000)
    for by in (snr, "TEFF", None):
        table = reliability(result, truth, by, by_name="SNR" if by is snr else None)
        assert len(table) == 2 * 4 * (1 if by is None else 4)
        assert table["holds"].mean() > 0.85  # 95 per cent, and levels of one bin go together
        assert (abs(table["z_sd"] - 1) < 0.1).all()
        np.testing.assert_allclose(table["share"], table["level"], atol=0.06)
    assert reliability(result, truth, snr, by_name="SNR").colnames[2:4] == ["SNR_low", "SNR_high"]
    assert reliability(result, truth, "TEFF").colnames[2:4] == ["TEFF_low", "TEFF_high"]


def test_the_bin_where_they_do_not_hold_is_found():
    n = 2000
    snr = np.random.default_rng(2).uniform(0, 100, n)
    result, truth = made_up(n, factor=np.where(snr[:, None] < 30, 2.0, 1.0) * np.ones(2), floor=np.zeros(2))
    table = reliability(result, truth, snr, bins=(30,), levels=0.6827)
    assert table["holds"].tolist() == [False, True, False, True]
    assert (table["share"][[0, 2]] < 0.5).all()
    np.testing.assert_allclose(table["z_sd"], [2, 1, 2, 1], atol=0.15)


def test_rows_are_what_they_say():
    result, truth = made_up(300, **RIGHT)
    snr = np.arange(300.0)
    snr[5] = np.nan
    truth[200:, 1] = np.nan
    table = reliability(result, truth, snr, bins=(100,), by_name="SNR", levels=(0.5, 0.9), errors=[10, 0.01])
    part = table[(table["label"] == "LOGG") & (table["SNR_low"] == 100) & (table["level"] == 0.9)][0]
    at = np.arange(100, 200)
    alone = calibration.coverage(result[at], truth[at], 0.9, errors=[10, 0.01])
    assert part["n_star"] == 100
    assert (part["share"], part["low"], part["high"]) == (alone.share[1], alone.low[1], alone.high[1])
    assert (part["low"], part["high"]) == tuple(x / 100 for x in binom.interval(0.95, 100, 0.9))
    assert part["sharpness"] == pytest.approx(np.median(np.hypot(result.error[at, 1], 0.01)))
    assert table["n_star"][table["label"] == "TEFF"].tolist() == [99, 99, 200, 200]
    empty = reliability(result[200:], truth[200:], levels=0.9)
    assert empty["n_star"].tolist() == [100, 0]
    assert np.isnan(empty["share"][1])


def test_pairs():
    result, truth = made_up(900, **RIGHT)
    star = np.arange(900) // 3  # three visits: the third has no partner
    shared = np.random.default_rng(0).normal(size=(300, 2)) * [90, 0.3]
    mean = truth[::3][star] + shared[star] + (result.mean - truth)
    result.data["stars"]["mean"].values[:] = mean
    found = pairs(result, star)
    assert len(found) == 300
    assert (star[found.first] == star[found.second]).all()
    assert len(set(found.first) | set(found.second)) == 600
    np.testing.assert_allclose(found.difference[7], mean[21] - mean[22])
    np.testing.assert_allclose(found.error[7], np.hypot(result.error[21], result.error[22]))
    table = found.table()
    assert (abs(table["z_sd"] - 1) < 3 * table["z_sd_error"]).all()
    assert calibration.z_scores(result, truth[::3][star]).std(0).min() > 2  # what all visits share is not seen


def test_pairs_of_a_star_that_failed():
    result, _ = made_up(20)
    result.data["stars"]["mean"].values[0] = np.nan
    result.data["stars"]["mean"].values[:, 1] = np.nan
    found = pairs(result, np.arange(20) % 10)
    assert np.isnan(found.z[0]).all()
    assert found.table()["n_pair"].tolist() == [9, 0]
    with pytest.raises(BadInput, match="id of shape"):
        pairs(result, np.arange(3))
    with pytest.raises(BadInput, match="ids of observations"):
        pairs(result)


def test_reliability_refuses():
    result, truth = made_up(50)
    with pytest.raises(BadInput, match="levels"):
        reliability(result, truth, levels=68)
    with pytest.raises(BadInput, match="'FE_H'"):
        reliability(result, truth, "FE_H")
    with pytest.raises(BadInput, match="by of shape"):
        reliability(result, truth, np.ones(49))


def test_compare():
    a, *_ = cross_validated(100)
    rng = np.random.default_rng(0)
    density = rng.normal(size=100)
    a = dataclasses.replace(a, log_density=density)
    worse = density - 0.3 + 0.1 * rng.normal(size=100)
    worse[3] = np.nan
    b = dataclasses.replace(a, log_density=worse)
    table = compare({"b": b, "a": a})
    assert table["model"].tolist() == ["a", "b"]
    d = np.delete(density - worse, 3)
    np.testing.assert_allclose(table["difference"], [0, d.sum()])
    np.testing.assert_allclose(table["difference_error"], [0, np.sqrt(99) * d.std()])
    np.testing.assert_allclose(table["elpd"], [np.delete(density, 3).sum(), np.nansum(worse)])
    assert table["n_star"].tolist() == [99, 99]
    assert table["n_failed"].tolist() == [0, 1]
    assert table["difference"][1] > 4 * table["difference_error"][1] > 0.1


def test_compare_refuses():
    a, *_ = cross_validated(30)
    with pytest.raises(BadInput, match="at least two"):
        compare({"a": a})
    with pytest.raises(BadInput, match="other stars"):
        compare({"a": a, "b": dataclasses.replace(a, id=a.id + 1)})
    with pytest.raises(BadInput, match="other labels"):
        compare({"a": a, "b": dataclasses.replace(a, frame=a.frame._replace(names=NAMES[::-1]))})
    with pytest.raises(BadInput, match="no star with a density"):
        compare({"a": a, "b": dataclasses.replace(a, log_density=np.full(30, np.nan))})
