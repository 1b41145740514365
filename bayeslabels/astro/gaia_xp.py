"""Gaia's BP and RP spectra as the archive has them: coefficients of basis functions, with errors and correlations.

    C = D R D,   D = diag(errors),   R the correlations

The archive keeps of R the n (n - 1) / 2 elements above its diagonal, column by column: R_12, R_13, R_23, R_14, R_24,
R_34, ... (Gaia DR3, table `xp_continuous_mean_spectrum`; GaiaXPy reads them in this order).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import bad_input
from .quantities import plain

ROUNDING = 1e-3
"""By how much a correlation may exceed 1, as of numbers that were kept in few digits."""


def covariance(error: ArrayLike, correlation: ArrayLike) -> np.ndarray:
    """Covariances (N, n, n), C = D R D, from errors (N, n) and correlations (N, n (n - 1) / 2) in the archive's order.

    Args:
        error: standard deviations, in any unit; NaN, infinite or masked: missing, and NaN on the diagonal.
        correlation: of each pair of coefficients, above the diagonal and column by column.

    Raises:
        BadInput: correlations of another number than the pairs, or beyond -1 and 1.

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro.gaia_xp import covariance
        >>> covariance(np.array([[1.0, 2.0, 3.0]]), np.array([[0.1, 0.2, 0.3]]))[0]
        array([[1. , 0.2, 0.6],
               [0.2, 4. , 1.8],
               [0.6, 1.8, 9. ]])
    """
    sd, pairs = np.atleast_2d(_rows(error, "error")), np.atleast_2d(_rows(correlation, "correlation"))
    n = sd.shape[1]
    if pairs.shape != (len(sd), n * (n - 1) // 2):
        raise bad_input(
            f"correlations of shape {pairs.shape} for errors of shape {sd.shape}", f"{(len(sd), n * (n - 1) // 2)}",
            "whole matrices, a diagonal that is kept, or errors that were cut off",
            "matrix[:, *np.tril_indices(n, -1)] of whole matrices",
        )  # fmt: skip
    sd = np.where(np.isfinite(sd), sd, np.nan)
    if (np.abs(pairs) > 1 + ROUNDING).any():
        raise bad_input("correlations beyond -1 and 1", "correlations", "covariances in their place")
    below = np.tril_indices(n, -1)  # the lower half by rows is the upper one by columns
    out = sd[:, :, None] ** 2 * np.eye(n)
    beside = pairs * sd[:, below[0]] * sd[:, below[1]]
    beside = np.where(np.isfinite(beside), beside, 0.0)
    out[:, below[0], below[1]] = out[:, below[1], below[0]] = beside
    return out


def xp_coefficients(
    table: Any, n: tuple[int, int] | None = None, scale: ArrayLike = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (N, n_BP + n_RP) of BP and RP together, and their covariances, which BP and RP do not share.

    For `Block(*xp_coefficients(table))`, a block of flux of `Cannon` or `Lux`.

    Args:
        table: with the archive's columns ``bp_coefficients``, ``bp_coefficient_errors`` and
            ``bp_coefficient_correlations``, and those of ``rp``; a mapping or an astropy table. A row that is masked or
            NaN is missing: a star may have one of the two.
        n: of each, the first so many coefficients; None: all. The last ones are noise for most stars
            (``bp_n_relevant_bases``).
        scale: what coefficients and errors are multiplied with, a number or (N,): stars of different brightness
            become alike by ``10 ** (0.4 * (phot_g_mean_mag - 15))``.

    Returns:
        Both in the archive's unit, electrons per second, times `scale`. The errors are those of the archive, which
        contain ``bp_standard_deviation``, the factor by which they were found too small.

    Raises:
        BadInput: columns that are not there, or of other lengths.

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro.gaia_xp import xp_coefficients
        >>> one = {"coefficients": np.ones((2, 3)), "coefficient_errors": 0.1 * np.ones((2, 3)),
        ...        "coefficient_correlations": np.zeros((2, 3))}
        >>> table = {f"{band}_{name}": x for band in ("bp", "rp") for name, x in one.items()}
        >>> value, covariance = xp_coefficients(table)
        >>> value.shape, covariance.shape
        ((2, 6), (2, 6, 6))
    """
    parts = []
    for band, size in zip(("bp", "rp"), n or (None, None), strict=True):
        names = [f"{band}_{x}" for x in ("coefficients", "coefficient_errors", "coefficient_correlations")]
        known = table.keys() if isinstance(table, Mapping) else table.colnames
        if absent := [name for name in names if name not in known]:
            raise bad_input(
                f"a table without {', '.join(absent)}", "the columns of xp_continuous_mean_spectrum",
                "sampled spectra, which have no coefficients", 'Gaia.load_data(..., retrieval_type="XP_CONTINUOUS")',
            )  # fmt: skip
        value, error, correlation = (_rows(table[name], name) for name in names)
        value = np.where(np.isfinite(error), value, np.nan)
        size = value.shape[1] if size is None else size
        if not 0 < size <= value.shape[1]:
            raise bad_input(f"n={n}", f"at most {value.shape[1]} coefficients of {band.upper()}")
        parts.append((value[:, :size], covariance(error, correlation)[:, :size, :size]))
    factor = np.broadcast_to(plain(scale, None, "scale"), (len(parts[0][0]),))
    value = np.concatenate([x for x, _ in parts], 1) * factor[:, None]
    both, start = np.zeros((*value.shape, value.shape[1])), 0
    for _, own in parts:
        at = slice(start, start := start + own.shape[1])
        both[:, at, at] = own * factor[:, None, None] ** 2
    return value, both


def _rows(column: Any, what: str) -> np.ndarray:
    """A column of vectors (N, n): an array, or rows that are arrays of one length, masked or None where missing."""
    if not isinstance(column, list) and getattr(column, "dtype", np.dtype(float)).kind != "O":
        return plain(column, None, what)
    rows = [None if x is None or x is np.ma.masked or np.ndim(x) == 0 else plain(x, None, what) for x in column]
    lengths = {len(x) for x in rows if x is not None}
    if len(lengths) != 1:
        raise bad_input(f"{what} of lengths {sorted(lengths)}", "vectors of one length")
    blank = np.full(lengths.pop(), np.nan)
    return np.stack([blank if x is None else x for x in rows])
