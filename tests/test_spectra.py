"""Spectra against plain loops, explicit operator matrices, polynomial fits and Monte Carlo."""

from pathlib import Path

import numpy as np
import pytest
from numpy.polynomial import Chebyshev

from bayeslabels.astro import spectra
from bayeslabels.errors import BadInput

MILES = Path(__file__).resolve().parents[2] / "shared" / "data" / "miles_train.fits"
SEGMENTS = [(4000.0, 4300.0), (4400.0, 4700.0)]


@pytest.fixture
def rng():
    return np.random.default_rng(3)


@pytest.fixture
def wavelength(rng):
    return np.sort(rng.uniform(4000.0, 4700.0, 240))


@pytest.fixture
def ivar(rng, wavelength):
    values = rng.uniform(100.0, 900.0, (5, len(wavelength)))
    values[rng.uniform(size=values.shape) < 0.1] = 0.0
    return values


@pytest.fixture
def flux(rng, wavelength, ivar):
    slope = 1 + 0.3 * rng.normal(size=(5, 1)) * (wavelength - 4350) / 700
    values = slope * (1 + 0.03 * rng.normal(size=ivar.shape))
    return np.where(ivar > 0, values, np.nan)


@pytest.fixture
def pixels(rng, wavelength):
    return rng.uniform(size=len(wavelength)) < 0.3


def operations(wavelength, pixels):
    new = np.linspace(4010.0, 4690.0, 301)
    velocity = np.array([-300.0, 0.0, 25.0, 120.0, 400.0])
    return {
        "gaussian": lambda f, w: spectra.gaussian_pseudo_continuum(wavelength, f, w, 30.0),
        "polynomial": lambda f, w: spectra.polynomial_continuum(wavelength, f, w, pixels, 2, SEGMENTS),
        "resample": lambda f, w: spectra.resample(wavelength, f, w, new),
        "shift": lambda f, w: spectra.resample(wavelength, f, w, new, velocity),
    }


OPERATIONS = ["gaussian", "polynomial", "resample", "shift"]


def smoothing_loop(wavelength, flux, ivar, width):
    continuum, variance = np.empty_like(flux), np.empty_like(flux)
    for n in range(len(flux)):
        for at, centre in enumerate(wavelength):
            top = bottom = squared = 0.0
            for value, weight, here in zip(flux[n], ivar[n], wavelength, strict=True):
                if weight > 0:
                    kernel = np.exp(-((centre - here) ** 2) / width**2)
                    top += value * weight * kernel
                    bottom += weight * kernel
                    squared += weight * kernel**2
            continuum[n, at], variance[n, at] = top / bottom, squared / bottom**2
    return continuum, 1 / variance


def test_gaussian_pseudo_continuum_is_eq_1_and_2(wavelength, flux, ivar):
    some = slice(0, 2)
    got = spectra.gaussian_pseudo_continuum(wavelength, flux[some], ivar[some], 40.0)
    expected = smoothing_loop(wavelength, flux[some], ivar[some], 40.0)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-12)


def test_blocks_do_not_show(wavelength, flux, ivar, monkeypatch):
    for name in OPERATIONS:
        operate = operations(wavelength, wavelength > 0)[name]
        whole = operate(flux, ivar)
        with monkeypatch.context() as patch:
            patch.setattr(spectra, "_BLOCK", 500)
            blocks = operate(flux, ivar)
        np.testing.assert_allclose(blocks[0], whole[0], rtol=1e-13)
        np.testing.assert_allclose(blocks[1], whole[1], rtol=1e-13)


def test_normalize_gaussian(wavelength, flux, ivar):
    continuum, _ = spectra.gaussian_pseudo_continuum(wavelength, flux, ivar)
    normalised, normalised_ivar = spectra.normalize_gaussian(wavelength, flux, ivar)
    np.testing.assert_allclose(normalised, flux / continuum, rtol=1e-13)
    np.testing.assert_allclose(normalised_ivar, ivar * continuum**2, rtol=1e-13)
    scaled, scaled_ivar = spectra.normalize_gaussian(wavelength, 1e-17 * flux, 1e34 * ivar)
    np.testing.assert_allclose(scaled, normalised, rtol=1e-12)
    np.testing.assert_allclose(scaled_ivar, normalised_ivar, rtol=1e-12)


def test_normalize_gaussian_error_is_not_understated(rng, wavelength):
    truth = 1 - 0.4 * np.exp(-(((wavelength - 4300) / 5) ** 2))
    noisy = truth + 0.05 * rng.normal(size=(4000, len(wavelength)))
    normalised, ivar = spectra.normalize_gaussian(wavelength, noisy, np.full(noisy.shape, 400.0), 20.0)
    ratio = np.std(normalised, axis=0) * np.sqrt(np.mean(ivar, axis=0))
    assert np.all(ratio < 1.05)
    assert np.median(ratio) > 0.85


def test_gaussian_continuum_reaches_no_further_than_six_widths():
    wavelength = np.array([5000.0, 5001.0, 5002.0, 5307.0, 5650.0])
    flux = np.array([2.0, 2.0, 2.0, np.nan, 7.0])
    continuum, ivar = spectra.gaussian_pseudo_continuum(wavelength, flux, np.ones(5), 50.0)
    np.testing.assert_allclose(continuum, [2, 2, 2, np.nan, 7])
    assert ivar[3] == 0
    normalised, ivar = spectra.normalize_gaussian(wavelength, flux, np.ones(5), 50.0)
    np.testing.assert_allclose(normalised, [1, 1, 1, np.nan, np.nan])
    np.testing.assert_allclose(ivar, [4, 4, 4, 0, 0])


def test_polynomial_continuum_is_a_weighted_chebyshev_fit(wavelength, flux, ivar, pixels):
    continuum, continuum_ivar = spectra.polynomial_continuum(wavelength, flux, ivar, pixels, 3, SEGMENTS)
    for n, (low, high) in [(n, segment) for n in range(5) for segment in SEGMENTS]:
        inside = (wavelength >= low) & (wavelength <= high)
        use = inside & pixels & (ivar[n] > 0)
        fit = Chebyshev.fit(wavelength[use], flux[n, use], 3, w=np.sqrt(ivar[n, use]))
        np.testing.assert_allclose(continuum[n, inside], fit(wavelength[inside]), rtol=1e-9)
        x = (wavelength - 4350) / 350
        design = np.vander(x, 4)
        covariance = np.linalg.inv(design[use].T @ np.diag(ivar[n, use]) @ design[use])
        variance = np.diag(design[inside] @ covariance @ design[inside].T)
        np.testing.assert_allclose(1 / continuum_ivar[n, inside], variance, rtol=1e-6)
    outside = (wavelength > 4300) & (wavelength < 4400)
    assert np.all(np.isnan(continuum[:, outside]))
    assert np.all(continuum_ivar[:, outside] == 0)


def test_normalize_polynomial(wavelength, flux, ivar, pixels):
    continuum, _ = spectra.polynomial_continuum(wavelength, flux, ivar, pixels)
    normalised, normalised_ivar = spectra.normalize_polynomial(wavelength, flux, ivar, pixels)
    np.testing.assert_allclose(normalised, flux / continuum, rtol=1e-13)
    np.testing.assert_allclose(normalised_ivar, ivar * continuum**2, rtol=1e-13)


def test_polynomial_needs_enough_measured_pixels(wavelength, flux, ivar, pixels):
    ivar[1, np.flatnonzero(pixels & (wavelength <= 4300))[2:]] = 0
    continuum, _ = spectra.polynomial_continuum(wavelength, flux, ivar, pixels, 2, SEGMENTS)
    assert np.all(np.isnan(continuum[1, wavelength <= 4300]))
    assert np.all(np.isfinite(continuum[1, wavelength >= 4400]))
    assert np.all(np.isfinite(continuum[0, wavelength <= 4300]))
    normalised, normalised_ivar = spectra.normalize_polynomial(wavelength, flux, ivar, pixels, 2, SEGMENTS)
    assert np.all(np.isnan(normalised[1, wavelength <= 4300]))
    assert np.all(normalised_ivar[1, wavelength <= 4300] == 0)


def test_continuum_pixels_are_near_one_and_quiet(rng):
    flux = 1 + 0.002 * rng.normal(size=(60, 400))
    flux[:, 100:200] -= 0.1
    flux[:, 200:300] += 0.05 * rng.normal(size=(60, 1))
    flux[:40, 300:310] = np.nan
    chosen = spectra.continuum_pixels(flux, None, fraction=0.2)
    assert chosen.dtype == bool
    assert chosen.sum() == 80
    assert not chosen[100:310].any()
    assert spectra.continuum_pixels(flux, None, tolerance=1e-3, fraction=1.0).sum() < 400
    masked = np.where(np.arange(400) < 50, 0.0, np.ones_like(flux))
    assert not spectra.continuum_pixels(flux, masked, fraction=1.0)[:50].any()


@pytest.mark.parametrize("name", OPERATIONS)
def test_linear_in_the_flux(name, rng, wavelength, ivar, pixels):
    operate = operations(wavelength, pixels)[name]
    x, y = rng.normal(size=(2, *ivar.shape))
    combined = operate(2.5 * x - 0.7 * y, ivar)[0]
    np.testing.assert_allclose(combined, 2.5 * operate(x, ivar)[0] - 0.7 * operate(y, ivar)[0], atol=1e-11)


@pytest.mark.parametrize("name", OPERATIONS)
def test_variance_is_that_of_the_operator_matrix(name, rng, wavelength, ivar, pixels):
    """Column i of the operator is the answer to a unit spectrum in pixel i; var = sum_i O_i^2 / ivar_i."""
    operate = operations(wavelength, pixels)[name]
    columns = np.stack([operate(np.broadcast_to(unit, ivar.shape), ivar)[0] for unit in np.eye(len(wavelength))])
    flux = np.where(ivar > 0, rng.normal(size=ivar.shape), np.nan)
    value, value_ivar = operate(flux, ivar)
    assert np.array_equal(np.isnan(value), np.isnan(columns[0]))
    known = np.isfinite(value)
    expected = np.einsum("inl,ni->nl", columns, np.nan_to_num(flux))
    np.testing.assert_allclose(value[known], expected[known], atol=1e-11)
    variance = np.einsum("inl,ni->nl", columns**2, 1 / np.where(ivar > 0, ivar, np.inf))
    np.testing.assert_allclose(1 / value_ivar[known], variance[known], rtol=1e-8)
    assert np.all(value_ivar[~known] == 0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_errors_by_monte_carlo(name, rng, wavelength, pixels):
    ivar = rng.uniform(100.0, 900.0, (5, len(wavelength)))
    operate = operations(wavelength, pixels)[name]
    draws = [operate(1 + rng.normal(size=ivar.shape) / np.sqrt(ivar), ivar) for _ in range(800)]
    values, expected = np.stack([draw[0] for draw in draws]), draws[0][1]
    known = expected > 0
    z = (values - 1)[:, known] * np.sqrt(expected[known])
    assert abs(np.mean(z)) < 0.02
    assert abs(np.mean(z**2) - 1) < 0.03
    assert np.max(np.abs(np.std(z, axis=0) - 1)) < 5 / np.sqrt(2 * 800)


@pytest.mark.parametrize("name", OPERATIONS)
def test_missing_numbers_and_missing_stars(name, wavelength, flux, ivar, pixels):
    operate = operations(wavelength, pixels)[name]
    expected = operate(flux, ivar)
    for value, weight in [
        (np.where(ivar > 0, flux, 1e9), ivar),
        (flux, np.where(ivar > 0, ivar, 7.0)),
        (flux, np.where(ivar > 0, ivar, np.nan)),
        (np.ma.masked_invalid(flux), np.ma.masked_equal(ivar, 0)),
    ]:
        got = operate(value, weight)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])
    ivar[2] = 0
    got = operate(flux, ivar)
    assert np.all(np.isnan(got[0][2]))
    assert np.all(got[1][2] == 0)
    others = [0, 1, 3, 4]
    np.testing.assert_allclose(got[0][others], expected[0][others], rtol=1e-13)


@pytest.mark.parametrize("name", ["gaussian", "polynomial", "resample"])
def test_one_spectrum_and_no_errors(name, wavelength, flux, ivar, pixels):
    operate = operations(wavelength, pixels)[name]
    single, single_ivar = operate(flux[0], ivar[0])
    assert single.shape == single_ivar.shape
    assert single.ndim == 1
    np.testing.assert_allclose(single, operate(flux, ivar)[0][0], rtol=1e-13)
    uniform, nothing = operate(flux, None)
    assert nothing is None
    np.testing.assert_allclose(uniform, operate(flux, np.ones_like(flux))[0], rtol=1e-13)
    assert operate(flux[:0], ivar[:0])[0].shape == (0, len(single))


def test_normalising_without_errors_or_stars(wavelength, flux, ivar, pixels):
    for normalise in (
        lambda f, w: spectra.normalize_gaussian(wavelength, f, w),
        lambda f, w: spectra.normalize_polynomial(wavelength, f, w, pixels),
    ):
        value, nothing = normalise(flux, None)
        assert nothing is None
        np.testing.assert_array_equal(np.isnan(value), np.isnan(flux))
        value, value_ivar = normalise(np.full_like(flux, np.nan), ivar)
        assert np.all(np.isnan(value))
        assert np.all(value_ivar == 0)
        value, value_ivar = normalise(-np.abs(flux), ivar)
        assert np.all(np.isnan(value))
        assert np.all(value_ivar == 0)


def test_resample_is_numpy_interp(wavelength, rng):
    flux, velocity = rng.normal(size=(4, len(wavelength))), np.array([-500.0, 0.0, 30.0, 900.0])
    new = np.linspace(3990.0, 4710.0, 97)
    for shift in (None, 55.0, velocity):
        got, _ = spectra.resample(wavelength, flux, np.ones_like(flux), new, shift)
        speeds = np.broadcast_to(0.0 if shift is None else shift, 4)
        for n, v in enumerate(speeds):
            beta = v / 299792.458
            rest = wavelength * np.sqrt((1 - beta) / (1 + beta))
            np.testing.assert_allclose(got[n], np.interp(new, rest, flux[n], np.nan, np.nan), atol=1e-9)


def test_resample_to_its_own_pixels_changes_nothing(wavelength, flux, ivar):
    for velocity in (None, 0.0, 217.3):
        grid = wavelength if velocity is None else spectra.doppler_shift(wavelength, velocity)
        got = spectra.resample(wavelength, flux, ivar, grid, velocity)
        np.testing.assert_array_equal(got[0], flux)
        np.testing.assert_allclose(got[1], ivar, rtol=1e-14)


def test_resample_missing_neighbours_and_range():
    flux, ivar = np.array([1.0, 2.0, np.nan, 4.0, 5.0]), np.array([4.0, 4.0, 4.0, 4.0, 0.0])
    new = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5])
    got, got_ivar = spectra.resample(np.arange(1.0, 6.0), flux, ivar, new)
    nan = np.nan
    np.testing.assert_allclose(got, [nan, 1, 1.5, 2, nan, nan, nan, 4, nan, nan, nan])
    np.testing.assert_allclose(got_ivar, [0, 4, 8, 4, 0, 0, 0, 4, 0, 0, 0])
    last, _ = spectra.resample([1.0, 2.0, 3.0], [1.0, nan, 3.0], None, [2.5, 3.0])
    np.testing.assert_array_equal(last, [nan, 3.0])


def test_unknown_velocity_makes_the_star_missing(wavelength, flux, ivar):
    velocity = np.array([0.0, np.nan, 10.0, 0.0, 0.0])
    got, got_ivar = spectra.resample(wavelength, flux, ivar, wavelength, velocity)
    assert np.all(np.isnan(got[1]))
    assert np.all(got_ivar[1] == 0)
    assert np.isfinite(got[2]).sum() > 100


def test_doppler_shift(wavelength):
    assert spectra.doppler_shift([6562.8], 100.0)[0] == pytest.approx(6562.8 * (1 - 100 / 299792.458), rel=1e-7)
    assert spectra.doppler_shift([5000.0], 0.6 * 299792.458)[0] == pytest.approx(2500.0)
    shifted = spectra.doppler_shift(wavelength, np.array([-50.0, 0.0, 50.0]))
    assert shifted.shape == (3, len(wavelength))
    np.testing.assert_allclose(spectra.doppler_shift(shifted[2], -50.0), wavelength, rtol=1e-15)
    assert np.all(shifted[0] > wavelength)


def test_air_and_vacuum():
    """Halpha and the He-Ne laser line in both media, the printed formula, and the way back."""
    assert spectra.air_to_vacuum(6562.79) == pytest.approx(6564.60, abs=0.01)
    assert spectra.vacuum_to_air(6329.914) == pytest.approx(6328.165, abs=2e-3)
    vacuum = np.geomspace(2000.0, 30000.0, 500)
    s2 = (1e4 / vacuum) ** 2
    n = 1 + 0.0000834254 + 0.02406147 / (130 - s2) + 0.00015998 / (38.9 - s2)
    np.testing.assert_allclose(spectra.vacuum_to_air(vacuum), vacuum / n, rtol=1e-15)
    np.testing.assert_allclose(spectra.air_to_vacuum(spectra.vacuum_to_air(vacuum)), vacuum, rtol=1e-14)
    ultraviolet = np.array([870.0, 1215.67, 1999.0])
    np.testing.assert_array_equal(spectra.vacuum_to_air(ultraviolet), ultraviolet)
    np.testing.assert_array_equal(spectra.air_to_vacuum(ultraviolet), ultraviolet)


def test_quantities_are_converted(wavelength, flux, ivar):
    units = pytest.importorskip("astropy.units")
    nanometre = (wavelength * units.Angstrom).to(units.nm)
    expected = spectra.normalize_gaussian(wavelength, flux, ivar)
    got = spectra.normalize_gaussian(nanometre, flux * units.Jy, (ivar * units.Jy**-2).to(units.mJy**-2))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-12)
    np.testing.assert_allclose(
        spectra.doppler_shift(nanometre, 30 * units.m / units.s), spectra.doppler_shift(wavelength, 0.03)
    )
    with pytest.raises(BadInput, match="wavelength in s"):
        spectra.normalize_gaussian(wavelength * units.s, flux, ivar)
    with pytest.raises(BadInput, match="ivar in Jy"):
        spectra.normalize_gaussian(wavelength, flux * units.Jy, ivar * units.Jy)


def bad_calls():
    wavelength, flux = np.linspace(4000.0, 4100.0, 11), np.ones((3, 11))
    ivar, pixels = np.ones((3, 11)), np.ones(11, dtype=bool)
    repeated, endless = wavelength.copy(), wavelength.copy()
    repeated[4], endless[-1] = repeated[3], np.inf
    normalise, fit, resample = spectra.normalize_gaussian, spectra.polynomial_continuum, spectra.resample
    return {
        "descending": (lambda: normalise(wavelength[::-1], flux, ivar), r"wavelength\[1\].*after.*argsort"),
        "repeated": (lambda: normalise(repeated, flux, ivar), r"wavelength\[4\]"),
        "infinite": (lambda: normalise(endless, flux, ivar), r"wavelength\[10\] = inf"),
        "negative wavelength": (lambda: normalise(wavelength - 5000, flux, ivar), "positive"),
        "wavelength per star": (lambda: normalise(flux, flux, ivar), r"shape \(3, 11\)"),
        "cut": (lambda: normalise(wavelength[:-1], flux, ivar), "10 wavelengths.*same pixel mask"),
        "transposed": (lambda: normalise(wavelength, flux.T, ivar.T), "transposed"),
        "ivar shape": (lambda: normalise(wavelength, flux, ivar[0]), r"ivar of shape \(11,\).*broadcast_to"),
        "negative ivar": (lambda: normalise(wavelength, flux, -ivar), "33 of 33 ivar negative"),
        "infinite ivar": (lambda: normalise(wavelength, flux, ivar * np.inf), "infinite.*np.where"),
        "width": (lambda: normalise(wavelength, flux, ivar, 0.0), "width=0.0"),
        "indices": (lambda: fit(wavelength, flux, ivar, [1, 2, 3, 4]), "boolean mask.*np.isin"),
        "few pixels": (lambda: fit(wavelength, flux, ivar, ~pixels), "0 continuum pixels.*lower order"),
        "empty segment": (lambda: fit(wavelength, flux, ivar, pixels, 2, [(5000, 6000)]), "0 continuum"),
        "overlap": (
            lambda: fit(wavelength, flux, ivar, pixels, 1, [(4000, 4050), (4050, 4100)]),
            "1 pixels in an earlier",
        ),
        "one star": (lambda: spectra.continuum_pixels(flux[0], None), "at least 2 stars"),
        "fraction": (lambda: spectra.continuum_pixels(flux, None, fraction=0), "fraction=0"),
        "not normalised": (lambda: spectra.continuum_pixels(9 * flux, None), "normalize_gaussian"),
        "never measured": (lambda: spectra.continuum_pixels(flux, 0 * ivar), "no pixel of 11"),
        "velocities": (lambda: resample(wavelength, flux, ivar, wavelength, np.zeros(2)), "2 velocities"),
        "m/s": (lambda: resample(wavelength, flux, ivar, wavelength, 1e6), "speed of light.*m/s"),
        "new grid": (lambda: resample(wavelength, flux, ivar, wavelength[::-1]), r"new_wavelength\[1\]"),
        "one pixel": (lambda: resample([5000.0], [[1.0]], None, wavelength), "at least 2 pixels"),
    }


@pytest.mark.parametrize("case", bad_calls())
def test_bad_input_is_refused(case):
    call, message = bad_calls()[case]
    with pytest.raises(BadInput, match=message):
        call()


@pytest.mark.skipif(not MILES.exists(), reason=f"real MILES spectra not at {MILES}")
def test_miles_spectra():
    fits = pytest.importorskip("astropy.io.fits")
    with fits.open(MILES) as hdus:
        flux, wavelength = hdus[1].data["FLUX"][::6], np.ravel(hdus[2].data["WAVELENGTH"])
    normalised, nothing = spectra.normalize_gaussian(wavelength, flux, None)
    assert nothing is None
    np.testing.assert_array_equal(np.isfinite(normalised), np.isfinite(flux))
    median = np.nanmedian(normalised, axis=1)
    assert np.all(np.abs(median - 1) < 0.05), (median.min(), median.max())

    pixels = spectra.continuum_pixels(normalised, None)
    assert 0 < pixels.sum() <= 0.07 * len(wavelength)
    flattened, _ = spectra.normalize_polynomial(wavelength, normalised, None, pixels)
    assert np.all(np.abs(np.nanmedian(flattened, axis=1) - 1) < 0.05)

    vacuum = spectra.air_to_vacuum(wavelength)
    velocity = np.linspace(-200, 200, len(flux))
    rest, rest_ivar = spectra.resample(vacuum, normalised, np.full(flux.shape, 1e4), vacuum[20:-20], velocity)
    assert np.isfinite(rest).all()
    assert np.all(rest_ivar >= 1e4 * (1 - 1e-12))
