"""The table of a result: a row for each star, printed with as many digits as the errors deserve, written with all."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from astropy.table import QTable

from ..errors import bad_input
from ..files.formats import find_format
from ..files.formats.fits import Fits
from ..files.tables import write_table

FEW = 16.0
"""Percentile of a column's sizes whose digits decide how many the column shows: most stars have two at least."""


class StarTable(QTable):
    """An astropy QTable. It prints values to two digits of their errors. Files receive all digits.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> table = bl.infer(posterior, test, progress=False).table()
        >>> table["FE_H"].info.format == table["FE_H_error"].info.format
        True
        >>> import pathlib, tempfile
        >>> table.write(pathlib.Path(tempfile.mkdtemp()) / "labels.fits")
    """

    def write(self, *args: Any, **options: Any) -> Any:
        """As astropy's `Table.write`. FITS files, which have no dex and no dictionaries, are written by `write_table`:
        with the units as they are and the meaning of the flags as comments."""
        path = args[0] if len(args) == 1 and set(options) <= {"overwrite"} else None
        if isinstance(path, str | os.PathLike) and isinstance(find_format(path), Fits):
            if os.path.exists(path) and not options.get("overwrite"):
                raise OSError(f"the file {os.fspath(path)} exists: write(..., overwrite=True) replaces it")
            write_table(self, path)
            return None
        bare = QTable({name: self[name][:] for name in self.colnames}, meta=self.meta)
        for column in bare.itercols():
            column.info.format = None
        return bare.write(*args, **options)


def decimals(sizes: Any, digits: int = 2) -> str | None:
    """A format of as many decimals as show `digits` digits of most of these sizes; None: of no size."""
    sizes = np.abs(np.asarray(sizes, float))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not len(sizes):
        return None
    return f".{max(0, digits - 1 - int(np.floor(np.log10(np.percentile(sizes, FEW)))))}f"


def correlations(covariance: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """`<a>_<b>_correlation` (N,) of every two labels, from their covariances (N, M, M)."""
    sd = np.sqrt(np.einsum("nmm->nm", covariance))
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = covariance / (sd[:, :, None] * sd[:, None, :])
    m = len(names)
    return {f"{names[i]}_{names[j]}_correlation": matrix[:, i, j] for i in range(m) for j in range(i + 1, m)}


def reduced_chi2(stars: Any) -> np.ndarray:
    """chi2 per pixel or band (N,); NaN of stars without any."""
    count = next((stars[name].values for name in ("n_pixel", "n_band") if name in stars), None)
    if count is None or "chi2" not in stars:
        raise bad_input("reduced_chi2 of a result without chi2", "one of spectra or magnitudes")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(count > 0, stars["chi2"].values / count, np.nan))
