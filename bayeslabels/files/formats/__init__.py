"""The file formats, one a file: a new one is a file with a subclass of `Format`, and a word in `FORMATS`."""

from __future__ import annotations

import os

from ...errors import bad_input
from .base import Format
from .fits import Fits
from .hdf5 import Hdf5
from .parquet import Parquet
from .text import Csv, Ecsv
from .votable import VOTable

FORMATS: tuple[Format, ...] = (Fits(), Parquet(), Hdf5(), VOTable(), Ecsv(), Csv())
SUFFIXES = [suffix for x in FORMATS for suffix in x.suffixes]


def find_format(path: str | os.PathLike[str]) -> Format | None:
    """The format that the end of a file's name stands for."""
    name = os.path.basename(os.fspath(path)).lower()
    return next((x for x in FORMATS if name.endswith(x.suffixes)), None)


def format_of(path: str | os.PathLike[str], what: str = "the file name", folder: bool = False) -> Format:
    """`find_format`; refuses names that end in none of them."""
    found = find_format(path)
    if found is None:
        one = "a folder, or a name that ends in one of" if folder else "one that ends in"
        raise bad_input(f"{what} {str(path)!r}", f"{one} {', '.join(SUFFIXES)}")
    return found
