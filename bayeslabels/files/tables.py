"""Tables from and to files, as a whole; written in one piece or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from ..data.columns import numbers
from ..errors import bad_input
from .formats import find_format, format_of
from .formats.base import plain_table
from .formats.fits import TABLES, first_table, opened
from .streams import open_stream
from .whole import in_one_piece


def read_table(path: str | os.PathLike[str], hdu: int | str | None = None) -> Table:
    """An astropy table with units, of a file or folder as `open_stream` takes it; lists become vector columns.

    Args:
        hdu: of a FITS file, number or name; of an HDF5 file, the name of a group; None: the first table that has rows.

    Example:
        >>> import pathlib, tempfile
        >>> import bayeslabels as bl
        >>> stars = bl.simulate.simulate_photometry(5, seed=1)[0]
        >>> path = bl.tables.write_table(stars.to_table(), pathlib.Path(tempfile.mkdtemp()) / "stars.parquet")
        >>> len(bl.tables.read_table(path))
        5
    """
    return open_stream(path, hdu).whole()


def write_table(table: Table, path: str | os.PathLike[str]) -> Path:
    """Write an astropy table with its units; an existing file is replaced.

    Example:
        >>> import pathlib, tempfile
        >>> import bayeslabels as bl
        >>> stars = bl.simulate.simulate_photometry(5, seed=1)[0]
        >>> bl.tables.write_table(stars.to_table(), pathlib.Path(tempfile.mkdtemp()) / "stars.ecsv").name
        'stars.ecsv'
    """
    kind, path = format_of(path), Path(path)
    plain = plain_table(table)
    texts = [np.ma.getdata(x).ravel().tolist() for x in plain.itercols() if x.dtype.kind == "U"]
    vectors = [name for name in plain.colnames if plain[name].ndim > 1]
    kind.refuse(path, plain.colnames, [text for column in texts for text in column], vectors)
    with in_one_piece(path) as part:
        kind.write(plain, part)
    return path


def read_wavelength(path: str | os.PathLike[str], where: str) -> np.ndarray:
    """Wavelengths (L,), in the unit of the file, of a table that lies beside the spectra.

    Args:
        path: of the table of spectra.
        where: ``HDU`` or ``HDU:COLUMN`` of the same FITS file (an image, or a table of one row per pixel), or
            ``FILE:COLUMN``, another file.
    """
    first, _, column = where.rpartition(":") if ":" in where else (where, "", "")
    own = find_format(path)
    if find_format(first) is not None:
        table = read_table(first)
    elif own is None or not own.hdus:
        raise bad_input(f"wavelength {where!r} for {path}", "FILE:COLUMN, as only FITS files have HDUs")
    else:
        hdu = int(first) if first.isdecimal() else first
        with opened(Path(path)) as hdus:
            found = first_table(hdus, hdu, Path(path))
            image = None if isinstance(found, TABLES) else found.data
            if image is not None:
                return _grid(image, where)
            if found.data is None or not len(found.columns):
                raise bad_input(f"HDU {first} of {path}, which is empty", "wavelengths")
        table = read_table(path, hdu)
    if not column and len(table.colnames) > 1:
        raise bad_input(f"wavelength {where!r}", f"{where}:COLUMN, with one of {', '.join(table.colnames)}")
    column = column or table.colnames[0]
    if column not in table.colnames:
        raise bad_input(f"wavelength {where!r}", f"a column among {', '.join(table.colnames)}")
    return _grid(table[column], where)


def _grid(values: Any, where: str) -> np.ndarray:
    grid = numbers(values, f"wavelength {where!r}")[0].astype(float)
    if grid.ndim == 2 and (len(grid) == 1 or (grid == grid[0]).all()):
        grid = grid[0]
    if grid.ndim != 1 or not np.isfinite(grid).all():
        raise bad_input(f"wavelength {where!r} of shape {grid.shape}", "one finite number per pixel")
    return grid
