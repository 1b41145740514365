"""R-hat and effective sample sizes are those of ArviZ, of many parameters at once."""

from __future__ import annotations

import numpy as np
import pytest
from arviz_stats.base import array_stats

from bayeslabels.inference.diagnostics import ess, rhat, rhat_limit, worst


def chains(n_chain, n_draw, rho, seed=0):
    """Autoregressive chains of six parameters; the first chain is wider than the others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_chain, n_draw, 2, 3))
    for i in range(1, n_draw):
        x[:, i] = rho * x[:, i - 1] + np.sqrt(1 - rho**2) * x[:, i]
    x[0] *= 1.3
    return x


CASES = [(4, 500, 0.0), (4, 501, 0.5), (2, 100, 0.8), (4, 60, -0.4), (3, 200, 0.2)]


@pytest.mark.parametrize("digits", [None, 1], ids=["all different", "ties"])
@pytest.mark.parametrize(("n_chain", "n_draw", "rho"), CASES)
def test_as_arviz(n_chain, n_draw, rho, digits):
    x = chains(n_chain, n_draw, rho)
    x = x if digits is None else x.round(digits)
    for name, ours, tolerance in (("rhat", rhat(x), 1e-12), ("ess", ess(x), 0.1)):
        method = {"rhat": "rank", "ess": "bulk"}[name]
        one = getattr(array_stats, name)
        theirs = [[one(x[:, :, i, j], chain_axis=0, draw_axis=1, method=method) for j in range(3)] for i in range(2)]
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)


def test_unlike_scales_are_seen():
    x = chains(4, 500, 0.0)
    x[0] *= 3  # the same mean, but another spread: R-hat of the draws alone is blind to it
    assert (rhat(x) > 1.05).all()


def test_what_cannot_be_told_is_nan():
    assert np.isnan(rhat(np.zeros((1, 100, 2)))).all()
    assert np.isnan(rhat(np.ones((4, 100, 2)))).all()
    assert np.isnan(ess(np.ones((4, 3, 2)))).all()
    x = chains(4, 100, 0.0)
    x[1, 5, 0, 0] = np.nan
    for values in (rhat(x), ess(x)):
        assert np.isnan(values[0, 0])
        assert np.isfinite(values).sum() == 5
    told = worst({"a": x, "b": np.ones((4, 100))})
    assert told["rhat_max"] == np.nanmax(rhat(x))
    assert told["ess_min"] == np.nanmin(ess(x))


@pytest.mark.long
@pytest.mark.parametrize("n_number", [1, 20, 400])
def test_chains_that_agree_are_called_so_however_many_numbers_are_compared(n_number):
    """Of some 330 effective draws in two chains, where one number is above 1.02 once in a hundred runs."""
    rng = np.random.default_rng(n_number)
    n_run = 4000 // n_number if n_number > 1 else 2000
    x = rng.normal(size=(2, 300, n_run * n_number))
    for i in range(1, 300):
        x[:, i] = 0.3 * x[:, i - 1] + np.sqrt(1 - 0.3**2) * x[:, i]
    highest = rhat(x).reshape(n_run, n_number).max(1)
    called_different = (highest > rhat_limit(2, n_number)).sum()
    assert called_different <= 0.01 * n_run + 3 * np.sqrt(0.01 * n_run) + 1
    if n_number == 400:
        assert (highest > 1.02).mean() > 0.8  # what one limit for any number of numbers would call different


def test_one_chain_elsewhere_is_seen_among_many_numbers():
    x = np.random.default_rng(0).normal(size=(4, 300, 400))
    assert worst({"x": x})["converged"]
    x[0, :, 7] += 0.8
    told = worst({"x": x})
    assert not told["converged"]
    assert told["rhat_limit"] == rhat_limit(4, 400)
    assert rhat_limit(4, 1) == pytest.approx(1.02)
