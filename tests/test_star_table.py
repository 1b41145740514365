"""The table of a result: digits that are shown, files that keep all of them, and columns on request."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable

import bayeslabels as bl
from bayeslabels.results.star_posterior import Flags
from bayeslabels.results.table import decimals
from bayeslabels.tables import read_table


@pytest.fixture(scope="module")
def result():
    train, test, _ = bl.simulate.simulate(100, 50, seed=1, n_test=20)
    return bl.infer(bl.fit(bl.Cannon(order=1), train, progress=False), test, progress=False)


def test_two_digits_of_the_error_are_shown(result):
    table = result.table()
    for m, name in enumerate(result.frame.names):
        few = np.percentile(result.error[:, m], 16)
        digits = max(0, 1 - int(np.floor(np.log10(few))))
        shown = table[name, f"{name}_error"][:1].pformat(show_unit=False)[-1].split()
        assert shown == [f"{x:.{digits}f}" for x in (result.mean[0, m], result.error[0, m])]


@pytest.mark.parametrize(("sizes", "expected"), [([26.0], ".0f"), ([0.0123], ".3f"), ([300.0], ".0f"), ([0.99], ".2f")])
def test_decimals(sizes, expected):
    assert decimals([np.nan, 0.0, *sizes]) == expected


def test_nothing_is_known_of_no_sizes():
    assert decimals([np.nan, 0.0]) is None


@pytest.mark.parametrize("suffix", ["fits", "ecsv", "csv"])
@pytest.mark.parametrize("rows", [slice(None), slice(2, 9)], ids=["all", "some"])
def test_files_have_all_digits_and_no_warning(result, tmp_path, suffix, rows):
    table = result.table()[rows]
    table.write(tmp_path / f"x.{suffix}")
    back = read_table(tmp_path / f"x.{suffix}")
    for name in table.colnames:
        np.testing.assert_array_equal(np.asarray(back[name]), np.asarray(getattr(table[name], "value", table[name])))
    assert table["FE_H"].info.format  # of the table itself nothing is lost
    with pytest.raises(OSError, match="overwrite=True"):
        table.write(tmp_path / f"x.{suffix}")
    table.write(tmp_path / f"x.{suffix}", overwrite=True)


def test_fits_has_units_and_the_meaning_of_flags(result, tmp_path):
    result.table().write(tmp_path / "x.fits")
    header = fits.getheader(tmp_path / "x.fits", 1)
    assert {header[f"TUNIT{i}"] for i in (2, 3)} == {"K"}
    assert f"flag_bits: {int(Flags.POOR_FIT)} = POOR_FIT" in list(header["COMMENT"])


def test_astropy_writes_to_whatever_it_writes(result, tmp_path):
    table = result.table()
    table.write(tmp_path / "x.txt", format="ascii.ecsv")
    assert QTable.read(tmp_path / "x.txt", format="ascii.ecsv")["TEFF"][3] == table["TEFF"][3]


def test_columns_on_request(result):
    table = result.table(also=("correlations", "reduced_chi2"))
    i, j = (result.frame.names.index(x) for x in ("TEFF", "FE_H"))
    expected = result.cov[:, i, j] / (result.error[:, i] * result.error[:, j])
    np.testing.assert_allclose(table["TEFF_FE_H_correlation"], expected)
    np.testing.assert_allclose(table["reduced_chi2"], table["chi2"] / table["n_pixel"])
    assert result.table(also="reduced_chi2").colnames[-1] == "reduced_chi2"


def test_what_a_result_has_not_is_refused():
    stars, _ = bl.simulate.simulate_photometry(60, seed=1)
    parallax = bl.Parallax(features=("magnitudes",))
    found = bl.infer(bl.fit(parallax, stars, progress=False), stars[:5], progress=False)
    with pytest.raises(bl.BadInput, match="without chi2"):
        found.table(also="reduced_chi2")


def test_catalogues_have_them_too(result, tmp_path):
    train, test, _ = bl.simulate.simulate(100, 50, seed=1, n_test=20)
    posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
    source = bl.tables.write_table(test.to_table(), tmp_path / "survey.fits")
    bl.infer_catalog(posterior, source, tmp_path / "out.csv", save=("correlations", "reduced_chi2"), progress=False)
    table = read_table(tmp_path / "out.csv")
    np.testing.assert_allclose(table["reduced_chi2"], table["chi2"] / table["n_pixel"])
    assert np.abs(table["TEFF_LOGG_correlation"]).max() <= 1
