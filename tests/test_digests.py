"""Digests of stars, and the random numbers that follow from them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy import stats

import bayeslabels as bl
from bayeslabels.data.digests import digests
from bayeslabels.numerics.own_variates import chi_square, keys_of, normals, other_keys, uniforms

BLOCKS = ("flux", "labels")


def stars_of(flux, error=0.1):
    return bl.Stars(flux=bl.Block(flux, error), labels=bl.Block(flux[:, :2]))


def test_what_is_missing_and_the_order_of_pixels_have_no_part():
    flux = np.random.default_rng(0).normal(size=(500, 9)).astype(np.float32)  # of few digits
    expected = digests(stars_of(flux), BLOCKS)
    assert len(np.unique(expected)) == 500
    wider = bl.Block(np.insert(flux[:, ::-1], 4, np.nan, 1), 0.1)
    np.testing.assert_array_equal(digests(bl.Stars(labels=bl.Block(flux[:, :2]), flux=wider), BLOCKS[::-1]), expected)
    lost = bl.Block(np.insert(flux, 0, 7.0, 1), np.insert(np.full(flux.shape, 0.1), 0, np.inf, 1))
    np.testing.assert_array_equal(digests(stars_of(flux).with_block(flux=lost), BLOCKS), expected)
    for other in (-flux, flux[:, [1, 0, *range(2, 9)]] + np.eye(9)[0].astype(np.float32)):
        assert not np.isin(digests(stars_of(other), BLOCKS), expected).any()
    assert not digests(stars_of(np.full((3, 2), np.nan)), BLOCKS).any()


def test_rounded_numbers_of_one_sum_differ():
    """As magnitudes do that are given to a few digits."""
    value = np.round(np.random.default_rng(0).normal(size=(20_000, 3)), 1)
    found = digests(bl.Stars(flux=bl.Block(value, 0.1)), ("flux",))
    assert len(np.unique(found)) == len(np.unique(np.sort(value, 1), axis=0))


KEYS = keys_of(np.arange(4000, dtype=np.uint64), 0)


@pytest.mark.parametrize("freedom", [1, 8, 9, 40])
def test_random_numbers_have_their_distributions(freedom):
    """Over the numbers of a star, and over stars of neighbouring digests."""
    chi2 = np.asarray(jax.jit(chi_square, static_argnums=(1, 2))(KEYS, 4, freedom), float)
    assert stats.kstest(chi2.ravel(), stats.chi2(freedom).cdf).pvalue > 1e-3
    for numbers, law in ((uniforms, stats.uniform), (normals, stats.norm)):
        for x in (numbers(KEYS, 4).ravel(), numbers(KEYS, 3)[:, 2], numbers(KEYS[:1], 16_000)[0]):
            assert stats.kstest(x, law.cdf).pvalue > 1e-3


def test_stars_seeds_and_purposes_are_independent():
    z = normals(KEYS, 50)
    others = (normals(keys_of(np.arange(4000, dtype=np.uint64), 1), 50), normals(other_keys(KEYS, 1), 50), z[::-1])
    for other in (*others, np.roll(z, 1, 1), np.roll(z, 1, 0)):
        assert abs(np.corrcoef(z.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(z.size / 2)


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_they_are_the_same_beside_other_stars(n):
    expected = normals(KEYS[:70], n)
    for rows in (slice(0, 1), slice(3, 16), slice(5, 69)):
        np.testing.assert_array_equal(normals(KEYS[rows], n), expected[rows])
