"""What a second dust vector says of R_V, by published extinction laws.

A star's extinction is E (R + x R_2). A law's curve k(R_V), with the same part along R, leaves the mean of all stars by
d(R_V) at right angles to R, as R_2 is:

    d(R_V) = c(R_V) - c(3.1),   c(R_V) = k(R_V) (R . R) / (k(R_V) . R)

R_V(x) is where d is nearest to x R_2. The mean curve, x = 0, is taken to be that of R_V = 3.1.
"""

from __future__ import annotations

import functools

import numpy as np

from ...astro.extinction import ALIASES, PASSBANDS, band_extinction

MEAN = 3.1
"""R_V of the mean extinction curve (Cardelli+89; of APOGEE's stars 3.3 +- 0.2: Schlafly+16, ApJ 821, 78)."""
LOW, HIGH, STEP = 2.0, 6.5, 0.05
FEWEST = 3
"""Bands that are known, at least: below, nothing is said of R_V."""
TEMPERATURE, LAW = 5500.0, "ccm89"
REACH = 5.0
"""In x."""


@functools.lru_cache(maxsize=16)
def _curves(bands: tuple[str, ...], law: str) -> tuple[np.ndarray, np.ndarray]:
    grid = np.arange(LOW, HIGH + STEP / 2, STEP)
    return grid, np.stack([band_extinction(TEMPERATURE, bands, r_v=float(x), law=law)[0] for x in grid])


def _known(bands: tuple[str, ...]) -> np.ndarray:
    return np.array([ALIASES.get(band, band) in PASSBANDS for band in bands])


def departures(bands: tuple[str, ...], vector: np.ndarray, law: str = LAW) -> tuple[np.ndarray, np.ndarray] | None:
    """R_V (K,) and d (K, B) of a law at the mean vector R (B,), 0 in bands that are not known; None: too few are."""
    known = _known(bands)
    if known.sum() < FEWEST:
        return None
    grid, k = _curves(tuple(np.array(bands)[known].tolist()), law)
    r = vector[known]
    c = k * (r @ r) / (k @ r)[:, None]
    d = np.zeros((len(grid), len(bands)))
    d[:, known] = c - c[np.abs(grid - MEAN).argmin()]
    return grid, d


def sign(bands: tuple[str, ...], vector: np.ndarray, second: np.ndarray) -> float:
    """1, or -1 where x R_2 (B,) is that of smaller R_V: of bands that are not known, where the band that dust dims most
    is dimmed more."""
    found = departures(bands, vector)
    along = -second[vector.argmax()] if found is None else second @ (found[1][-1] - found[1][0])
    return -1.0 if along < 0 else 1.0


def r_v_of(bands: tuple[str, ...], vector: np.ndarray, second: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """R_V of the shapes x (...); None where too few bands are known."""
    found = departures(bands, vector)
    if found is None:
        return None
    grid, d = found
    own = np.where(_known(bands), second, 0.0)
    shapes = np.linspace(-REACH, REACH, 201)
    square = (own @ own) * shapes[:, None] ** 2 - 2 * shapes[:, None] * (d @ own) + (d**2).sum(1)
    return np.interp(x, shapes, np.maximum.accumulate(grid[square.argmin(1)]))


def alignment(bands: tuple[str, ...], vector: np.ndarray, second: np.ndarray, law: str) -> float:
    """Cosine of the angle between R_2 and a law's d about R_V = 3.1, in the bands that are known; NaN: too few are."""
    found = departures(bands, vector, law)
    if found is None:
        return float("nan")
    grid, d = found
    along = d[np.abs(grid - MEAN - 0.5).argmin()] - d[np.abs(grid - MEAN + 0.5).argmin()]
    own = np.where(_known(bands), second, 0.0)
    return float(along @ own / np.maximum(np.linalg.norm(along) * np.linalg.norm(own), 1e-300))
