"""What a second dust vector says of R_V, by published extinction laws.

A star's extinction is E (R + x R_2). Only colours tell of R_V: a part of R_2 that is grey is a luminosity or a distance
that goes with dust, and one along R is E. Both taken away, a law's curve k(R_V) leaves that of the mean by d(R_V):

    d(R_V) = c(R_V) - c(3.1),   c(R_V) = k'(R_V) (R' . R') / (k'(R_V) . R'),   k' = k - mean(k), R' = R - mean(R)

R_V(x) is where d is nearest to x R_2, less its grey part and that along R'. The mean curve, x = 0, is taken to be that
of R_V = 3.1. On real stars (Green+21) R_2 is grey for the most part, up to .25 mag in the infrared, and what is left is
dA / dR_V.
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
    r = _colours(vector[known])
    k = _colours(k)
    c = k * (r @ r) / (k @ r)[:, None]
    d = np.zeros((len(grid), len(bands)))
    d[:, known] = c - c[np.abs(grid - MEAN).argmin()]
    return grid, d


def _colours(x: np.ndarray) -> np.ndarray:
    return x - x.mean(-1, keepdims=True)


def shape(bands: tuple[str, ...], vector: np.ndarray, second: np.ndarray) -> np.ndarray:
    """R_2 (B,) of the bands that are known, or of all where too few are, less its grey part and that along R (B,)."""
    known = _known(bands)
    known = known if known.sum() >= FEWEST else np.ones(len(bands), bool)
    r, own, out = _colours(vector[known]), _colours(second[known]), np.zeros(len(bands))
    out[known] = own - r * (own @ r) / np.maximum(r @ r, 1e-300)
    return out


def sign(bands: tuple[str, ...], vector: np.ndarray, second: np.ndarray) -> float:
    """1, or -1 where x R_2 (B,) is that of smaller R_V: of bands that are not known, where the band that dust dims most
    is dimmed more."""
    found, own = departures(bands, vector), shape(bands, vector, second)
    along = -own[vector.argmax()] if found is None else own @ (found[1][-1] - found[1][0])
    return -1.0 if along < 0 else 1.0


def r_v_of(bands: tuple[str, ...], vector: np.ndarray, second: np.ndarray, x: np.ndarray) -> np.ndarray | None:
    """R_V of the shapes x (...); None where too few bands are known."""
    found = departures(bands, vector)
    if found is None:
        return None
    grid, d = found
    own = shape(bands, vector, second)
    shapes = np.linspace(-REACH, REACH, 201)
    square = (own @ own) * shapes[:, None] ** 2 - 2 * shapes[:, None] * (d @ own) + (d**2).sum(1)
    return np.interp(x, shapes, np.maximum.accumulate(grid[square.argmin(1)]))


def alignment(bands: tuple[str, ...], vector: np.ndarray, second: np.ndarray, law: str) -> float:
    """Cosine of the angle between R_2 and a law's d about R_V = 3.1, in the colours of the bands that are known; NaN:
    too few are."""
    found = departures(bands, vector, law)
    if found is None:
        return float("nan")
    grid, d = found
    along = d[np.abs(grid - MEAN - 0.5).argmin()] - d[np.abs(grid - MEAN + 0.5).argmin()]
    own = shape(bands, vector, second)
    return float(along @ own / np.maximum(np.linalg.norm(along) * np.linalg.norm(own), 1e-300))
