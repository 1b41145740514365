"""Tables larger than memory, read in order, a batch of rows at a time: folders of Parquet files, and every format."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import bad_input
from ..names import TABLES
from .formats import format_of
from .formats.base import Stream
from .formats.parquet import ParquetStream


def open_stream(path: str | os.PathLike[str], hdu: int | str | None = None) -> Stream:
    """The table in a file of any format, or in a folder of Parquet files, unread as yet.

    Args:
        hdu: of a FITS file, number or name; of an HDF5 file, the name of a group; None: the first table that has rows.

    Example:
        >>> import pathlib, tempfile
        >>> import bayeslabels as bl
        >>> stars = bl.simulate.simulate_photometry(5, seed=1)[0]
        >>> path = bl.tables.write_table(stars.to_table(), pathlib.Path(tempfile.mkdtemp()) / "stars.fits")
        >>> stream = bl.streams.open_stream(path)
    """
    if not os.fspath(path):
        raise bad_input("an empty name of a file", TABLES)
    path = Path(path)
    if not path.exists():
        raise bad_input(f"no file {path}", TABLES)
    if path.is_dir():
        return ParquetStream(path)
    return format_of(path, folder=True).open(path, hdu)
