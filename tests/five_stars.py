"""Five stars with blocks of every shape, and when two blocks are the same: for the tests of stars and their tables."""

from __future__ import annotations

import numpy as np

from bayeslabels.data.stars import Block, Stars


def covariances(n_star=5, n_dim=3, seed=0):
    a = np.random.default_rng(seed).normal(size=(n_star, n_dim, n_dim))
    cov = a @ a.swapaxes(1, 2) + np.eye(n_dim)
    return (cov + cov.swapaxes(1, 2)) / 2


def five_stars() -> Stars:
    rng = np.random.default_rng(1)
    labels = rng.normal(size=(5, 3))
    labels[2, 1] = np.nan
    return Stars(
        id=["a", "b", "c", "d", "e"],
        labels=Block(labels, [50.0, 0.1, 0.05], names=("TEFF", "LOGG", "FE_H"), unit=("K", None, "dex")),
        flux=Block(rng.normal(size=(5, 70)), 0.01, unit="Jy", coords={"pixel": np.linspace(4000, 5000, 70)}),
        parallax=Block(rng.normal(size=5), np.full(5, 0.1), unit="mas"),
        magnitudes=Block(rng.normal(size=(5, 3)), covariances(), names=("g", "r", "i"), unit="mag"),
    )


def same(a: Block, b: Block) -> None:
    np.testing.assert_array_equal(a.value, b.value)
    if a.error is None:
        assert b.error is None
    else:
        np.testing.assert_array_equal(a.error, b.error)
    assert (a.names, a.unit, a._coords) == (b.names, b.unit, b._coords)
