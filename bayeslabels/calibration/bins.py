"""Bins of a quantity that is known of every star, such as S/N."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy import units

from ..errors import bad_input, index_of


def quantity(by: Any, n: int) -> np.ndarray:
    """The quantity (n,), as plain numbers."""
    by = np.asarray(by.value if isinstance(by, units.Quantity) else by, float)
    if by.shape != (n,):
        raise bad_input(f"by of shape {by.shape}", f"({n},), one number per star")
    return by


def named(by: Any, by_name: str | None, values: np.ndarray, names: Sequence[str]) -> tuple[Any, str]:
    """The quantity, and what it is called: of the name of a label its values, a column of (n, M)."""
    if isinstance(by, str):
        return values[:, index_of(by, names, "label")], by_name or by
    return by, by_name or "by"


def binned(by: Any, bins: Any, n: int) -> tuple[np.ndarray, tuple[float, ...]]:
    """The bin of each of n stars, -1 where the quantity is not known, and the edges between bins.

    by: (n,), None: one bin. bins: how many, of equal numbers of stars, or the edges between them; the outer bins have
    no outer edge.
    """
    if by is None:
        return np.zeros(n, int), ()
    by = quantity(by, n)
    known = by[np.isfinite(by)]
    if np.ndim(bins) == 0:
        if isinstance(bins, bool) or int(bins) != bins or bins < 1 or not len(known):
            raise bad_input(
                f"bins={bins!r} of {len(known)} known values", "a number of bins, or the edges between them"
            )
        inner = np.unique(np.quantile(known, np.linspace(0, 1, int(bins) + 1)[1:-1]))
    else:
        inner = np.asarray(bins, float)
        if inner.ndim != 1 or not (np.diff(inner) > 0).all() or not np.isfinite(inner).all():
            raise bad_input(f"bins={bins!r}", "the edges between bins, increasing", fix="bins=(30, 100)")
    return bin_of(by, inner), tuple(inner.tolist())


def bin_of(by: np.ndarray, edges: Any) -> np.ndarray:
    """The bin of each star between inner edges, -1 where the quantity is not known."""
    return np.where(np.isfinite(by), np.searchsorted(edges, by, "right"), -1)
