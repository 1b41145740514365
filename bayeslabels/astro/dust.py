"""Reddening along lines of sight out of maps of the dust, as arrays for the block `sightline`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import bad_input
from .quantities import plain

MODULI = np.arange(4.0, 16.01, 0.5)
"""Distance moduli of a sightline by default: 63 pc to 16 kpc, in steps as those of maps."""


class Sightlines(NamedTuple):
    """reddening and error (N, K), mag, at the distance moduli (K,)."""

    reddening: np.ndarray
    error: np.ndarray
    moduli: np.ndarray


def reddening_along(
    query: Callable[..., Any] | ArrayLike,
    longitude: ArrayLike | None = None,
    latitude: ArrayLike | None = None,
    *,
    moduli: ArrayLike = MODULI,
    error: Callable[..., Any] | ArrayLike | None = None,
    floor: float = 0.02,
    share: float = 0.1,
) -> Sightlines:
    """Reddening at some distance moduli along the lines of sight of stars, with errors: `priors.AlongSightline` takes
    it as a block.

    Args:
        query: (N, K) numbers, mag; or a function of l, b [deg] and distance [kpc], arrays of shape (N, K), that gives
            them, NaN where the map does not reach. A map of `dustmaps`, with `astropy.coordinates.SkyCoord` and
            `astropy.units`: ``lambda l, b, d: bayestar(SkyCoord(l * u.deg, b * u.deg, d * u.kpc, frame="galactic"),
            mode="mean")``; one without distances, such as SFD, ignores d. Multiply by the map's unit of E(B - V).
        longitude, latitude: l and b of the stars (N,), deg, where `query` is a function.
        error: (N, K) numbers or such a function; None: `share` of the reddening.
        floor: added to the errors in quadrature, mag.

    Returns:
        A line of sight that is not wholly known stays as it is at the nearest distance where it is; one that is nowhere
        known is NaN. Reddening never falls with distance.

    Example:
        >>> import numpy as np
        >>> import bayeslabels as bl
        >>> from bayeslabels.astro.dust import reddening_along
        >>> lines = reddening_along(lambda l, b, d: 0.3 * (1 - np.exp(-d)), [10.0, 20.0], [2.0, -3.0])
        >>> lines.reddening.shape, bool((np.diff(lines.reddening) >= 0).all())
        ((2, 25), True)
        >>> block = bl.Block(lines.reddening, lines.error, unit="mag", coords={"modulus": lines.moduli})
    """
    mu = np.asarray(plain(moduli, "mag", "moduli"), float)
    if mu.ndim != 1 or len(mu) < 2 or not (np.diff(mu) > 0).all():
        raise bad_input(f"moduli of shape {mu.shape}", "at least 2 growing distance moduli")
    e = _asked(query, longitude, latitude, mu, "query")
    known = np.isfinite(e)
    sd = share * np.where(known, e, np.nan) if error is None else _asked(error, longitude, latitude, mu, "error")
    if sd.shape != e.shape:
        raise bad_input(f"an error of shape {sd.shape}", f"{e.shape}, as the reddening")
    if (e[known] < 0).any() or (sd[np.isfinite(sd)] < 0).any():
        raise bad_input("negative reddenings or errors of a map", "numbers of 0 or more, NaN where it does not reach")
    e, sd = _held(e), _held(sd)
    return Sightlines(np.maximum.accumulate(e, 1), np.hypot(sd, floor), mu)


def _asked(query: Any, longitude: Any, latitude: Any, mu: np.ndarray, what: str) -> np.ndarray:
    if not callable(query):
        values = np.atleast_2d(plain(query, "mag", what))
        if values.shape[-1] != len(mu):
            raise bad_input(f"{what} of shape {values.shape}", f"(N, {len(mu)}), a column per modulus")
        return values
    if longitude is None or latitude is None:
        raise bad_input(f"{what} as a function without places", "longitude and latitude of the stars, deg")
    places = (np.atleast_1d(plain(x, "deg", name)) for x, name in ((longitude, "longitude"), (latitude, "latitude")))
    grid = np.broadcast_arrays(*(x[:, None] for x in places), 10 ** (0.2 * (mu - 10)))
    values = np.asarray(query(*grid), float)
    if values.shape != grid[0].shape:
        raise bad_input(f"a {what} that gives shape {values.shape}", f"{grid[0].shape}, that of its arguments")
    return values


def _held(values: np.ndarray) -> np.ndarray:
    """Rows whose missing ends stay what they are at the nearest place that is known."""
    k = np.arange(values.shape[1])
    out = values.copy()
    for row in out:
        known = np.isfinite(row)
        if known.any() and not known.all():
            row[:] = np.interp(k, k[known], row[known])
    return out
