"""FITS tables, compressed by gzip, too."""

from __future__ import annotations

import contextlib
import gzip
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.table import QTable, Table
from astropy.utils.exceptions import AstropyUserWarning

from ...data.columns import META, column, fits_nulls, unit_in
from ...errors import bad_input
from .base import Format, Stream, plain_table, vectors, whole_file
from .parquet import lengths_of_texts

TABLES = (fits.BinTableHDU, fits.TableHDU)
STRUCTURE = re.compile(
    r"XTENSION|BITPIX|[PG]COUNT|NAXIS\d*|TFIELDS|THEAP|EXTNAME|CHECKSUM|DATASUM|HISTORY|"
    r"T(TYPE|FORM|UNIT|DISP|NULL|SCAL|ZERO|DIM|BCOL)\d+|"
)
"""Header keywords that are no meta of the table."""


class Fits(Format):
    name = "FITS"
    suffixes = (".fits", ".fit", ".fits.gz", ".fit.gz", ".fz")
    ascii_only = True
    hdus = True

    def open(self, path: Path, hdu: int | str | None) -> FitsStream:
        return FitsStream(path, hdu)

    def write(self, table: Table, path: Path) -> None:
        """Units stay as they are, also dex, which the FITS standard lacks; of the meta there is what a header holds."""
        with warnings.catch_warnings():  # that a long text goes over several cards
            warnings.simplefilter("ignore", fits.verify.VerifyWarning)
            _hdu(table).writeto(path)

    def join(self, parts: list[Path], whole: Path, n_row: int) -> None:
        """The header of the first part, with the rows of all, each written again as a file of its own."""
        opened: Any = gzip.open if whole.suffix == ".gz" else open
        one = parts[0].with_name("_one.fits")
        lengths = lengths_of_texts(parts)
        try:
            with opened(whole, "wb") as out:
                for part in parts:
                    table = plain_table(QTable.read(part, format="parquet"))
                    for name, length in lengths.items():
                        table[name] = np.asarray(table[name]).astype(f"U{length}")
                    self.write(table, one)
                    with fits.open(one) as hdus:
                        header, begin, start = hdus[1].header.copy(), hdus[1]._header_offset, hdus[1]._data_offset
                    with open(one, "rb") as rows:
                        if out.tell() == 0:
                            n_byte = header["NAXIS1"] * header["NAXIS2"]
                            header["NAXIS2"] = n_row
                            out.write(rows.read(begin))
                            out.write(header.tostring().encode("ascii"))
                        else:
                            n_byte = header["NAXIS1"] * header["NAXIS2"]
                        rows.seek(start)
                        out.write(rows.read(n_byte))
                    one.unlink()
                out.write(bytes(-out.tell() % 2880))
        finally:
            one.unlink(missing_ok=True)


class FitsStream(Stream):
    """A binary or text table, memory-mapped."""

    def __init__(self, path: Path, hdu: int | str | None):
        self.paths, self.hdu = (path,), hdu
        with opened(path) as hdus:
            table = first_table(hdus, hdu, path)
            if not isinstance(table, TABLES):
                raise bad_input(f"HDU {hdu} of {path}, which is no table", f"one of {shown(hdus)}")
            header = table.header
            if header.get("ZTABLE"):
                raise bad_input(f"{path}, whose table is compressed", "a table as it is", fix=f"funpack {path}")
            self.number, self.n_row = hdus.index(table), int(header["NAXIS2"])
            self.names = tuple(table.columns.names)
            words = [x for x in table.columns.formats if "L" in x]
            self.plain = not words and all(re.fullmatch(r"\w+", name, re.ASCII) for name in self.names)
            needed = table._data_offset + int(header["NAXIS1"]) * self.n_row
            self.meta = {x: header[x] for x in header if x != "COMMENT" and not STRUCTURE.fullmatch(x)}
            if "COMMENT" in header:
                self.meta["comments"] = [str(x) for x in header["COMMENT"]]
        if path.suffix.lower() != ".gz" and path.stat().st_size < needed:
            raise bad_input(f"{path} of {path.stat().st_size} bytes", f"at least {needed}", "it is cut short")

    def batches(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        with open(self.paths[0], "rb") as file, contextlib.ExitStack() as stack:
            with self._quiet():
                table = stack.enter_context(fits.open(file, memmap=True))[self.number]
                data = table.data
            for first in range(start, self.n_row, size):
                with self._quiet():
                    part, out = data[first : first + size], Table()
                for name in columns:
                    unit = unit_in(table.columns[name].unit, "fits")
                    out[name] = column(_values(part, name), fits_nulls(part, name), unit)
                yield out

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """No word of astropy on names such as [Fe/H], or on words of truth that are missing, which are masked."""
        if self.plain:
            yield
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyUserWarning)
            yield


def _values(rows: Any, name: str) -> np.ndarray:
    """A column as it is in memory; texts without the blanks at their ends, which FITS does not keep."""
    try:
        values = rows[name]
    except UnicodeDecodeError:  # texts that are not ASCII, as bytes
        return np.array(rows.view(np.ndarray)[name])
    if str(rows.columns[name].format).lstrip("0123456789")[:1] in "PQ":
        null = rows.columns[name].null
        whole = null not in (None, "") and len(values) and values[0].dtype.kind in "iu"
        return vectors([np.where(x == int(null), np.nan, x) for x in values] if whole else list(values), name)
    values = np.array(values)
    if values.dtype.kind in "SU":
        return np.strings.rstrip(values)
    return values.astype(values.dtype.newbyteorder("="))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The HDUs of a FITS file, memory-mapped, once their headers are seen to lead from one to the next.

    Of a header with a negative size astropy would come to the same one for ever.
    """
    with whole_file(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a file cut short, which is refused
        with open(path, "rb") as file, fits.open(file, memmap=True) as hdus:
            number = 0
            while True:
                try:
                    header = hdus[number].header
                except IndexError:
                    break
                sizes = [f"NAXIS{i + 1}" for i in range(int(header.get("NAXIS", 0)))] + ["PCOUNT", "GCOUNT"]
                if odd := [f"{key} = {header[key]}" for key in sizes if key in header and int(header[key]) < 0]:
                    got = f"{path} with {', '.join(odd)} in HDU {number}"
                    raise bad_input(got, "sizes of 0 or more", "a damaged file")
                number += 1
            yield hdus


def first_table(hdus: Any, hdu: int | str | None, path: Path) -> Any:
    """The HDU of that number or name; None: the first table that has rows."""
    if hdu is None:
        found = [x for x in hdus if isinstance(x, TABLES)]
        if not found:
            raise bad_input(f"{path} without a table", "a FITS table in one of its HDUs")
        return next((x for x in found if x.header["NAXIS2"]), found[0])  # some surveys begin with an empty one
    try:
        return hdus[hdu]
    except (KeyError, IndexError):
        raise bad_input(f"HDU {hdu} of {path}", f"one of {shown(hdus)}") from None


def shown(hdus: Any) -> str:
    return ", ".join(f"{i} ({x.name})" if x.name else str(i) for i, x in enumerate(hdus))


def _hdu(table: Table) -> fits.BinTableHDU:
    bare = Table({name: _with_null(table[name]) for name in table.colnames})
    hdu = fits.table_to_hdu(bare)
    for name in table.colnames:
        unit = table[name].unit
        if unit is not None:
            try:
                hdu.columns[name].unit = unit.to_string("fits")
            except ValueError:
                hdu.columns[name].unit = unit.to_string()
    for key, value in table.meta.items():
        if key == META:
            hdu.header[key] = value
        elif isinstance(value, str | int | float):
            text = " ".join(f"{key} = {value}".split())
            hdu.header["COMMENT"] = text.encode("ascii", "replace").decode()
        elif isinstance(value, dict):
            for name, bit in value.items():
                hdu.header["COMMENT"] = f"{key}: {bit} = {name}"
    return hdu


def _with_null(values: Any) -> Any:
    """A column without its unit; a number that it does not hold stands for what is masked."""
    if not isinstance(values, np.ma.MaskedArray):
        return np.asarray(values)
    data, mask = np.ma.getdata(values), np.ma.getmaskarray(values)
    out = np.ma.MaskedArray(np.array(data), mask)
    if data.dtype.kind in "iu":
        ends = np.iinfo(data.dtype)
        free = (x for x in (ends.min, *range(ends.max, ends.max - len(data) - 2, -1)) if x not in data[~mask])
        out.fill_value = next(free)
    return out
