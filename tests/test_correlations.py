"""Covariances from errors and correlations as archives have them, and blocks of several vector columns."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import Table

import bayeslabels as bl
from bayeslabels.errors import BadInput


def archive(n=5, sizes=(4, 3), seed=0):
    """A table with coefficients, errors and correlations of two spectra; and the true covariances."""
    rng = np.random.default_rng(seed)
    columns, true = {}, np.zeros((n, sum(sizes), sum(sizes)))
    start = 0
    for name, k in zip(("bp", "rp"), sizes, strict=True):
        half = rng.standard_normal((n, k, 2 * k))
        c = half @ half.swapaxes(1, 2)
        error = np.sqrt(np.einsum("nkk->nk", c))
        matrix = c / (error[:, :, None] * error[:, None, :])
        packed = np.stack([matrix[:, i, j] for j in range(k) for i in range(j)], 1)
        columns |= {
            f"{name}_coefficients": rng.standard_normal((n, k)),
            f"{name}_errors": error,
            f"{name}_corr": packed,
        }
        true[:, start : start + k, start : start + k] = c
        start += k
    return Table(columns), true


def columns(*suffixes):
    return {f"flux{'_' if s != 'coefficients' else ''}{w}": [f"{b}_{s}" for b in ("bp", "rp")]
            for s, w in zip(suffixes, ("", "error", "correlation"), strict=False)}  # fmt: skip


def test_two_vector_columns_with_their_correlations():
    table, true = archive()
    flux = bl.Stars.from_table(table, **columns("coefficients", "errors", "corr")).flux
    np.testing.assert_allclose(flux.error, true, rtol=1e-10)
    np.testing.assert_array_equal(flux.value, np.concatenate([table["bp_coefficients"], table["rp_coefficients"]], 1))
    table["bp_errors"][1, 2] = np.nan
    gone = bl.Stars.from_table(table, **columns("coefficients", "errors", "corr")).flux
    assert gone.observed[1].tolist() == [True, True, False, True, True, True, True]
    plain = bl.Stars.from_table(table, **columns("coefficients", "errors")).flux
    np.testing.assert_array_equal(plain.error[0], np.r_[table["bp_errors"][0], table["rp_errors"][0]])


def test_scalar_columns_as_of_astrometry():
    rng = np.random.default_rng(1)
    names, n = ("a", "b", "c"), 4
    table = Table({x: rng.standard_normal(n) for x in names})
    for x, value in {"a_e": 0.1, "b_e": 0.2, "c_e": 0.3, "ab": 0.5, "ac": -0.2, "bc": 0.1}.items():
        table[x] = np.full(n, value)
    table["a"].unit, table["a_e"].unit = "mas", "uas"
    table["a_e"] *= 1000
    x = bl.Stars.from_table(table, x=names, x_error=["a_e", "b_e", "c_e"], x_correlation=["ab", "ac", "bc"]).x
    error = np.array([0.1, 0.2, 0.3])
    matrix = np.array([[1, 0.5, -0.2], [0.5, 1, 0.1], [-0.2, 0.1, 1]])
    np.testing.assert_allclose(x.error[0], error[:, None] * error * matrix, rtol=1e-10)
    assert x.names == names


def test_correlations_that_do_not_fit():
    table, _ = archive()
    with pytest.raises(BadInput, match="without errors"):
        bl.Stars.from_table(table, flux="bp_coefficients", flux_correlation="bp_corr")
    with pytest.raises(BadInput, match="6 numbers"):
        bl.Stars.from_table(table, flux="rp_coefficients", flux_error="rp_errors", flux_correlation="bp_corr")
