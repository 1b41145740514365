"""Gaia's BP/RP coefficients: the archive's order of correlations, and BP and RP as one block."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

import bayeslabels as bl
from bayeslabels.astro.gaia_xp import covariance, xp_coefficients
from bayeslabels.errors import BadInput

N, SIZES = 4, {"bp": 5, "rp": 4}


def correlations(matrix):
    """The elements above the diagonal, column after column, one by one."""
    return [matrix[row, column] for column in range(len(matrix)) for row in range(column)]


@pytest.fixture(scope="module")
def truth():
    rng, found = np.random.default_rng(0), {}
    for band, n in SIZES.items():
        root = rng.normal(size=(N, n, 2 * n))
        found[band] = rng.normal(size=(N, n)), root @ root.swapaxes(1, 2)
    return found


@pytest.fixture(scope="module")
def table(truth):
    columns = {"source_id": np.arange(N)}
    for band, (value, matrix) in truth.items():
        sd = np.sqrt(np.diagonal(matrix, axis1=1, axis2=2))
        r = matrix / (sd[:, :, None] * sd[:, None])
        columns[f"{band}_coefficients"], columns[f"{band}_coefficient_errors"] = value, sd
        columns[f"{band}_coefficient_correlations"] = np.array([correlations(x) for x in r])
    return Table(columns)


def test_covariances_are_restored(table, truth):
    for band, (_, matrix) in truth.items():
        ours = covariance(table[f"{band}_coefficient_errors"], table[f"{band}_coefficient_correlations"])
        np.testing.assert_allclose(ours, matrix, rtol=1e-12)


def test_bp_and_rp_are_one_block(table, truth):
    value, both = xp_coefficients(table, scale=np.arange(1.0, N + 1))
    block = bl.Block(value, both)
    assert block.has_covariance
    np.testing.assert_allclose(both[2, :5, :5], 9 * truth["bp"][1][2])
    np.testing.assert_allclose(both[2, 5:, 5:], 9 * truth["rp"][1][2])
    assert (both[:, :5, 5:] == 0).all()
    np.testing.assert_allclose(value[2], 3 * np.r_[truth["bp"][0][2], truth["rp"][0][2]])
    few, part = xp_coefficients(dict(table.columns), n=(3, 2))
    np.testing.assert_allclose(few, np.c_[truth["bp"][0][:, :3], truth["rp"][0][:, :2]])
    np.testing.assert_allclose(part[:, :3, :3], truth["bp"][1][:, :3, :3])


def test_a_star_without_rp_keeps_bp(table):
    """Of vectors of the archive's tables, which may be objects, one is masked."""
    other, where = table.copy(), np.arange(N) == 1
    for name in [x for x in table.colnames if x.startswith("rp")]:
        column = np.empty(N, object)
        column[:] = [None if blank else row for blank, row in zip(where, table[name], strict=True)]
        other[name] = MaskedColumn(column, mask=where)
    observed = bl.Block(*xp_coefficients(other)).observed
    assert observed[1].tolist() == [True] * 5 + [False] * 4
    assert observed[~where].all()


def test_what_is_refused(table):
    with pytest.raises(BadInput, match=r"without rp_coefficient_correlations.*XP_CONTINUOUS"):
        xp_coefficients(table["source_id", *[x for x in table.colnames if x != "rp_coefficient_correlations"][1:]])
    with pytest.raises(BadInput, match=r"shape \(4, 10\).*\(4, 6\)"):
        covariance(table["rp_coefficient_errors"], table["bp_coefficient_correlations"])
    with pytest.raises(BadInput, match="beyond -1 and 1"):
        covariance(np.ones((1, 2)), [[3.0]])
    with pytest.raises(BadInput, match="at most 4 coefficients of RP"):
        xp_coefficients(table, n=(5, 9))
