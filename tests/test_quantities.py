"""Helpers of astro take numbers, Quantities, columns and masks alike, and refuse what is outside of what they know."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from astropy import units as u
from astropy.table import Column, MaskedColumn, QTable, Table
from astropy.utils.masked import Masked

from bayeslabels.astro import extinction, gaia, parallax, photometry, spectra
from bayeslabels.astro.quantities import plain
from bayeslabels.errors import BadInput

COVARIANCE = np.tile(4e-4 * np.eye(3), (1, 1, 1))
VECTOR = [2.6, 3.4, 1.95]
ALIKE = [
    (extinction.extinction_law, [[0.55, 2.2]], [[5500, 22000] * u.AA]),
    (extinction.band_extinction, [[5000.0], ("G",), 0.3], [[5.0] * u.kK, ("G",), 300 * u.mmag]),
    (parallax.distance_modulus, [[10.0, 0.1]], [[0.01, 0.0001] * u.arcsec]),
    (parallax.parallax_from_modulus, [[10.0]], [[10_000] * u.mmag]),
    (parallax.gaia_zero_point, [15.0, 1.5, 30.0], [15 * u.mag, 1500 / u.mm, np.deg2rad(30) * u.rad]),
    (parallax.gaia_zero_point, [15.0, 1.5, 30.0], [15, 1.5, Column([30.0], unit="deg")]),
    (photometry.reddening_posterior, [[[0.26, 0.34, 0.2]], VECTOR, COVARIANCE, [0.1], [0.2]],
     [[[260, 340, 200]] * u.mmag, VECTOR, COVARIANCE * u.mag**2, [100] * u.mmag, [0.2] * u.mag]),
    (photometry.propagated_covariance, [np.ones((1, 2, 1)), np.ones((1, 1, 1)), [1, 2], [0.1], [[0.02, 0.03]]],
     [np.ones((1, 2, 1)), np.ones((1, 1, 1)), [1, 2], [100] * u.mmag, [[20, 30]] * u.mmag]),
    (spectra.vacuum_to_air, [[5000.0]], [[500.0] * u.nm]),
    (spectra.doppler_shift, [[5000.0], 10.0], [[0.5] * u.um, 1e4 * u.m / u.s]),
    (parallax.distance_modulus, [[10.0, 0.1]], [xr.DataArray([0.01, 0.0001], attrs={"units": "arcsec"})]),
    (parallax.distance_modulus, [[10.0, np.nan]], [pd.Series([10, None], dtype="Int64")]),
    (parallax.distance_modulus, [[10.0, np.nan]], [[10.0 * u.mas, np.nan * u.mas]]),
    (parallax.distance_modulus, [10.0], [np.array(10_000) * u.uas]),
    (parallax.distance_modulus, [[]], [np.zeros(0) * u.arcsec]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "numbers", "quantities"), ALIKE)
def test_quantities_are_converted(function, numbers, quantities):
    for a, b in zip(np.atleast_1d(function(*numbers)), np.atleast_1d(function(*quantities)), strict=True):
        np.testing.assert_allclose(np.squeeze(b), np.squeeze(a), rtol=1e-9)


def test_combined_parallaxes_of_quantities():
    a = parallax.combine([0.0], [0.1], [1.0], [0.05], [-0.04])
    b = parallax.combine([0.0], [0.1], [0.001] * u.arcsec, [50] * u.uas, [-40] * u.uas)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (extinction.extinction_law, [5500.0]),
        (extinction.extinction_law, [[0.55, 75852.0]]),
        (extinction.extinction_law, [0.2 * u.um]),
        (extinction.extinction_law, [0.55, -3.1]),
        (extinction.extinction_law, [0.55, 31.0]),
        (extinction.extinction_law, [0.55, np.nan]),
        (extinction.extinction_law, [["V"]]),
        (extinction.band_extinction, [[5000.0], ("G",), 9999.0]),
        (spectra.vacuum_to_air, [[0.55]]),
        (spectra.air_to_vacuum, [[-5000.0]]),
        (extinction.extinction_law, [0.55 * u.K]),
        (extinction.band_extinction, [[5000.0], ("U",)]),
        (extinction.band_extinction, [[-9999.0], ("G",)]),
        (parallax.distance_modulus, [10 * u.kpc]),
        (parallax.distance_modulus, [[1.0, -0.1] * u.mas]),
        (parallax.gaia_zero_point, [15.0, 1.5, 91.0]),
        (parallax.gaia_zero_point, [15.0, 1.5 * u.um, 30.0]),
        (parallax.combine, [[0.0] * u.mas, [0.1]]),
        (parallax.combine, [[0.0], [0.1], [1.0], [-99.0]]),
        (photometry.reddening_posterior, [[[0.26, 0.34, 0.2]], VECTOR, COVARIANCE, [0.1], [-1.0]]),
        (photometry.propagated_covariance, [np.ones((1, 1, 1)), np.ones((1, 1, 1)), [1], [0.1], [[-999.0]]]),
        (plain, [[1 * u.mas, 1 * u.K], "mas", "parallax"]),
        (spectra.normalize_gaussian, [[5000.0, 5001.0], [1.0, 1.0] * u.Jy, [1.0, 1.0] / u.K]),
        (spectra.normalize_gaussian, [[0.5, 0.5001], [1.0, 1.0], None]),  # micron without their unit
        (spectra.normalize_gaussian, [np.log10([5000.0, 5001.0]), [1.0, 1.0], None]),
        (spectra.normalize_gaussian, [[5000.0, 5001.0], [1.0, 1.0], None, [50.0, 60.0]]),
        (extinction.extinction_law, [0.55, [3.1, 3.2]]),
        (extinction.band_extinction, [np.full((2, 2), 5000.0), ("G",)]),
        (extinction.band_extinction, [[5000.0], ("G",), [0.1, 0.2]]),
        (gaia.excess_factor, [np.ones(3), np.ones(2)]),
        (gaia.good_colour, [np.ones(3), np.ones(3), np.ones(2)]),
        (gaia.magnitude_error, [np.ones(3), np.ones(2)]),
        (parallax.gaia_zero_point, [np.full(3, 15.0), np.full(2, 1.5), 30.0]),
        (parallax.combine, [np.zeros(3), 0.1, np.ones(2)]),
        (photometry.reddening_posterior, [[[0.26, 0.34, 0.2]], VECTOR[:2], COVARIANCE, [0.1], [0.2]]),
        (photometry.reddening_posterior, [[[0.26, 0.34, 0.2]], VECTOR, -COVARIANCE, [0.1], [0.2]]),
    ],
)
def test_what_cannot_be_is_refused(function, arguments):
    with pytest.raises(BadInput):
        function(*arguments)


MASKED = [
    np.ma.array([1.0, 5.0], mask=[False, True]),
    Masked([1.0, 5.0], mask=[False, True]),
    Masked([1.0, 5.0] * u.mas, mask=[False, True]),
    MaskedColumn([1000.0, 5000.0], mask=[False, True], unit="uas"),
    QTable(Table({"p": MaskedColumn([1.0, 5.0], mask=[False, True], unit="mas")}))["p"],
]


@pytest.mark.parametrize("masked", MASKED, ids=lambda x: type(x).__name__)
def test_masked_is_missing_whatever_stands_underneath(masked):
    alone, both = (parallax.combine([0.0, 0.0], 0.1, x, 0.05).parallax for x in ([1.0, np.nan], masked))
    np.testing.assert_allclose(both, alone, rtol=1e-12)
    np.testing.assert_allclose(parallax.distance_modulus(masked), [10.0, np.nan])
    before = np.array(masked.data if isinstance(masked, np.ma.MaskedArray) else masked.unmasked)
    assert before[1] != before[0]  # what was given is left as it was


def test_masked_bands_priors_and_moduli_are_missing():
    known = [[[0.26, np.nan, 0.2]], VECTOR, COVARIANCE, [0.1], [np.inf], [np.inf]]
    residual = np.ma.array([[0.26, 9.0, 0.2]], mask=[[False, True, False]])
    nothing = np.ma.array([0.1], mask=[True])
    for given in ([0.1], nothing), (nothing, [0.3]):
        found = photometry.reddening_posterior(residual, VECTOR, COVARIANCE, *given, nothing)
        np.testing.assert_allclose(found, photometry.reddening_posterior(*known))
    error = np.ma.array([[0.02, 0.03]], mask=[[False, True]])
    found = photometry.propagated_covariance(np.ones((1, 2, 1)), np.ones((1, 1, 1)), [1, 2], [0.1], error)
    assert np.isinf(found[0, 1, 1])
    assert np.isfinite(found[0, 0, 0])


def test_masked_quantities_of_spectra():
    flux = Masked(np.ones((1, 50)) * u.nJy)
    flux[0, 3] = 99 * u.nJy
    flux.mask[0, 3] = True
    ivar = Masked(np.full((1, 50), 1e18) / u.Jy**2, mask=np.arange(50)[None] == 7)
    found, new = spectra.normalize_gaussian(np.linspace(500, 510, 50) * u.nm, flux, ivar, 5 * u.nm)
    assert np.flatnonzero(np.isnan(found[0])).tolist() == [3, 7]
    np.testing.assert_allclose(np.delete(found[0], [3, 7]), 1)
    np.testing.assert_allclose(np.delete(new[0], [3, 7]), 1)


def test_the_users_numpy_errors_do_not_stop_them():
    arguments = (np.log([1.0, 1e-8, np.nan]), 0.3, [1.0, np.nan, 1.0], [0.005, 0.1, np.inf])
    expected = parallax.combine(*arguments).parallax
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(parallax.combine(*arguments).parallax, expected)
        assert np.isnan(extinction.extinction_law([np.nan])).all()
        assert np.isfinite(extinction.band_extinction([10.0, 5000.0], ("G", "W2"))).sum() >= 2
        photometry.reddening_posterior(np.full((1, 3), np.nan), VECTOR, COVARIANCE, [0.1], [np.inf], [np.inf])
