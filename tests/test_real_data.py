"""Observed stars: a published fit of APOGEE giants, and the MILES library."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from astropy.io import fits
from numpyro.infer.util import log_density

import bayeslabels as bl
from bayeslabels.astro.spectra import normalize_gaussian

APOGEE_LABELS = ("TEFF", "LOGG", "PARAM_M_H")
MILES_LABELS = ("TEFF", "LOGG", "FE_H")


@pytest.fixture(scope="module")
def apogee(shared_data):
    """Stars, the powers of the published terms, and the published coefficients, scatter and pivot."""
    with fits.open(shared_data / "apogee_671x100.fits") as tables:
        table, published, header = tables[1].data, tables[2].data, tables[2].header
        labels = np.stack([table[name] for name in APOGEE_LABELS], 1).astype(float)
        flux, error = table["FLUX"].astype(float), table["FLUX_ERR"].astype(float)
        theta, scatter = published["THETA"].astype(float), published["SCATTER"].astype(float)
        pivot = np.array([header[f"PIVOT_{x}"] for x in "TGM"])
        terms = []
        for term in header["TERMS"].split(";"):
            factors = [re.fullmatch(r"(\w+?)(?:\^(\d+))?", factor) for factor in term.split("*") if factor != "1"]
            terms.append({factor[1]: int(factor[2] or 1) for factor in factors})
    stars = bl.Stars(labels=bl.Block(labels, names=APOGEE_LABELS), flux=bl.Block(flux, error))
    return stars, terms, theta, scatter, pivot


def test_predictions_of_a_published_apogee_fit(apogee):
    stars, terms, theta, scatter, pivot = apogee
    model = bl.Cannon(terms=terms, label_noise=False, coefficient_prior=None, scatter=scatter)
    posterior = bl.fit(model, stars)
    power = np.array([[term.get(name, 0) for name in APOGEE_LABELS] for term in terms])
    published = ((stars.labels.value - pivot)[:, None] ** power).prod(-1) @ theta.T
    np.testing.assert_allclose(posterior.predict(stars), published, rtol=0, atol=1e-10)
    np.testing.assert_array_equal(posterior.moments.scatter, scatter)


def test_learned_scatter_is_a_mode_of_the_program(apogee):
    """Gradient of the NumPyro density, in units of the sum of the stars' absolute shares in it."""
    stars, terms, *_ = apogee
    posterior = bl.fit(bl.Cannon(terms=terms, label_noise=False, coefficient_prior=None), stars)
    moments, model = posterior.moments, posterior.model
    with jax.enable_x64(True):
        s = posterior.data["posterior"]["scatter"].values[0, 0]
        at = {"coefficients": moments.coefficients, "scatter": s}
        gradient = jax.jit(jax.grad(lambda x: log_density(model, (stars,), {}, x)[0]))(at)
        phi = np.asarray(model.features(model.frame.scaled(stars.labels.value)))
    residual = stars.flux.value - phi @ moments.coefficients.T
    ok = stars.flux.observed
    weight = np.where(ok, 1 / (np.where(ok, stars.flux.error, 1) ** 2 + s**2), 0)
    shares = np.abs(np.where(ok, weight * residual, 0)).T @ np.abs(phi)
    relative = np.abs(gradient["coefficients"]) / shares
    assert relative.max() < 1e-6

    zero = s < 1e-6
    print(f"{zero.sum()} of {len(s)} pixels have no scatter beyond their errors")
    assert zero.sum() == N_ZERO_SCATTER
    shares = s * np.where(ok, weight + (weight * residual) ** 2, 0).sum(0)
    relative = np.abs(gradient["scatter"]) / shares
    assert relative[~zero].max() < 1e-6
    # at s = 0 the density must fall with s^2
    slope = 0.5 * np.where(ok, (weight * residual) ** 2 - weight, 0).sum(0)
    assert (slope[zero] < 0).all()


N_ZERO_SCATTER = 0
"""Pixels of the 100 whose residuals are no larger than their stated errors."""


@pytest.mark.slow
def test_labels_of_miles_stars_held_out(shared_data):
    """FGK stars, a fifth held out: errors with tau agree with the scatter, which is no larger than the classic one."""
    with fits.open(shared_data / "miles_train.fits") as tables:
        table, wavelength = tables[1].data, tables[2].data["WAVELENGTH"].astype(float)
        labels = np.stack([table[name] for name in MILES_LABELS], 1).astype(float)
        flux = table["FLUX"].astype(float)
    teff, _, fe_h = labels.T
    used = np.isfinite(labels).all(1) & (teff > 4200) & (teff < 6500) & (fe_h > -2.2)
    normalized, _ = normalize_gaussian(wavelength, flux[used], None)
    labels = labels[used]
    stars = bl.Stars(
        labels=bl.Block(labels, names=MILES_LABELS, unit=("K", "dex", "dex")),
        flux=bl.Block(normalized[:, ::8]),
    )
    out = np.random.default_rng(0).permutation(len(stars)) % 5 == 0
    train, test = stars[~out], stars[out].drop("labels")

    posterior = bl.fit(bl.Cannon(order=2, label_noise="cut"), train)
    result = bl.infer(posterior, test)
    offset = result.mean - labels[out]
    expected = np.hypot(result.error, posterior.moments.label_scatter)
    z = np.quantile(np.abs(offset / expected), 0.6827, axis=0)
    classic = bl.infer(bl.fit(bl.Cannon(order=2, label_noise=False), train), test)
    ratio = np.quantile(np.abs(offset), 0.6827, axis=0) / np.quantile(
        np.abs(classic.mean - labels[out]), 0.6827, axis=0
    )
    print(len(stars), out.sum(), z, ratio)
    assert len(stars) > 300
    assert np.isfinite(offset).all()
    # of 95 stars 65 +- 4.5 lie within the true sd: 13 per cent of it at one sigma
    assert ((z > 0.7) & (z < 1.35)).all()
    assert (ratio < 1.05).all()
