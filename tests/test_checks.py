"""What cannot be meant is noticed: sentinels, other units and grids than in training, correlations left unused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from astropy import units as u
from astropy.table import Table
from test_bad_input import CLASSIC, changed

import bayeslabels as bl
from bayeslabels.data import sentinels
from bayeslabels.data.digests import digests, in_order
from bayeslabels.errors import BadInput
from bayeslabels.files import training as files_training
from bayeslabels.files.tables import write_table


@pytest.mark.parametrize("value", [-9999.0, 99.99, -999.0, 1e20, -32768.0, 9.969209968386869e36])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_sentinels_among_training_labels(training, value, dtype):
    labels = training.labels.value.astype(dtype)
    labels[[3, 17], 1] = value
    with pytest.raises(BadInput, match=re.escape(f"2 stars with LOGG = {value:g}, where")):
        bl.fit(CLASSIC, changed(training, "labels", labels))
    with pytest.raises(BadInput, match="sentinel"):
        bl.fit(CLASSIC, changed(training, "labels", labels), checkpoint="nowhere.npz")


def test_what_looks_like_a_sentinel_and_is_none(training):
    labels = training.labels.value.copy()
    labels[3, 0] = 9999.0  # a hot star
    labels[:, 0] *= 1 + 0.2 * np.arange(40) / 40
    sentinels.refuse_sentinels(changed(training, "labels", labels), ("labels", "flux"))
    flux = changed(training, "flux", np.where(np.arange(12) == 3, -9999.0, training.flux.value))
    bl.fit(CLASSIC.replace(order=1), changed(flux, "flux", flux.flux.value))


def test_flux_in_another_unit(training, spectra):
    one, same, other = "1e-17 erg / (s cm2 AA)", "1e-17 erg / (AA cm2 s)", "1e-17 W / (m2 um)"
    posterior = bl.fit(CLASSIC, changed(training, "flux", unit=one))
    expected = bl.infer(posterior, changed(spectra, "flux", unit=same), bl.MAP()).mean
    for unit in (other, "kg", None):
        with pytest.raises(BadInput, match=r"flux in .*, as in training"):
            bl.infer(posterior, changed(spectra, "flux", unit=unit))
    given = bl.Block(spectra.flux.value * u.Unit(one), spectra.flux.error * u.Unit(one), unit=other)
    back = bl.Block(given.value * u.Unit(other), given.error * u.Unit(other), unit=one, coords=spectra.flux.coords)
    np.testing.assert_allclose(bl.infer(posterior, bl.Stars(flux=back), bl.MAP()).mean, expected, rtol=1e-9)
    with pytest.raises(BadInput, match="flux in Jy"):
        bl.infer(bl.fit(CLASSIC, training), changed(spectra, "flux", unit="Jy"))


def test_wavelengths_of_another_name(trained, spectra):
    grid = spectra.flux.coords["wavelength"]
    expected = bl.infer(trained, spectra, bl.MAP()).mean
    for coords in ({"wave": grid}, {}, {"pixel": np.arange(12), "wavelength": grid}):
        np.testing.assert_array_equal(
            bl.infer(trained, changed(spectra, "flux", coords=coords), bl.MAP()).mean, expected
        )
    for coords in ({"wave": grid + 1.4}, {"pixel": np.arange(12)}, {"wavelength": [f"p{i}" for i in range(12)]}):
        with pytest.raises(BadInput, match="as in training"):
            bl.infer(trained, changed(spectra, "flux", coords=coords))


def test_units_of_logarithms(simulated):
    flux = bl.Block(simulated.stars.flux.value * 1e-17, 1e-19, unit="Jy")
    bound = bl.Parallax(("ln flux",)).bind(simulated.stars.with_block(flux=flux))
    bound.check(simulated.stars.with_block(flux=flux))
    with pytest.raises(BadInput, match="as in training"):
        bound.check(simulated.stars.with_block(flux=bl.Block(flux.value * 1e3, 1e-16, unit="mJy")))


def test_a_prior_of_the_wrong_kind():
    for name in ("reddening_prior", "distance_prior"):
        with pytest.raises(BadInput, match=f"{name}=Normal"):
            bl.Photometry(**{name: bl.priors.Normal(0.1)})


@pytest.mark.parametrize("prior", [0.1, "laplace", bl.priors.HalfNormal(0.1), bl.priors.Flat()])
def test_coefficient_priors_of_parallax(prior):
    with pytest.raises(BadInput, match="coefficient_prior"):
        bl.Parallax(("magnitudes",), coefficient_prior=prior)


@pytest.mark.parametrize("value", [0.0, 1e-30, -1.0, 1e12])
def test_numbers_that_are_no_labels(training, value):
    labels = training.labels.value.copy()
    labels[3, 0] = value
    with pytest.raises(BadInput, match="sentinel"):
        bl.fit(CLASSIC, changed(training, "labels", labels))


@pytest.mark.parametrize("value", [-9999.0, 1e20])
def test_sentinels_beyond_the_sample(training, tmp_path, monkeypatch, value):
    """Of a file that is larger than what is held of it."""
    monkeypatch.setattr(files_training, "SAMPLE", 10)
    monkeypatch.setattr(files_training, "held_out_of", lambda *_: 0)
    for row in range(40):  # one that is not held
        labels = training.labels.value[:, :1].copy()
        labels[row] = value
        stars = bl.Stars(labels=bl.Block(labels), flux=bl.Block(training.flux.value))
        if row not in in_order(digests(stars, CLASSIC.blocks), 0)[:10]:
            break
    table = Table({"T": labels[:, 0], "flux": training.flux.value})
    write_table(table, tmp_path / "in.fits")
    with pytest.raises(BadInput, match=re.escape(f"T = {value:g}")):
        bl.fit(CLASSIC, tmp_path / "in.fits", bl.MAP(), columns={"labels": ["T"]})


def test_numbers_whose_square_is_infinite(training):
    flux = training.flux.value.copy()
    flux[3, 4] = -1e200
    with pytest.raises(BadInput, match=r"above 1e\+150 in 1 of 480, first at star 3, column 4"):
        changed(training, "flux", flux)


def test_a_covariance_that_was_kept_in_float32():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 3, 3))
    covariance = (root @ root.swapaxes(1, 2) + np.eye(3)) * np.outer([100, 0.1, 1], [100, 0.1, 1])
    kept = covariance * (1 + 5e-7 * rng.uniform(-1, 1, covariance.shape))
    error = bl.Block(np.zeros((5, 3)), kept).error
    np.testing.assert_array_equal(error, error.swapaxes(1, 2))
    np.testing.assert_allclose(error, covariance, rtol=1e-6)
    kept[2, 0, 1] *= 1.01
    with pytest.raises(BadInput, match="not symmetric"):
        bl.Block(np.zeros((5, 3)), kept)
