"""Zero point, distances and combined parallaxes, against published values and brute-force integrals."""

from __future__ import annotations

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import Distance

import bayeslabels as bl
from bayeslabels.astro.parallax import PERCENTILES, combine, distance_modulus, gaia_zero_point, parallax_from_modulus


@pytest.mark.parametrize(
    ("g", "colour", "latitude", "solved", "expected"),
    [
        (15.55, 1.853, -80.4, 31, -0.018205),
        (10.05, 1.510, -34.9, 95, -0.026644),
        (6.62, 1.648, -22.1, 31, -0.031893),
        (6.26, 1.439, -80.3, 31, 0.000320),
        (18.19, 1.300, -68.7, 95, -0.036826),
        (19.68, 1.250, 26.3, 95, -0.019159),
    ],
)
def test_zero_point_is_the_published_one(g, colour, latitude, solved, expected):
    """Values of gaiadr3_zeropoint 0.1.0, the code of Lindegren+21's authors (which rounds to 1e-6 mas)."""
    assert gaia_zero_point(g, colour, latitude, solved) == pytest.approx(expected, abs=6e-7)


def test_zero_point_outside_its_range_is_missing():
    g, colour, solved = (
        [5.9, 21.1, 15, 15, 15, 15, np.nan],
        [1.5, 1.5, 1.0, 1.8, 1.5, np.nan, 1.5],
        [31] * 3 + [95, 3, 31, 31],
    )
    assert np.isnan(gaia_zero_point(g, colour, 10.0, solved)).all()
    with pytest.raises(bl.BadInput, match="ecl_lat"):
        gaia_zero_point(15, 1.5, 91.0)


def test_moduli_are_astropys():
    parallax = np.array([0.05, 1.0, 20.0])
    expected = Distance(parallax=parallax * units.mas).distmod.value
    np.testing.assert_allclose(distance_modulus(parallax), expected, rtol=1e-12)
    np.testing.assert_allclose(parallax_from_modulus(expected), parallax, rtol=1e-12)
    with pytest.raises(bl.BadInput, match="true parallaxes"):
        distance_modulus([1.0, -0.1])


@pytest.mark.parametrize("s", [0.03, 0.3, 1.0])
@pytest.mark.parametrize(
    ("parallax", "error"), [(-0.5, 0.3), (0.0, 0.02), (0.7, 0.2), (1.0, 0.001), (0.1, 0.005), (3, 0.1)]
)
def test_combination_is_the_posterior(s, parallax, error):
    eta = np.log(0.8)
    u = np.linspace(eta - 12, eta + 4, 2_000_001)
    log_p = -0.5 * ((u - eta) / s) ** 2 - 0.5 * ((parallax - np.exp(u)) / error) ** 2
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    mean = (p * np.exp(u)).sum()
    sd = np.sqrt((p * (np.exp(u) - mean) ** 2).sum())
    out = combine(eta, s, parallax + 0.05, error, zero_point=0.05)
    assert out.parallax == pytest.approx(mean, rel=1e-6)
    assert out.parallax_error == pytest.approx(sd, rel=1e-4)
    at = np.exp(np.interp(np.array(PERCENTILES) / 100, np.cumsum(p), u))
    width = out.ln_parallax_error
    np.testing.assert_allclose(np.log(out.parallax_percentiles), np.log(at), atol=0.01 * width)
    np.testing.assert_allclose(out.distance_percentiles, 1 / out.parallax_percentiles[::-1], rtol=1e-12)
    assert out.distance == out.distance_percentiles[2]


def test_without_astrometry_it_is_lognormal():
    eta, s = np.log([0.2, 1.0, 5.0]), np.array([0.1, 0.2, 0.5])
    out = combine(eta, s, [np.nan, 1.0, 1.0], [0.1, np.inf, np.nan])
    np.testing.assert_allclose(out.parallax, np.exp(eta + s**2 / 2), rtol=1e-6)
    np.testing.assert_allclose(out.parallax_percentiles[:, 2], np.exp(eta), rtol=1e-4)
    np.testing.assert_allclose(out.ln_parallax_error, s, rtol=1e-5)
    assert out.distance_percentiles.shape == (3, 5)
    skew = out.parallax_percentiles[:, 3] + out.parallax_percentiles[:, 1] - 2 * out.parallax_percentiles[:, 2]
    assert (skew > 0).all()


def test_a_star_without_estimate_stays_missing():
    out = combine([np.nan, 0.0], 0.1, 1.0, 0.1)
    assert np.isnan(out.parallax[0])
    assert np.isfinite(out.parallax[1])


def test_bad_errors_are_refused():
    with pytest.raises(bl.BadInput, match="not positive"):
        combine(0.0, 0.1, 1.0, 0.0)


def test_combined_intervals_hold_the_truth():
    """Coverage of the central 68 and 90 per cent over stars of S/N from 0.3 to 30, within 3.5 binomial sds."""
    rng = np.random.default_rng(4)
    n = 4000
    eta, s = rng.normal(size=n), 0.15
    true = np.exp(eta + s * rng.normal(size=n))
    error = np.exp(eta - rng.uniform(np.log(0.3), np.log(30), n))
    out = combine(eta, s, true + error * rng.normal(size=n), error)
    p = out.parallax_percentiles
    for low, high, share in ((1, 3, 0.68), (0, 4, 0.90)):
        inside = ((p[:, low] < true) & (true < p[:, high])).mean()
        assert abs(inside - share) < 3.5 * np.sqrt(share * (1 - share) / n)
