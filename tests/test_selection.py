"""What a survey that goes by apparent magnitude has of all stars, from the stars that it has."""

from __future__ import annotations

import numpy as np

from bayeslabels.numerics.selection import log_convolved, log_share


def log_disk(mu, length=0.8):
    d = 10 ** (0.2 * (mu - 10))
    return 3 * np.log(d) - d / length - np.log(2 * length**3) + np.log(np.log(10) / 5)


def test_modulus_and_extinction_are_convolved():
    x = np.linspace(-5.0, 25.0, 3001)
    density = np.exp(log_convolved(log_disk, 0.4, x))
    rng = np.random.default_rng(0)
    drawn = 10 + 5 * np.log10(rng.gamma(3.0, 0.8, 200_000)) + 0.4 * rng.exponential(size=200_000)
    np.testing.assert_allclose(np.trapezoid(density, x), 1.0, atol=1e-3)
    np.testing.assert_allclose(np.trapezoid(x * density, x), drawn.mean(), atol=0.01)
    np.testing.assert_allclose(np.trapezoid(x**2 * density, x) - drawn.mean() ** 2, drawn.var(), rtol=0.02)


def test_the_share_of_stars_that_a_survey_has():
    """A survey with a soft limit at both ends, whose giants are seen three times as far as its dwarfs."""
    rng = np.random.default_rng(1)
    n = 400_000
    absolute = np.where(rng.random(n) < 0.15, rng.normal(0.5, 0.8, n), rng.normal(5.0, 1.0, n))
    apparent = absolute + 10 + 5 * np.log10(rng.gamma(3.0, 0.8, n))
    chance = 1 / (1 + np.exp((apparent - 12.5) / 0.3)) / (1 + np.exp((9.0 - apparent) / 0.5))
    seen = rng.random(n) < 0.2 * chance
    at = np.arange(-1.0, 7.1, 0.5)
    ours = log_share(absolute[seen], apparent[seen], log_disk, at)
    true = np.array([np.log(chance[np.abs(absolute - a) < 0.25].mean()) for a in at])
    off = ours - true
    assert np.ptp(true) > 2.5  # nothing like even
    np.testing.assert_allclose(off - np.median(off), 0.0, atol=0.15)
